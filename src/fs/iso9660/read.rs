//! The reader: descriptors, then directories level by level in the order of the disk.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::layout::{self, Descriptor, FIRST, Kind as Volumes, Record, SECTOR, flag};
use super::rock::{self, Rock};
use crate::bytes::Fields;
use crate::error::{Error, Result};
use crate::extent::{Encoding, Layer, MapLayer, Offset, Place, ReadAt, Stream, Volume, What};
use crate::fs::{Facts, FileSystem, Form, Kind, NewStream, Object, ObjectId, StreamId, Times, Tree, TreeBuilder};

/// Volume descriptors that are read.
const MAX_DESCRIPTORS: u64 = 64;
/// Bytes of a directory that are read at most; more than 4,000,000 records.
const MAX_DIR: u64 = 256 << 20;
/// Bytes of a unit of zisofs, for what is compressed: nothing here reads it.
const ZISOFS: u32 = 32 << 10;

/// An ISO 9660 volume.
pub struct Iso {
    volume: Arc<dyn ReadAt<Volume>>,
    primary: Descriptor,
    joliet: Option<Descriptor>,
    /// Bytes before the entries of Rock Ridge, where it is there.
    rock: Option<usize>,
    /// What is there beside and not read.
    beside: Vec<String>,
}

/// Which names are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    Plain,
    Joliet,
    /// With so many bytes before the entries.
    Rock(usize),
}

impl Iso {
    /// Reads the descriptors; none where the first one is none.
    pub fn open(volume: Arc<dyn ReadAt<Volume>>) -> Result<Option<Self>> {
        let mut signature = [0; 5];
        if volume.len() < FIRST.saturating_add(SECTOR) {
            return Ok(None);
        }
        volume.read_at(Offset::new(layout::PRIMARY_AT), &mut signature)?;
        if signature != *layout::SIGNATURE {
            return Ok(None);
        }
        let (mut primary, mut joliet, mut beside) = (None, None, Vec::new());
        let mut ended = false;
        for number in 0..MAX_DESCRIPTORS {
            let at = Offset::new(FIRST.saturating_add(number.saturating_mul(SECTOR)));
            let Ok(bytes) = volume.read_vec(at, SECTOR as usize) else { break };
            if matches!(bytes.get(1..6), Some(b"NSR02" | b"NSR03")) {
                beside.push("a UDF file system is there too, and can't be read so far".to_owned());
            }
            if ended {
                continue;
            }
            let Some(descriptor) = Descriptor::decode(Fields::new("volume descriptor", at, &bytes))? else { break };
            match descriptor.kind {
                Volumes::Primary => primary = primary.or(Some(descriptor)),
                Volumes::Joliet => joliet = joliet.or(Some(descriptor)),
                Volumes::Terminator => ended = true,
                Volumes::Other => {}
            }
        }
        let at = Offset::<Volume>::new(FIRST);
        let primary = primary.ok_or_else(|| Error::corrupt("volume descriptors", at, "a primary one"))?;
        if ![512, 1024, 2048].contains(&primary.block) {
            return Err(Error::corrupt(
                "primary volume descriptor",
                at.saturating_add(128),
                "blocks of 512 to 2048 bytes",
            ));
        }
        let rock = volume.read_vec(Offset::new(primary.root.block.saturating_mul(primary.block)), SECTOR as usize);
        let rock = rock.ok().and_then(|sector| {
            let (records, _) = layout::records(&sector, 0);
            records.first().and_then(|(_, record, area)| if record.is_dot() { rock::skip(area) } else { None })
        });
        // Joliet's own tree has the same blocks; one of another size is none of the same disk.
        let joliet = joliet.filter(|j| j.block == primary.block);
        Ok(Some(Self { volume, primary, joliet, rock, beside }))
    }
    fn names(&self) -> Names {
        match (self.rock, &self.joliet) {
            (Some(skip), _) => Names::Rock(skip),
            (None, Some(_)) => Names::Joliet,
            (None, None) => Names::Plain,
        }
    }
    fn walked(&self, names: Names) -> (Walk<'_>, ObjectId) {
        let descriptor = match (names, &self.joliet) {
            (Names::Joliet, Some(joliet)) => joliet,
            _ => &self.primary,
        };
        let mut walk = Walk {
            iso: self,
            names,
            tree: TreeBuilder::new(),
            taken: BTreeMap::new(),
            files: BTreeSet::new(),
            linked: HashMap::new(),
        };
        let root = walk.run(&descriptor.root);
        (walk, root)
    }
}

/// A directory that is yet to be listed.
struct Dir {
    object: ObjectId,
    block: u64,
    /// Bytes; none for one that only its own first record tells.
    len: Option<u64>,
}

struct Walk<'i> {
    iso: &'i Iso,
    names: Names,
    tree: TreeBuilder,
    /// Bytes of the volume that are directories: start and end. Each is listed once, so that there is no circle.
    taken: BTreeMap<u64, u64>,
    /// First block and bytes of every file.
    files: BTreeSet<(u64, u64)>,
    /// Files of several names, by serial number, block and bytes.
    linked: HashMap<(u64, u64, u64), ObjectId>,
}

/// One name of a directory: a record, or several that are one file.
struct Item {
    at: u64,
    record: Record,
    rock: Rock,
    /// Blocks and bytes, in order.
    pieces: Vec<(u64, u64)>,
    /// Whether more was announced than came.
    cut: bool,
}

impl Walk<'_> {
    /// Lists everything below this record, and gives the root.
    fn run(&mut self, root: &Record) -> ObjectId {
        let times = Times { modified: root.time, ..Times::default() };
        let object = self.tree.object(Object {
            kind: Kind::Dir,
            number: 0,
            times,
            attributes: 0,
            mode: None,
            owner: None,
            system: false,
        });
        let mut level = vec![Dir { object, block: root.block, len: Some(root.len) }];
        while !level.is_empty() {
            level.sort_by_key(|dir| dir.block);
            let mut next = Vec::new();
            for dir in level {
                if let Err(e) = self.list(&dir, &mut next) {
                    self.tree.problem(Some(dir.object), &e);
                }
            }
            level = next;
        }
        object
    }
    fn list(&mut self, dir: &Dir, next: &mut Vec<Dir>) -> Result<()> {
        let at = dir.block.saturating_mul(self.iso.primary.block);
        let place = Offset::<Volume>::new(at);
        let volume = &self.iso.volume;
        let len = match dir.len {
            Some(len) => len,
            None => {
                let first = volume.read_vec(place, layout::RECORD.saturating_add(1))?;
                Record::decode(Fields::new("directory record", place, &first))?.0.len
            }
        };
        let end = at.checked_add(len).filter(|end| *end <= volume.len() && len <= MAX_DIR);
        let end = end.ok_or_else(|| {
            Error::corrupt("directory", place, format!("at most {MAX_DIR} bytes within the volume, not {len}"))
        })?;
        if self.taken.range(..end).next_back().is_some_and(|(_, taken)| *taken > at) {
            return Err(Error::corrupt("directory", place, "blocks that no other directory has"));
        }
        self.taken.insert(at, end);
        let bytes = volume.read_vec(place, len as usize)?;
        let (records, faults) = layout::records(&bytes, at);
        for fault in &faults {
            self.tree.problem(Some(dir.object), fault);
        }
        let mut items: Vec<Item> = Vec::with_capacity(records.len());
        for (at, record, area) in records {
            if record.is_dot() {
                if record.name == [0] {
                    self.itself(dir.object, area);
                }
                continue;
            }
            self.gather(&mut items, at, record, area);
        }
        for item in &mut items {
            self.item(dir.object, item, next);
        }
        Ok(())
    }
    /// What a directory's own record says of it.
    fn itself(&mut self, object: ObjectId, area: &[u8]) {
        let mut rock = Rock::default();
        if let Names::Rock(skip) = self.names
            && rock::decode(&*self.iso.volume, self.iso.primary.block, area.get(skip..).unwrap_or_default(), &mut rock)
                .is_ok()
            && let Some(object) = self.tree.object_mut(object)
        {
            // The entry in the parent says the same; only the root has none.
            if let (None, Some((mode, uid, gid))) = (object.mode, rock.posix) {
                object.mode = u16::try_from(mode & 0o7777).ok();
                object.owner = Some((uid, gid));
            }
        }
    }
    /// Puts the records of one file together.
    fn gather(&mut self, items: &mut Vec<Item>, at: u64, record: Record, area: &[u8]) {
        if let Some(last) = items.last_mut()
            && last.cut
            && last.record.name == record.name
        {
            last.pieces.push((record.block, record.len));
            last.cut = record.flags & flag::MORE != 0;
            return;
        }
        let mut rock = Rock::default();
        if let Names::Rock(skip) = self.names
            && let Err(e) =
                rock::decode(&*self.iso.volume, self.iso.primary.block, area.get(skip..).unwrap_or_default(), &mut rock)
        {
            self.tree.problem(None, &e);
        }
        let (pieces, cut) = (vec![(record.block, record.len)], record.flags & flag::MORE != 0);
        items.push(Item { at, record, rock, pieces, cut });
    }
    fn item(&mut self, parent: ObjectId, item: &mut Item, next: &mut Vec<Dir>) {
        let (record, rock) = (&item.record, &mut item.rock);
        if rock.relocated && rock.child.is_none() {
            // It is listed where it belongs.
            return;
        }
        let place = Offset::<Volume>::new(item.at);
        let mut name = match (rock.name.take(), self.names) {
            (Some(name), _) => name,
            (None, Names::Joliet) => without_version(layout::utf16_be(&record.name), false),
            (None, _) => without_version(record.name.clone(), true),
        };
        if name.is_empty() || name.contains(&b'/') || name.contains(&0) || name == b"." || name == b".." {
            let expected = "a name without a slash that is neither . nor .., gave it another one";
            self.tree.problem(None, &Error::corrupt("directory record", place, expected));
            name = format!("unnamed-{:x}", item.at).into_bytes();
        }
        if record.flags & flag::ASSOCIATED != 0 {
            name.extend_from_slice(b".associated");
        }
        let dir = record.is_dir() || rock.child.is_some();
        let kind = match rock.posix.map(|(mode, ..)| mode >> 12 & 0xF) {
            _ if dir => Kind::Dir,
            Some(0xA) => Kind::Symlink,
            Some(1) => Kind::Fifo,
            Some(0xC) => Kind::Socket,
            Some(2) => rock.device.map_or(Kind::File, |(major, minor)| Kind::CharDevice(major, minor)),
            Some(6) => rock.device.map_or(Kind::File, |(major, minor)| Kind::BlockDevice(major, minor)),
            _ => Kind::File,
        };
        let len = item.pieces.iter().fold(0u64, |sum, (_, len)| sum.saturating_add(*len));
        let link = rock.links.filter(|(_, names)| *names > 1 && kind == Kind::File);
        let link = link.map(|(serial, _)| (serial, record.block, len));
        if let Some(first) = link.and_then(|link| self.linked.get(&link)) {
            self.tree.entry(parent, &name, *first);
            return;
        }
        let modified = rock.times.modified.or(record.time);
        let object = self.tree.object(Object {
            kind,
            number: item.at,
            times: Times { modified, ..rock.times },
            attributes: if record.flags & flag::HIDDEN != 0 { 2 } else { 0 },
            mode: rock.posix.and_then(|(mode, ..)| u16::try_from(mode & 0o7777).ok()),
            owner: rock.posix.map(|(_, uid, gid)| (uid, gid)),
            system: false,
        });
        if let Some(link) = link {
            self.linked.insert(link, object);
        }
        self.tree.entry(parent, &name, object);
        match kind {
            Kind::Dir => {
                let (block, len) = rock.child.map_or((record.block, Some(record.len)), |block| (block, None));
                next.push(Dir { object, block, len });
            }
            Kind::Symlink => match rock.target.take() {
                Some(target) => self.tree.target(object, target),
                None => self.tree.problem(Some(object), &Error::corrupt("Rock Ridge entry", place, "a link's target")),
            },
            Kind::File => self.file(object, item, len, place),
            _ => {}
        }
    }
    fn file(&mut self, object: ObjectId, item: &Item, len: u64, place: Offset<Volume>) {
        let block = self.iso.primary.block;
        let (layer, end) = (self.iso.volume.id(), self.iso.volume.len());
        if len > 0 {
            self.files.insert((item.record.block, len));
        }
        let expected = if item.record.interleaved {
            Some("a file in one piece, it is interleaved with others")
        } else if item.cut {
            Some("another record of the same file")
        } else {
            None
        };
        if let Some(expected) = expected {
            self.tree.problem(Some(object), &Error::corrupt("directory record", place, expected));
        }
        let size = item.rock.packed.unwrap_or(len);
        let mut pieces = Vec::with_capacity(item.pieces.len());
        for (first, len) in &item.pieces {
            let at = first.saturating_mul(block);
            let there = end.saturating_sub(at).min(*len);
            pieces.push((there, What::Stored(Place { layer, offset: Offset::new(at) })));
            if there < *len {
                let expected = format!("{len} bytes within the volume, from byte {at:#x} on");
                self.tree.problem(Some(object), &Error::corrupt("directory record", place, expected));
                pieces.push((len.saturating_sub(there), What::Encoded(Encoding::Unreadable)));
            }
        }
        let mut form = Form::Plain;
        if item.record.interleaved {
            pieces = vec![(size, What::Encoded(Encoding::Unreadable))];
        } else if item.rock.packed.is_some() {
            form = Form::Compressed(ZISOFS);
            pieces = vec![(size, What::Encoded(Encoding::FsCompressed))];
        }
        let new = NewStream { name: None, size, valid: size, form, locator: item.record.block };
        self.tree.stream(object, new, pieces);
    }
}

/// A name without its version, and without the dot of an empty extension.
fn without_version(mut name: Vec<u8>, dot: bool) -> Vec<u8> {
    if let Some(at) = name.iter().rposition(|b| *b == b';')
        && name.get(at.saturating_add(1)..).is_some_and(|v| v.iter().all(u8::is_ascii_digit))
    {
        name.truncate(at);
    }
    if dot && name.last() == Some(&b'.') {
        name.pop();
    }
    name
}

impl FileSystem for Iso {
    fn facts(&self) -> Facts {
        let label = match (self.rock, &self.joliet) {
            (None, Some(joliet)) => &joliet.label,
            _ => &self.primary.label,
        };
        let mut remarks = self.beside.clone();
        match self.names() {
            Names::Rock(_) => remarks.push("names by Rock Ridge".to_owned()),
            Names::Joliet => remarks.push("names by Joliet".to_owned()),
            Names::Plain => {}
        }
        Facts {
            kind: "iso9660",
            label: label.clone(),
            serial: self.primary.created.clone(),
            unit: self.primary.block,
            units: self.primary.blocks,
            free_units: None,
            clean: None,
            remarks,
        }
    }
    fn walk(&self) -> Result<Tree> {
        let names = self.names();
        let (mut walk, root) = self.walked(names);
        for beside in &self.beside {
            walk.tree.problem(None, &Error::Unsupported(beside.clone()));
        }
        // What only the other tree leads to is told: it would be lost with the image.
        let other = match (names, &self.joliet) {
            (Names::Rock(_), Some(_)) => Some((Names::Joliet, "Joliet's")),
            (Names::Joliet, _) => Some((Names::Plain, "the plain")),
            _ => None,
        };
        if let Some((other, whose)) = other {
            let only = self.walked(other).0.files.difference(&walk.files).count();
            if only > 0 {
                let what = format!("{only} files are only in {whose} tree of names, which is not the one shown");
                walk.tree.problem(None, &Error::Unsupported(what));
            }
        }
        Ok(walk.tree.finish(root))
    }
    fn open(&self, tree: &Tree, stream: StreamId) -> Result<Arc<dyn Layer<Stream>>> {
        if matches!(tree.stream(stream).form, Form::Compressed(_)) {
            return Err(Error::Unsupported("compressed by zisofs: such files can't be read so far".into()));
        }
        Ok(Arc::new(MapLayer::new(tree.map(stream), vec![Arc::clone(&self.volume)])?))
    }
}
