//! Which part of a volume an address names.

use crate::error::{Error, Result};
use crate::fs::{EntryId, ObjectId, StreamId, Tree};
use crate::plan::Part;
use crate::relink::rest::name_of;
use crate::report::path::escape;
use crate::stack::{Guest, Level, Stack, Target};

/// What of a volume the address names: the folder that it goes to, and the part. None where nothing.
pub(crate) fn part_of(stack: &Stack, level: &Level, guest: &Guest) -> Result<Option<(Option<Vec<u8>>, Part)>> {
    let (slot, path, found) = match &stack.target {
        // A volume that can't be listed is left out, and what it holds with it.
        Target::Disk if guest.fs.is_none() || guest.tree().is_err() => return Ok(None),
        Target::Disk if level.table.kind == "none" => return Ok(Some((None, Part::All))),
        Target::Disk => return Ok(Some((Some(name_of(level, guest.slot).into()), Part::All))),
        Target::Volume(slot) => {
            return Ok((*slot == guest.slot).then_some((None, Part::All)));
        }
        Target::Object(slot, path, object) => (slot, path, Ok(*object)),
        Target::Stream(slot, path, stream) => (slot, path, Err(*stream)),
    };
    if *slot != guest.slot {
        return Ok(None);
    }
    let tree = guest.tree()?;
    let object = found.unwrap_or_else(|stream: StreamId| tree.stream(stream).object);
    let entry = entry_of(&tree, object, Some(path))
        .ok_or_else(|| Error::Unsupported(format!("{}: a stream of the root is not to be had alone", escape(path))))?;
    let part = match found {
        Ok(_) => Part::Entry(entry),
        Err(stream) => Part::Stream(entry, stream),
    };
    Ok(Some((None, part)))
}

/// The name of an object: the one at `path` (which may have a stream's name behind it), else the first.
pub(crate) fn entry_of(tree: &Tree, object: ObjectId, path: Option<&[u8]>) -> Option<EntryId> {
    let mut names = tree.order().map(|(e, _)| e).filter(|e| tree.entry(*e).object == object);
    let first = names.next()?;
    let spelled = |e: &EntryId| path.is_some_and(|path| path.starts_with(&tree.path(*e)));
    Some(if spelled(&first) { first } else { names.find(spelled).unwrap_or(first) })
}
