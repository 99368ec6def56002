//! From an opened address to a plan, with everything that speaks against it.

use std::collections::BTreeSet;
use std::sync::Arc;

use rayon::prelude::*;

use crate::container::Role;
use crate::error::{Error, Result};
use crate::extent::{Offset, What};
use crate::fs::host::{HostFile, HostImage};
use crate::fs::{FileSystem, StreamId};
use crate::plan::{self, GuestVolume, Plan, Reason, Verdict};
use crate::relink::part::{entry_of, part_of};
use crate::relink::rest::{Rest, name_of};
use crate::relink::{JobParts, Options, Prepared, digest};
use crate::source::guard;
use crate::stack::Stack;
use crate::txn;

/// Bytes decoded at a time to see whether they can be.
const CHUNK: usize = 1 << 20;

/// Plans the relink of what `stack` names. Refusals are gathered, not returned as an error: `plan` shows them,
/// `relink` ends with them.
///
/// # Errors
/// [`Error::Usage`] where the image does not lie on a host (`HOST//PATH`), and what reading host and guests meets.
pub fn prepare(stack: &Stack, options: &Options) -> Result<Prepared> {
    let level = stack.last()?;
    let (Some(within), Some((host_level, host_slot))) = (&level.within, stack.host()) else {
        return Err(Error::Usage(format!(
            "{}: expected an image that lies on a host, as HOST//PATH: a partition's device or image, and the path of \
             the image on it",
            stack.address
        )));
    };
    let above = stack.levels.get(host_level).ok_or_else(|| Error::NotFound("no host".into()))?;
    let host_guest = above.guest(host_slot)?;
    let fs = host_guest.fs()?;
    let facts = fs.facts();
    let host = fs.as_host().ok_or_else(|| {
        Error::Unsupported(format!("the host is {}: there is no writer for that file system", facts.kind))
    })?;
    let host_tree = host_guest.tree()?;
    let entry = entry_of(&host_tree, within.object, None)
        .ok_or_else(|| Error::NotFound("the image has no name on its host".into()))?;
    if let Some(why) = &level.disk.only_read {
        return Err(Error::Refused(why.clone()));
    }
    if host_tree.stream_name(within.stream).is_some() {
        return Err(Error::Unsupported("the image is a named stream of a file: only a file can be relinked".into()));
    }
    let image_path = host_tree.path(entry);
    let mut rest = Rest::new(options);
    let mut image = HostImage::of(HostFile { entry, object: within.object, map: within.map.clone() });
    let mut stay = Vec::new();
    for (i, part) in level.disk.parts.iter().enumerate() {
        let goes = part.role == Role::Own || options.remove_chain;
        match level.beside.get(i).and_then(Option::as_ref) {
            Some(beside) if goes && !image.has(beside.object) => {
                let entry = entry_of(&host_tree, beside.object, None)
                    .filter(|_| host_tree.stream_name(beside.stream).is_none())
                    .ok_or_else(|| Error::Unsupported(format!("{}: only a file can be removed", part.name)))?;
                image.others.push(HostFile { entry, object: beside.object, map: beside.map.clone() });
            }
            Some(beside) if image.has(beside.object) => {}
            _ => stay.push(part.name.clone()),
        }
    }
    rest.snapshots(&level.disk);
    let mut guests = Vec::new();
    let mut systems: Vec<Arc<dyn FileSystem>> = Vec::new();
    let mut wholes = Vec::new();
    for guest in &level.guests {
        match part_of(stack, level, guest)? {
            Some((folder, part)) => {
                let tree = guest.tree()?;
                let map = stack.volume_in_host(guest.slot)?;
                let fs = Some(Arc::clone(guest.fs()?));
                guests.push(GuestVolume { folder, part, tree, layer: guest.volume().id(), map, fs });
                systems.push(Arc::clone(guest.fs()?));
                wholes.push(guest);
            }
            None => rest.left_out(level, guest)?,
        }
    }
    if guests.is_empty() {
        let whole = level.guests.first().ok_or_else(|| Error::Unsupported("the image has no volume".into()))?;
        whole.fs()?;
    }
    let mut with = plan::Options { zero_slack: options.zero_slack, reuse: options.reuse, unreadable: BTreeSet::new() };
    let (mut plan, mut staging) = plan::build(&guests, host, &image, &options.into, &with)?;
    with.unreadable = unreadable(&plan, &guests, &systems, options);
    if !with.unreadable.is_empty() {
        (plan, staging) = plan::build(&guests, host, &image, &options.into, &with)?;
    }
    for (volume, (guest, whole)) in guests.iter().zip(wholes).enumerate() {
        let name = name_of(level, whole.slot);
        rest.of_guest(name, guest, &plan, volume);
        rest.unallocated(name, whole);
    }
    rest.outside(level)?;
    let Rest { lost, mut refusals, .. } = rest;

    let mut unfit = host.refusals(&image)?;
    let mut new_state = None;
    let space = &plan.totals.space;
    if unfit.is_empty() && space.fits() {
        // What no sum of the plan tells: a directory that can't grow, names that are the same to the host.
        match staging {
            Err(Error::Refused(why)) => unfit.push(why),
            other => new_state = Some(Arc::new(other?)),
        }
    }
    refusals.append(&mut unfit);
    if !space.fits() {
        refusals.push(format!(
            "not enough free space on the host: {} bytes needed, {} free{}",
            space.needed(),
            space.free(),
            match (space.reused, options.reuse) {
                (Some(reused), _) => format!(
                    "; with --reuse it would fit, {} bytes of it in units of the image that nobody else needs (undo is then off)",
                    reused.units.saturating_mul(space.unit)
                ),
                (None, true) => format!(
                    ", and units of the image that no file is linked to have {} bytes",
                    space.image_units.saturating_mul(space.unit)
                ),
                (None, false) => "; --reuse would not help".into(),
            }
        ));
    }
    let volume = Arc::clone(host_guest.volume());
    let new_state = match new_state {
        Some(staging) => Some((digest::of_replaced(&*volume, &staging)?, staging)),
        None => None,
    };
    let ground = stack.address.source.clone();
    // What lies in several files, or is encoded, is not in one piece.
    let on_ground = stack.volume_on_ground(host_level, host_slot).unwrap_or_default();
    let source = stack.levels.first().map(|l| l.device.id());
    let volume_at = match on_ground.extents() {
        [run] => match run.what {
            What::Stored(p) if Some(p.layer) == source => Some(p.offset.get()),
            _ => None,
        },
        _ => None,
    };
    match volume_at {
        None => refusals.push("the host volume does not lie in one piece in its file or device".into()),
        Some(at) => match guard::host(&ground, at, volume.len()) {
            Ok(reasons) => refusals.extend(reasons.iter().map(|reason| format!("{}: {reason}", ground.display()))),
            Err(e) => refusals.push(format!("it can't be told whether the host is in use: {e}")),
        },
    }
    let volume_at = volume_at.unwrap_or_default();
    // An undo opens the image again, the same snapshot of it.
    let snapshot = level.disk.snapshot.and_then(|n| level.disk.snapshots.get(n));
    let named = match snapshot {
        Some(snapshot) => [image_path.as_slice(), b"@", snapshot.id.as_bytes()].concat(),
        None => image_path.clone(),
    };
    let removed = image.others.iter().map(|file| host_tree.path(file.entry)).collect();
    let about = txn::About {
        host: std::path::absolute(&ground).map_err(|e| Error::io(format!("finding {}", ground.display()), e))?,
        volume_at,
        volume_len: volume.len(),
        kind: facts.kind.into(),
        serial: facts.serial,
        address: stack.address.to_string(),
        image: named,
        digest: digest::of_image(level)?,
    };
    Ok(Prepared {
        plan,
        guests,
        host: (facts.kind, name_of(above, host_slot).to_owned()),
        image: image_path,
        removed,
        stay,
        lost,
        refusals,
        job: JobParts {
            host: Arc::clone(fs),
            volume,
            tree: host_tree,
            image,
            guests: systems,
            ground,
            about,
            new_state,
        },
    })
}

/// Streams that are to be copied and can't be: those that the file system can't open, and, before a commit, those that can't be
/// decoded. What is stored as it is may still meet a bad sector while it is copied, before anything in use is touched: it is read
/// first only where what can't be read may be left out.
fn unreadable(
    plan: &Plan,
    guests: &[GuestVolume],
    systems: &[Arc<dyn FileSystem>],
    options: &Options,
) -> BTreeSet<(usize, StreamId)> {
    let copied: BTreeSet<(usize, StreamId, bool)> = plan
        .rows
        .iter()
        .filter(|row| row.verdict == Verdict::Copy && !plan.has_bytes(row))
        .filter_map(|row| {
            let encoded = matches!(row.reason, Some(Reason::FsCompressed | Reason::ContainerCompressed))
                || options.discard_unreadable;
            Some((row.volume, row.stream?, encoded))
        })
        .collect();
    copied
        .into_par_iter()
        .filter(|(volume, stream, encoded)| {
            let Some((guest, fs)) = guests.get(*volume).zip(systems.get(*volume)) else { return false };
            let readable = || -> Result<()> {
                let layer = fs.open(&guest.tree, *stream)?;
                let mut buf = vec![0; if options.decode_first && *encoded { CHUNK } else { 0 }];
                let mut at = 0u64;
                while !buf.is_empty() && at < layer.len() {
                    let part = layer.len().saturating_sub(at).min(CHUNK as u64);
                    layer.read_at(Offset::new(at), buf.get_mut(..part as usize).unwrap_or_default())?;
                    at = at.saturating_add(part);
                }
                Ok(())
            };
            readable().is_err()
        })
        .map(|(volume, stream, _)| (volume, stream))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::extent::{Encoding, Extent, Layer, LayerId, Map, ReadAt, Stream, Volume};
    use crate::fs::{EntryId, Facts, Form, Kind, NewStream, Object, Times, Tree, TreeBuilder};
    use crate::plan::{Part, Row};

    /// Opens all but the first stream; of the second, the last byte can't be decoded.
    struct Broken;
    struct Bytes(LayerId, u64);

    impl ReadAt<Stream> for Bytes {
        fn id(&self) -> LayerId {
            self.0
        }
        fn len(&self) -> u64 {
            3 * CHUNK as u64
        }
        fn read_at(&self, at: Offset<Stream>, buf: &mut [u8]) -> Result<()> {
            if at.get() + buf.len() as u64 > self.1 {
                return Err(Error::corrupt("compression unit", at, "tokens to its end"));
            }
            Ok(())
        }
    }
    impl Layer<Stream> for Bytes {
        fn extents(&self, _: Range<Offset<Stream>>) -> Result<Vec<Extent<Stream>>> {
            Ok(Vec::new())
        }
    }
    impl FileSystem for Broken {
        fn facts(&self) -> Facts {
            Facts::default()
        }
        fn walk(&self) -> Result<Tree> {
            Err(Error::Unsupported("a file system for tests".into()))
        }
        fn open(&self, _: &Tree, stream: StreamId) -> Result<Arc<dyn Layer<Stream>>> {
            match stream.index() {
                0 => Err(Error::Unsupported("encrypted".into())),
                1 => Ok(Arc::new(Bytes(LayerId::fresh(), 3 * CHUNK as u64 - 1))),
                _ => Ok(Arc::new(Bytes(LayerId::fresh(), u64::MAX))),
            }
        }
    }

    #[test]
    fn what_cannot_be_decoded_is_known_before_anything_is_written() {
        let mut builder = TreeBuilder::new();
        let object = |kind| {
            let (times, system) = (Times::default(), false);
            Object { kind, number: 0, times, attributes: 0, mode: None, owner: None, system }
        };
        let root = builder.object(object(Kind::Dir));
        let size = 3 * CHUNK as u64;
        for name in [b"a", b"b", b"c"] {
            let file = builder.object(object(Kind::File));
            builder.entry(root, name, file);
            let new = NewStream { name: None, size, valid: size, form: Form::Compressed(65536), locator: 0 };
            builder.stream(file, new, [(size, What::<Volume>::Encoded(Encoding::FsCompressed))]);
        }
        let tree = Arc::new(builder.finish(root));
        let row = |(entry, _): (EntryId, u32)| Row {
            volume: 0,
            entry: Some(entry),
            stream: tree.data(tree.entry(entry).object),
            verdict: Verdict::Copy,
            reason: Some(Reason::FsCompressed),
            written: None,
            renamed: false,
        };
        let plan = Plan { rows: tree.order().map(row).collect(), ..Plan::default() };
        let layer = LayerId::fresh();
        let guest =
            GuestVolume { folder: None, part: Part::All, tree: Arc::clone(&tree), layer, map: Map::new(), fs: None };
        let found = |decode| -> Vec<_> {
            let options = Options { decode_first: decode, ..Options::default() };
            let all = unreadable(&plan, std::slice::from_ref(&guest), &[Arc::new(Broken)], &options);
            all.into_iter().map(|(_, stream)| stream.index()).collect()
        };
        assert_eq!(found(false), [0]);
        assert_eq!(found(true), [0, 1]);
    }
}
