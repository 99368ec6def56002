//! One file: made, filled, and given what it keeps.

use std::os::fd::AsFd;

use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::Link;
use super::dest::{self, DirFd};
use super::file::{Copy, Stop, Window};
use super::jobs;
use super::keep;
use super::log::Record;
use super::outcome::{Detail, Method, Outcome, Why};
use super::recipe::{How, Part};
use super::run::Run;
use super::select::{Item, Shape, Source};
use crate::extent::Map;

impl Run<'_> {
    /// The parts of one file.
    pub fn parts_of(&self, source: &Source, item: &Item) -> Vec<Part> {
        let mut parts = Vec::new();
        jobs::parts(source, item, |l| self.site(l), &mut Map::new(), &mut parts);
        parts
    }

    /// One file, and the streams that are attributes of it.
    pub fn file(
        &self,
        at: u32,
        parts: &[Part],
        window: Option<&Window>,
        again: bool,
        buf: &mut Vec<u8>,
        records: &mut Vec<Record>,
    ) {
        let Some((item, source)) = self.item(at) else { return };
        let record = |outcome, message: String| {
            let detail = (!message.is_empty()).then_some(Detail { message, bad: Vec::new() });
            Record { item: at, outcome, hash: None, detail }
        };
        if self.options.link == Link::Always && parts.iter().any(|p| matches!(p.how, How::Copy(..) | How::Decode)) {
            let outcome = Outcome::of(Method::Skipped, Some(Why::NotShareable));
            records.push(record(outcome, "not all of it can be shared".into()));
            return;
        }
        let name = self.selection.name_of(at);
        let dir = match self.dir_for(item) {
            Ok(dir) => dir,
            Err((why, text)) => return records.push(record(Outcome::of(Method::Failed, Some(why)), text)),
        };
        let object = source.tree.object(item.object);
        let (mode, later) = keep::first_mode(self, source, item);
        let later = later.then(|| keep::mode_of(self.who, object, keep::FILE));
        let made = self.make(&dir, name, again, || self.dest.create(&dir, name, mode));
        let file = match made {
            Ok(file) => file,
            Err(e) => {
                let (outcome, text) = Stop::Write(e).outcome();
                return records.push(record(outcome, text));
            }
        };
        let mut hash = None;
        let mut bad = Vec::new();
        let mut message = String::new();
        let written = match item.stream {
            None => Ok(Outcome::of(Method::Made, Some(Why::Empty))),
            Some(stream) => {
                let mut copy = Copy::new(self, source, stream, parts);
                let written = copy.write(&file, parts, window, buf);
                hash = copy.hashes();
                let nothing = copy.nothing_read();
                (bad, message) = (std::mem::take(&mut copy.bad), std::mem::take(&mut copy.message));
                match written {
                    Ok(()) if nothing => Err((Outcome::of(Method::Failed, Some(Why::Unreadable)), message.clone())),
                    Ok(()) => Ok(copy.outcome),
                    Err(stop) => Err(stop.outcome()),
                }
            }
        };
        let synced = |outcome| match self.dest.sync_each.then(|| rustix::fs::fsync(&file)) {
            Some(Err(e)) => Err(Stop::Write(e).outcome()),
            _ => Ok(outcome),
        };
        let mut outcome = match written.and_then(synced) {
            Ok(outcome) => outcome,
            Err((outcome, text)) => {
                // No half file: it was made by us, a moment ago.
                drop(file);
                let _ = rustix::fs::unlinkat(&dir, name, AtFlags::empty());
                return records.push(record(outcome, text));
            }
        };
        let fd = file.as_fd();
        keep::attributes(self, fd, source, item, &mut outcome.lost);
        for (stream, next) in (at.saturating_add(1)..).map_while(|n| Some((n, self.selection.items.get(n as usize)?))) {
            if next.shape != Shape::Xattr(at) {
                if next.entry != item.entry || next.stream.is_none() {
                    break;
                }
                continue;
            }
            let (outcome, message) = keep::stream(self, fd, source, next);
            let detail = (!message.is_empty()).then_some(Detail { message, bad: Vec::new() });
            records.push(Record { item: stream, outcome, hash: None, detail });
        }
        keep::set_mode(fd, later, &mut outcome.lost);
        keep::set_times(self, fd, object, &mut outcome.lost);
        if outcome.method != Method::Partial
            && let Some(what) = source.damaged.get(&item.object)
        {
            (outcome.method, outcome.why) = (Method::Partial, Some(Why::Damaged));
            message.clone_from(what);
        }
        if outcome.method != Method::Partial {
            message.clear();
        }
        let detail = (!message.is_empty() || !bad.is_empty()).then_some(Detail { message, bad });
        records.push(Record { item: at, outcome, hash, detail });
    }

    /// Makes something by its name. What is there already is removed where that was asked for, or where an earlier run was
    /// about to make it and it is not older than that run.
    pub fn make<T>(
        &self,
        dir: &DirFd,
        name: &[u8],
        again: bool,
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match make() {
            Err(Errno::EXIST) => {
                let left_over = again && dest::made_at(dir, name).is_ok_and(|t| t >= self.began);
                if !left_over && !self.options.overwrite {
                    return Err(Errno::EXIST);
                }
                match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
                    // A directory is not removed for a file.
                    Err(Errno::ISDIR | Errno::PERM) => return Err(Errno::EXIST),
                    other => other?,
                }
                make()
            }
            other => other,
        }
    }
}
