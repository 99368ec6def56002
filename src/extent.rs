//! The algebra: every layer's bytes are runs of the layer below.
//!
//! ```text
//! Device ── Image ── Volume ── Stream ── Device ── Image ── Volume ── Stream
//!  source    container  partition  file      (opened as an image in its turn)
//! ```
//!
//! There are four address spaces, one for each role, and they are types: an offset into a volume can't be passed where
//! an offset into an image is wanted. As images nest, a place also names its layer by [`LayerId`]; [`compose`] refuses
//! to join two maps whose layers differ.
//!
//! ```compile_fail
//! use unimage::extent::{Offset, Stream, Volume};
//! fn in_volume(_: Offset<Volume>) {}
//! in_volume(Offset::<Stream>::new(0)); // a stream's offset is not a volume's
//! ```

use std::fmt;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::error::{Error, Result};

mod layer;
#[cfg(test)]
mod tests;
pub use layer::MapLayer;

/// The role of an address space.
pub trait Space: fmt::Debug + Send + Sync + 'static {
    /// The space that this space's layers are runs of. The four form a ring: a device inside an image is a file of the
    /// level above it. The ring ends at a ground source, which is a [`ReadAt`] but no [`Layer`].
    type Below: Space;
    /// The word for messages.
    const NAME: &'static str;
}

/// The bytes of one stream of one file, as its file system presents them.
#[derive(Debug)]
pub enum Stream {}
/// The bytes of a partition, a logical volume, or a disk without a table.
#[derive(Debug)]
pub enum Volume {}
/// The bytes of the virtual disk that a container presents.
#[derive(Debug)]
pub enum Image {}
/// The bytes of what a container lies in: a file or block device of this machine, or a file opened as an image.
#[derive(Debug)]
pub enum Device {}

impl Space for Stream {
    type Below = Volume;
    const NAME: &'static str = "stream";
}
impl Space for Volume {
    type Below = Image;
    const NAME: &'static str = "volume";
}
impl Space for Image {
    type Below = Device;
    const NAME: &'static str = "image";
}
impl Space for Device {
    type Below = Stream;
    const NAME: &'static str = "device";
}

/// A byte offset in one address space.
pub struct Offset<S>(u64, PhantomData<fn() -> S>);

impl<S> Offset<S> {
    /// The offset `bytes` from the start of the space.
    pub const fn new(bytes: u64) -> Self {
        Self(bytes, PhantomData)
    }
    /// Bytes from the start of the space.
    pub const fn get(self) -> u64 {
        self.0
    }
    /// `self + bytes`, or none where that is no offset.
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self::new)
    }
    /// `self + bytes`, at most the highest offset.
    pub fn saturating_add(self, bytes: u64) -> Self {
        Self::new(self.0.saturating_add(bytes))
    }
    /// The bytes from `earlier` to here; 0 where `earlier` is later.
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}
impl<S> Default for Offset<S> {
    fn default() -> Self {
        Self::new(0)
    }
}
impl<S> Clone for Offset<S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S> Copy for Offset<S> {}
impl<S> PartialEq for Offset<S> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}
impl<S> Eq for Offset<S> {}
impl<S> PartialOrd for Offset<S> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<S> Ord for Offset<S> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}
impl<S> Hash for Offset<S> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}
impl<S: Space> fmt::Debug for Offset<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:#x}", S::NAME, self.0)
    }
}
impl<S: Space> fmt::Display for Offset<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} offset {:#x}", S::NAME, self.0)
    }
}

/// Names one opened layer of this process. Two layers of one role in a nest of images differ by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(u32);

impl LayerId {
    /// An identity that no other layer of this process has.
    pub fn fresh() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A place in a layer: which layer of the role `S`, and where in it.
#[derive(Debug)]
pub struct Place<S: Space> {
    /// The layer.
    pub layer: LayerId,
    /// The first byte there.
    pub offset: Offset<S>,
}
impl<S: Space> Clone for Place<S> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Space> Copy for Place<S> {}
impl<S: Space> PartialEq for Place<S> {
    fn eq(&self, other: &Self) -> bool {
        self.layer == other.layer && self.offset == other.offset
    }
}
impl<S: Space> Eq for Place<S> {}

/// Why bytes can be read but are not there below as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Inside a metadata record (an NTFS resident attribute, an ext inline file).
    Inline,
    /// Compressed by the container (a qcow2 cluster, an E01 chunk).
    ContainerCompressed,
    /// Encrypted by the container.
    ContainerEncrypted,
    /// Compressed by the file system (LZNT1).
    FsCompressed,
    /// Encrypted by the file system (EFS, fscrypt).
    FsEncrypted,
    /// Not to be had: what says where they are is damaged, or of a form that this program does not know. Reading them
    /// is an error, never zeros.
    Unreadable,
}

/// What an extent's bytes are.
#[derive(Debug)]
pub enum What<B: Space> {
    /// They are the bytes of a layer below, from this place on.
    Stored(Place<B>),
    /// They read as zeros: a hole, unwritten, or beyond the valid data.
    Zero,
    /// They can be had only by decoding.
    Encoded(Encoding),
}
impl<B: Space> Clone for What<B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<B: Space> Copy for What<B> {}
impl<B: Space> PartialEq for What<B> {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Stored(a), Self::Stored(b)) => a == b,
            (Self::Zero, Self::Zero) => true,
            (Self::Encoded(a), Self::Encoded(b)) => a == b,
            _ => false,
        }
    }
}
impl<B: Space> Eq for What<B> {}

impl<B: Space> What<B> {
    /// What the bytes are that lie `bytes` further on.
    fn skip(self, bytes: u64) -> Self {
        match self {
            Self::Stored(p) => Self::Stored(Place { layer: p.layer, offset: p.offset.saturating_add(bytes) }),
            other => other,
        }
    }
    /// Whether `next` continues these bytes after `len` of them.
    pub(crate) fn continued_by(&self, len: u64, next: &Self) -> bool {
        match (self, next) {
            (Self::Stored(a), Self::Stored(b)) => a.layer == b.layer && a.offset.checked_add(len) == Some(b.offset),
            (a, b) => a == b,
        }
    }
}

/// A run of bytes of a layer in `S` that are one thing in `B`, by default in the space below `S`.
#[derive(Debug)]
pub struct Extent<S: Space, B: Space = <S as Space>::Below> {
    /// The first byte.
    pub start: Offset<S>,
    /// Bytes; never 0 in a [`Map`].
    pub len: u64,
    /// What they are.
    pub what: What<B>,
}
impl<S: Space, B: Space> Clone for Extent<S, B> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<S: Space, B: Space> Copy for Extent<S, B> {}
impl<S: Space, B: Space> PartialEq for Extent<S, B> {
    fn eq(&self, other: &Self) -> bool {
        self.start == other.start && self.len == other.len && self.what == other.what
    }
}
impl<S: Space, B: Space> Eq for Extent<S, B> {}

impl<S: Space, B: Space> Extent<S, B> {
    /// An extent that is stored at `place`.
    pub fn stored(start: u64, len: u64, layer: LayerId, at: u64) -> Self {
        Self { start: Offset::new(start), len, what: What::Stored(Place { layer, offset: Offset::new(at) }) }
    }
    /// An extent of zeros.
    pub fn zero(start: u64, len: u64) -> Self {
        Self { start: Offset::new(start), len, what: What::Zero }
    }
    /// An extent that must be decoded.
    pub fn encoded(start: u64, len: u64, how: Encoding) -> Self {
        Self { start: Offset::new(start), len, what: What::Encoded(how) }
    }
    /// One past the last byte.
    pub fn end(&self) -> Offset<S> {
        self.start.saturating_add(self.len)
    }
    /// The part of it in `range`, none where they don't meet.
    pub fn clip(&self, range: &Range<Offset<S>>) -> Option<Self> {
        let start = self.start.max(range.start);
        let end = self.end().min(range.end);
        (start < end).then(|| Self { start, len: end.since(start), what: self.what.skip(start.since(self.start)) })
    }
}

/// The extents of a whole layer: ordered, gapless from 0 to its length, none empty, neighbours merged.
#[derive(Debug)]
pub struct Map<S: Space, B: Space = <S as Space>::Below> {
    extents: Vec<Extent<S, B>>,
}
impl<S: Space, B: Space> Clone for Map<S, B> {
    fn clone(&self) -> Self {
        Self { extents: self.extents.clone() }
    }
}
impl<S: Space, B: Space> Default for Map<S, B> {
    fn default() -> Self {
        Self { extents: Vec::new() }
    }
}
impl<S: Space, B: Space> PartialEq for Map<S, B> {
    fn eq(&self, other: &Self) -> bool {
        self.extents == other.extents
    }
}
impl<S: Space, B: Space> Eq for Map<S, B> {}

impl<S: Space, B: Space> Map<S, B> {
    /// An empty map, of a layer of no bytes.
    pub fn new() -> Self {
        Self::default()
    }
    /// An empty map with room for so many extents.
    pub fn with_capacity(extents: usize) -> Self {
        Self { extents: Vec::with_capacity(extents) }
    }
    /// A map of one extent: `len` bytes stored from `at` in `layer`.
    pub fn run(len: u64, layer: LayerId, at: u64) -> Self {
        let mut map = Self::new();
        map.push(len, What::Stored(Place { layer, offset: Offset::new(at) }));
        map
    }
    /// Makes it empty, keeping the room that it has.
    pub fn clear(&mut self) {
        self.extents.clear();
    }
    /// Appends `len` bytes, merged with the last extent where they continue it. Nothing for 0 bytes.
    pub fn push(&mut self, len: u64, what: What<B>) {
        if len == 0 {
            return;
        }
        let start = Offset::new(self.len());
        if let Some(last) = self.extents.last_mut()
            && last.what.continued_by(last.len, &what)
        {
            last.len = last.len.saturating_add(len);
            return;
        }
        self.extents.push(Extent { start, len, what });
    }
    /// Appends `len` bytes stored from `at` in `layer`.
    pub fn push_stored(&mut self, len: u64, layer: LayerId, at: u64) {
        self.push(len, What::Stored(Place { layer, offset: Offset::new(at) }));
    }
    /// The bytes that it covers.
    pub fn len(&self) -> u64 {
        self.extents.last().map_or(0, |e| e.end().get())
    }
    /// Whether it covers no byte.
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }
    /// All extents, in order.
    pub fn extents(&self) -> &[Extent<S, B>] {
        &self.extents
    }
    /// The extents in `range`, in order, clipped to it and to the layer's length. O(log n) to the first.
    pub fn slice(&self, range: Range<Offset<S>>) -> impl Iterator<Item = Extent<S, B>> + '_ {
        let first = self.extents.partition_point(|e| e.end() <= range.start);
        let end = range.end;
        self.extents
            .get(first..)
            .unwrap_or_default()
            .iter()
            .take_while(move |e| e.start < end)
            .filter_map(move |e| e.clip(&range))
    }
    /// The map cut or extended with zeros to `len` bytes.
    pub fn resized(mut self, len: u64) -> Self {
        let have = self.len();
        if have < len {
            self.push(len.saturating_sub(have), What::Zero);
            return self;
        }
        self.extents.truncate(self.extents.partition_point(|e| e.start.get() < len));
        if let Some(last) = self.extents.last_mut() {
            last.len = last.len.min(len.saturating_sub(last.start.get()));
        }
        self
    }
}

impl<S: Space, B: Space> FromIterator<(u64, What<B>)> for Map<S, B> {
    fn from_iter<I: IntoIterator<Item = (u64, What<B>)>>(iter: I) -> Self {
        let mut map = Self::new();
        for (len, what) in iter {
            map.push(len, what);
        }
        map
    }
}

/// Resolves `upper` (ordered extents of `S` stored in `M`) through the maps of the layers in `M` that `lower` finds by
/// their identity. Zero and encoded stretches stay what they are; a stored one becomes what the lower map says of its
/// bytes. Cost follows extents, not bytes.
///
/// # Errors
/// [`Error::Corrupt`] where `upper` is stored in a layer that `lower` does not know, or beyond that layer's end.
pub fn compose<'m, S: Space, M: Space, B: Space>(
    upper: impl IntoIterator<Item = Extent<S, M>>,
    lower: impl Fn(LayerId) -> Option<&'m Map<M, B>>,
) -> Result<Map<S, B>> {
    let mut out = Map::new();
    for e in upper {
        match e.what {
            What::Zero => out.push(e.len, What::Zero),
            What::Encoded(how) => out.push(e.len, What::Encoded(how)),
            What::Stored(p) => {
                let map = lower(p.layer)
                    .ok_or_else(|| Error::corrupt("extent", p.offset, "a layer that is below this one"))?;
                let end = p.offset.saturating_add(e.len);
                if end.get() > map.len() {
                    return Err(Error::corrupt(
                        "extent",
                        p.offset,
                        format!("{} bytes within the {} bytes of the layer below", e.len, map.len()),
                    ));
                }
                for piece in map.slice(p.offset..end) {
                    out.push(piece.len, piece.what);
                }
            }
        }
    }
    Ok(out)
}

/// Bytes that can be read by position. There is no way to write through it.
pub trait ReadAt<S: Space>: Send + Sync {
    /// Which layer this is. An overlay over a layer keeps the identity of that layer.
    fn id(&self) -> LayerId;
    /// Its length in bytes.
    fn len(&self) -> u64;
    /// Whether it has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The file or device of this machine that these bytes are, all of them and from its first on; none for what is made of others.
    fn file(&self) -> Option<&std::fs::File> {
        None
    }
    /// Fills `buf` from `at` on.
    ///
    /// # Errors
    /// [`Error::Io`] with the offset, also where the range passes the end; then nothing is said of `buf`.
    fn read_at(&self, at: Offset<S>, buf: &mut [u8]) -> Result<()>;
    /// Reads `len` bytes into a new buffer. The range is checked against the length before anything is allocated.
    ///
    /// # Errors
    /// As [`read_at`](Self::read_at).
    fn read_vec(&self, at: Offset<S>, len: usize) -> Result<Vec<u8>> {
        let end = at.checked_add(len as u64).map(Offset::get);
        if end.is_none_or(|end| end > self.len()) {
            return Err(Error::past_end(at, len as u64, self.len()));
        }
        let mut buf = vec![0; len];
        self.read_at(at, &mut buf)?;
        Ok(buf)
    }
}

/// Bytes that are runs of the space below.
pub trait Layer<S: Space>: ReadAt<S> {
    /// The extents of `range`: in order, gapless, not overlapping, clipped to `range` and to the length.
    ///
    /// # Errors
    /// Whatever reading the layer's own tables meets.
    fn extents(&self, range: Range<Offset<S>>) -> Result<Vec<Extent<S>>>;
    /// The extents of the whole layer.
    ///
    /// # Errors
    /// As [`extents`](Self::extents).
    fn map(&self) -> Result<Map<S>> {
        let all = self.extents(Offset::new(0)..Offset::new(self.len()))?;
        Ok(all.into_iter().map(|e| (e.len, e.what)).collect())
    }
}
