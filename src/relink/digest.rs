//! The digest of a walk: what `undo` compares the image with that it would bring back.

use crate::error::Result;
use crate::extent::{ReadAt, Volume, What};
use crate::fs::{Form, Tree};
use crate::stack::Level;
use crate::txn::{Fresh, Staging};

/// Bytes that are gathered before they are hashed.
const GATHERED: usize = 128 << 10;

/// BLAKE3 over the volumes of an image: their names and sizes, and of each the paths, kinds, streams, sizes and
/// extents. Times are left out: they depend on the time zone that FAT is read in.
///
/// # Errors
/// Where a file system that was recognised can't be walked.
pub fn of_image(level: &Level) -> Result<[u8; 32]> {
    let mut hash = Digest::default();
    for (slot, guest) in level.table.slots.iter().zip(&level.guests) {
        hash.text(slot.name.as_bytes());
        hash.number(guest.volume().len());
        hash.number(guest.fs.is_some().into());
        if guest.fs.is_some() {
            hash.tree(&*guest.tree()?);
        }
    }
    Ok(hash.end())
}

/// The same of one walk.
pub fn of_tree(tree: &Tree) -> [u8; 32] {
    let mut hash = Digest::default();
    hash.tree(tree);
    hash.end()
}

/// The same of what `volume` has where `staging` writes to blocks in use.
///
/// # Errors
/// Where that can't be read.
pub fn of_replaced(volume: &dyn ReadAt<Volume>, staging: &Staging) -> Result<[u8; 32]> {
    let mut hash = Digest::default();
    let switch = (staging.quarantine.at, staging.quarantine.closed.len());
    let whole = |write: &Fresh| (write.at, write.bytes.len());
    let writes = staging.groups.iter().flat_map(|group| &group.writes);
    let mut buf = vec![0; GATHERED];
    for (at, len) in writes.chain(&staging.quarantine.also).map(whole).chain([switch]) {
        let mut at = at;
        let mut left = len;
        while left > 0 {
            let part = left.min(GATHERED);
            let buf = buf.get_mut(..part).unwrap_or_default();
            volume.read_at(at, buf)?;
            hash.bytes(buf);
            at = at.saturating_add(part as u64);
            left = left.saturating_sub(part);
        }
    }
    Ok(hash.end())
}

#[derive(Default)]
struct Digest {
    hasher: blake3::Hasher,
    /// What it is not given yet: it takes much at a time far faster than a little.
    gathered: Vec<u8>,
}

impl Digest {
    fn bytes(&mut self, bytes: &[u8]) {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= GATHERED {
            self.hasher.update(&self.gathered);
            self.gathered.clear();
        }
    }
    fn end(mut self) -> [u8; 32] {
        self.hasher.update(&self.gathered).finalize().into()
    }
    fn number(&mut self, n: u64) {
        self.bytes(&n.to_le_bytes());
    }
    /// With its length before it, so that no two lists of texts are the same bytes.
    fn text(&mut self, text: &[u8]) {
        self.number(text.len() as u64);
        self.bytes(text);
    }
    fn tree(&mut self, tree: &Tree) {
        self.streams(tree, tree.root());
        for (entry, depth) in tree.order() {
            let object = tree.entry(entry).object;
            self.number(depth.into());
            self.text(tree.name(entry));
            self.text(tree.object(object).kind.word().as_bytes());
            self.number(tree.object(object).number);
            self.streams(tree, object);
        }
        self.number(tree.problems().len() as u64);
    }
    fn streams(&mut self, tree: &Tree, object: crate::fs::ObjectId) {
        self.text(tree.target(object).unwrap_or_default());
        for stream in tree.streams(object) {
            let info = tree.stream(stream);
            self.text(tree.stream_name(stream).unwrap_or_default());
            self.number(info.size);
            self.number(info.valid);
            self.number(match info.form {
                Form::Plain => 0,
                Form::Inline => 1,
                Form::Compressed(unit) => u64::from(unit).saturating_add(2),
                Form::Encrypted => u64::MAX,
                Form::Wof => 2,
            });
            for e in tree.extents(stream) {
                self.number(e.len);
                self.number(match e.what {
                    What::Stored(p) => p.offset.get(),
                    What::Zero => u64::MAX,
                    What::Encoded(_) => u64::MAX.saturating_sub(1),
                });
            }
        }
    }
}
