//! What goes to units of the image: read and summed while nothing is overwritten yet, and moved batch by batch once the quarantine
//! stands. From the first batch on there is only the way forward.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};
use crate::extent::{Offset, ReadAt};
use crate::txn::body::Moved;
use crate::txn::commit::{counting, mark};
use crate::txn::fill::InImage;
use crate::txn::io::in_order;
use crate::txn::reuse::Move;
use crate::txn::{HostVolume, Journal, Progress, Sources, Staging, State, Step};

/// Moves whose bytes are in memory at once while the journal gets them.
const AT_ONCE: usize = 32;

/// Reads what a move is made of into `room`; false where a part of it can't be read.
fn gather(host: &HostVolume, from: &[(u64, Option<u64>)], room: &mut [u8]) -> bool {
    let mut rest = room;
    for (len, at) in from {
        let len = usize::try_from(*len).unwrap_or(usize::MAX);
        let Some((part, more)) = std::mem::take(&mut rest).split_at_mut_checked(len) else { return false };
        match at {
            Some(at) if host.read_at(Offset::new(*at), part).is_err() => return false,
            Some(_) => {}
            None => part.fill(0),
        }
        rest = more;
    }
    rest.is_empty()
}

fn room(buffer: &mut Vec<u8>, len: u64) -> &mut [u8] {
    buffer.resize(usize::try_from(len).unwrap_or(usize::MAX), 0);
    buffer
}

/// Reads all that goes to units of the image, as the readers of the guest give it: so what can't be read is known before anything
/// is overwritten. What will be moved is the same, byte by byte, where it will be moved from; the rest the journal keeps.
///
/// # Errors
/// What reading meets; `failed` where the journal can't be written.
pub(super) fn survey(
    staging: &Staging,
    host: &HostVolume,
    journal: &mut Journal,
    sources: &dyn Sources,
    failed: &(dyn Fn(String, std::io::Error) -> Error + Sync),
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<Vec<Moved>> {
    let total = staging.moves.iter().map(|m| m.len).fold(0, u64::saturating_add);
    let step = counting(Step::ReadingMoved, total, progress);
    let wanted = InImage::of(staging, sources);
    let mut out = Vec::with_capacity(staging.moves.len());
    for moves in staging.moves.chunks(AT_ONCE) {
        let read = in_order(moves, |m: &Move, buffer| {
            let mut bytes = vec![0; usize::try_from(m.len).unwrap_or(usize::MAX)];
            wanted.read(m.to.get(), &mut bytes)?;
            if let Some(from) = &m.from {
                let there = room(buffer, m.len);
                if !gather(host, from, there) || there != bytes {
                    let at = from.iter().find_map(|(_, at)| *at).unwrap_or(m.to.get());
                    return Err(Error::corrupt(
                        "bytes to be copied",
                        Offset::<crate::extent::Volume>::new(at),
                        "the same from the host as from the image",
                    ));
                }
            }
            step(m.len);
            let sum = *blake3::hash(&bytes).as_bytes();
            Ok((sum, m.from.is_none().then_some(bytes)))
        })?;
        for (m, (sum, bytes)) in moves.iter().zip(read) {
            let kept = match bytes {
                Some(bytes) => journal.keep(&bytes).map_err(|e| failed("writing the journal".into(), e))?,
                None => 0,
            };
            out.push(Moved { step: m.clone(), sum, kept });
        }
    }
    Ok(out)
}

/// Moves what is not moved yet, batch by batch, each durable before the next one. The quarantine stands. Where the journal has
/// no moves, nothing is done. Gives how many bytes were written.
///
/// A batch overwrites nothing that it or a later one reads: it can be repeated at any time before the next one begins.
///
/// # Errors
/// [`Error::Interrupted`] where a write or sync fails; [`Error::Corrupt`] where neither what is to be moved nor what was moved is there.
pub(super) fn carry_out(journal: &mut Journal, host: &HostVolume, progress: &(dyn Fn(Progress) + Sync)) -> Result<u64> {
    if !journal.reuses() {
        return Ok(0);
    }
    if journal.state() == State::Sealed {
        mark(journal, State::Reusing)?;
    }
    let moves = &journal.sealed()?.body.moves;
    let total = moves.iter().map(|m| m.step.len).fold(0, u64::saturating_add);
    let batches = moves.last().map_or(0, |m| m.step.batch.saturating_add(1));
    let step = counting(Step::Moving, total, progress);
    let durable = journal.batches_done();
    for batch in 0..batches {
        let moves = &journal.sealed()?.body.moves;
        let start = moves.partition_point(|m| m.step.batch < batch);
        let end = moves.partition_point(|m| m.step.batch <= batch);
        let one = Mover { journal, host, durable: batch < durable, wrote: AtomicBool::new(false) };
        in_order(moves.get(start..end).unwrap_or_default(), |m, buffer| {
            one.carry(m, buffer)?;
            step(m.step.len);
            Ok(())
        })?;
        if one.wrote.into_inner() || batch >= durable {
            host.sync().map_err(|e| failed(journal, "making what was copied into the image's units durable", &e))?;
        }
        if batch >= durable {
            let recorded = journal.batches_are_done(batch.saturating_add(1));
            recorded.map_err(|e| failed(journal, "recording in the journal how far it is", &e))?;
        }
    }
    Ok(total)
}

fn failed(journal: &Journal, doing: &str, cause: &std::io::Error) -> Error {
    Error::Interrupted { doing: doing.into(), journal: journal.path().into(), cause: cause.to_string() }
}

/// Whether units of the image were filled already: there is no way back then. Zeros may have been there before.
pub(super) fn begun(journal: &Journal, host: &HostVolume) -> Result<bool> {
    let found = in_order(&journal.sealed()?.body.moves, |m, buffer| {
        let bytes = room(buffer, m.step.len);
        let there = host.read_at(m.step.to, bytes).is_ok() && m.is(bytes);
        Ok(there && bytes.iter().any(|b| *b != 0))
    })?;
    Ok(found.contains(&true))
}

impl Moved {
    fn is(&self, bytes: &[u8]) -> bool {
        *blake3::hash(bytes).as_bytes() == self.sum
    }
}

struct Mover<'a> {
    journal: &'a Journal,
    host: &'a HostVolume,
    /// Whether the batch is durable, as the journal says.
    durable: bool,
    wrote: AtomicBool,
}

impl Mover<'_> {
    fn moved_before(&self, m: &Moved, buffer: &mut Vec<u8>) -> bool {
        let bytes = room(buffer, m.step.len);
        self.host.read_at(m.step.to, bytes).is_ok() && m.is(bytes)
    }
    fn to_be_moved(&self, m: &Moved, buffer: &mut Vec<u8>) -> bool {
        match &m.step.from {
            Some(from) => {
                let bytes = room(buffer, m.step.len);
                gather(self.host, from, bytes) && m.is(bytes)
            }
            None => match self.journal.kept(m.kept, m.step.len) {
                Ok(bytes) if m.is(&bytes) => {
                    *buffer = bytes;
                    true
                }
                _ => false,
            },
        }
    }
    fn carry(&self, m: &Moved, buffer: &mut Vec<u8>) -> Result<()> {
        if self.durable && self.moved_before(m, buffer) {
            return Ok(());
        }
        // What was written but not made durable reads right and may yet be lost: it is written anew.
        if !self.to_be_moved(m, buffer) && (self.durable || !self.moved_before(m, buffer)) {
            let what = "neither the bytes to be copied there nor those that they are copied from are what the journal says: \
                        they can't be read, or somebody else wrote to the host";
            return Err(Error::Corrupt {
                structure: "host".into(),
                at: format!("{} bytes at {} of it", m.step.len, m.step.to),
                expected: format!("what the relink copies ({what})"),
            });
        }
        let written = self.host.write_at(m.step.to, buffer);
        written.map_err(|e| failed(self.journal, &format!("copying into the image's units at {}", m.step.to), &e))?;
        self.wrote.store(true, Ordering::Relaxed);
        Ok(())
    }
}
