//! What the tree of a guest does not have and some hosts can hold: bytes of small streams, security descriptors; and what there is
//! of reparse points.

use rayon::prelude::*;

use crate::extent::{Encoding, Map, Stream, Volume, What};
use crate::fs::host::{Content, Rules};
use crate::fs::{Form, ObjectId, REPARSE, StreamId, Tree};
use crate::plan::GuestVolume;
use crate::plan::tree::{Draft, Shape};

/// Adds to the drafts what the rules ask for. What can't be read is left as it is: the copy meets the same error.
pub fn add(guests: &[GuestVolume], rules: Rules, drafts: &mut [Draft]) {
    if rules.inline == 0 && !rules.security {
        return;
    }
    drafts.par_iter_mut().for_each(|draft| {
        let Some(guest) = guests.get(draft.row.volume) else { return };
        let Some(fs) = &guest.fs else { return };
        let small = match &draft.shape {
            Ok(Shape::File(size, Content::Copied)) if *size <= rules.inline => draft.row.stream,
            _ => None,
        };
        let named = draft.row.stream.is_some_and(|s| guest.tree.stream_name(s).is_some());
        let secured = rules.security && !named && matches!(draft.shape, Ok(Shape::File(..) | Shape::Dir));
        let object = match (draft.row.entry, draft.row.stream) {
            (Some(entry), _) => guest.tree.entry(entry).object,
            (None, Some(stream)) => guest.tree.stream(stream).object,
            (None, None) => return,
        };
        if small.is_none() && !secured {
            return;
        }
        let (security, bytes) = fs.details(&guest.tree, object, small);
        draft.security = security.filter(|_| secured && draft.row.entry.is_some());
        if let (Ok(Shape::File(size, content)), Some(bytes)) = (&mut draft.shape, bytes)
            && small.is_some()
            && bytes.len() as u64 == *size
        {
            *content = Content::Bytes(bytes);
        }
    });
}

/// The reparse buffer of an object.
pub fn buffer(tree: &Tree, object: ObjectId) -> Option<&[u8]> {
    tree.xattrs(object).iter().find(|(name, _)| name == REPARSE).map(|(_, value)| value.as_slice())
}

/// Whether this is the data of a file that is compressed as a whole (Compact OS): its bytes are in a stream beside it, which goes with
/// it, and its own extents are holes.
pub fn packed_elsewhere(tree: &Tree, stream: StreamId) -> bool {
    let info = tree.stream(stream);
    info.form == Form::Wof && tree.stream_name(stream).is_none() && buffer(tree, info.object).is_some()
}

/// Unreadable stretches as holes.
pub fn as_holes(map: &mut Map<Stream, Volume>) {
    let all = map.extents().iter().map(|e| match e.what {
        What::Encoded(Encoding::Unreadable) => (e.len, What::Zero),
        what => (e.len, what),
    });
    *map = all.collect();
}
