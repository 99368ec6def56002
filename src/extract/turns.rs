//! Whose turn it is: which job a thread takes next, so that no two threads wait for one lock of the destination's file system.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Jobs beyond the first one that is left that are looked at. More would leave the order of the medium.
const LOOK: usize = 64;

/// Jobs that are to be done, in their order.
pub(super) struct Turns<'c> {
    /// Of each job of the run, what it locks: two of one number would wait for each other.
    locks: &'c [u32],
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The first ones that nobody has taken.
    next: VecDeque<usize>,
    /// Those behind them.
    rest: Range<usize>,
    /// What is locked by those that are at work.
    busy: Vec<u32>,
}

impl<'c> Turns<'c> {
    /// For these jobs.
    pub fn new(jobs: Range<usize>, locks: &'c [u32]) -> Self {
        Self { locks, state: Mutex::new(State { rest: jobs, ..State::default() }) }
    }
    /// The next job of a thread that has done `done`: the first one that needs not wait for those at work, or else the first.
    pub fn take(&self, done: Option<usize>) -> Option<usize> {
        let lock = |job: usize| self.locks.get(job).copied().unwrap_or(0);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { next, rest, busy } = &mut *state;
        if let Some(at) = done.and_then(|job| busy.iter().position(|b| *b == lock(job))) {
            busy.swap_remove(at);
        }
        // Not further than that beyond the first one, so that it is not put off for ever.
        let far = next.front().map_or(rest.start, |first| *first).saturating_add(LOOK);
        next.extend(rest.take(far.saturating_sub(rest.start)));
        let free = next.iter().position(|job| !busy.contains(&lock(*job)));
        let job = next.remove(free.unwrap_or(0))?;
        busy.push(lock(job));
        Some(job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn who_comes_takes_what_nobody_locks() {
        let locks = [9, 1, 1, 1, 2, 2, 3];
        let turns = Turns::new(1..7, &locks);
        assert_eq!([turns.take(None), turns.take(None), turns.take(None)], [Some(1), Some(4), Some(6)]);
        // All are locked: the first that is left.
        assert_eq!(turns.take(None), Some(2));
        // One of two that have it: it is still locked.
        assert_eq!(turns.take(Some(1)), Some(3));
        assert_eq!(turns.take(Some(4)), Some(5));
        assert_eq!(turns.take(Some(5)), None);
    }

    proptest! {
        #[test]
        fn every_job_is_done_once_and_none_much_too_late(
            locks in prop::collection::vec(0u32..5, 0..300),
            threads in 1usize..9,
        ) {
            let turns = Turns::new(0..locks.len(), &locks);
            let mut have = vec![None; threads];
            let mut seen = Vec::new();
            for n in 0.. {
                let slot = n % threads;
                have[slot] = turns.take(have[slot]);
                match have[slot] {
                    Some(job) => seen.push(job),
                    None if seen.len() == locks.len() => break,
                    None => prop_assert!(false, "ended with {} of {}", seen.len(), locks.len()),
                }
                let first = (0..).find(|job| !seen.contains(job)).unwrap();
                prop_assert!(seen.iter().all(|job| *job < first + LOOK));
            }
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..locks.len()).collect::<Vec<_>>());
        }
    }
}
