//! `cat`: the bytes of one thing.

use std::ffi::OsString;
use std::sync::Arc;

use clap::Args;

use super::{End, Progress, Session};
use crate::error::Error;
use crate::extent::{Image, Offset, ReadAt, Space, Stream, Volume};
use crate::fs::StreamId;
use crate::stack::{Level, Stack, Target};

/// Bytes that are read and written at a time.
const CHUNK: usize = 4 << 20;

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
            Bytes::Stream(bytes) => copy(s, bytes.as_ref()),
            Bytes::Volume(bytes) => copy(s, bytes.as_ref()),
            Bytes::Image(bytes) => copy(s, bytes.as_ref()),
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

fn copy<S: Space>(s: &mut Session<'_>, bytes: &dyn ReadAt<S>) -> Result<(), End> {
    let progress = Progress::new("reading", Some(bytes.len()));
    let mut buf = vec![0; usize::try_from(bytes.len()).map_or(CHUNK, |n| n.min(CHUNK))];
    let mut at = Offset::new(0);
    loop {
        let left = bytes.len().saturating_sub(at.get());
        let take = usize::try_from(left).map_or(buf.len(), |n| n.min(buf.len()));
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
