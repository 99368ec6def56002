//! Bits as `$Bitmap` and the bitmap of `$MFT` keep them: one for each cluster or record, the lowest of a byte first.

use crate::fs::ntfs::runs::Run;

/// A bitmap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bits {
    bytes: Vec<u8>,
}

impl Bits {
    /// At least `count` bits, all 0. The caller has checked the count against the volume.
    pub fn new(count: u64) -> Self {
        Self { bytes: vec![0; usize::try_from(count.div_ceil(8)).unwrap_or(0)] }
    }
    /// These bytes.
    pub fn of(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }
    /// As on the disk.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
    /// Makes it so many bytes long, new bits 0.
    pub fn resize(&mut self, bytes: u64) {
        self.bytes.resize(usize::try_from(bytes).unwrap_or(0), 0);
    }
    /// Whether the bit is set; one beyond the end is not.
    pub fn get(&self, n: u64) -> bool {
        usize::try_from(n >> 3).ok().and_then(|at| self.bytes.get(at)).is_some_and(|b| b >> (n & 7) & 1 != 0)
    }
    /// Sets or clears a bit; whether it was the other way before. False beyond the end.
    pub fn put(&mut self, n: u64, on: bool) -> bool {
        let Some(byte) = usize::try_from(n >> 3).ok().and_then(|at| self.bytes.get_mut(at)) else { return false };
        let before = *byte;
        if on {
            *byte |= 1 << (n & 7)
        } else {
            *byte &= !(1 << (n & 7))
        }
        *byte != before
    }
    /// Sets or clears the bits of a run; the first that was so before, or is beyond the end, is the error.
    pub fn put_run(&mut self, run: Run, on: bool) -> Result<(), u64> {
        let mut odd = None;
        let end = run.lcn.saturating_add(run.len);
        let mut n = run.lcn;
        while n < end {
            let whole = n & 7 == 0 && end.saturating_sub(n) >= 8;
            let byte = usize::try_from(n >> 3).ok().and_then(|at| self.bytes.get_mut(at));
            match byte {
                Some(b) if whole && *b == if on { 0 } else { 0xFF } => {
                    *b = !*b;
                    n = n.saturating_add(8);
                }
                Some(_) => {
                    if !self.put(n, on) && odd.is_none() {
                        odd = Some(n);
                    }
                    n = n.saturating_add(1);
                }
                None => return Err(odd.unwrap_or(n)),
            }
        }
        odd.map_or(Ok(()), Err)
    }
    /// The stretches of bits below `end` that are not set.
    pub fn clear_runs(&self, end: u64) -> Vec<Run> {
        let mut out: Vec<Run> = Vec::new();
        let mut n = 0u64;
        let mut add = |at: u64, len: u64| match out.last_mut() {
            Some(last) if last.lcn.saturating_add(last.len) == at => last.len = last.len.saturating_add(len),
            _ => out.push(Run { len, lcn: at }),
        };
        for byte in &self.bytes {
            let stop = n.saturating_add(8);
            if n >= end {
                break;
            }
            if *byte == 0 && stop <= end {
                add(n, 8);
            } else if *byte != 0xFF {
                for bit in 0..8u64 {
                    let at = n.saturating_add(bit);
                    if byte >> bit & 1 == 0 && at < end {
                        add(at, 1);
                    }
                }
            }
            n = stop;
        }
        out
    }
    /// Both.
    pub fn or(&self, other: &Self) -> Self {
        let longer = self.bytes.len().max(other.bytes.len());
        let at = |b: &Self, i: usize| b.bytes.get(i).copied().unwrap_or(0);
        Self { bytes: (0..longer).map(|i| at(self, i) | at(other, i)).collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_taken_once() {
        let mut bits = Bits::new(100);
        assert_eq!(bits.put_run(Run { len: 37, lcn: 3 }, true), Ok(()));
        assert_eq!(bits.put_run(Run { len: 10, lcn: 35 }, true), Err(35));
        assert!((3..45).all(|n| bits.get(n)) && !bits.get(2) && !bits.get(45));
        assert_eq!(bits.clear_runs(100), [Run { len: 3, lcn: 0 }, Run { len: 55, lcn: 45 }]);
        assert_eq!(bits.put_run(Run { len: 42, lcn: 3 }, false), Ok(()));
        assert_eq!(bits.put_run(Run { len: 5, lcn: 102 }, true), Err(104));
        assert_eq!(bits.clear_runs(100), [Run { len: 100, lcn: 0 }]);
    }
}
