//! The one call for which there is no safe wrapper: sharing a range of a file's blocks (`FICLONERANGE`, ioctl_ficlonerange(2)).
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
