//! From a file to extents: finds the descriptor, the files of the extents, and the parent.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::gate::Wanted;
use super::super::{Disk, Format, OpenWith, Parent, Part, Role, paths};
use super::descriptor::{Descriptor, Extent as Line, Kind, MAX_LEN, SECTOR, is_descriptor};
use super::grains::Grains;
use super::header::{HEADER, Header, Style};
use super::{Content, Extent, Extents};
use crate::bytes::Fields;
use crate::error::{Error, Result};
use crate::extent::{Device, Offset, ReadAt};

type File = Arc<dyn ReadAt<Device>>;

/// What is being put together.
struct Builder<'a> {
    with: &'a OpenWith<'a>,
    has_parent: bool,
    extents: Vec<Extent>,
    len: u64,
    files: Vec<File>,
    parts: Vec<Part>,
    remarks: Vec<String>,
    /// Files that were opened, by the names that the descriptor has for them.
    known: HashMap<String, (File, bool)>,
}

pub(super) fn open(device: &File, with: &OpenWith<'_>) -> Result<Disk> {
    let have = device.len().min(HEADER as u64);
    let head = device.read_vec(Offset::new(0), usize::try_from(have).unwrap_or(HEADER))?;
    if is_descriptor(&head) {
        let descriptor = text(&**device, 0, device.len())?;
        return build(None, descriptor, with);
    }
    let Some(header) = header(&**device)? else {
        return Err(Error::corrupt("VMDK header", Offset::<Device>::new(0), "a header"));
    };
    // The parts of a split disk have room for a descriptor, and none in it.
    let empty = |at: u64| device.read_vec(Offset::new(at), 1).is_ok_and(|b| b == [0]);
    let Some((at, len)) = header.descriptor.filter(|(at, _)| !empty(*at)) else {
        return Err(Error::Unsupported(
            "an extent of a VMDK, without the descriptor that says what it belongs to: the descriptor must be opened"
                .into(),
        ));
    };
    let descriptor = text(&**device, at, len)?;
    build(Some((device, header)), descriptor, with)
}

/// A descriptor of `len` bytes at `at`.
fn text(device: &dyn ReadAt<Device>, at: u64, len: u64) -> Result<Descriptor> {
    let place = Offset::new(at);
    if len > MAX_LEN {
        return Err(Error::corrupt("VMDK descriptor", place, format!("at most {MAX_LEN} bytes, it has {len}")));
    }
    let len = len.min(device.len().saturating_sub(at));
    Descriptor::decode(place, &device.read_vec(place, usize::try_from(len).unwrap_or_default())?)
}

/// The header of a sparse extent; where it says so, the footer that has the grain directory.
fn header(device: &dyn ReadAt<Device>) -> Result<Option<Header>> {
    let have = usize::try_from(device.len()).map_or(HEADER, |n| n.min(HEADER));
    let bytes = device.read_vec(Offset::new(0), have)?;
    let Some(header) = Header::decode(Offset::new(0), &bytes)? else { return Ok(None) };
    if let Style::Se { .. } = header.style {
        volatile(device, &bytes)?;
    }
    if !header.at_end {
        return Ok(Some(header));
    }
    // Behind the footer is the end-of-stream marker.
    let at = Offset::new(device.len().saturating_sub(2 * SECTOR));
    let footer = Header::decode(at, &device.read_vec(at, HEADER)?).ok().flatten();
    match footer.filter(|f| !f.at_end && f.style == header.style && f.grain == header.grain) {
        Some(footer) => Ok(Some(Header { descriptor: header.descriptor, ..footer })),
        None => Err(Error::corrupt(
            "VMDK footer",
            at,
            "the footer of the stream: the file was cut, or not written to its end",
        )),
    }
}

/// The second header of a space-efficient extent: whether its journal was left to be replayed.
fn volatile(device: &dyn ReadAt<Device>, bytes: &[u8]) -> Result<()> {
    let at = Offset::new(Header::volatile(bytes)?);
    let bytes = device.read_vec(at, HEADER)?;
    let f = Fields::new("VMDK (SESPARSE) volatile header", at, &bytes);
    if f.u64(0)? != 0xCAFE_CAFE {
        return Err(f.wrong(0, "the number CAFECAFE"));
    }
    if f.u64(24)? != 0 {
        return Err(Error::Unsupported(
            "a VMDK (SESPARSE) that was not closed cleanly: its journal would have to be replayed".into(),
        ));
    }
    Ok(())
}

/// `own` is the extent that the descriptor was found in.
fn build(own: Option<(&File, Header)>, descriptor: Descriptor, with: &OpenWith<'_>) -> Result<Disk> {
    let total = descriptor.len()?;
    let mut builder = Builder {
        with,
        has_parent: descriptor.parent_cid.is_some(),
        extents: Vec::new(),
        len: 0,
        files: Vec::new(),
        parts: Vec::new(),
        remarks: Vec::new(),
        known: HashMap::new(),
    };
    let mut own = own;
    for line in &descriptor.extents {
        // The descriptor lies in the first sparse extent, whatever that is called by now.
        match own.take_if(|_| line.kind == Kind::Sparse) {
            Some((device, header)) => {
                if header.len != line.len {
                    builder.remarks.push(format!(
                        "the VMDK descriptor says that the extent has {} bytes, its header says {}",
                        line.len, header.len
                    ));
                }
                let len = Some(line.len).filter(|_| descriptor.extents.len() > 1);
                builder.sparse(Arc::clone(device), header, len)?;
            }
            None => builder.line(line)?,
        }
    }
    if own.is_some() {
        return Err(Error::Unsupported("a VMDK whose descriptor lies in an extent that it does not name".into()));
    }
    let mut remarks = std::mem::take(&mut builder.remarks);
    if builder.len != total {
        remarks.push(format!("the disk has {} bytes, its descriptor says {total}", builder.len));
    }
    let parent = match descriptor.parent_cid {
        Some(cid) => Some(parent(&descriptor, cid, with, &mut remarks)?),
        None => None,
    };
    let table = Extents {
        list: builder.extents,
        len: builder.len,
        files: builder.files,
        identity: format!("{:08x}", descriptor.cid),
        name: with.name(),
    };
    let mut disk = Disk::chained("vmdk", Arc::new(table), builder.parts, parent)?;
    remarks.append(&mut disk.remarks);
    disk.remarks = remarks;
    Ok(disk)
}

fn parent(descriptor: &Descriptor, cid: u32, with: &OpenWith<'_>, remarks: &mut Vec<String>) -> Result<Parent> {
    let hint = descriptor.parent.as_deref().unwrap_or_default();
    if hint.is_empty() {
        return Err(Error::NotFound(format!(
            "the parent of the VMDK, of CID {cid:08x}: its descriptor does not name it"
        )));
    }
    let parent = with.first_parent(&[paths::from_either(hint)], Format::Kind("vmdk"))?;
    let have = parent.identity();
    if have != format!("{cid:08x}") {
        let why = format!("the parent {} has the CID {have}, its child expects {cid:08x}", parent.opened.name);
        remarks.push(with.other(why)?);
    }
    Ok(parent)
}

impl Builder<'_> {
    fn push(&mut self, len: u64, content: Content) {
        if len > 0 {
            self.extents.push(Extent { start: self.len, len, content });
        }
        self.len = self.len.saturating_add(len);
    }

    /// A sparse extent of `len` bytes of the disk; none for as many as its header says.
    fn sparse(&mut self, file: File, header: Header, len: Option<u64>) -> Result<()> {
        let len = len.unwrap_or(header.len);
        self.file(&file);
        let (grains, remarks) = Grains::open(file, header, self.has_parent)?;
        self.remarks.extend(remarks);
        self.push(len, Content::Sparse(Box::new(grains)));
        Ok(())
    }

    fn file(&mut self, file: &File) {
        if !self.files.iter().any(|f| f.id() == file.id()) {
            self.files.push(Arc::clone(file));
        }
    }

    fn line(&mut self, line: &Line) -> Result<()> {
        if !line.readable {
            self.push(line.len, Content::Denied);
            return Ok(());
        }
        match line.kind {
            Kind::Zero => self.push(line.len, Content::Zero),
            Kind::Device => {
                return Err(Error::Unsupported(format!(
                    "a VMDK extent ({}) that is a device of the machine it was made on: {}",
                    line.word, line.name
                )));
            }
            Kind::Flat(at) => {
                let (file, moved) = self.opened(line)?;
                let end = at.saturating_add(line.len);
                if file.len() < end {
                    let why = format!("the extent {} has {} bytes, the VMDK needs {end} of it", line.name, file.len());
                    let why = if moved { self.with.other(why)? } else { why };
                    self.remarks.push(why);
                }
                self.file(&file);
                self.push(line.len, Content::Flat(file.id(), at));
            }
            Kind::Sparse => {
                let (file, moved) = self.opened(line)?;
                let Some(header) = header(&*file).map_err(|e| e.within(&line.name))? else {
                    let expected = format!("the header of a sparse extent ({})", line.name);
                    return Err(Error::corrupt("VMDK header", Offset::<Device>::new(0), expected));
                };
                if header.len != line.len {
                    let why = format!(
                        "the extent {} has {} bytes by its header, {} by the VMDK descriptor",
                        line.name, header.len, line.len
                    );
                    let why = if moved { self.with.other(why)? } else { why };
                    self.remarks.push(why);
                }
                self.sparse(file, header, Some(line.len))?;
            }
        }
        Ok(())
    }

    /// The file of an extent, and whether it was found elsewhere or by another name than the descriptor has: then its size
    /// must be right.
    fn opened(&mut self, line: &Line) -> Result<(File, bool)> {
        if let Some((file, moved)) = self.known.get(&line.name) {
            return Ok((Arc::clone(file), *moved));
        }
        let name = paths::from_either(&line.name);
        let open = |name: &[u8]| self.with.part(&Wanted { name, what: "extent", moved: true });
        let (opened, renamed) = match open(&name) {
            Err(e @ (Error::NotFound(_) | Error::Refused(_))) => {
                let name = renamed(self.with.gate.own(), &name).ok_or_else(|| e.again())?;
                match open(&name) {
                    Err(Error::NotFound(_)) => return Err(e),
                    other => (other?, true),
                }
            }
            other => (other?, false),
        };
        if renamed {
            self.remarks.push(format!("the VMDK descriptor says {}: {} is taken", line.name, opened.name));
        }
        let moved = renamed || opened.remark.is_some();
        self.remarks.extend(opened.remark);
        let (role, device) = (Role::Own, Arc::clone(&opened.device));
        self.parts.push(Part { role, kind: "vmdk", name: opened.name, device: Arc::clone(&device) });
        self.known.insert(line.name.clone(), (Arc::clone(&device), moved));
        Ok((device, moved))
    }
}

/// What an extent is called where the descriptor `own` was renamed together with it: the descriptor's own name with what
/// the kind of extent adds to it.
fn renamed(own: &[u8], extent: &[u8]) -> Option<Vec<u8>> {
    let base = extent.rsplit(|b| *b == b'/').next()?;
    let dash = base.iter().rposition(|b| *b == b'-')?;
    let ending = base.get(dash..)?;
    let stem = own.strip_suffix(b".vmdk")?;
    let word = ending.strip_suffix(b".vmdk")?.get(1..)?;
    let numbered = |w: &[u8]| {
        w.split_first().is_some_and(|(c, n)| b"sf".contains(c) && !n.is_empty() && n.iter().all(u8::is_ascii_digit))
    };
    let known = [&b"flat"[..], b"delta", b"sesparse"].contains(&word) || numbered(word);
    known.then(|| [stem, ending].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renamed_with_their_descriptor() {
        let ok = |own: &[u8], extent: &[u8]| renamed(own, extent).map(|n| String::from_utf8(n).unwrap());
        assert_eq!(ok(b"new.vmdk", b"old-flat.vmdk").as_deref(), Some("new-flat.vmdk"));
        assert_eq!(ok(b"new.vmdk", b"/vmfs/volumes/1/a-b/old-s012.vmdk").as_deref(), Some("new-s012.vmdk"));
        assert_eq!(ok(b"new-000001.vmdk", b"old-000001-sesparse.vmdk").as_deref(), Some("new-000001-sesparse.vmdk"));
        assert_eq!(ok(b"new.vmdk", b"old-data.vmdk"), None);
        assert_eq!(ok(b"new.vmdk", b"old.vmdk"), None);
        assert_eq!(ok(b"", b"old-flat.vmdk"), None);
    }
}
