//! A file's bytes through a map, copied out of it, so that a failing page is an error and not a signal.
//!
//! A page of a map that can't be had (the file was cut, the disk has a bad sector there) is a SIGBUS in the thread that
//! touches it. The handler below puts an anonymous page of zeros in its place, after noting in the map's slot that this
//! happened; the copy goes on, and whoever copied sees the note and discards what it copied. From then on the map is
//! not read any more: positioned reads say what is wrong and where. A fault anywhere else goes to the handler that was
//! there before.
#![expect(unsafe_code, reason = "maps a file and handles the signal of a failing page")]

use std::fs::File;
use std::io;
use std::os::raw::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, compiler_fence};
use std::sync::{Mutex, OnceLock, PoisonError};

use memmap2::{MmapOptions, MmapRaw};

/// Maps that can be open at once; whoever comes later uses positioned reads.
const SLOTS: usize = 256;

/// The address range of one map. Empty (0 to 0) where the slot is free.
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    /// Whether a page of it was replaced with zeros.
    faulted: AtomicBool,
}

static MAPS: [Slot; SLOTS] =
    [const { Slot { start: AtomicUsize::new(0), end: AtomicUsize::new(0), faulted: AtomicBool::new(false) } }; SLOTS];
/// Held while a slot is taken; the handler does not need it.
static TAKING: Mutex<()> = Mutex::new(());
/// What was done about SIGBUS before, and the size of a page. Set before the handler is installed.
static BEFORE: OnceLock<(libc::sigaction, usize)> = OnceLock::new();

/// A map of the beginning of a file.
pub(super) struct FileMap {
    map: MmapRaw,
    slot: &'static Slot,
}

impl FileMap {
    /// Maps `len` bytes of `file`. None where that is not possible; positioned reads always are.
    pub(super) fn new(file: &File, len: u64) -> Option<Self> {
        let len = usize::try_from(len).ok().filter(|n| *n > 0)?;
        let map = MmapOptions::new().len(len).map_raw_read_only(file).ok()?;
        let start = map.as_ptr().addr();
        let taking = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
        install().ok()?;
        let slot = MAPS.iter().find(|s| s.end.load(Ordering::SeqCst) == 0)?;
        slot.faulted.store(false, Ordering::SeqCst);
        slot.start.store(start, Ordering::SeqCst);
        slot.end.store(start.checked_add(len)?, Ordering::SeqCst);
        drop(taking);
        Some(Self { map, slot })
    }

    /// Copies bytes from `at` on into `buf`. False where the map can't give them, or can't be believed any more; `buf`
    /// then holds anything.
    pub(super) fn copy(&self, at: u64, buf: &mut [u8]) -> bool {
        let Some(at) = usize::try_from(at).ok() else { return false };
        if at.checked_add(buf.len()).is_none_or(|end| end > self.map.len()) || self.faulted() {
            return false;
        }
        // SAFETY: the range lies within the map, as was just checked, and the map lives as long as `self`. `buf` is not
        // part of it. No reference to the mapped bytes is made: another process may change the file at any time, and
        // then these bytes are any bytes. A page that can't be had is replaced by the handler.
        unsafe { std::ptr::copy_nonoverlapping(self.map.as_ptr().add(at), buf.as_mut_ptr(), buf.len()) };
        compiler_fence(Ordering::SeqCst);
        !self.faulted()
    }

    /// Whether the page behind the one that holds the byte before `end` can still be had: then the file was not cut before
    /// `end` when this was called. None where that page is not part of the map, which tells nothing.
    pub(super) fn goes_on_behind(&self, end: u64) -> Option<bool> {
        let (_, page) = BEFORE.get()?;
        let next = usize::try_from(end).ok()?.checked_next_multiple_of(*page)?;
        if next >= self.map.len() {
            return None;
        }
        // SAFETY: the byte lies within the map, as was just checked, and the map lives as long as `self`. It is read as
        // volatile because another process may change it, and because only whether it can be read is of interest. A page
        // that can't be had is replaced by the handler.
        unsafe { self.map.as_ptr().add(next).read_volatile() };
        compiler_fence(Ordering::SeqCst);
        Some(!self.faulted())
    }

    /// Whether a page of it could not be had. It is noted before the page reads as zeros, so whoever read such zeros
    /// sees it.
    fn faulted(&self) -> bool {
        self.slot.faulted.load(Ordering::SeqCst)
    }
}

impl Drop for FileMap {
    fn drop(&mut self) {
        // The slot is given up first, the map afterwards: a slot never covers memory that is somebody else's.
        self.slot.start.store(0, Ordering::SeqCst);
        self.slot.end.store(0, Ordering::SeqCst);
    }
}

/// Installs the handler, once in the life of the process. Called with [`TAKING`] held.
fn install() -> io::Result<()> {
    if BEFORE.get().is_some() {
        return Ok(());
    }
    // SAFETY: plain system calls; `sigaction` is a C structure for which all zeros is a value, and both pointers are to
    // locals that live through the call. The handler does nothing that is not allowed in one (see there).
    unsafe {
        let page = usize::try_from(libc::sysconf(libc::_SC_PAGESIZE)).map_err(|_| io::ErrorKind::Unsupported)?;
        if !page.is_power_of_two() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut before: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before) != 0 {
            return Err(io::Error::last_os_error());
        }
        let _ = BEFORE.set((before, page));
        let mut ours: libc::sigaction = std::mem::zeroed();
        ours.sa_sigaction = on_bus_error as *const () as usize;
        // On the alternate stack, as the handler of a stack overflow has to be; it may have been the one before.
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigemptyset(&raw mut ours.sa_mask);
        if libc::sigaction(libc::SIGBUS, &raw const ours, std::ptr::null_mut()) != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Handles SIGBUS. It only loads and stores atomics and makes system calls: no allocation, no lock, no panic.
extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    let Some((before, page)) = BEFORE.get() else { return };
    // SAFETY: the kernel passes a valid `siginfo_t`; `si_addr` is set for every SIGBUS that a fault raised (code > 0).
    let (by_fault, at) = unsafe { ((*info).si_code > 0, (*info).si_addr().addr()) };
    if by_fault && MAPS.iter().any(|slot| replace(slot, at, *page)) {
        return;
    }
    // SAFETY: `before` is what `sigaction` gave, so its handler is of the form that its flags say, and is called as the
    // kernel would call it.
    unsafe {
        match before.sa_sigaction {
            libc::SIG_IGN if !by_fault => {}
            libc::SIG_DFL | libc::SIG_IGN => {
                // The fault happens again on return and ends the process; a signal that was sent is sent again.
                libc::signal(signal, libc::SIG_DFL);
                if !by_fault {
                    libc::raise(signal);
                }
            }
            handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
                let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = std::mem::transmute(handler);
                handler(signal, info, context);
            }
            handler => {
                let handler: extern "C" fn(c_int) = std::mem::transmute(handler);
                handler(signal);
            }
        }
    }
}

/// Where `at` lies in the map of `slot`: notes the fault there and puts zeros in place of the page.
fn replace(slot: &Slot, at: usize, page: usize) -> bool {
    let (start, end) = (slot.start.load(Ordering::SeqCst), slot.end.load(Ordering::SeqCst));
    if start == 0 || !(start..end).contains(&at) {
        return false;
    }
    slot.faulted.store(true, Ordering::SeqCst);
    let begin = at & !page.wrapping_sub(1);
    // SAFETY: the page lies in a map of ours that somebody is copying from, so it is not unmapped meanwhile; nothing but
    // that copy looks at it. `errno` is kept for the code that was interrupted.
    unsafe {
        let errno = *libc::__errno_location();
        let got = libc::mmap(
            std::ptr::without_provenance_mut(begin),
            page,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
            -1,
            0,
        );
        *libc::__errno_location() = errno;
        got != libc::MAP_FAILED
    }
}
