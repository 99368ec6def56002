//! Whether it is safe to write to a host, and to keep a journal at a path: who else has them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, StatxFlags};

use crate::error::{Error, Result};
use crate::source::storage::{Chain, number, parse_number, partitions, read_text, sysfs};

/// Every reason why the volume of `volume_len` bytes at byte `volume_at` of the file or block device `host` must not be
/// written now: it is mounted, swap, or held by a mapped device, a loop device or a process, by whatever name and through
/// whatever device node. Empty where it may. What overlaps only other parts of the disk does not matter.
///
/// Opening a block device exclusively ([`super::medium::open_host`]) is the kernel's own check besides; this one gives the reasons, and
/// sees what the kernel allows: files, FUSE, other namespaces.
///
/// # Errors
/// Where it can't be told.
pub fn host(host: &Path, volume_at: u64, volume_len: u64) -> Result<Vec<String>> {
    let metadata = fs::metadata(host).map_err(|e| Error::io(format!("looking at {}", host.display()), e))?;
    let volume = chain(host, &metadata, volume_at, volume_len)?;
    let mut reasons = mounts(&volume)?;
    reasons.extend(swaps(&volume));
    reasons.extend(holders(&volume));
    // Whoever looks for devices or file systems (udev, `losetup --find`) opens every one for a moment.
    let mut held = processes(&volume, &metadata);
    for _ in 0..LOOKS_AGAIN {
        if held.is_empty() || !reasons.is_empty() {
            break;
        }
        std::thread::sleep(A_MOMENT);
        held = processes(&volume, &metadata);
    }
    reasons.extend(held);
    Ok(reasons.into_iter().collect())
}

/// How often a process that holds the host open is given [`A_MOMENT`] to let it go.
const LOOKS_AGAIN: usize = 5;
const A_MOMENT: Duration = Duration::from_millis(60);

/// Every reason why a new journal must not be made at `journal` for that host volume: something is there, it would be
/// lost with the memory, or it would lie on the volume that is written, or on anything mounted from it. Empty where it may.
///
/// # Errors
/// Where it can't be told.
pub fn journal(journal: &Path, host: &Path, volume_at: u64, volume_len: u64) -> Result<Vec<String>> {
    let mut reasons = Vec::new();
    let shown = journal.display();
    if fs::symlink_metadata(journal).is_ok() {
        reasons.push(format!("the journal's path {shown} exists already"));
    }
    let folder = folder_of(journal);
    let looking = |e| Error::io(format!("looking at the journal's folder {}", folder.display()), e);
    let metadata = fs::metadata(folder).map_err(looking)?;
    let kind = rustix::fs::statfs(folder).map_err(|e| looking(e.into()))?.f_type;
    const TMPFS: i64 = 0x0102_1994;
    const RAMFS: i64 = 0x8584_58f6;
    if kind == TMPFS || kind == RAMFS {
        reasons.push(format!("the journal {shown} would lie in memory (tmpfs or ramfs) and be lost with the power"));
    }
    let all = mountinfo()?;
    let device_of = |device: u64| {
        let mount = all.iter().find(|m| m.device == number(device))?;
        mount.chain()
    };
    // Where a file system gives its folders numbers of their own (btrfs), the mount is told by its path.
    let real = fs::canonicalize(folder).unwrap_or_default();
    let by_path = || {
        let above = all.iter().filter(|m| m.root == Path::new(OWN_ROOT) && real.starts_with(&m.at));
        above.max_by_key(|m| m.at.as_os_str().len())?.chain()
    };
    let ground = device_of(metadata.dev()).or_else(by_path).unwrap_or_default().down_to_the_ground(&device_of);
    for (major, minor) in ground.disks() {
        let name = fs::canonicalize(sysfs((major, minor))).unwrap_or_default();
        let name = name.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        if name.starts_with("zram") || name.starts_with("ram") {
            reasons.push(format!("the journal {shown} would lie in memory ({name}) and be lost with the power"));
        }
    }
    let about_host = fs::metadata(host).map_err(|e| Error::io(format!("looking at {}", host.display()), e))?;
    if ground.meets(&chain(host, &about_host, volume_at, volume_len)?) {
        reasons.push(format!("the journal {shown} would lie on the host volume that is to be written"));
    }
    Ok(reasons)
}

/// The folder that a path is in.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn chain(path: &Path, metadata: &fs::Metadata, at: u64, len: u64) -> Result<Chain> {
    Chain::of_metadata(metadata, at, at.saturating_add(len))
        .ok_or_else(|| Error::Refused(format!("{} is neither a regular file nor a block device", path.display())))
}

/// The root of this process's own namespace.
const OWN_ROOT: &str = "/proc/self/root";

/// A line of a mountinfo.
struct Mount {
    id: u64,
    device: (u32, u32),
    /// What of the file system it shows.
    shows: PathBuf,
    at: PathBuf,
    kind: String,
    source: PathBuf,
    /// The root of the namespace that it was found in.
    root: PathBuf,
}

impl Mount {
    /// `36 35 98:0 /root /mount/point options tags - type source options`: see proc_pid_mountinfo(5).
    fn parse(line: &[u8], root: &Path) -> Option<Self> {
        let mut fields = line.split(|b| *b == b' ');
        let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let device = parse_number(std::str::from_utf8(fields.nth(1)?).ok()?)?;
        let shows = unescape(fields.next()?);
        let at = unescape(fields.next()?);
        fields.find(|f| *f == b"-")?;
        let kind = String::from_utf8_lossy(fields.next()?).into_owned();
        Some(Self { id, device, shows, at, kind, source: unescape(fields.next()?), root: root.into() })
    }

    /// Where its bytes lie: by its device number, and where that is no block device's (FUSE, btrfs), by its source.
    fn chain(&self) -> Option<Chain> {
        if self.device.0 != 0 {
            return Some(Chain::of_device(self.device));
        }
        if !self.source.is_absolute() {
            return None;
        }
        let inside = self.root.join(self.source.strip_prefix("/").ok()?);
        [inside, self.source.clone()].iter().find_map(|path| Chain::of_path(path, 0, u64::MAX))
    }
}

/// The kernel writes blanks and backslashes of a path as three octal digits.
fn unescape(text: &[u8]) -> PathBuf {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, more)) = rest.split_first() {
        let digits = more.get(..3).filter(|d| *first == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        let code = digits.and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        out.push(code.unwrap_or(*first));
        rest = if code.is_some() { more.get(3..).unwrap_or_default() } else { more };
    }
    std::ffi::OsString::from_vec(out).into()
}

/// The processes that can be seen.
fn process_folders() -> Vec<PathBuf> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numeric = |path: &PathBuf| path.file_name().is_some_and(|n| n.as_bytes().iter().all(u8::is_ascii_digit));
    entries.map(|e| e.path()).filter(numeric).collect()
}

/// All mounts of this mount namespace, and of those of all processes that can be seen.
fn mountinfo() -> Result<Vec<Mount>> {
    let mut seen = BTreeSet::new();
    let mut out = Vec::new();
    let mut add = |process: &Path, text: Vec<u8>| {
        let root = process.join("root");
        out.extend(text.split(|b| *b == b'\n').filter_map(|line| Mount::parse(line, &root)));
    };
    let own = Path::new("/proc/self");
    seen.insert(fs::read_link(own.join("ns/mnt")).unwrap_or_default());
    add(own, fs::read("/proc/self/mountinfo").map_err(|e| Error::io("reading /proc/self/mountinfo", e))?);
    for process in process_folders() {
        // A process may end at any time.
        let Ok(namespace) = fs::read_link(process.join("ns/mnt")) else { continue };
        if seen.insert(namespace)
            && let Ok(text) = fs::read(process.join("mountinfo"))
        {
            add(&process, text);
        }
    }
    Ok(out)
}

/// The mounted file system that a file lies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedOn {
    /// Its kind, in the kernel's words.
    pub kind: String,
    /// Where it is mounted.
    pub at: PathBuf,
    /// What is mounted there.
    pub source: PathBuf,
    /// The file's path from the file system's own root.
    pub path: PathBuf,
}

/// The mounted file system that `file`, which was opened by `path`, lies on; none where the system does not tell.
pub fn mounted_on(file: &fs::File, path: &Path) -> Option<MountedOn> {
    let id = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
    let id = (id.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(id.stx_mnt_id)?;
    let text = fs::read("/proc/self/mountinfo").ok()?;
    let mut lines = text.split(|b| *b == b'\n').filter_map(|line| Mount::parse(line, Path::new(OWN_ROOT)));
    let mount = lines.find(|m| m.id == id)?;
    let below = path.canonicalize().ok()?.strip_prefix(&mount.at).ok()?.to_path_buf();
    Some(MountedOn { kind: mount.kind, path: mount.shows.join(below), at: mount.at, source: mount.source })
}

fn mounts(volume: &Chain) -> Result<BTreeSet<String>> {
    let met = |m: &Mount| m.chain().is_some_and(|chain| chain.meets(volume));
    let say = |m: &Mount| format!("it is mounted on {} ({} {})", m.at.display(), m.kind, m.source.display());
    Ok(mountinfo()?.iter().filter(|m| met(m)).map(say).collect())
}

fn swaps(volume: &Chain) -> Vec<String> {
    let text = fs::read("/proc/swaps").unwrap_or_default();
    let paths = text.split(|b| *b == b'\n').skip(1).filter_map(|line| line.split(|b| *b == b' ' || *b == b'\t').next());
    let met = |path: &PathBuf| Chain::of_path(path, 0, u64::MAX).is_some_and(|chain| chain.meets(volume));
    paths.map(unescape).filter(met).map(|path| format!("it is used as swap ({})", path.display())).collect()
}

/// Mapped devices that were built on it.
fn holders(volume: &Chain) -> Vec<String> {
    let mut out = Vec::new();
    for disk in volume.disks() {
        let parts = partitions(disk).into_iter().map(|(device, _)| device);
        for device in std::iter::once(disk).chain(parts).filter(|d| Chain::of_device(*d).meets(volume)) {
            for holder in fs::read_dir(sysfs(device).join("holders")).into_iter().flatten().flatten() {
                out.push(format!("it is part of the device {}", holder.file_name().to_string_lossy()));
            }
        }
    }
    out
}

/// A file that a process has open.
struct Open {
    /// The descriptor.
    number: std::ffi::OsString,
    metadata: fs::Metadata,
}

impl Open {
    /// Whether it is open for writing.
    fn writes(&self, process: &Path) -> bool {
        let info = read_text(&process.join("fdinfo").join(&self.number)).unwrap_or_default();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).unwrap_or_default();
        // In octal; the lowest two bits are 0 only for reading. What can't be told is taken for writing.
        u64::from_str_radix(flags.trim(), 8).map_or(3, |flags| flags & 3) != 0
    }
}

fn open_files(process: &Path) -> Vec<Open> {
    let entries = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let one =
        |entry: fs::DirEntry| Some(Open { number: entry.file_name(), metadata: fs::metadata(entry.path()).ok()? });
    entries.filter_map(one).collect()
}

/// Processes that write to it, that serve a FUSE mount from it, or that have it through a loop device.
fn processes(volume: &Chain, host: &fs::Metadata) -> Vec<String> {
    let own = PathBuf::from(format!("/proc/{}", std::process::id()));
    let fuse = fs::metadata("/dev/fuse").map(|m| m.rdev()).ok();
    let mut out = Vec::new();
    for process in process_folders().into_iter().filter(|p| *p != own) {
        let open = open_files(&process);
        let serves = || open.iter().any(|f| f.metadata.file_type().is_char_device() && Some(f.metadata.rdev()) == fuse);
        for file in &open {
            if !Chain::of_metadata(&file.metadata, 0, u64::MAX).is_some_and(|chain| chain.meets(volume)) {
                continue;
            }
            let kind = file.metadata.file_type();
            let other_device = kind.is_block_device() && !host.file_type().is_block_device();
            let how = match () {
                () if file.writes(&process) => "has it open for writing",
                () if serves() => "serves a FUSE mount from it",
                () if other_device => "has a loop device over it open",
                () => continue,
            };
            let name = read_text(&process.join("comm")).unwrap_or_default();
            let number = process.file_name().unwrap_or_default().to_string_lossy().into_owned();
            out.push(format!("process {number} ({name}) {how}"));
            break;
        }
    }
    out
}
