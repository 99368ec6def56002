//! `cat`: the bytes of one thing.

use std::ffi::OsString;
use std::sync::Arc;

use clap::Args;

use super::{End, Progress, Session, names};
use crate::error::Error;
use crate::extent::{Image, Offset, ReadAt, Space, Stream, Volume};
use crate::fs::StreamId;
use crate::report::levels;
use crate::stack::{Level, Stack, Target};

/// Bytes that are read and written at a time, and that the kernel moves at a time.
const CHUNK: usize = 4 << 20;
/// Bytes from which on it is worth while to look where they lie, and of which that is looked up at a time.
const LARGE: u64 = 1 << 20;
const LOOKED_UP: u64 = 256 << 20;

/// Print the bytes of a file, an alternate data stream, a volume or a disk
///
/// Holes read as zeros. An error names the offset, and everything before it has been printed.
#[derive(Args)]
#[command(after_help = "Examples:
  unimage cat disk.raw//p1/etc/fstab
  unimage cat disk.raw//p2/Users/x/setup.exe:Zone.Identifier    an alternate data stream
  unimage cat disk.raw//p1 > p1.raw                             a whole volume")]
pub struct Cat {
    /// What to print
    #[arg(value_name = "ADDR")]
    address: OsString,
}

/// The bytes of one of the things that an address can name.
enum Bytes {
    Stream(Arc<dyn ReadAt<Stream>>),
    Volume(Arc<dyn ReadAt<Volume>>),
    Image(Arc<dyn ReadAt<Image>>),
}

impl Cat {
    pub(super) fn run(&self, s: &mut Session<'_>) -> Result<u8, End> {
        let stack = s.open(&self.address)?;
        let copied = open(&stack).map_err(End::from).and_then(|bytes| match bytes {
            Bytes::Stream(bytes) => copy(s, &stack, bytes.as_ref()),
            Bytes::Volume(bytes) => copy(s, &stack, bytes.as_ref()),
            Bytes::Image(bytes) => copy(s, &stack, bytes.as_ref()),
        });
        copied.map_err(|end| end.within(&self.address))?;
        Ok(0)
    }
}

fn open(stack: &Stack) -> Result<Bytes, Error> {
    let level = stack.last()?;
    match &stack.target {
        Target::Disk => Ok(Bytes::Image(Arc::clone(&level.disk.image) as _)),
        Target::Volume(v) => {
            let slot = level.table.slots.get(*v);
            let slot = slot.ok_or_else(|| Error::NotFound(format!("the disk has no volume at position {v}")))?;
            Ok(Bytes::Volume(Arc::clone(&slot.layer) as _))
        }
        Target::Object(v, path, id) => {
            let tree = level.guest(*v)?.tree()?;
            let kind = tree.object(*id).kind;
            match tree.data(*id) {
                Some(data) => stream(level, *v, data),
                None => Err(Error::Usage(format!(
                    "{}: it has no bytes of its own (kind: {}); `unimage ls -l` shows what is there",
                    crate::report::path::escape(path),
                    kind.word()
                ))),
            }
        }
        Target::Stream(v, _, id) => stream(level, *v, *id),
    }
}

fn stream(level: &Level, v: usize, id: StreamId) -> Result<Bytes, Error> {
    let guest = level.guest(v)?;
    Ok(Bytes::Stream(guest.fs()?.open(&*guest.tree()?, id)? as _))
}

fn copy<S: Space>(s: &mut Session<'_>, stack: &Stack, bytes: &dyn ReadAt<S>) -> Result<(), End> {
    let progress = Progress::new("reading", Some(bytes.len()));
    // What can't be looked up can be read all the same, or reading says why not.
    let names = names(&stack.address);
    let levels = if bytes.len() < LARGE { None } else { levels::trace(stack, &names).ok() };
    // Stretches that lie as they are in the source, which is a file or device; and how far they are known.
    let (mut plain, mut known) = (Vec::new(), 0u64);
    let ground = stack.levels.first().and_then(|level| level.device.file());
    let mut buf = Vec::new();
    let mut at = Offset::new(0);
    loop {
        let mut left = bytes.len().saturating_sub(at.get());
        if let Some(levels) = levels.as_ref().filter(|_| at.get() >= known && left > 0) {
            known = at.get().saturating_add(left.min(LOOKED_UP));
            plain = levels.on_ground(at.get()..known).unwrap_or_default();
        }
        let next = plain.partition_point(|(start, len, _)| start.saturating_add(*len) <= at.get());
        if let (Some(ground), Some((start, len, place))) = (ground, plain.get(next)) {
            match at.get().checked_sub(*start) {
                None => left = start.saturating_sub(at.get()),
                Some(skip) => {
                    left = len.saturating_sub(skip);
                    let most = left.min(CHUNK as u64);
                    if let Some(done) = s.out.pass(ground, place.saturating_add(skip), most)? {
                        progress.add(done);
                        at = at.saturating_add(done);
                        continue;
                    }
                }
            }
        }
        let take = usize::try_from(left).map_or(CHUNK, |n| n.min(CHUNK));
        if buf.len() < take {
            buf.resize(take, 0);
        }
        let Some(chunk) = buf.get_mut(..take).filter(|c| !c.is_empty()) else { return Ok(()) };
        if let Err(error) = bytes.read_at(at, chunk) {
            // A chunk is many sectors: print what can be read before the bad one.
            salvage(s, bytes, at, chunk)?;
            return Err(error.into());
        }
        s.out.write(chunk)?;
        progress.add(take as u64);
        at = at.saturating_add(take as u64);
    }
}

/// Prints the readable beginning of a chunk that could not be read as a whole, by 512 bytes.
fn salvage<S: Space>(
    s: &mut Session<'_>,
    bytes: &dyn ReadAt<S>,
    mut at: Offset<S>,
    chunk: &mut [u8],
) -> Result<(), End> {
    for sector in chunk.chunks_mut(512) {
        if bytes.read_at(at, sector).is_err() {
            break;
        }
        s.out.write(sector)?;
        at = at.saturating_add(sector.len() as u64);
    }
    Ok(())
}
