//! Steps d to f, and their way back: what is written to blocks in use, from a sealed journal and nothing else.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::extent::{Offset, ReadAt, Volume};
use crate::txn::body::{ContentsId, Sector};
use crate::txn::io::scattered;
use crate::txn::journal::{Also, Sealed, Switch};
use crate::txn::{HostVolume, Progress, SECTOR, Step};

/// The most that is written at once.
const RUN: usize = 1 << 20;
/// As many of the wrong places as a message lists.
const LISTED: usize = 20;

/// How the sector of the quarantine is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// As before the commit.
    pub(super) old: bool,
    /// As after it.
    pub(super) open: bool,
    /// The quarantine stands, or is being set or lifted: nobody can have mounted the volume.
    pub(super) closed: bool,
}

impl Switch {
    /// What `host` has there. None where it is something else.
    pub(super) fn find(&self, host: &HostVolume) -> Option<Found> {
        let mut have = vec![0; self.old.len()];
        if host.read_at(Offset::new(self.at), &mut have).is_err() {
            // A torn write: neither state can be seen by anybody.
            return Some(Found { old: false, open: false, closed: true });
        }
        let found = Found { old: have == self.old, open: have == self.open, closed: have == self.closed };
        if found.old || found.open || found.closed {
            return Some(found);
        }
        let sectors = |bytes: &'_ [u8]| bytes.chunks(SECTOR as usize).map(<[u8]>::to_vec).collect::<Vec<_>>();
        let known = [sectors(&self.old), sectors(&self.closed), sectors(&self.open)];
        let torn = sectors(&have).iter().enumerate().all(|(i, s)| known.iter().any(|k| k.get(i) == Some(s)));
        torn.then_some(Found { old: false, open: false, closed: true })
    }
}

impl Switch {
    /// Whether a sector beside the switch is blank, to the letter.
    pub(super) fn any_blank(&self, host: &HostVolume) -> bool {
        let blank = |a: &Also| {
            a.old != a.closed && host.read_vec(Offset::new(a.at), a.closed.len()).is_ok_and(|have| have == a.closed)
        };
        self.also.iter().any(blank)
    }
}

/// What the blocks of a journal hold on the host.
#[derive(Clone, Debug, Default)]
pub(super) struct Survey {
    /// Places that don't hold what they held before.
    pub(super) not_old: u64,
    /// Places that don't hold what they hold afterwards.
    pub(super) not_new: u64,
    /// Places that can't be read.
    pub(super) unreadable: Vec<u64>,
    /// Places that hold neither, nor interim contents.
    pub(super) wrong: Vec<u64>,
    /// Sectors from which repair tools would restore the switch, and that are blank.
    pub(super) blanked: u64,
}

impl Survey {
    /// Reads all of them.
    pub(super) fn of(host: &HostVolume, sealed: Sealed<'_>, progress: &(dyn Fn(Progress) + Sync)) -> Self {
        let body = sealed.body;
        let mut by_place: Vec<_> = body.sectors.iter().collect();
        by_place.sort_unstable_by_key(|s| s.number);
        let places: Vec<(u64, u64)> = by_place.iter().map(|s| (s.number.saturating_mul(SECTOR), SECTOR)).collect();
        let total = (places.len() as u64).saturating_mul(SECTOR);
        progress(Progress { step: Step::Checking, done: 0, total });
        let mut survey = Self::default();
        let verdicts = scattered(host, &places, |i, have| {
            let sector = by_place.get(i)?;
            let have = have.ok()?;
            let is = |id: ContentsId| body.pool.get(id) == have;
            let between = body.interim_of(sector.number).is_some_and(|interim| is(interim.contents));
            Some((is(sector.old), is(sector.new), between))
        });
        for (place, verdict) in places.iter().zip(verdicts) {
            survey.count(place.0, verdict);
        }
        for also in &sealed.switch.also {
            let have = host.read_vec(Offset::new(also.at), also.old.len());
            match have {
                Ok(have) if have == also.old => {}
                Ok(have) if have == also.closed => survey.blanked = survey.blanked.saturating_add(1),
                Ok(_) => survey.wrong.push(also.at),
                // Only ever written whole; what can't be read is put back as a blank one is.
                Err(_) => survey.blanked = survey.blanked.saturating_add(1),
            }
        }
        progress(Progress { step: Step::Checking, done: total, total });
        survey
    }

    /// `verdict`: whether it is old, new, in between; none where it can't be read.
    fn count(&mut self, at: u64, verdict: Option<(bool, bool, bool)>) {
        let add = |n: &mut u64, yes: bool| *n = n.saturating_add(yes.into());
        match verdict {
            None => {
                self.unreadable.push(at);
                add(&mut self.not_old, true);
                add(&mut self.not_new, true);
            }
            Some((old, new, between)) => {
                if !(old || new || between) {
                    self.wrong.push(at);
                }
                add(&mut self.not_old, !old);
                add(&mut self.not_new, !new);
            }
        }
    }

    /// Whether all is as before, the switch apart.
    pub(super) fn all_old(&self) -> bool {
        self.not_old == 0
    }
    /// Whether all is as afterwards, the switch apart.
    pub(super) fn all_new(&self) -> bool {
        self.not_new == 0
    }
    /// A refusal, with the list, where something is there that no commit, recovery or undo wrote.
    pub(super) fn refuse_wrong(&self, what: &str) -> Result<()> {
        refuse_listed(what, &self.wrong)
    }
}

/// A refusal that lists `places`; nothing where there are none.
pub(super) fn refuse_listed(what: &str, places: &[u64]) -> Result<()> {
    if places.is_empty() {
        return Ok(());
    }
    let listed: Vec<String> = places.iter().take(LISTED).map(|at| Offset::<Volume>::new(*at).to_string()).collect();
    let more = match places.len().saturating_sub(LISTED) {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    Err(Error::Refused(format!("{what}: {}{more}; nothing was written", listed.join(", "))))
}

/// Writes to blocks in use. To have one takes a sealed journal. Every error is [`Error::Interrupted`].
pub(super) struct Hand<'a> {
    pub(super) host: &'a HostVolume,
    pub(super) sealed: Sealed<'a>,
    pub(super) progress: &'a (dyn Fn(Progress) + Sync),
    /// Bytes that were written.
    pub(super) written: u64,
    /// Time that the last group of [`forward`](Self::forward), the slack, took.
    pub(super) last_group: Duration,
    done: u64,
    total: u64,
}

/// One write of a step: number of the sector, and what it gets.
type Write = (u64, ContentsId);

impl<'a> Hand<'a> {
    pub(super) fn new(host: &'a HostVolume, sealed: Sealed<'a>, progress: &'a (dyn Fn(Progress) + Sync)) -> Self {
        let body = sealed.body;
        let sectors = (body.sectors.len() as u64).saturating_add(body.interim.len() as u64);
        let total = sectors.saturating_mul(SECTOR);
        Self { host, sealed, progress, written: 0, last_group: Duration::ZERO, done: 0, total }
    }

    fn failed(&self, what: &str, cause: &std::io::Error) -> Error {
        Error::Interrupted { doing: what.into(), journal: self.sealed.path.into(), cause: cause.to_string() }
    }

    fn write(&mut self, what: &str, at: u64, bytes: &[u8]) -> Result<()> {
        let at = Offset::new(at);
        self.host.write_at(at, bytes).map_err(|e| self.failed(&format!("writing {what} of the host at {at}"), &e))?;
        self.written = self.written.saturating_add(bytes.len() as u64);
        Ok(())
    }

    fn sync(&self, what: &str) -> Result<()> {
        self.host.sync().map_err(|e| self.failed(&format!("making {what} of the host durable"), &e))
    }

    fn advance(&mut self, bytes: u64) {
        self.done = self.done.saturating_add(bytes);
        (self.progress)(Progress { step: Step::Switching, done: self.done, total: self.total });
    }

    /// Step d: the quarantine stands when this returns.
    pub(super) fn close(&mut self) -> Result<()> {
        let switch = self.sealed.switch;
        for also in &switch.also {
            self.write("the quarantine", also.at, &also.closed)?;
        }
        if !switch.also.is_empty() {
            self.sync("the quarantine")?;
        }
        self.write("the quarantine", switch.at, &switch.closed)?;
        self.sync("the quarantine")
    }

    /// Step f: the quarantine is lifted when this returns; `to` is what the switch then holds.
    pub(super) fn lift(&mut self, to: &[u8]) -> Result<()> {
        self.put_also_back()?;
        self.write("the quarantine", self.sealed.switch.at, to)?;
        self.sync("the quarantine")
    }

    /// The sectors beside the switch, as before; durable when this returns.
    pub(super) fn put_also_back(&mut self) -> Result<()> {
        let switch = self.sealed.switch;
        for also in &switch.also {
            self.write("the quarantine", also.at, &also.old)?;
        }
        if switch.also.is_empty() { Ok(()) } else { self.sync("the quarantine") }
    }

    /// Step e: the new state, group by group. The quarantine stands.
    pub(super) fn forward(&mut self) -> Result<()> {
        let body = self.sealed.body;
        for (group, name) in (0u32..).zip(&body.groups) {
            let start = Instant::now();
            let interim = body.interim.iter().filter(|i| i.before == group).map(|i| (i.number, i.contents)).collect();
            self.write_step(name, interim)?;
            self.write_step(name, body.group(group).iter().map(|s| (s.number, s.new)).collect())?;
            self.last_group = start.elapsed();
        }
        Ok(())
    }

    /// The old state, by the way that [`forward`](Self::forward) came. The quarantine stands.
    pub(super) fn back(&mut self) -> Result<()> {
        let body = self.sealed.body;
        let interim_sectors: HashMap<u64, ContentsId> =
            body.sectors.iter().filter(|s| body.interim_of(s.number).is_some()).map(|s| (s.number, s.old)).collect();
        let groups: Vec<_> = (0u32..).zip(&body.groups).collect();
        for (group, name) in groups.into_iter().rev() {
            let earlier = |s: &Sector| body.interim_of(s.number).map_or(s.old, |i| i.contents);
            self.write_step(name, body.group(group).iter().map(|s| (s.number, earlier(s))).collect())?;
            let interim = body.interim.iter().filter(|i| i.before == group);
            let first = interim.filter_map(|i| interim_sectors.get(&i.number).map(|old| (i.number, *old)));
            self.write_step(name, first.collect())?;
        }
        Ok(())
    }

    /// Writes sectors and makes them durable. Neighbours go in one write.
    fn write_step(&mut self, name: &str, mut writes: Vec<Write>) -> Result<()> {
        if writes.is_empty() {
            return Ok(());
        }
        writes.sort_unstable_by_key(|(number, _)| *number);
        let pool = &self.sealed.body.pool;
        let (mut at, mut next, mut run) = (0, None, Vec::new());
        for (number, contents) in &writes {
            if next != Some(*number) || run.len() >= RUN {
                self.flush(name, at, &mut run)?;
                at = number.saturating_mul(SECTOR);
            }
            run.extend_from_slice(pool.get(*contents));
            next = number.checked_add(1);
        }
        self.flush(name, at, &mut run)?;
        self.sync(name)
    }

    fn flush(&mut self, name: &str, at: u64, run: &mut Vec<u8>) -> Result<()> {
        if !run.is_empty() {
            self.write(name, at, run)?;
            self.advance(run.len() as u64);
            run.clear();
        }
        Ok(())
    }
}
