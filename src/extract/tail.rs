//! What needs the files to be there, or has no bytes: further names, symbolic links, devices.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::file::Stop;
use super::keep;
use super::log::Record;
use super::outcome::{Detail, Lost, Method, Outcome, Why};
use super::run::Run;
use super::select::{Item, Shape, Source};
use crate::fs::Kind;

impl Run<'_> {
    /// One of them. `again`: an earlier run may have left it.
    pub(super) fn tail(&self, at: u32, again: bool) -> Record {
        let (outcome, message) = match self.item(at) {
            None => (Outcome::of(Method::Failed, Some(Why::NoDirectory)), String::new()),
            Some((item, source)) => self.one(at, item, source, again).unwrap_or_else(|failed| failed),
        };
        let detail = (!message.is_empty()).then_some(Detail { message, bad: Vec::new() });
        Record { item: at, outcome, hash: None, detail }
    }

    fn one(&self, at: u32, item: &Item, source: &Source, again: bool) -> Result<(Outcome, String), (Outcome, String)> {
        let left = |method: Method, why: Why, text: &str| (Outcome::of(method, Some(why)), text.to_owned());
        let failed = |e: Errno| Stop::Write(e).outcome();
        let dir = self.dir_for(item).map_err(|(why, text)| left(Method::Failed, why, &text))?;
        let name = self.selection.name_of(at);
        let object = source.tree.object(item.object);
        let mut lost = Lost::default();
        match item.shape {
            Shape::HardLink(first) => {
                let of = self.outcome(first);
                let (Some((file, _)), true) = (self.item(first), of.method.is_whole() || of.method == Method::Partial)
                else {
                    return Err(left(
                        Method::Skipped,
                        Why::FileMissing,
                        "the file that it is a name of was not written",
                    ));
                };
                let from = self.dir_for(file).map_err(|(why, text)| left(Method::Failed, why, &text))?;
                let old = self.selection.name_of(first);
                let link = || rustix::fs::linkat(&from, old, &dir, name, AtFlags::empty());
                // A left-over name of the same file is as old as the file, and so told by the same test.
                match self.make(&dir, name, again, link) {
                    Ok(()) => Ok((Outcome::of(Method::HardLink, None), String::new())),
                    Err(Errno::MLINK | Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::XDEV) => {
                        self.as_copy(at, item, source, file, again)
                    }
                    Err(e) => Err(failed(e)),
                }
            }
            Shape::Symlink => {
                let target = link_target(source, item);
                self.make(&dir, name, again, || rustix::fs::symlinkat(target.as_slice(), &dir, name))
                    .map_err(failed)?;
                keep::attributes_at(self, dir.as_fd(), name, source, item, None, &mut lost);
                keep::set_times_at(self, dir.as_fd(), name, object, &mut lost);
                Ok((Outcome { lost, ..Outcome::of(Method::Made, None) }, String::new()))
            }
            _ => {
                let mode = keep::mode_of(self.who, object, keep::FILE);
                let (kind, device) = match object.kind {
                    Kind::Fifo => (FileType::Fifo, 0),
                    Kind::Socket => (FileType::Socket, 0),
                    Kind::CharDevice(major, minor) => (FileType::CharacterDevice, rustix::fs::makedev(major, minor)),
                    Kind::BlockDevice(major, minor) => (FileType::BlockDevice, rustix::fs::makedev(major, minor)),
                    _ => return Err(left(Method::Skipped, Why::Special, "")),
                };
                if device != 0 && !self.who.privileged {
                    return Err(left(Method::Skipped, Why::Privilege, "making a device needs a privilege"));
                }
                let make = || rustix::fs::mknodat(&dir, name, kind, Mode::RUSR | Mode::WUSR, device);
                self.make(&dir, name, again, make).map_err(|e| match e {
                    Errno::PERM if device != 0 => {
                        left(Method::Skipped, Why::Privilege, "making a device needs a privilege")
                    }
                    Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL => {
                        left(Method::Skipped, Why::Special, "the destination has no such files")
                    }
                    other => failed(other),
                })?;
                keep::attributes_at(self, dir.as_fd(), name, source, item, Some(mode), &mut lost);
                keep::set_times_at(self, dir.as_fd(), name, object, &mut lost);
                Ok((Outcome { lost, ..Outcome::of(Method::Made, None) }, String::new()))
            }
        }
    }

    /// A further name as a file of its own, where the destination has no more names for one.
    fn as_copy(
        &self,
        at: u32,
        item: &Item,
        source: &Source,
        first: &Item,
        again: bool,
    ) -> Result<(Outcome, String), (Outcome, String)> {
        let (mut outcome, text) = if first.shape == Shape::File {
            let mut records = Vec::new();
            self.file(at, &self.parts_of(source, item), None, again, &mut Vec::new(), &mut records);
            let record = records.into_iter().find(|r| r.item == at);
            record.map(|r| (r.outcome, r.detail.map(|d| d.message).unwrap_or_default())).unwrap_or_default()
        } else {
            self.one(at, &Item { shape: first.shape, ..*item }, source, again)?
        };
        outcome.lost.add(Lost::HARD_LINK);
        Ok((outcome, text))
    }
}

/// What a link leads to, with `/` between its names. A relative one of Windows has `\`.
fn link_target(source: &Source, item: &Item) -> Vec<u8> {
    let mut target = source.tree.target(item.object).unwrap_or_default().to_vec();
    let absolute = target.first() == Some(&b'\\') || target.get(1) == Some(&b':');
    if source.fs.facts().kind == "ntfs" && !absolute {
        target.iter_mut().filter(|b| **b == b'\\').for_each(|b| *b = b'/');
    }
    target
}
