//! The way of bytes down through every level of a nest of images: file, volume, image, the file that the image is, the
//! volume that this file lies in, and so on to the ground.

use std::collections::HashMap;
use std::sync::Arc;

use crate::container::Part;
use crate::error::{Error, Result};
use crate::extent::{Encoding, Extent, LayerId, Map, Offset, Place, Space, What};
use crate::stack::{Stack, Target};

/// One address space on the way down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// The level of the nest: 0 is the ground.
    pub level: usize,
    /// `volume`, `image` or `device`.
    pub space: &'static str,
    /// Its name there: `p1`, the container's kind, or the path of the file that the image is.
    pub name: String,
}

/// Where a stretch ends on its way down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It is there as plain bytes down to the ground.
    Stored,
    /// Below its last place it is zeros.
    Zero,
    /// Below its last place it must be decoded.
    Encoded(Encoding),
    /// Below its last place it is in a layer that is not on this way, such as a backing file.
    Elsewhere,
}

impl End {
    /// The word in JSON lines.
    pub fn word(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Zero => "zero",
            Self::Encoded(Encoding::Inline) => "resident",
            Self::Encoded(Encoding::ContainerCompressed) => "container-compressed",
            Self::Encoded(Encoding::ContainerEncrypted) => "container-encrypted",
            Self::Encoded(Encoding::FsCompressed) => "fs-compressed",
            Self::Encoded(Encoding::FsEncrypted) => "fs-encrypted",
            Self::Encoded(Encoding::Unreadable) => "unreadable",
            Self::Elsewhere => "elsewhere",
        }
    }
}

/// A stretch of bytes that is in one piece on every level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its first byte in what is mapped.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// Its offset in each column, as far as it goes down.
    pub at: Vec<u64>,
    /// How it ends.
    pub end: End,
    /// The file of the last image on its way that it is stored in, where that is not the one that was named: a backing file,
    /// an extent.
    pub file: Option<Arc<str>>,
    below: Option<LayerId>,
}

/// All pieces of what is mapped, and the address spaces that they pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    /// The address spaces, from the highest to the ground.
    pub columns: Vec<Column>,
    /// In order, gapless.
    pub pieces: Vec<Piece>,
}

impl Levels {
    fn start<S: Space, B: Space>(extents: impl IntoIterator<Item = Extent<S, B>>) -> Self {
        let pieces = extents.into_iter().map(|e| {
            let piece =
                Piece { start: e.start.get(), len: e.len, at: Vec::new(), end: End::Stored, file: None, below: None };
            piece.lowered(e.what)
        });
        Self { columns: Vec::new(), pieces: pieces.collect() }
    }
    /// One step down: every stored piece is cut up by the map of the layer that it is stored in, of those that `find` knows.
    fn descend<'m, S: Space, B: Space>(&mut self, find: impl Fn(LayerId) -> Option<&'m Map<S, B>>) -> Result<()> {
        let mut out = Vec::with_capacity(self.pieces.len());
        for piece in std::mem::take(&mut self.pieces) {
            let Some(at) = piece.at.last().copied().filter(|_| piece.end == End::Stored) else {
                out.push(piece);
                continue;
            };
            let Some(map) = piece.below.and_then(&find) else {
                out.push(Piece { end: End::Elsewhere, ..piece });
                continue;
            };
            let end = at.saturating_add(piece.len);
            if end > map.len() {
                return Err(Error::corrupt(
                    "extent",
                    Offset::<S>::new(at),
                    format!("{} bytes within the {} bytes of its layer", piece.len, map.len()),
                ));
            }
            for e in map.slice(Offset::new(at)..Offset::new(end)) {
                let start = piece.start.saturating_add(e.start.get().saturating_sub(at));
                let mut places = piece.at.clone();
                if let Some(last) = places.last_mut() {
                    *last = e.start.get();
                }
                let part =
                    Piece { start, len: e.len, at: places, end: End::Stored, file: piece.file.clone(), below: None };
                out.push(part.lowered(e.what));
            }
        }
        self.pieces = out;
        Ok(())
    }
    /// Notes in which of an image's further files pieces are stored.
    fn name_files(&mut self, parts: &[Part]) {
        let names: HashMap<LayerId, Arc<str>> =
            parts.iter().map(|part| (part.device.id(), Arc::from(part.name.as_str()))).collect();
        for piece in self.pieces.iter_mut().filter(|piece| piece.end == End::Stored) {
            piece.file = piece.below.and_then(|id| names.get(&id).cloned());
        }
    }
    fn column(&mut self, level: usize, space: &'static str, name: impl Into<String>) {
        self.columns.push(Column { level, space, name: name.into() });
    }
}

impl Piece {
    /// The piece with one more step down.
    fn lowered<B: Space>(mut self, what: What<B>) -> Self {
        match what {
            What::Stored(Place { layer, offset }) => {
                self.at.push(offset.get());
                self.below = Some(layer);
            }
            What::Zero => self.end = End::Zero,
            What::Encoded(how) => self.end = End::Encoded(how),
        }
        self
    }
}

/// The levels of what `stack` names; `names` are those of the ground source and of each file that was opened in it.
///
/// # Errors
/// What reading the layers' tables meets, and a directory or a link, which have no bytes of their own.
pub fn trace(stack: &Stack, names: &[String]) -> Result<Levels> {
    let nowhere = || Error::NotFound("the address opens no image".into());
    let last = stack.levels.len().checked_sub(1).ok_or_else(nowhere)?;
    let level = stack.levels.get(last).ok_or_else(nowhere)?;
    let mut all;
    // The volume that is passed next; none where it begins with an image.
    let mut volume;
    match &stack.target {
        Target::Object(v, _, id) => {
            let tree = level.guests.get(*v).ok_or_else(nowhere)?.tree()?;
            let stream = tree.data(*id).ok_or_else(|| {
                Error::Usage(
                    "a directory, link or special file has no bytes to be mapped: name a file or a stream".into(),
                )
            })?;
            all = Levels::start(tree.extents(stream).iter().copied());
            volume = Some(*v);
        }
        Target::Stream(v, _, stream) => {
            let tree = level.guests.get(*v).ok_or_else(nowhere)?.tree()?;
            all = Levels::start(tree.extents(*stream).iter().copied());
            volume = Some(*v);
        }
        Target::Volume(v) => {
            let slot = level.table.slots.get(*v).ok_or_else(nowhere)?;
            all = Levels::start(slot.layer.map()?.extents().iter().copied());
            volume = None;
        }
        Target::Disk => {
            all = Levels::start([Extent::<crate::extent::Volume>::stored(
                0,
                level.disk.image.len(),
                level.disk.image.id(),
                0,
            )]);
            volume = None;
        }
    }
    for (depth, level) in stack.levels.iter().enumerate().rev() {
        if let Some(v) = volume {
            let slot = level.table.slots.get(v).ok_or_else(nowhere)?;
            all.column(depth, "volume", slot.name.as_str());
            let map = slot.layer.map()?;
            all.descend(|id| (id == slot.layer.id()).then_some(&map))?;
        }
        all.column(depth, "image", level.disk.kind);
        let map = level.disk.image.map()?;
        all.descend(|id| (id == level.disk.image.id()).then_some(&map))?;
        all.name_files(&level.disk.parts);
        all.column(depth, "device", names.get(depth).cloned().unwrap_or_default());
        let Some(within) = &level.within else { break };
        // A device is its file's stream, byte for byte.
        let mut maps = HashMap::from([(level.device.id(), &within.map)]);
        let beside = level.disk.parts.iter().zip(&level.beside);
        maps.extend(beside.filter_map(|(part, within)| Some((part.device.id(), &within.as_ref()?.map))));
        all.descend(|id| maps.get(&id).copied())?;
        volume = Some(within.volume);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::{Image, Stream, Volume};

    #[test]
    fn a_piece_is_cut_where_any_level_is_cut() {
        let (volume, image) = (LayerId::fresh(), LayerId::fresh());
        let mut file = Map::<Stream, Volume>::new();
        file.push_stored(8, volume, 100);
        file.push(4, What::Zero);
        file.push_stored(4, volume, 300);
        let mut below = Map::<Volume, Image>::new();
        below.push_stored(104, image, 1000);
        below.push(196, What::Encoded(Encoding::ContainerCompressed));
        below.push_stored(100, LayerId::fresh(), 0);
        let mut all = Levels::start(file.extents().iter().copied());
        all.descend(|id| (id == volume).then_some(&below)).unwrap();
        let mut disk = Map::<Image>::new();
        disk.push_stored(1104, LayerId::fresh(), 0);
        all.descend(|id| (id == image).then_some(&disk)).unwrap();
        let got: Vec<_> = all.pieces.iter().map(|p| (p.start, p.len, p.at.clone(), p.end.word())).collect();
        assert_eq!(
            got,
            [
                (0, 4, vec![100, 1100, 1100], "stored"),
                (4, 4, vec![104], "container-compressed"),
                (8, 4, vec![], "zero"),
                (12, 4, vec![300, 0], "elsewhere"),
            ]
        );
    }
}
