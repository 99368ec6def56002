//! The calls for which there is no safe wrapper: sharing a range of a file's blocks (`FICLONERANGE`, ioctl_ficlonerange(2)), and
//! asking whether that can be done (`FIDEDUPERANGE`, ioctl_fideduperange(2)).
#![expect(unsafe_code, reason = "calls an ioctl")]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;
use rustix::ioctl;

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
