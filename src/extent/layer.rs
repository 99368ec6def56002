//! A layer that is nothing but its map: raw containers, partitions, plain streams, images opened out of a file.

use std::ops::Range;
use std::sync::Arc;

use super::{Extent, LayerId, Map, Offset, ReadAt, Space, What};
use crate::error::{Error, Result};
use crate::extent::Layer;

/// A [`Layer`] that is made of a [`Map`] and of the layers that the map points into.
///
/// Reading follows the map: zeros are filled in, stored bytes are read below. It decodes nothing: reading an encoded
/// extent is an error, so a layer with such extents needs a reader of its own.
pub struct MapLayer<S: Space> {
    id: LayerId,
    map: Map<S>,
    below: Vec<Arc<dyn ReadAt<S::Below>>>,
}

impl<S: Space> std::fmt::Debug for MapLayer<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MapLayer").field("id", &self.id).field("map", &self.map).finish_non_exhaustive()
    }
}

impl<S: Space> MapLayer<S> {
    /// The layer that `map` describes, stored in the layers `below`. It has a fresh identity.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where the map is stored in a layer that is not among `below`, or beyond the end of one.
    pub fn new(map: Map<S>, below: Vec<Arc<dyn ReadAt<S::Below>>>) -> Result<Self> {
        let layer = Self { id: LayerId::fresh(), map, below };
        for e in layer.map.extents() {
            let What::Stored(place) = e.what else { continue };
            let under = layer.find(place.layer, e.start)?;
            if place.offset.checked_add(e.len).is_none_or(|end| end.get() > under.len()) {
                return Err(Error::corrupt(
                    "extent",
                    e.start,
                    format!("{} bytes at {} within the {} bytes of the layer below", e.len, place.offset, under.len()),
                ));
            }
        }
        Ok(layer)
    }
    /// `len` bytes from `at` on of one layer.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where that layer ends before.
    pub fn window(below: Arc<dyn ReadAt<S::Below>>, at: u64, len: u64) -> Result<Self> {
        Self::new(Map::run(len, below.id(), at), vec![below])
    }
    /// All bytes of one layer.
    ///
    /// # Errors
    /// None that a layer of a constant length could give.
    pub fn whole(below: Arc<dyn ReadAt<S::Below>>) -> Result<Self> {
        let len = below.len();
        Self::window(below, 0, len)
    }
    fn find(&self, id: LayerId, at: Offset<S>) -> Result<&dyn ReadAt<S::Below>> {
        self.below
            .iter()
            .find(|l| l.id() == id)
            .map(AsRef::as_ref)
            .ok_or_else(|| Error::corrupt("extent", at, "a layer that is below this one"))
    }
}

impl<S: Space> ReadAt<S> for MapLayer<S> {
    fn id(&self) -> LayerId {
        self.id
    }
    fn len(&self) -> u64 {
        self.map.len()
    }
    fn read_at(&self, at: Offset<S>, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        let end = at
            .checked_add(len)
            .filter(|end| end.get() <= self.map.len())
            .ok_or_else(|| Error::past_end(at, len, self.map.len()))?;
        let mut rest = buf;
        for e in self.map.slice(at..end) {
            let have = usize::try_from(e.len).map_or(rest.len(), |n| n.min(rest.len()));
            let (part, after) = rest.split_at_mut(have);
            match e.what {
                What::Zero => part.fill(0),
                What::Stored(place) => self.find(place.layer, e.start)?.read_at(place.offset, part)?,
                What::Encoded(how) => {
                    return Err(Error::Unsupported(format!("{} can't be read as it is: {how:?}", e.start)));
                }
            }
            rest = after;
        }
        Ok(())
    }
}

impl<S: Space> Layer<S> for MapLayer<S> {
    fn extents(&self, range: Range<Offset<S>>) -> Result<Vec<Extent<S>>> {
        Ok(self.map.slice(range).collect())
    }
    fn map(&self) -> Result<Map<S>> {
        Ok(self.map.clone())
    }
}
