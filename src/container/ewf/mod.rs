//! EWF: the evidence files of EnCase (E01, Ex01), FTK and SMART (S01), in any number of segment files. "Expert Witness Compression
//! Format specification" and "... version 2", J. Metz.
//!
//! The disk is cut into chunks of, mostly, 32 KiB. Each is stored with a checksum behind it, or deflated; tables tell where. So
//! the flat list of a chain would have an entry for every 32 KiB of a disk that is never chained: this reader looks chunks
//! up in the tables themselves, each read once, and checks every chunk that it reads.

use std::ops::Range;
use std::sync::Arc;

use crate::bytes::Fields;
use crate::container::table::{Fault, Pieces, Table};
use crate::container::{Disk, OpenWith};
use crate::error::{Error, Result};
use crate::extent::{Device, Extent, Image, Layer, LayerId, Offset, ReadAt};

mod chunks;
mod notes;
mod second;
mod section;
mod segments;
mod tables;

use chunks::{Ahead, Chunks, Source};
use section::{Kind, Section, Shape};
use segments::{Segment, Segments};
use tables::{Form, Tables};

/// Whether a file that begins so is a segment file.
pub(super) fn recognised(head: &[u8]) -> bool {
    [section::SIGNATURE, section::LOGICAL, second::SIGNATURE, second::LOGICAL].iter().any(|s| head.starts_with(*s))
}

/// Opens the image that `device` is a segment file of.
///
/// # Errors
/// A segment file that is missing ([`Error::NotFound`]) or of another image ([`Error::Refused`]), no description of the disk.
pub(super) fn open(device: &Arc<dyn ReadAt<Device>>, with: &OpenWith<'_>) -> Result<Disk> {
    let head = device.read_vec(Offset::new(0), section::HEADER)?;
    if head.starts_with(section::LOGICAL) || head.starts_with(second::LOGICAL) {
        return Err(Error::Unsupported(
            "a logical EWF image (L01, Lx01): it holds files, no disk, and can't be read so far".into(),
        ));
    }
    let Segments { all, parts } = segments::gather(device, with)?;
    let second = all.first().and_then(|s| s.second);
    let (shape, smart) = match second {
        Some(_) => (notes::shape(&all)?, false),
        None => shape(&all, with)?,
    };
    let mut tables = match second {
        Some((codec, _)) => Tables::gather_second(&all, &shape, codec),
        None => Tables::gather(&all, &shape, smart),
    };
    let mut remarks = std::mem::take(&mut tables.remarks);
    let (facts, hashes) = notes::read(&all, &mut remarks);
    let files = all.into_iter().map(|s| s.device).collect();
    let image = Arc::new(Evidence { id: LayerId::fresh(), shape, tables, files, chunks: Chunks::default() });
    let kind = match second {
        Some(_) => "ewf-ex01",
        None if smart => "ewf-s01",
        None => "ewf-e01",
    };
    let mut disk = Disk::new(kind, Arc::clone(&image) as _, vec![image]);
    disk.parts = parts;
    disk.remarks = remarks;
    disk.facts = facts;
    disk.hashes = hashes;
    Ok(disk)
}

/// The shape of the disk, and whether it is SMART's. Every segment file that tells it must tell the same.
fn shape(all: &[Segment], with: &OpenWith<'_>) -> Result<(Shape, bool)> {
    let mut found: Option<(Shape, bool)> = None;
    let mut broken = None;
    for segment in all {
        for section in segment.sections.iter().filter(|s| s.kind == Kind::Volume) {
            let len = section.end.saturating_sub(section.body);
            let smart = len <= section::SMART as u64;
            let len = if smart { section::SMART } else { section::VOLUME };
            let at = Offset::new(section.body);
            let read = segment.device.read_vec(at, len);
            match (read.and_then(|b| Shape::decode(Fields::new("EWF volume section", at, &b))), &found) {
                (Ok(shape), None) => found = Some((shape, smart)),
                (Ok(shape), Some((first, _)))
                    if (shape.len, shape.chunk, shape.set) != (first.len, first.chunk, first.set) =>
                {
                    with.other(format!("the segment file {} is of another image", segment.name))?;
                }
                (Ok(_), _) => {}
                (Err(e), _) => broken = Some(e),
            }
        }
    }
    found.ok_or_else(|| {
        broken.unwrap_or_else(|| {
            Error::corrupt("EWF image", Offset::<Device>::new(section::HEADER as u64), "a volume section")
        })
    })
}

/// The virtual disk of an EWF image.
struct Evidence {
    id: LayerId,
    shape: Shape,
    tables: Tables,
    files: Vec<Arc<dyn ReadAt<Device>>>,
    chunks: Chunks,
}

impl Evidence {
    /// Bytes of a chunk of the disk; fewer for the last one.
    fn chunk_len(&self, number: u64) -> usize {
        let start = number.saturating_mul(self.shape.chunk.into());
        self.shape.len.saturating_sub(start).min(self.shape.chunk.into()) as usize
    }
    fn number(&self, at: u64) -> u64 {
        at.checked_div(self.shape.chunk.into()).unwrap_or_default()
    }
}

impl Source for Evidence {
    fn ahead(&self, number: u64, count: usize) -> Ahead {
        let numbers = number..number.saturating_add(count as u64);
        let stored: Vec<_> = numbers.filter_map(|n| self.tables.chunk(&self.files, n).ok()).collect();
        // Stored as they are, chunks take no more than they have and their checksum.
        let most = (count as u64).saturating_mul(u64::from(self.shape.chunk).saturating_add(1024));
        Ahead::read(&self.files, &stored, most)
    }
    fn decode(&self, number: u64, ahead: &Ahead, out: &mut Vec<u8>) -> Result<()> {
        let stored = self.tables.chunk(&self.files, number).map_err(|fault| fault.error())?;
        let file = self.files.get(stored.file).ok_or_else(|| Error::NotFound("a segment file".into()))?;
        chunks::decode(&**file, stored, ahead, (self.chunk_len(number), self.shape.chunk as usize), out)
    }
}

impl Table for Evidence {
    fn len(&self) -> u64 {
        self.shape.len
    }
    fn span(&self) -> u64 {
        u64::from(self.shape.chunk).saturating_mul(1 << 14)
    }
    fn pieces(&self, range: Range<u64>, out: &mut Pieces) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let number = self.number(at);
            if let Some((fault, next)) = self.tables.lost(&self.files, number) {
                let stop = next.saturating_mul(self.shape.chunk.into()).min(range.end);
                out.unreadable(stop.saturating_sub(at), fault);
                at = stop;
                continue;
            }
            let start = number.saturating_mul(self.shape.chunk.into());
            let skip = at.saturating_sub(start);
            let len = range.end.min(start.saturating_add(self.shape.chunk.into())).saturating_sub(at);
            match self.tables.chunk(&self.files, number) {
                Ok(stored) => match (stored.form, self.files.get(stored.file)) {
                    (Form::Plain { sum }, Some(file)) => {
                        // A chunk without its end has no checksum: nobody can say that its beginning is right.
                        let whole = (self.chunk_len(number) as u64).saturating_add(if sum { 4 } else { 0 });
                        let room = stored.len.min(file.len().saturating_sub(stored.at));
                        if room < whole {
                            let expected = format!("{whole} bytes, there is room for {room}");
                            out.unreadable(len, Fault::new("EWF chunk", stored.at, expected));
                        } else {
                            out.stored(len, file.id(), stored.at.saturating_add(skip));
                        }
                    }
                    (Form::Pattern(0), _) => out.zero(len),
                    (Form::Packed(_) | Form::Pattern(_), _) => {
                        out.packed(len, number, u32::try_from(skip).unwrap_or(u32::MAX));
                    }
                    (Form::Plain { .. }, None) => {
                        out.unreadable(len, Fault::new("EWF table", stored.at, "a segment file"))
                    }
                },
                Err(fault) => out.unreadable(len, fault),
            }
            at = at.saturating_add(len.max(1));
        }
        Ok(())
    }
    fn unpack(&self, unit: u64, out: &mut Vec<u8>) -> Result<()> {
        self.decode(unit, &Ahead::default(), out)
    }
    fn files(&self) -> &[Arc<dyn ReadAt<Device>>] {
        &self.files
    }
}

impl ReadAt<Image> for Evidence {
    fn id(&self) -> LayerId {
        self.id
    }
    fn len(&self) -> u64 {
        self.shape.len
    }
    fn read_at(&self, at: Offset<Image>, buf: &mut [u8]) -> Result<()> {
        let len = buf.len() as u64;
        if at.checked_add(len).is_none_or(|end| end.get() > self.shape.len) {
            return Err(Error::past_end(at, len, self.shape.len));
        }
        let number = self.number(at.get());
        let skip = at.get().saturating_sub(number.saturating_mul(self.shape.chunk.into()));
        self.chunks.fill(number, skip as usize, self.shape.chunk as usize, buf, self)
    }
}

impl Layer<Image> for Evidence {
    fn extents(&self, range: Range<Offset<Image>>) -> Result<Vec<Extent<Image>>> {
        let range = range.start.get().min(self.shape.len)..range.end.get().min(self.shape.len);
        let mut pieces = Pieces::new(range.start);
        self.pieces(range, &mut pieces)?;
        let mut out: Vec<Extent<Image>> = Vec::new();
        for (start, len, piece) in pieces.iter() {
            let what = piece.below();
            match out.last_mut() {
                Some(last) if last.what.continued_by(last.len, &what) => last.len = last.len.saturating_add(len),
                _ => out.push(Extent { start: Offset::new(start), len, what }),
            }
        }
        Ok(out)
    }
}

/// The ranges of a segment file in which chunks may lie.
fn data(sections: &[Section]) -> Vec<Range<u64>> {
    let holds = |s: &&Section| matches!(s.kind, Kind::Sectors | Kind::Table);
    sections.iter().filter(holds).map(|s| s.body..s.end).collect()
}
