//! What a file keeps beside its bytes: owner, permissions, extended attributes, named streams, times.

use std::ffi::CString;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::file::short;
use super::outcome::{Lost, Method, Outcome, Why};
use super::run::Run;
use super::select::{Item, Source};
use crate::fs::{Object, Timestamp, Xattr};

/// Bytes of the value of an extended attribute, at most (`XATTR_SIZE_MAX`).
const VALUE: u64 = 65_536;
/// Bytes of its name (`XATTR_NAME_MAX`).
const NAME: usize = 255;
/// The permissions of what the guest has none for, before the umask.
pub(super) const FILE: u32 = 0o666;
pub(super) const DIR: u32 = 0o777;

/// Who we are, and what new files get.
#[derive(Clone, Copy, Debug)]
pub(super) struct Who {
    uid: u32,
    gid: u32,
    /// Whether owners can be given, and devices made.
    pub privileged: bool,
    /// The umask that the program was started with.
    pub umask: u32,
}

impl Who {
    /// This process, whose umask was this.
    pub fn new(umask: Mode) -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        Self { uid, gid, privileged: uid == 0, umask: umask.bits() }
    }
}

/// The permissions that an object is to have.
pub(super) fn mode_of(who: Who, object: &Object, without: u32) -> u32 {
    object.mode.map_or(without & !who.umask, u32::from)
}

/// The permissions that a file is made with: those that it is to have, unless somebody could use them before it has its owner.
/// Also whether they are to be set once more.
pub(super) fn first_mode(run: &Run<'_>, source: &Source, item: &Item) -> (Mode, bool) {
    let object = source.tree.object(item.object);
    let mode = mode_of(run.who, object, FILE);
    let stranger = object.owner.is_some_and(|o| o != (run.who.uid, run.who.gid)) && run.who.privileged;
    // What the group may and others may not would be for our group until it has its own.
    let early = mode >> 3 & 0o7 & !mode;
    // Who has no privilege may write attributes only of what may be written.
    let attributes = mode & 0o200 == 0
        && !run.who.privileged
        && (!source.tree.xattrs(item.object).is_empty() || source.tree.streams(item.object).nth(1).is_some());
    if attributes {
        return (Mode::RUSR | Mode::WUSR, true);
    }
    if mode & 0o7000 != 0 || stranger && early != 0 || run.dest.default_acl {
        return (Mode::from_bits_truncate(mode & 0o700), true);
    }
    (Mode::from_bits_truncate(mode), false)
}

/// Owner and extended attributes of what is open as `fd`; of a directory or file. What can't be kept is noted.
pub(super) fn attributes(run: &Run<'_>, fd: BorrowedFd<'_>, source: &Source, item: &Item, lost: &mut Lost) {
    let object = source.tree.object(item.object);
    if let Some((uid, gid)) = object.owner
        && (uid, gid) != (run.who.uid, run.who.gid)
    {
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        if !run.who.privileged || rustix::fs::fchown(fd, owner.0, owner.1).is_err() {
            lost.add(Lost::OWNER);
        }
    }
    if item.stream.is_some_and(|s| source.tree.stream_name(s).is_some()) {
        return;
    }
    for (name, value) in source.tree.xattrs(item.object) {
        let kept = CString::new(name.as_slice())
            .is_ok_and(|name| rustix::fs::fsetxattr(fd, &name, value, XattrFlags::empty()).is_ok());
        if !kept {
            lost.add(Lost::XATTRS);
        }
    }
}

/// The permissions of what is open, where they are to be set: behind its owner, which takes some away, and its attributes, which
/// it may not let us write any more.
pub(super) fn set_mode(fd: BorrowedFd<'_>, mode: Option<u32>, lost: &mut Lost) {
    if let Some(mode) = mode
        && rustix::fs::fchmod(fd, Mode::from_bits_truncate(mode)).is_err()
    {
        lost.add(Lost::MODE);
    }
}

/// Owner and extended attributes of what is not opened, by its name. (A path through `/proc` has the directory that is open as its
/// beginning; the name itself is not followed.)
pub(super) fn attributes_at(
    run: &Run<'_>,
    dir: BorrowedFd<'_>,
    name: &[u8],
    source: &Source,
    item: &Item,
    mode: Option<u32>,
    lost: &mut Lost,
) {
    let object = source.tree.object(item.object);
    if let Some((uid, gid)) = object.owner
        && (uid, gid) != (run.who.uid, run.who.gid)
    {
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        if !run.who.privileged || rustix::fs::chownat(dir, name, owner.0, owner.1, flags).is_err() {
            lost.add(Lost::OWNER);
        }
    }
    // Only for what is no link: a mode is set by the name's target.
    if let Some(mode) = mode
        && rustix::fs::chmodat(dir, name, Mode::from_bits_truncate(mode), AtFlags::empty()).is_err()
    {
        lost.add(Lost::MODE);
    }
    let xattrs: &[Xattr] = source.tree.xattrs(item.object);
    if !xattrs.is_empty() {
        let path = [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name].concat();
        for (name, value) in xattrs {
            let kept = CString::new(name.as_slice())
                .is_ok_and(|name| rustix::fs::lsetxattr(path.as_slice(), &name, value, XattrFlags::empty()).is_ok());
            if !kept {
                lost.add(Lost::XATTRS);
            }
        }
    }
}

/// A named stream as an attribute of its file.
pub(super) fn stream(run: &Run<'_>, fd: BorrowedFd<'_>, source: &Source, item: &Item) -> (Outcome, String) {
    let failed = |why: Why, text: &str| (Outcome::of(Method::Skipped, Some(why)), text.to_owned());
    let Some(stream) = item.stream else { return failed(Why::Unreadable, "") };
    let size = source.tree.stream(stream).size;
    let name = [b"user.", source.tree.stream_name(stream).unwrap_or_default()].concat();
    if !run.dest.user_xattrs {
        return failed(Why::NoXattrs, "the destination has no extended attributes: use --streams files");
    }
    let too_large = "it does not fit into an extended attribute: use --streams files";
    let name = match CString::new(name) {
        Ok(text) if size <= VALUE && text.as_bytes().len() <= NAME => text,
        _ => return failed(Why::StreamTooLarge, too_large),
    };
    if source.damaged.contains_key(&item.object) && source.tree.extents(stream).is_empty() && size > 0 {
        return failed(Why::Unreadable, "its structures are damaged");
    }
    let Some(value) = short(source, stream, VALUE) else { return failed(Why::Unreadable, "it can't be read") };
    match rustix::fs::fsetxattr(fd, &name, &value, XattrFlags::empty()) {
        Ok(()) => (Outcome::of(Method::Xattr, None), String::new()),
        Err(Errno::OPNOTSUPP | Errno::PERM) => {
            failed(Why::NoXattrs, "the destination refused the attribute: use --streams files")
        }
        Err(Errno::NOSPC | Errno::RANGE | Errno::TOOBIG | Errno::DQUOT) => failed(Why::StreamTooLarge, too_large),
        Err(e) => (Outcome::of(Method::Failed, Some(Why::WriteFailed)), e.to_string()),
    }
}

/// The times that are set; none where the guest has neither.
pub(super) fn times(object: &Object) -> Option<Timestamps> {
    let spec = |time: Option<Timestamp>| match time {
        Some(t) => Timespec { tv_sec: t.secs, tv_nsec: t.nanos.into() },
        None => Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
    };
    let times = object.times;
    (times.modified.is_some() || times.accessed.is_some())
        .then(|| Timestamps { last_access: spec(times.accessed), last_modification: spec(times.modified) })
}

/// Whether the destination may not be able to hold these times, so that they are to be read back.
fn doubtful(run: &Run<'_>, object: &Object) -> bool {
    let out = |t: Option<Timestamp>| t.is_some_and(|t| !(0..1 << 31).contains(&t.secs));
    let fine = |t: Option<Timestamp>| t.is_some_and(|t| t.nanos != 0);
    let (m, a) = (object.times.modified, object.times.accessed);
    out(m) || out(a) || !run.dest.fine_times && (fine(m) || fine(a))
}

/// Sets the times of what is open. Always last: whatever else is done changes them.
pub(super) fn set_times(run: &Run<'_>, fd: BorrowedFd<'_>, object: &Object, lost: &mut Lost) {
    let Some(times) = times(object) else { return };
    let set = rustix::fs::futimens(fd, &times).is_ok();
    if !set || doubtful(run, object) && !rustix::fs::fstat(fd).is_ok_and(|s| held(&s, object)) {
        lost.add(Lost::TIMES);
    }
}

/// The same by name, no link followed.
pub(super) fn set_times_at(run: &Run<'_>, dir: BorrowedFd<'_>, name: &[u8], object: &Object, lost: &mut Lost) {
    let Some(times) = times(object) else { return };
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    let set = rustix::fs::utimensat(dir, name, &times, flags).is_ok();
    if !set || doubtful(run, object) && !rustix::fs::statat(dir, name, flags).is_ok_and(|s| held(&s, object)) {
        lost.add(Lost::TIMES);
    }
}

/// Whether a file has the object's times.
fn held(stat: &rustix::fs::Stat, object: &Object) -> bool {
    let same =
        |t: Option<Timestamp>, secs: i64, nanos: u64| t.is_none_or(|t| (t.secs, u64::from(t.nanos)) == (secs, nanos));
    same(object.times.modified, stat.st_mtime, stat.st_mtime_nsec)
        && same(object.times.accessed, stat.st_atime, stat.st_atime_nsec)
}
