//! A gate to the files of one folder, and the ways to open a disk through it.

use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use unimage::container::gate::{Allow, Gate, Identity, Opened, Wanted};
use unimage::container::{Disk, OpenWith, probe};
use unimage::error::{Error, Result};
use unimage::extent::Offset;
use unimage::source::{self, SourceOptions};

/// The folder of a file: names are taken in it by their last part, whatever leads to it.
pub struct Folder(pub PathBuf);

impl Gate for Folder {
    fn own(&self) -> &[u8] {
        self.0.file_name().unwrap().as_bytes()
    }
    fn identity(&self) -> Identity {
        let m = fs::metadata(&self.0).unwrap();
        Identity::File { device: m.dev(), inode: m.ino() }
    }
    fn open(&self, wanted: &Wanted<'_>) -> Result<Opened> {
        let base = wanted.name.rsplit(|b| *b == b'/').next().unwrap();
        let name = String::from_utf8_lossy(base).into_owned();
        let path = self.0.with_file_name(&name);
        if !path.is_file() {
            return Err(Error::NotFound(format!("the {} {name}", wanted.what)));
        }
        let remark = (base != wanted.name).then(|| format!("{name} was moved"));
        let device = source::open(&path, SourceOptions::default())?;
        Ok(Opened { device, gate: Arc::new(Self(path)), name, remark })
    }
    fn siblings(&self) -> Result<Vec<Vec<u8>>> {
        let all = fs::read_dir(self.0.parent().unwrap()).unwrap();
        Ok(all.map(|e| e.unwrap().file_name().into_vec()).collect())
    }
}

/// Opens the container at `path`.
pub fn open(path: &Path) -> Result<Disk> {
    open_with(path, &Allow::default())
}

pub fn open_with(path: &Path, allow: &Allow) -> Result<Disk> {
    let device = source::open(path, SourceOptions::default())?;
    probe(device, &OpenWith::new(&Folder(path.to_owned()), allow, None))
}

/// Opens a snapshot of the container at `path`.
pub fn open_snapshot(path: &Path, snapshot: &str) -> Result<Disk> {
    let device = source::open(path, SourceOptions::default())?;
    probe(device, &OpenWith::new(&Folder(path.to_owned()), &Allow::default(), Some(snapshot)))
}

/// All bytes of a disk.
pub fn content(disk: &Disk) -> Vec<u8> {
    disk.image.read_vec(Offset::new(0), usize::try_from(disk.image.len()).unwrap()).unwrap()
}
