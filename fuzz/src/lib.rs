//! What the targets share: the fuzzer's bytes as a layer, and a walk that reads whatever it finds.

use std::sync::Arc;

use unimage::error::{Error, Result};
use unimage::extent::{Layer, LayerId, Offset, ReadAt, Space, Stream};
use unimage::fs::FileSystem;

/// Streams of a tree that are read.
const STREAMS: usize = 64;
/// Bytes of a stream that are read: a sparse one may say that it has 2^60.
const BYTES: u64 = 1 << 16;

struct Memory(LayerId, Vec<u8>);

impl<S: Space> ReadAt<S> for Memory {
    fn id(&self) -> LayerId {
        self.0
    }
    fn len(&self) -> u64 {
        self.1.len() as u64
    }
    fn read_at(&self, at: Offset<S>, buf: &mut [u8]) -> Result<()> {
        let have = self.1.len() as u64;
        let past = || Error::past_end(at, buf.len() as u64, have);
        let end = at.checked_add(buf.len() as u64).filter(|e| e.get() <= have).ok_or_else(past)?;
        buf.copy_from_slice(&self.1[at.get() as usize..end.get() as usize]);
        Ok(())
    }
}

/// Bytes as a layer of any space.
pub fn layer<S: Space>(bytes: &[u8]) -> Arc<dyn ReadAt<S>> {
    Arc::new(Memory(LayerId::fresh(), bytes.to_vec()))
}

/// Walks a file system, and checks of each stream what every reader promises.
pub fn walk(fs: &dyn FileSystem) {
    let _ = fs.facts();
    let Ok(tree) = fs.walk() else { return };
    for (entry, _) in tree.order() {
        let _ = tree.path(entry);
    }
    let streams = tree.objects().flat_map(|(id, _)| tree.streams(id)).take(STREAMS);
    for id in streams {
        let size = tree.stream(id).size;
        assert_eq!(tree.map(id).len(), size, "extents are gapless from 0 to the size");
        let Ok(layer) = fs.open(&tree, id) else { continue };
        assert_eq!(layer.len(), size);
        read(layer.as_ref());
    }
}

fn read(layer: &dyn Layer<Stream>) {
    let len = layer.len().min(BYTES);
    let _ = layer.read_vec(Offset::new(0), len as usize);
    let _ = layer.read_vec(Offset::new(layer.len() - len), len as usize);
}
