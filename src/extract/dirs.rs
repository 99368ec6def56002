//! The directories: made first, given what they keep last.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::dest::{self, DirFd};
use super::file::Stop;
use super::keep;
use super::log::Record;
use super::outcome::{Detail, Method, Outcome, Why};
use super::run::Run;
use super::select::{DirAt, Item, Shape, Source};

impl Run<'_> {
    /// Makes all directories, parents first. Gives for each what making files in it locks: two of one number wait for each other.
    pub fn directories(&self) -> Vec<u32> {
        // XFS makes the files of a directory in its allocation group, whose list of inodes one maker at a time has.
        let groups = self.dest.magic == dest::XFS;
        let mut places: Vec<(u64, DirAt)> = Vec::new();
        for (at, item) in (0u32..).zip(&self.selection.items) {
            let Shape::Dir(dir) = item.shape else { continue };
            if dir == DirAt::ROOT {
                if !self.dest.made && !self.is_ours_root() {
                    self.set_there(dir);
                }
                continue;
            }
            match self.directory(at, item, dir) {
                Ok(above) if groups => {
                    let name = self.selection.name_of(at);
                    let inode = rustix::fs::statat(&above, name, AtFlags::SYMLINK_NOFOLLOW).map_or(0, |s| s.st_ino);
                    places.push((inode, dir));
                }
                Ok(_) => {}
                Err((why, text)) => {
                    self.absent.lock().unwrap_or_else(PoisonError::into_inner).insert(dir);
                    let detail = Some(Detail { message: text, bad: Vec::new() });
                    let outcome = Outcome::of(Method::Failed, Some(why));
                    self.keep([Record { item: at, outcome, hash: None, detail }]);
                }
            }
        }
        let mut locks: Vec<u32> = (0..self.selection.dir_count()).collect();
        // An inode's number begins with its group, and directories are spread over the groups: as many stretches of numbers as
        // there are threads are groups, or parts of them.
        places.sort_unstable();
        for (rank, (_, dir)) in places.iter().enumerate() {
            if let Some(lock) = locks.get_mut(dir.index()) {
                let part = rank.saturating_mul(self.threads()).checked_div(places.len()).unwrap_or(0);
                *lock = u32::try_from(part).unwrap_or(0);
            }
        }
        locks
    }

    /// Whether an earlier run that this one goes on from made the destination.
    fn is_ours_root(&self) -> bool {
        let root = self.dest.dir(self.selection, DirAt::ROOT);
        !self.begun.is_empty() && root.is_ok_and(|fd| dest::made_at(&fd, b".").is_ok_and(|t| t >= self.began))
    }

    fn set_there(&self, dir: DirAt) {
        self.there.lock().unwrap_or_else(PoisonError::into_inner).insert(dir);
    }

    fn is_in(set: &Mutex<BTreeSet<DirAt>>, dir: DirAt) -> bool {
        let set = set.lock().unwrap_or_else(PoisonError::into_inner);
        !set.is_empty() && set.contains(&dir)
    }

    /// Makes one, and gives the one above it.
    fn directory(&self, at: u32, item: &Item, dir: DirAt) -> Result<DirFd, (Why, String)> {
        let above = self.dir_for(item)?;
        let name = self.selection.name_of(at);
        let mode = Mode::RWXU;
        let failed = |e: Errno| {
            let (outcome, text) = Stop::Write(e).outcome();
            (outcome.why.unwrap_or(Why::WriteFailed), text)
        };
        match rustix::fs::mkdirat(&above, name, mode) {
            Ok(()) => Ok(above),
            Err(Errno::EXIST) => {
                let is_dir = dest::kind_of(&above, name) == Some(FileType::Directory);
                if is_dir {
                    if !(self.is_resumed() && dest::made_at(&above, name).is_ok_and(|t| t >= self.began)) {
                        self.set_there(dir);
                    }
                    return Ok(above);
                }
                if !self.options.overwrite {
                    return Err((Why::Exists, "something that is no directory is there".into()));
                }
                rustix::fs::unlinkat(&above, name, AtFlags::empty()).map_err(failed)?;
                rustix::fs::mkdirat(&above, name, mode).map_err(failed)?;
                Ok(above)
            }
            Err(e) => Err(failed(e)),
        }
    }

    /// The open directory that an item goes to.
    pub fn dir_for(&self, item: &Item) -> Result<DirFd, (Why, String)> {
        if Self::is_in(&self.absent, item.dir) {
            return Err((Why::NoDirectory, "its directory could not be made".into()));
        }
        self.dest.dir(self.selection, item.dir).map_err(|e| (Why::NoDirectory, format!("its directory: {e}")))
    }

    /// Gives the directories that this run made what they are to keep: those that lie deepest first.
    pub fn finish_directories(&self) {
        let mut records = Vec::new();
        for (at, item) in self.selection.items.iter().enumerate().rev() {
            let (Shape::Dir(dir), Ok(at)) = (item.shape, u32::try_from(at)) else { continue };
            if Self::is_in(&self.absent, dir) {
                continue;
            }
            let mut outcome = Outcome::of(Method::Made, None);
            let mut text = String::new();
            if let (Some(source), false) = (self.selection.source(item), Self::is_in(&self.there, dir)) {
                match self.dest.dir(self.selection, dir) {
                    Ok(fd) => {
                        let object = source.tree.object(item.object);
                        let mode = keep::mode_of(self.who, object, keep::DIR);
                        keep::attributes(self, fd.as_fd(), source, item, &mut outcome.lost);
                        records.extend(self.streams_of(at, fd.as_fd(), source));
                        keep::set_mode(fd.as_fd(), Some(mode), &mut outcome.lost);
                        keep::set_times(self, fd.as_fd(), object, &mut outcome.lost);
                    }
                    Err(e) => (outcome, text) = (Outcome::of(Method::Failed, Some(Why::NoDirectory)), e.to_string()),
                }
            } else if let Some(source) = self.selection.source(item)
                && let Ok(fd) = self.dest.dir(self.selection, dir)
            {
                records.extend(self.streams_of(at, fd.as_fd(), source));
            }
            let detail = (!text.is_empty()).then_some(Detail { message: text, bad: Vec::new() });
            records.push(Record { item: at, outcome, hash: None, detail });
        }
        self.keep(records);
    }

    /// The streams of a directory, as attributes of it.
    fn streams_of(&self, of: u32, fd: std::os::fd::BorrowedFd<'_>, source: &Source) -> Vec<Record> {
        let mut records = Vec::new();
        let mut at = of.saturating_add(1);
        while let Some(item) = self.selection.items.get(at as usize).filter(|i| i.shape == Shape::Xattr(of)) {
            let (outcome, message) = keep::stream(self, fd, source, item);
            let detail = (!message.is_empty()).then_some(Detail { message, bad: Vec::new() });
            records.push(Record { item: at, outcome, hash: None, detail });
            at = at.saturating_add(1);
        }
        records
    }
}
