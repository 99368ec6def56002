//! Streams: what of a file is stored plainly is read in place, the rest is decoded when it is opened.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::resolve::Visited;
use super::scan::Node;
use super::volume::Ext;
use crate::error::{Error, Result};
use crate::extent::{Encoding, Extent, Layer, LayerId, Map, MapLayer, Offset, ReadAt, Stream, What};
use crate::fs::{Form, StreamId, Tree};

impl Ext {
    /// A stream of a walk's tree, to be read.
    ///
    /// # Errors
    /// Where it is encrypted, or what it is made of can't be read.
    pub(super) fn open(&self, tree: &Tree, stream: StreamId) -> Result<Arc<dyn Layer<Stream>>> {
        let info = tree.stream(stream);
        let map = tree.map(stream);
        let decoded = map.extents().iter().any(|e| e.what == What::Encoded(Encoding::Inline));
        if info.form == Form::Encrypted {
            return Err(Error::Unsupported(format!("ext inode {} is encrypted", info.locator)));
        }
        if !decoded {
            return Ok(Arc::new(MapLayer::new(map, vec![Arc::clone(&self.raw)])?));
        }
        let number = u32::try_from(info.locator).unwrap_or(0);
        let node = self.node(number)?;
        let pieces = if info.form == Form::Inline {
            let (head, rest) = self.inline_parts(&node, &mut Vec::new());
            BTreeMap::from([(0, node.inode.inline_bytes(head, &rest))])
        } else {
            self.escaped(&node, &map)?
        };
        let plain = map.extents().iter().map(|e| match e.what {
            // Filled in from the pieces.
            What::Encoded(Encoding::Inline) => (e.len, What::Zero),
            what => (e.len, what),
        });
        let plain = MapLayer::new(plain.collect(), vec![Arc::clone(&self.raw)])?;
        Ok(Arc::new(Decoded { plain, map, pieces }))
    }
    /// The blocks of a file that the journal holds in another form than the file has them, by their bytes in the file.
    fn escaped(&self, node: &Node, map: &Map<Stream>) -> Result<BTreeMap<u64, Vec<u8>>> {
        let block = u64::from(self.superblock.block);
        let maps = self.resolve(std::slice::from_ref(node), &mut Visited::default(), &mut Vec::new());
        let runs = maps.first().map(|m| &*m.runs).unwrap_or_default();
        let mut out = BTreeMap::new();
        for e in map.extents().iter().filter(|e| e.what == What::Encoded(Encoding::Inline)) {
            let mut at = e.start.get();
            while at < e.end().get() {
                let logical = at.checked_div(block).unwrap_or(0);
                let run = runs.get(runs.partition_point(|r| r.logical.saturating_add(r.len) <= logical));
                let physical = run.and_then(|r| r.physical.checked_add(logical.checked_sub(r.logical)?));
                let physical = physical.ok_or_else(|| {
                    Error::corrupt(format!("ext inode {}", node.number), node.at, "the blocks of its walk")
                })?;
                let len = block.min(e.end().since(Offset::new(at)));
                let bytes = self.volume.read_vec(self.superblock.byte(physical), usize::try_from(len).unwrap_or(0))?;
                out.insert(at, bytes);
                at = at.saturating_add(block);
            }
        }
        Ok(out)
    }
}

/// A stream some of whose bytes had to be decoded, which was done when it was opened.
struct Decoded {
    /// Zeros where they are.
    plain: MapLayer<Stream>,
    map: Map<Stream>,
    pieces: BTreeMap<u64, Vec<u8>>,
}

impl ReadAt<Stream> for Decoded {
    fn id(&self) -> LayerId {
        self.plain.id()
    }
    fn len(&self) -> u64 {
        self.plain.len()
    }
    fn read_at(&self, at: Offset<Stream>, buf: &mut [u8]) -> Result<()> {
        self.plain.read_at(at, buf)?;
        let end = at.get().saturating_add(buf.len() as u64);
        let before = self.pieces.range(..=at.get()).next_back();
        let within = self.pieces.range(at.get().saturating_add(1)..end.max(at.get().saturating_add(1)));
        for (start, bytes) in before.into_iter().chain(within) {
            let from = at.get().max(*start);
            let to = end.min(start.saturating_add(bytes.len() as u64));
            if from >= to {
                continue;
            }
            let cut = |base: u64| -> Option<Range<usize>> {
                Some(usize::try_from(from.checked_sub(base)?).ok()?..usize::try_from(to.checked_sub(base)?).ok()?)
            };
            if let Some(room) = cut(at.get()).and_then(|r| buf.get_mut(r))
                && let Some(part) = cut(*start).and_then(|r| bytes.get(r))
            {
                room.copy_from_slice(part);
            }
        }
        Ok(())
    }
}

impl Layer<Stream> for Decoded {
    fn extents(&self, range: Range<Offset<Stream>>) -> Result<Vec<Extent<Stream>>> {
        Ok(self.map.slice(range).collect())
    }
}
