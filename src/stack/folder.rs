//! The gate of a file of this machine: what it names is opened beneath its own folder, or beneath a folder that the user
//! allowed, by `openat2`, so that no link and no `..` leads out of it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Dir, Mode, OFlags, ResolveFlags};

use crate::container::gate::{Allow, Gate, Identity, Opened, Wanted};
use crate::error::{Error, Result};
use crate::report::path::escape;
use crate::source::{self, SourceOptions};

/// Names of a folder that are looked at.
const MAX_NAMES: usize = 1 << 20;

/// A folder that files may be opened beneath.
struct Root {
    fd: OwnedFd,
    /// Its absolute path.
    path: PathBuf,
}

/// The gate of one file.
pub(super) struct Folder {
    root: Arc<Root>,
    /// The file's own folder below the root; empty for the root.
    base: PathBuf,
    /// The file's name.
    name: Vec<u8>,
    identity: Identity,
    options: SourceOptions,
    allow: Arc<Allow>,
}

impl Root {
    fn open(path: &Path) -> Result<Arc<Self>> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|e| Error::io(format!("opening the folder {}", path.display()), e.into()))?;
        let path = normal(&std::path::absolute(path).map_err(|e| Error::io(path.display().to_string(), e))?);
        Ok(Arc::new(Self { fd, path }))
    }
}

/// Why a file was not opened.
enum Not {
    /// It lies outside, or a link leads there.
    Outside,
    /// There is none.
    There,
    Error(Error),
}

impl Folder {
    /// The gate of the file or device at `path`.
    ///
    /// # Errors
    /// Where its folder can't be opened.
    pub(super) fn of(path: &Path, options: SourceOptions, allow: &Arc<Allow>) -> Result<Self> {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let identity = rustix::fs::stat(path)
            .map_or(Identity::None, |stat| Identity::File { device: stat.st_dev, inode: stat.st_ino });
        let name = path.file_name().map(|n| n.as_bytes().to_vec()).unwrap_or_default();
        let (root, allow) = (Root::open(folder)?, Arc::clone(allow));
        Ok(Self { root, base: PathBuf::new(), name, identity, options, allow })
    }
}

/// The one file in a machine's folder that describes it, by its ending: `.vmx`, `.vbox`, `.ovf`, `.ova`, `.xml`.
///
/// # Errors
/// [`Error::NotFound`] where there is none, or more than one.
pub(super) fn machine_in(folder: &Path) -> Result<PathBuf> {
    let failed = |e: io::Error| Error::io(format!("listing the folder {}", folder.display()), e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)?.take(MAX_NAMES) {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        let ending = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        let described = ["vmx", "vbox", "ovf", "ova", "xml"].contains(&ending.as_str());
        if described && entry.file_type().is_ok_and(|kind| kind.is_file()) {
            found.push(path);
        }
    }
    found.sort();
    match found.as_slice() {
        [] => Err(Error::NotFound("a folder in which nothing describes a virtual machine: expected an image".into())),
        [one] => Ok(one.clone()),
        several => {
            let names: Vec<_> = several.iter().filter_map(|p| p.file_name()).map(|n| escape(n.as_bytes())).collect();
            Err(Error::NotFound(format!(
                "a folder in which several files describe virtual machines: {}",
                names.join(", ")
            )))
        }
    }
}

/// Opens the file at `below` beneath a folder.
fn beneath(
    root: &Arc<Root>,
    below: &Path,
    remark: Option<String>,
    options: SourceOptions,
    allow: &Arc<Allow>,
) -> std::result::Result<Opened, Not> {
    let path = root.path.join(below);
    match source::open_beneath(&root.fd, below, &path, options) {
        Ok(found) => {
            let gate = Folder {
                root: Arc::clone(root),
                base: normal(below).parent().map(Path::to_owned).unwrap_or_default(),
                name: below.file_name().map(|n| n.as_bytes().to_vec()).unwrap_or_default(),
                identity: Identity::File { device: found.device, inode: found.inode },
                options,
                allow: Arc::clone(allow),
            };
            let name = escape(normal(&path).as_os_str().as_bytes()).into_owned();
            Ok(Opened { device: found.source, gate: Arc::new(gate), name, remark })
        }
        Err(Error::Io { doing, cause }) => Err(match cause.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::XDEV | rustix::io::Errno::LOOP) => Not::Outside,
            Some(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR | rustix::io::Errno::NAMETOOLONG) => Not::There,
            _ => Not::Error(Error::Io { doing, cause }),
        }),
        Err(e) => Err(Not::Error(e)),
    }
}

/// Opens a file in a folder that the user allowed: `path`, where it is absolute and beneath one, else the last of its names in
/// the folder itself. None where no folder has it.
///
/// # Errors
/// Where an allowed folder, or the file in it, can't be opened.
pub(super) fn allowed(
    path: &Path,
    wanted: &Wanted<'_>,
    options: SourceOptions,
    allow: &Arc<Allow>,
) -> Result<Option<Opened>> {
    let path = normal(path);
    for dir in allow.dirs.iter().filter(|dir| !inside(dir)) {
        let root = Root::open(dir)?;
        let whole = path.strip_prefix(&root.path).ok().map(|below| (below.to_owned(), None));
        let last = path.file_name().map(|name| {
            let shown = escape(wanted.name);
            let remark = format!("the {} {shown} was taken from {}", wanted.what, root.path.display());
            (PathBuf::from(name), Some(remark))
        });
        for (below, remark) in whole.into_iter().chain(last) {
            match beneath(&root, &below, remark, options, allow) {
                Ok(opened) => return Ok(Some(opened)),
                Err(Not::Error(e)) => return Err(e),
                Err(Not::Outside | Not::There) => {}
            }
        }
    }
    Ok(None)
}

/// Whether an allowed folder is one of the volume that an image lies on.
pub(super) fn inside(dir: &Path) -> bool {
    dir.as_os_str().as_bytes().starts_with(b"//")
}

/// A path without `.`, `..` and doubled slashes, by its text alone.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                if !out.pop() {
                    out.push("..");
                }
            }
            other => out.push(other),
        }
    }
    out
}

/// The refusal of a file that lies outside of every folder that it may lie in. `folder` is what `--allow-dir` would take.
pub(super) fn refused(wanted: &Wanted<'_>, own: &str, folder: &str) -> Error {
    Error::Refused(format!(
        "the {} {:?} lies outside of the image's folder {own} or is reached by a link out of it: it is not opened; \
         --allow-dir {folder} would allow it",
        wanted.what,
        escape(wanted.name)
    ))
}

/// The error that a file is not there.
pub(super) fn missing(wanted: &Wanted<'_>, own: &str) -> Error {
    Error::NotFound(format!(
        "the {} {:?} is not there (looked for from {own}): without it the image can't be read; --allow-dir DIR also looks in DIR",
        wanted.what,
        escape(wanted.name)
    ))
}

impl Gate for Folder {
    fn own(&self) -> &[u8] {
        &self.name
    }
    fn identity(&self) -> Identity {
        self.identity.clone()
    }
    fn open(&self, wanted: &Wanted<'_>) -> Result<Opened> {
        let name = Path::new(OsStr::from_bytes(wanted.name));
        let own = self.root.path.join(&self.base);
        let shown = escape(own.as_os_str().as_bytes()).into_owned();
        if wanted.name.is_empty() || wanted.name.contains(&0) {
            return Err(missing(wanted, &shown));
        }
        let below = if name.is_absolute() {
            normal(name).strip_prefix(&self.root.path).ok().map(Path::to_owned)
        } else {
            Some(self.base.join(name))
        };
        let mut why = Not::Outside;
        if let Some(below) = below {
            match beneath(&self.root, &below, None, self.options, &self.allow) {
                Ok(opened) => return Ok(opened),
                Err(Not::Error(e)) => return Err(e),
                Err(not) => why = not,
            }
        }
        let whole = own.join(name);
        if let Some(opened) = allowed(&whole, wanted, self.options, &self.allow)? {
            return Ok(opened);
        }
        if wanted.moved
            && let Some(last) = name.file_name()
        {
            let remark = format!("the {} {:?} was taken from beside the image", wanted.what, escape(wanted.name));
            match beneath(&self.root, &self.base.join(last), Some(remark), self.options, &self.allow) {
                Ok(opened) => return Ok(opened),
                Err(Not::Error(e)) => return Err(e),
                Err(Not::Outside | Not::There) => {}
            }
        }
        let folder = normal(&whole).parent().map(|p| escape(p.as_os_str().as_bytes()).into_owned());
        Err(match why {
            Not::Outside => refused(wanted, &shown, folder.as_deref().unwrap_or("/")),
            _ => missing(wanted, &shown),
        })
    }
    fn siblings(&self) -> Result<Vec<Vec<u8>>> {
        let listing = |e: io::Error| Error::io(format!("listing {}", self.root.path.join(&self.base).display()), e);
        let base = if self.base.as_os_str().is_empty() { Path::new(".") } else { &self.base };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let fd = rustix::fs::openat2(&self.root.fd, base, flags, Mode::empty(), how).map_err(|e| listing(e.into()))?;
        let mut names = Vec::new();
        for entry in Dir::new(fd).map_err(|e| listing(e.into()))?.take(MAX_NAMES) {
            let entry = entry.map_err(|e| listing(e.into()))?;
            names.push(entry.file_name().to_bytes().to_vec());
        }
        names.retain(|n| n != b"." && n != b"..");
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::Offset;
    use std::fs;
    use std::os::unix::fs::symlink;

    fn wanted(name: &str) -> Wanted<'_> {
        Wanted { name: name.as_bytes(), what: "backing file", moved: false }
    }
    fn word(gate: &dyn Gate, name: &str) -> String {
        match gate.open(&wanted(name)) {
            Ok(opened) => String::from_utf8(opened.device.read_vec(Offset::new(0), 3).unwrap()).unwrap(),
            Err(e) => format!("exit {}", e.exit_code()),
        }
    }

    #[test]
    fn nothing_outside_of_the_folder_is_opened() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        fs::create_dir_all(at("vm/sub/deep")).unwrap();
        fs::create_dir(at("other")).unwrap();
        for (name, text) in
            [("secret", "sec"), ("vm/top", "top"), ("vm/base", "bas"), ("vm/sub/mid", "mid"), ("other/far", "far")]
        {
            fs::write(at(name), text).unwrap();
        }
        symlink("../secret", at("vm/out")).unwrap();
        symlink(at("secret"), at("vm/whole")).unwrap();
        symlink("sub/mid", at("vm/in")).unwrap();
        symlink("/proc/self/exe", at("vm/magic")).unwrap();
        symlink("../other", at("vm/dir")).unwrap();
        symlink("loop", at("vm/loop")).unwrap();
        let fifo = at("vm/fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        let gate = |allow: Allow| Folder::of(&at("vm/top"), SourceOptions::default(), &Arc::new(allow)).unwrap();
        let closed = gate(Allow::default());
        let whole = |name: &str| at(name).to_str().unwrap().to_owned();
        for (name, want) in [
            ("base", "bas"),
            ("./base", "bas"),
            ("sub/mid", "mid"),
            ("sub/deep/../mid", "mid"),
            ("in", "mid"),
            (&whole("vm/base"), "bas"),
            (&whole("vm/sub/../base"), "bas"),
            ("../secret", "exit 4"),
            ("../vm/base", "exit 4"),
            ("sub/../../secret", "exit 4"),
            ("/etc/passwd", "exit 4"),
            (&whole("secret"), "exit 4"),
            (&whole("vm/../secret"), "exit 4"),
            ("out", "exit 4"),
            ("whole", "exit 4"),
            ("magic", "exit 4"),
            ("dir/far", "exit 4"),
            ("loop", "exit 4"),
            ("fifo", "exit 4"),
            ("sub", "exit 4"),
            ("/dev/zero", "exit 4"),
            ("gone", "exit 3"),
            ("base/x", "exit 3"),
            ("", "exit 3"),
        ] {
            assert_eq!(word(&closed, name), want, "{name:?}");
        }
        // What is beneath names in its turn from its own folder, and may go up as far as the top.
        let mid = closed.open(&wanted("sub/mid")).unwrap().gate;
        assert_eq!([word(&*mid, "../base"), word(&*mid, "../../secret")], ["bas", "exit 4"]);
        assert_eq!(mid.own(), b"mid");
        let mut names = mid.siblings().unwrap();
        names.sort();
        assert_eq!(names, [b"deep".to_vec(), b"mid".to_vec()]);
        // Allowed folders, and only these.
        let open = gate(Allow { dirs: vec![at("other")], ..Allow::default() });
        assert_eq!([word(&open, "../other/far"), word(&open, &whole("other/far"))], ["far", "far"]);
        assert_eq!([word(&open, "/gone/far"), word(&open, "../secret")], ["far", "exit 4"]);
        assert!(open.open(&wanted("/gone/far")).unwrap().remark.is_some());
        // What has an identity of its own may have been moved beside.
        let moved = Wanted { moved: true, ..wanted("/vmfs/volumes/x/base") };
        assert!(closed.open(&moved).unwrap().remark.unwrap().contains("beside"));
    }

    #[test]
    fn one_file_by_two_names_is_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a"), "a").unwrap();
        fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        let gate = Folder::of(&dir.path().join("a"), SourceOptions::default(), &Arc::default()).unwrap();
        assert_ne!(gate.identity(), Identity::None);
        assert_eq!(gate.open(&wanted("b")).unwrap().gate.identity(), gate.identity());
    }
}
