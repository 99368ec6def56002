//! What there is no safe wrapper for: sharing a range of a file's blocks (`FICLONERANGE`, ioctl_ficlonerange(2)), asking whether that
//! can be done (`FIDEDUPERANGE`, ioctl_fideduperange(2)), and a write from a map of another file.
#![expect(unsafe_code, reason = "calls ioctls, and hands mapped memory to a system call")]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::ioctl;
use rustix::mm::{MapFlags, ProtFlags};

/// `struct file_clone_range` of `linux/fs.h`.
#[repr(C)]
struct CloneRange {
    src_fd: i64,
    src_offset: u64,
    src_length: u64,
    dest_offset: u64,
}

/// `_IOW(0x94, 13, struct file_clone_range)`.
const FICLONERANGE: ioctl::Opcode = ioctl::opcode::write::<CloneRange>(0x94, 13);

/// Makes `len` bytes of `to` from `to_at` on share the blocks of `from` from `at` on. All three have to be multiples of the file
/// system's block, but for a `len` that ends where `from` ends.
///
/// # Errors
/// What the system says; nothing was shared then.
pub(super) fn clone_range(from: &File, at: u64, len: u64, to: impl AsFd, to_at: u64) -> Result<(), Errno> {
    let range =
        CloneRange { src_fd: i64::from(from.as_fd().as_raw_fd()), src_offset: at, src_length: len, dest_offset: to_at };
    // SAFETY: the operation reads one `struct file_clone_range`, which `CloneRange` is laid out as, and keeps no pointer to it;
    // both descriptors are open for the whole call.
    unsafe { ioctl::ioctl(to.as_fd(), ioctl::Setter::<FICLONERANGE, CloneRange>::new(range)) }
}

/// `struct file_dedupe_range` of `linux/fs.h`, with one destination.
#[repr(C)]
struct DedupeRange {
    src_offset: u64,
    src_length: u64,
    dest_count: u16,
    reserved: [u16; 3],
    dest_fd: i64,
    dest_offset: u64,
    bytes_deduped: u64,
    status: i32,
    reserved_of_dest: u32,
}

/// `_IOWR(0x94, 54, struct file_dedupe_range)`, whose size is that without destinations.
const FIDEDUPERANGE: ioctl::Opcode = ioctl::opcode::read_write::<[u64; 3]>(0x94, 54);

/// Whether blocks of `file` can be shared with other files of its file system, found out without a write: it is asked to merge its
/// first `block` bytes with themselves. Where blocks can't be shared at all that is answered before the ranges are looked at; where
/// they can, ranges that overlap are refused.
///
/// # Errors
/// What the system says where they can't, or where it does not tell.
pub(super) fn can_share(file: &File, block: u64) -> Result<(), Errno> {
    let mut range = DedupeRange {
        src_offset: 0,
        src_length: block,
        dest_count: 1,
        reserved: [0; 3],
        dest_fd: i64::from(file.as_raw_fd()),
        dest_offset: 0,
        bytes_deduped: 0,
        status: 0,
        reserved_of_dest: 0,
    };
    // SAFETY: the operation reads and writes one `struct file_dedupe_range` and as many destinations as `dest_count` says, which is
    // how `DedupeRange` is laid out, and keeps no pointer to it; the descriptor is open for the whole call.
    unsafe { ioctl::ioctl(file.as_fd(), ioctl::Updater::<FIDEDUPERANGE, DedupeRange>::new(&mut range)) }?;
    match range.status {
        0 | 1 => Ok(()),
        status => match Errno::from_raw_os_error(status.saturating_neg()) {
            Errno::INVAL => Ok(()),
            other => Err(other),
        },
    }
}

/// Writes bytes of `from` from `at` on, at most `len`, into `to` from `to_at` on, out of the page cache: they are copied once, where
/// reading them first would copy them twice. Gives how many there were.
///
/// # Errors
/// What the system says, among it `EFAULT` where the first byte can't be read (a bad sector, the file's end).
pub(super) fn write_from(from: &File, at: u64, len: usize, to: &File, to_at: u64) -> Result<usize, Errno> {
    let page = rustix::param::page_size() as u64;
    let skip = at.checked_rem(page).unwrap_or_default();
    let head = usize::try_from(skip).map_err(|_| Errno::INVAL)?;
    let size = len.checked_add(head).ok_or(Errno::INVAL)?;
    let place = libc::off_t::try_from(to_at).map_err(|_| Errno::FBIG)?;
    // SAFETY: a new map at an address that the system chooses.
    let map = unsafe {
        let flags = MapFlags::SHARED;
        rustix::mm::mmap(std::ptr::null_mut(), size, ProtFlags::READ, flags, from, at.saturating_sub(skip))?
    };
    // SAFETY: `head + len` is the length of the map, which is there until below. Only the kernel reads from it: a page that can't be
    // had is `EFAULT` there, no signal, and no reference is made to bytes that another process may change.
    let written = unsafe { libc::pwrite(to.as_raw_fd(), map.cast::<u8>().add(head).cast(), len, place) };
    let written = usize::try_from(written).map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()));
    // SAFETY: the whole of the map that was made above, and nobody knows of it.
    let _ = unsafe { rustix::mm::munmap(map, size) };
    written.map_err(|e| e.unwrap_or(Errno::IO))
}
