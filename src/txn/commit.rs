//! A commit, step by step: see "Commit" in `docs/safety.md`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::extent::{Offset, ReadAt};
use crate::source::medium::JournalFile;
use crate::txn::apply::{Hand, Survey, refuse_listed};
use crate::txn::body::{Body, Contents, Interim, Sector, Sum};
use crate::txn::fill::{Effort, fill};
use crate::txn::io::{pieces, scattered, sums};
use crate::txn::journal::{Also, Header, Switch};
use crate::txn::moves::{carry_out, survey};
use crate::txn::{About, Checked, Fresh, HostVolume, Journal, Manifest, Overlay, SECTOR, Sources, Staging, State};

/// What a commit, recovery or undo is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// Copying, and writing new structures into free units: bytes.
    Filling,
    /// Reading the old contents of blocks in use and of slack: bytes.
    ReadingOld,
    /// Writing and syncing the journal: bytes.
    Sealing,
    /// Reading what will be copied into units of the image: bytes.
    ReadingMoved,
    /// Copying into units of the image: bytes.
    Moving,
    /// Comparing free units with their checksums, or blocks with what is expected: bytes.
    Checking,
    /// Writing blocks in use: bytes.
    Switching,
}

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The step.
    pub step: Step,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// What a commit has written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Committed {
    /// Bytes of new structures written into free units.
    pub fresh_bytes: u64,
    /// Bytes of copies, with the zeros behind their ends.
    pub copied_bytes: u64,
    /// Bytes written to blocks in use: both contents of a sector that had an interim one, and the quarantine.
    pub switched_bytes: u64,
    /// Bytes of sectors whose slack was not zero and now is.
    pub slack_bytes: u64,
    /// Bytes written to the journal.
    pub journal_bytes: u64,
    /// Time on the clock that the copies took: reading, writing and syncing them.
    pub copying: Duration,
    /// Time on the clock that the slack took: reading it, and writing and syncing zeros.
    pub zeroing: Duration,
}

/// Sectors whose old contents are in memory at once, beside those that are kept.
const AT_ONCE: usize = 2048;
/// Ranges that are nearer than this are made writable in one go.
const NEAR: u64 = 64 << 10;

/// Counts bytes of a step, from any thread.
pub(super) fn counting<'a>(
    step: Step,
    total: u64,
    progress: &'a (dyn Fn(Progress) + Sync),
) -> impl Fn(u64) + Sync + 'a {
    let done = AtomicU64::new(0);
    move |bytes| {
        let done = done.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes);
        progress(Progress { step, done, total });
    }
}

/// Carries `checked` out on `host`, step by step, each durable before the next. `journal` is new and empty
/// ([`crate::source::medium::create_journal`]). What `manifest` gives is sealed into the journal; it is asked for while the host is
/// being filled.
/// [`About::volume_len`] is the host's own, whatever is given.
///
/// # Errors
/// Before anything in use was touched, the error of what failed to be read, or [`Error::Refused`] where somebody else
/// wrote to the host meanwhile or it has no space: the journal says that it was taken back. For any write or sync that
/// fails, [`Error::Interrupted`]; but where the journal itself can't be begun, [`Error::Io`], and the host was not touched.
pub fn commit(
    checked: Checked,
    host: &HostVolume,
    journal: JournalFile,
    about: About,
    manifest: &(dyn Fn() -> std::io::Result<Manifest> + Sync),
    sources: &dyn Sources,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Committed> {
    if checked.volume_len() != host.len() {
        return Err(Error::Refused("the plan was checked for a volume of another length".into()));
    }
    let staging = checked.shared();
    let header = header(&staging, host, about)?;
    let path = journal.path.clone();
    // a
    let mut journal = Journal::create(journal, header, !staging.moves.is_empty())
        .map_err(|e| Error::io(format!("making the journal {} (the host was not touched)", path.display()), e))?;
    // b, c
    let Spent { copying, zeroing } = match prepare(&staging, host, &mut journal, manifest, sources, progress) {
        Ok(spent) => spent,
        Err(error) => {
            if !matches!(error, Error::Interrupted { .. }) {
                mark(&mut journal, State::TakenBack)?;
            }
            return Err(error);
        }
    };
    let sealed = journal.sealed()?;
    let slack_group = u32::try_from(staging.groups.len()).unwrap_or(u32::MAX);
    let slack_bytes = (sealed.body.group(slack_group).len() as u64).saturating_mul(SECTOR);
    // d
    let mut hand = Hand::new(host, sealed, progress);
    hand.close()?;
    let closing = hand.written;
    let start = Instant::now();
    carry_out(&mut journal, host, progress)?;
    let copying = copying.saturating_add(start.elapsed());
    // e, f
    let sealed = journal.sealed()?;
    let mut hand = Hand::new(host, sealed, progress);
    hand.forward()?;
    hand.lift(&sealed.switch.open)?;
    let written = hand.written.saturating_add(closing);
    let zeroing = zeroing.saturating_add(hand.last_group);
    // g
    mark(&mut journal, State::Done)?;
    let copied = staging.copies.iter().flat_map(|c| &c.to).map(|(_, len)| *len).fold(0, u64::saturating_add);
    Ok(Committed {
        fresh_bytes: staging.fresh.iter().map(|f| f.bytes.len() as u64).fold(0, u64::saturating_add),
        copied_bytes: copied,
        switched_bytes: written.saturating_sub(slack_bytes),
        slack_bytes,
        journal_bytes: journal.written(),
        copying,
        zeroing,
    })
}

/// Records a state. A failure ends in [`Error::Interrupted`].
pub(super) fn mark(journal: &mut Journal, state: State) -> Result<()> {
    let result = journal.mark(state);
    result.map_err(|e| Error::Interrupted {
        doing: format!("recording in the journal that it is {}", state.word()),
        journal: journal.path().into(),
        cause: e.to_string(),
    })
}

fn header(staging: &Staging, host: &HostVolume, about: About) -> Result<Header> {
    let q = &staging.quarantine;
    let read = |at: Offset<_>, like: &[u8]| host.read_vec(at, like.len());
    let mut also = Vec::new();
    for Fresh { at, bytes } in &q.also {
        also.push(Also { at: at.get(), old: read(*at, bytes)?, closed: bytes.clone() });
    }
    let old = read(q.at, &q.closed)?;
    if old == q.closed {
        return Err(Error::Refused("the host is in the quarantine of another run: recover that one first".into()));
    }
    let switch = Switch { at: q.at.get(), old, closed: q.closed.clone(), open: q.open.clone(), also };
    let about = About { volume_len: host.len(), ..about };
    Ok(Header { about, switch, free: staging.filled.iter().map(|(at, len)| (at.get(), *len)).collect() })
}

/// Time on the clock, for what is not the linking itself.
struct Spent {
    copying: Duration,
    zeroing: Duration,
}

/// Steps b and c. Afterwards the journal is sealed, and the host is what the journal says that it was.
fn prepare(
    staging: &Arc<Staging>,
    host: &HostVolume,
    journal: &mut Journal,
    manifest: &(dyn Fn() -> std::io::Result<Manifest> + Sync),
    sources: &dyn Sources,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Spent> {
    let path = journal.path().to_path_buf();
    let failed =
        |doing: String, e: std::io::Error| Error::Interrupted { doing, journal: path.clone(), cause: e.to_string() };
    reserve(staging, host)?;

    let total = staging.filled.iter().map(|(_, len)| *len).fold(0, u64::saturating_add);
    let (start, effort) = (Instant::now(), Effort::default());
    let fill = || {
        let filled = fill(staging, host, sources, &failed, &counting(Step::Filling, total, progress), &effort)?;
        if !filled.is_empty() {
            host.sync().map_err(|e| failed("making the filled units of the host durable".into(), e))?;
        }
        Ok(filled)
    };
    // The one waits for the medium, the other for nothing.
    let (filled, manifest) = std::thread::scope(|scope| {
        let manifest = scope.spawn(manifest);
        (fill(), manifest.join())
    });
    let filled = filled?;
    let manifest = manifest.unwrap_or_else(|_| Err(std::io::Error::other("the thread that made it stopped")));
    let manifest = manifest.map_err(|e| failed("making the manifest".into(), e))?;

    let copying = effort.copies_of(start.elapsed());

    let start = Instant::now();
    let (mut body, of_slack) = body(staging, host, progress)?;
    let zeroing = start.elapsed().mul_f64(of_slack);
    body.filled = filled;
    let after = Overlay::new(Arc::new(host.clone()), Arc::clone(staging))?;
    let witnesses: Vec<(u64, u64)> = staging.witnesses.iter().map(|(at, len)| (at.get(), *len)).collect();
    // What was filled just now was summed then.
    let known: HashMap<(u64, u64), &Sum> = body.filled.iter().map(|sum| ((sum.at, sum.len), sum)).collect();
    let (known, unknown): (Vec<_>, Vec<_>) =
        pieces(&witnesses).into_iter().map(|piece| (piece, known.get(&piece))).partition(|(_, sum)| sum.is_some());
    let unknown: Vec<(u64, u64)> = unknown.into_iter().map(|(piece, _)| piece).collect();
    let mut all = sums(&after, &unknown, &|_| ())?;
    all.extend(known.into_iter().filter_map(|(_, sum)| sum.map(|sum| **sum)));
    all.sort_unstable_by_key(|sum| sum.at);
    body.witnesses = all;
    body.moves = survey(staging, host, journal, sources, &failed, progress)?;

    progress(Progress { step: Step::Sealing, done: 0, total: 1 });
    journal.seal(body, &manifest).map_err(|e| failed("writing the journal".into(), e))?;
    progress(Progress { step: Step::Sealing, done: 1, total: 1 });

    let sealed = journal.sealed()?;
    let survey = Survey::of(host, sealed, progress);
    let differs = "the host was written to by somebody else during the commit, or can't be read";
    refuse_listed(differs, &survey.unreadable)?;
    survey.refuse_wrong(differs)?;
    let switch_is_old = sealed.switch.find(host).is_some_and(|found| found.old);
    if !survey.all_old() || !switch_is_old || survey.blanked > 0 {
        return Err(Error::Refused(format!("{differs}; nothing in use was written")));
    }
    Ok(Spent { copying, zeroing })
}

/// Makes everything that will be written writable.
fn reserve(staging: &Staging, host: &HostVolume) -> Result<()> {
    let whole = |f: &Fresh| (f.at.get(), f.bytes.len() as u64);
    let q = &staging.quarantine;
    let mut ranges: Vec<(u64, u64)> = staging.filled.iter().map(|(at, len)| (at.get(), *len)).collect();
    ranges.extend(staging.reused.iter().map(|(at, len)| (at.get(), *len)));
    ranges.extend(staging.groups.iter().flat_map(|g| &g.writes).map(whole));
    ranges.extend(q.also.iter().map(whole));
    ranges.push((q.at.get(), q.closed.len() as u64));
    ranges.extend(staging.slack.iter().map(|(at, len)| (at.get(), u64::from(*len))));
    ranges.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (at, len) in ranges {
        let end = at.saturating_add(len);
        match joined.last_mut() {
            Some(last) if at <= last.1.saturating_add(NEAR) => last.1 = last.1.max(end),
            _ => joined.push((at, end)),
        }
    }
    for (at, end) in joined {
        let len = end.saturating_sub(at);
        host.reserve(at, len).map_err(|e| match e.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Error::Refused(format!(
                "the file system that the host file lies on has no space to make its bytes {at} to {end} writable ({e})"
            )),
            _ => Error::io(format!("making bytes {at} to {end} of the host volume writable"), e),
        })?;
    }
    Ok(())
}

/// What a sector gets.
enum New<'a> {
    Is(&'a [u8]),
    /// What it has, but zeros in this range of the volume.
    Zeroed(std::ops::Range<u64>),
}

/// The sector at `at`, with zeros where it lies in `zeros`.
fn zeroed(mut sector: Contents, at: u64, zeros: &std::ops::Range<u64>) -> Contents {
    let place = |of: u64| usize::try_from(of.saturating_sub(at).min(SECTOR)).unwrap_or_default();
    if let Some(inside) = sector.get_mut(place(zeros.start)..place(zeros.end)) {
        inside.fill(0);
    }
    sector
}

/// Reads the old contents: of groups, and of slack that is not zero. Also what part of the work was for slack, 0 to 1.
fn body(staging: &Staging, host: &HostVolume, progress: &(dyn Fn(Progress) + Sync)) -> Result<(Body, f64)> {
    let too_many = || Error::Unsupported("more than 2^32 sectors to be changed".into());
    let mut body = Body::default();
    body.groups.extend(staging.groups.iter().map(|g| g.name.to_owned()));
    body.groups.push("slack".into());
    let mut wanted: Vec<(u64, u32, New<'_>)> = Vec::new();
    let mut slack_group = 0u32;
    for (g, group) in (0u32..).zip(&staging.groups) {
        let writes = group.writes.iter().flat_map(by_sector);
        wanted.extend(writes.map(|(number, bytes)| (number, g, New::Is(bytes))));
        slack_group = g.saturating_add(1);
    }
    let in_groups = wanted.len();
    for (at, len) in &staging.slack {
        let zeros = at.get()..at.get().saturating_add((*len).into());
        let sectors = zeros.start.checked_div(SECTOR).unwrap_or_default()..zeros.end.div_ceil(SECTOR);
        wanted.extend(sectors.map(|number| (number, slack_group, New::Zeroed(zeros.clone()))));
    }
    let of_slack = wanted.len().saturating_sub(in_groups) as f64 / wanted.len().max(1) as f64;
    wanted.sort_unstable_by_key(|(number, _, _)| *number);
    let step = counting(Step::ReadingOld, (wanted.len() as u64).saturating_mul(SECTOR), progress);

    let mut between: Vec<(u64, u32, &[u8])> = Vec::new();
    for (before, write) in &staging.interim {
        let before = u32::try_from(*before).map_err(|_| too_many())?;
        between.extend(by_sector(write).map(|(number, bytes)| (number, before, bytes)));
    }
    between.sort_unstable_by_key(|(number, _, _)| *number);
    let contents = |bytes: &[u8]| Contents::try_from(bytes).map_err(|_| too_many());
    for (number, before, bytes) in &between {
        let contents = body.pool.keep(&contents(bytes)?).ok_or_else(too_many)?;
        body.interim.push(Interim { before: *before, number: *number, contents });
    }

    for wanted in wanted.chunks(AT_ONCE) {
        let places: Vec<(u64, u64)> = wanted.iter().map(|(n, _, _)| (n.saturating_mul(SECTOR), SECTOR)).collect();
        let olds = scattered(host, &places, |_, have| {
            step(SECTOR);
            have.and_then(contents)
        });
        for ((number, group, new), old) in wanted.iter().zip(olds) {
            let old = old?;
            let new = match new {
                New::Is(bytes) => contents(bytes)?,
                New::Zeroed(zeros) => zeroed(old, number.saturating_mul(SECTOR), zeros),
            };
            // What does not change needs neither a write nor an entry, unless it changes for a while.
            if old != new || body.interim_of(*number).is_some() {
                let ids = (body.pool.keep(&old), body.pool.keep(&new));
                let (Some(old), Some(new)) = ids else { return Err(too_many()) };
                body.sectors.push(Sector { group: *group, number: *number, old, new });
            }
        }
    }
    body.sectors.sort_by_key(|s| s.group);
    Ok((body, of_slack))
}

/// The sectors of a write: number and contents.
fn by_sector(write: &Fresh) -> impl Iterator<Item = (u64, &[u8])> {
    let first = write.at.get().checked_div(SECTOR).unwrap_or_default();
    (first..).zip(write.bytes.chunks(usize::try_from(SECTOR).unwrap_or(usize::MAX)))
}
