//! The gate of a file that lies in a file system: what it names is found in that same file system's tree, beneath its own
//! folder or one that the user allowed. Links are not followed.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::folder;
use super::lookup::child;
use super::{Guest, OpenOptions, Within};
use crate::container::gate::{Gate, Identity, Opened, Wanted};
use crate::error::{Error, Result};
use crate::extent::{Layer, LayerId, MapLayer};
use crate::fs::{FileSystem, Kind, ObjectId, StreamId, Tree};
use crate::report::path::{escape, unescape};

/// What all gates of one volume share.
pub(super) struct Volume {
    slot: usize,
    id: LayerId,
    fs: Arc<dyn FileSystem>,
    tree: Arc<Tree>,
    folds: bool,
    options: OpenOptions,
    /// Where each file lies that was opened here.
    opened: Mutex<Vec<Within>>,
}

impl Volume {
    pub(super) fn of(guest: &Guest, options: &OpenOptions) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            slot: guest.slot,
            id: guest.volume().id(),
            fs: Arc::clone(guest.fs()?),
            tree: guest.tree()?,
            folds: guest.folds_case(),
            options: options.clone(),
            opened: Mutex::default(),
        }))
    }
    /// Opens a stream as a device: the device, and where it lies.
    pub(super) fn device(&self, stream: StreamId) -> Result<(MapLayer<crate::extent::Device>, Within)> {
        let file = self.fs.open(&self.tree, stream)?;
        let layer = file.id();
        let device = MapLayer::whole(file)?;
        let within = Within {
            volume: self.slot,
            object: self.tree.stream(stream).object,
            stream,
            map: self.tree.map(stream),
            layer,
            device: device.map()?,
            id: crate::extent::ReadAt::id(&device),
        };
        Ok((device, within))
    }
    /// Where the files lie that were opened by this volume's gates, so far.
    pub(super) fn opened(&self) -> Vec<Within> {
        std::mem::take(&mut self.opened.lock().unwrap_or_else(PoisonError::into_inner))
    }
    /// The folders from the root to the first that has `object`; none for what no name leads to.
    fn way_to(&self, object: ObjectId) -> Option<(Vec<ObjectId>, Vec<u8>)> {
        let tree = &self.tree;
        let (entry, _) = tree.order().find(|(e, _)| tree.entry(*e).object == object)?;
        let mut way = vec![tree.entry(entry).parent];
        // Ends: the order lists only what hangs below the root.
        while let Some(above) = way.last().and_then(|dir| tree.entry_of(*dir)) {
            way.push(tree.entry(above).parent);
        }
        way.reverse();
        Some((way, tree.name(entry).to_vec()))
    }
    /// The gate of an object's stream.
    pub(super) fn gate(self: &Arc<Self>, stream: StreamId) -> Inside {
        let (way, name) = self.way_to(self.tree.stream(stream).object).unwrap_or_default();
        Inside { volume: Arc::clone(self), floor: way.last().copied(), way, name, stream }
    }
}

/// The gate of one file.
pub(super) struct Inside {
    volume: Arc<Volume>,
    /// The folder of the file that the address names; none where no name leads to it.
    floor: Option<ObjectId>,
    /// The folders from the root to this file's own.
    way: Vec<ObjectId>,
    name: Vec<u8>,
    stream: StreamId,
}

/// What a path leads to.
enum Found {
    /// A file, and the folders down to it.
    File(Vec<ObjectId>, Vec<u8>, StreamId),
    /// Something else, by its word.
    Other(Vec<ObjectId>, &'static str),
    Nothing,
}

impl Inside {
    /// Follows a path from the file's own folder, or from the root.
    fn follow(&self, path: &[u8]) -> Found {
        let tree = &self.volume.tree;
        let mut way = if path.starts_with(b"/") { vec![tree.root()] } else { self.way.clone() };
        let mut names = path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".").peekable();
        while let Some(name) = names.next() {
            if name == b".." {
                if way.len() > 1 {
                    way.pop();
                }
                continue;
            }
            let found = way.last().and_then(|dir| child(tree, *dir, name, self.volume.folds));
            let Some(object) = found else { return Found::Nothing };
            match (tree.object(object).kind, tree.data(object)) {
                (Kind::Dir, _) => way.push(object),
                (Kind::File, Some(stream)) if names.peek().is_none() => {
                    return Found::File(way, name.to_vec(), stream);
                }
                (Kind::File, _) => return Found::Nothing,
                (other, _) => return Found::Other(way, other.word()),
            }
        }
        Found::Other(way, "folder")
    }
    /// The folders of the volume that the user allowed.
    fn allowed(&self) -> Vec<ObjectId> {
        let dirs = self.volume.options.allow.dirs.iter().filter(|dir| folder::inside(dir));
        dirs.filter_map(|dir| {
            let mut names = dir.as_os_str().as_bytes().split(|b| *b == b'/').filter(|n| !n.is_empty());
            let root = self.volume.tree.root();
            names.try_fold(root, |dir, name| {
                let name = String::from_utf8_lossy(name);
                let name = unescape(&name);
                child(&self.volume.tree, dir, &name, self.volume.folds)
            })
        })
        .collect()
    }
    fn shown(&self, way: &[ObjectId]) -> String {
        let tree = &self.volume.tree;
        let names = way.iter().filter_map(|dir| tree.entry_of(*dir)).map(|e| escape(tree.name(e)).into_owned());
        format!("//{}", names.collect::<Vec<_>>().join("/"))
    }
    fn opened(&self, way: Vec<ObjectId>, name: Vec<u8>, stream: StreamId, remark: Option<String>) -> Result<Opened> {
        let (device, within) = self.volume.device(stream)?;
        self.volume.opened.lock().unwrap_or_else(PoisonError::into_inner).push(within);
        let folder = self.shown(&way);
        let shown = format!("{}/{}", folder.trim_end_matches('/').trim_start_matches('/'), escape(&name));
        let floor = if self.floor.is_some_and(|f| way.contains(&f)) { self.floor } else { way.last().copied() };
        let gate = Inside { volume: Arc::clone(&self.volume), floor, way, name, stream };
        let shown = shown.trim_start_matches('/').to_owned();
        Ok(Opened { device: Arc::new(device), gate: Arc::new(gate), name: shown, remark })
    }
}

impl Gate for Inside {
    fn own(&self) -> &[u8] {
        &self.name
    }
    fn identity(&self) -> Identity {
        Identity::Inner { volume: self.volume.id, stream: self.stream.index() }
    }
    fn open(&self, wanted: &Wanted<'_>) -> Result<Opened> {
        let own = self.shown(&self.way);
        if wanted.name.is_empty() || wanted.name.contains(&0) {
            return Err(folder::missing(wanted, &own));
        }
        let allowed = self.allowed();
        let fits = |way: &[ObjectId]| way.iter().any(|dir| self.floor == Some(*dir) || allowed.contains(dir));
        let mut outside = None;
        match self.follow(wanted.name) {
            Found::File(way, name, stream) if fits(&way) => return self.opened(way, name, stream, None),
            Found::File(way, ..) | Found::Other(way, _) if !fits(&way) => outside = Some(way),
            Found::Other(way, kind) => {
                return Err(Error::Refused(format!(
                    "the {} {:?}: expected a regular file, in {} there is a {kind}, which is not followed",
                    wanted.what,
                    escape(wanted.name),
                    self.shown(&way)
                )));
            }
            Found::File(..) | Found::Nothing => {}
        }
        // By the last of its names: in an allowed folder, or beside.
        let last = wanted.name.rsplit(|b| *b == b'/').find(|n| !n.is_empty()).unwrap_or_default();
        let beside = wanted.moved.then(|| self.way.clone());
        let dirs = allowed.iter().map(|dir| vec![self.volume.tree.root(), *dir]);
        for way in dirs.chain(beside).filter(|_| last != b"..") {
            let found = way.last().and_then(|dir| child(&self.volume.tree, *dir, last, self.volume.folds));
            let tree = &self.volume.tree;
            let stream = found.filter(|o| tree.object(*o).kind == Kind::File).and_then(|o| tree.data(o));
            if let Some((object, stream)) = found.zip(stream) {
                let remark = format!(
                    "the {} {:?} was taken from {}",
                    wanted.what,
                    escape(wanted.name),
                    way.last().map_or_else(String::new, |_| self.shown(&way))
                );
                let (way, name) = self.volume.way_to(object).unwrap_or((way, last.to_vec()));
                return self.opened(way, name, stream, Some(remark));
            }
        }
        // A folder of this machine that the user allowed.
        let path = PathBuf::from(Path::new(std::ffi::OsStr::from_bytes(wanted.name)));
        let whole = if path.is_absolute() { path } else { Path::new("/").join(path) };
        if let Some(opened) = folder::allowed(&whole, wanted, self.volume.options.source, &self.volume.options.allow)? {
            return Ok(opened);
        }
        Err(match outside {
            Some(way) => folder::refused(wanted, &own, &self.shown(&way)),
            None if wanted.name.starts_with(b"/") => {
                let dir = wanted.name.rsplitn(2, |b| *b == b'/').nth(1).unwrap_or_default();
                folder::refused(wanted, &own, &format!("/{}", escape(dir)))
            }
            None => folder::missing(wanted, &own),
        })
    }
    fn siblings(&self) -> Result<Vec<Vec<u8>>> {
        let Some(dir) = self.way.last() else { return Ok(Vec::new()) };
        let tree = &self.volume.tree;
        Ok(tree.children(*dir).iter().map(|e| tree.name(*e).to_vec()).collect())
    }
}
