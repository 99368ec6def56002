//! Compares a tree of files with a manifest: of an extraction, of a relink, or lines of checksums.

use std::fs::File;
use std::io::{BufRead, Read};
use std::os::fd::OwnedFd;
use std::path::Path;

use rayon::prelude::*;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use serde::Deserialize;

use super::hash::{Algorithm, Hashes, hex};
use crate::error::{Error, Result};
use crate::report::path::{escape, unescape};

/// Lines that are compared at a time.
const BATCH: usize = 4096;
/// Bytes that a line of a manifest has, at most.
const LINE: u64 = 16 << 20;
/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;

/// One way in which the tree is not what the manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Path below the root.
    pub path: Vec<u8>,
    /// `missing`, `longer`, `shorter`, `changed`, `kind`, `target`, `unreadable`.
    pub what: &'static str,
    /// In words, where there is more to be said.
    pub message: String,
}

/// What was compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Things that the manifest says are there.
    pub entries: u64,
    /// Files of which the contents were compared, by a hash.
    pub hashed: u64,
    /// Files of which only the length was, as the manifest has no hash of them.
    pub lengths: u64,
    /// Bytes that were read.
    pub bytes: u64,
}

/// The fields of a manifest's row that are compared.
#[derive(Deserialize)]
struct Row {
    #[serde(rename = "type")]
    kind_of_row: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    size: u64,
    verdict: Option<String>,
    method: Option<String>,
    written: Option<String>,
    written_raw: Option<String>,
    xattr: Option<String>,
    xattr_raw: Option<String>,
    target: Option<String>,
    target_raw: Option<String>,
    schema: Option<String>,
    sha256: Option<String>,
    md5: Option<String>,
    sha1: Option<String>,
    blake3: Option<String>,
}

/// What should be there.
struct Wanted {
    path: Vec<u8>,
    kind: Kind,
    size: Option<u64>,
    hashes: Vec<(Algorithm, String)>,
}

enum Kind {
    Dir,
    File,
    Symlink(Option<Vec<u8>>),
    Other,
    /// An extended attribute of this name.
    Xattr(Vec<u8>),
}

/// Calls `say` for every difference between the tree at `root` and the manifest, in the manifest's order. `progress` is told bytes that
/// were read.
///
/// # Errors
/// [`Error::Unsupported`] for what is no manifest, [`Error::Corrupt`]-like refusals for one that was cut off, and reading it.
pub fn verify(
    manifest: &Path,
    root: &Path,
    mut say: impl FnMut(&Difference),
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Compared> {
    let opening = |e: std::io::Error| Error::io(format!("opening {}", manifest.display()), e);
    let file = File::open(manifest).map_err(opening)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty())
        .map_err(|e| Error::io(format!("opening the directory {}", root.display()), e.into()))?;
    let sums = match crate::report::extracted::Format::of(manifest) {
        crate::report::extracted::Format::Sums(algorithm) => Some(algorithm),
        _ => None,
    };
    let mut lines = std::io::BufReader::with_capacity(CHUNK, file);
    let mut compared = Compared::default();
    let mut ended = sums.is_some();
    let mut first = true;
    loop {
        let mut batch = Vec::new();
        while batch.len() < BATCH {
            let mut line = Vec::new();
            let n = (&mut lines).take(LINE).read_until(b'\n', &mut line).map_err(opening)?;
            if n == 0 {
                break;
            }
            let wanted = match sums {
                Some(algorithm) => sum_line(&line, algorithm),
                None => json_line(&line, &mut first, &mut ended),
            };
            match wanted {
                Ok(wanted) => batch.extend(wanted),
                Err(why) => return Err(Error::Unsupported(format!("{}: {why}", manifest.display()))),
            }
        }
        if batch.is_empty() {
            break;
        }
        let results: Vec<_> = batch.par_iter().map(|w| compare(&root, w, progress)).collect();
        for (wanted, (found, hashed, bytes)) in batch.iter().zip(results) {
            let up = |n: &mut u64| *n = n.saturating_add(1);
            up(&mut compared.entries);
            compared.bytes = compared.bytes.saturating_add(bytes);
            match (hashed, &wanted.kind) {
                (true, _) => up(&mut compared.hashed),
                (false, Kind::File | Kind::Xattr(_)) => up(&mut compared.lengths),
                _ => {}
            }
            for (what, message) in found {
                say(&Difference { path: wanted.path.clone(), what, message });
            }
        }
    }
    if !ended {
        return Err(Error::Unsupported(format!("{}: it was cut off: it has no summary", manifest.display())));
    }
    Ok(compared)
}

/// A path or name with its raw form, where it has one.
fn raw(text: &str, base64: Option<&str>) -> Option<Vec<u8>> {
    use base64::Engine;
    match base64 {
        Some(raw) => base64::engine::general_purpose::STANDARD.decode(raw).ok(),
        None => Some(unescape(text).into_owned()).filter(|_| true),
    }
}

fn json_line(line: &[u8], first: &mut bool, ended: &mut bool) -> Result<Option<Wanted>, String> {
    let row: Row = serde_json::from_slice(line).map_err(|e| format!("expected JSON lines: {e}"))?;
    if std::mem::take(first) {
        let known = ["unimage/extract/1", "unimage/manifest/1", "unimage/relink/1"];
        return match row.schema {
            Some(schema) if known.contains(&schema.as_str()) => Ok(None),
            _ => Err("expected the manifest of an extraction or a relink".into()),
        };
    }
    match row.kind_of_row.as_str() {
        "summary" => *ended = true,
        "entry" => {}
        _ => return Ok(None),
    }
    let Some(written) = &row.written else { return Ok(None) };
    let bad = |what: &str| format!("{written}: {what}");
    // A path that was not changed has no raw form, and is the bytes that are there.
    let path = match &row.written_raw {
        Some(_) => raw(written, row.written_raw.as_deref()).ok_or_else(|| bad("its raw form is no base64"))?,
        None => written.as_bytes().to_vec(),
    };
    let named = |text: &Option<String>, base64: &Option<String>| {
        let text = text.as_ref()?;
        base64.as_ref().map_or_else(|| Some(text.as_bytes().to_vec()), |b| raw(text, Some(b)))
    };
    let whole = row.method.as_deref() != Some("partial");
    let kind = match (row.kind.as_str(), named(&row.xattr, &row.xattr_raw)) {
        (_, Some(name)) => Kind::Xattr(name),
        ("dir", None) => Kind::Dir,
        ("symlink" | "junction", None) => {
            // A relink writes the target as it is; an extraction puts `/` between the names of Windows.
            Kind::Symlink(named(&row.target, &row.target_raw))
        }
        ("file" | "stream" | "reparse", None) => Kind::File,
        _ => Kind::Other,
    };
    let hashes = [
        (Algorithm::Sha256, row.sha256),
        (Algorithm::Md5, row.md5),
        (Algorithm::Sha1, row.sha1),
        (Algorithm::Blake3, row.blake3),
    ];
    let hashes = hashes.into_iter().filter_map(|(a, h)| Some((a, h.filter(|_| whole)?))).collect();
    let has_size = matches!(kind, Kind::File | Kind::Xattr(_)) && row.verdict.as_deref() != Some("skip");
    Ok(Some(Wanted { path, kind, size: has_size.then_some(row.size), hashes }))
}

/// `HEX  PATH` or `HEX *PATH`, as GNU coreutils write it.
fn sum_line(line: &[u8], algorithm: Algorithm) -> Result<Option<Wanted>, String> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    if line.is_empty() {
        return Ok(None);
    }
    let (escaped, line) = match line.strip_prefix(b"\\") {
        Some(rest) => (true, rest),
        None => (false, line),
    };
    let digits = algorithm.bytes().saturating_mul(2);
    let hash = line.get(..digits).and_then(|h| std::str::from_utf8(h).ok()).filter(|h| super::hash::unhex(h).is_some());
    let path = line.get(digits.saturating_add(2)..);
    let (Some(hash), Some(path)) = (hash, path) else {
        return Err(format!("expected lines of a {} checksum, two characters and a path", algorithm.word()));
    };
    let mut name = Vec::with_capacity(path.len());
    let mut bytes = path.iter();
    while let Some(b) = bytes.next() {
        name.push(match (escaped && *b == b'\\').then(|| bytes.next()).flatten() {
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(other) => *other,
            None => *b,
        });
    }
    let hashes = vec![(algorithm, hash.to_ascii_lowercase())];
    Ok(Some(Wanted { path: name, kind: Kind::File, size: None, hashes }))
}

/// Differences, whether contents were compared by a hash, and bytes read.
type Found = (Vec<(&'static str, String)>, bool, u64);

fn compare(root: &OwnedFd, wanted: &Wanted, progress: &(dyn Fn(u64) + Sync)) -> Found {
    let one = |what: &'static str, message: String| (vec![(what, message)], false, 0);
    let errno = |e: Errno| match e {
        Errno::NOENT | Errno::NOTDIR => one("missing", String::new()),
        Errno::LOOP | Errno::XDEV => one("missing", "a link is on the way".into()),
        other => one("unreadable", other.to_string()),
    };
    let (dir, name) = match wanted.path.iter().rposition(|b| *b == b'/') {
        Some(at) => (wanted.path.get(..at), wanted.path.get(at.saturating_add(1)..)),
        None => (Some(b".".as_slice()), Some(wanted.path.as_slice())),
    };
    let name = name.filter(|n| !n.is_empty()).unwrap_or(b".");
    if name == b".." {
        return one("missing", "a path that leads out of the directory".into());
    }
    // Nothing outside of the root is looked at, whatever the manifest says.
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = match rustix::fs::openat2(root, dir.unwrap_or_default(), flags, Mode::empty(), how) {
        Ok(dir) => dir,
        Err(e) => return errno(e),
    };
    let stat = match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(e) => return errno(e),
    };
    let kind = FileType::from_raw_mode(stat.st_mode);
    let other = || one("kind", "it is something else".to_owned());
    match &wanted.kind {
        Kind::Dir if kind == FileType::Directory => (Vec::new(), false, 0),
        Kind::Symlink(target) if kind == FileType::Symlink => {
            let same = |got: &[u8], want: &[u8]| {
                got == want
                    || got.iter().zip(want).all(|(g, w)| g == w || (*g, *w) == (b'/', b'\\')) && got.len() == want.len()
            };
            match (rustix::fs::readlinkat(&dir, name, Vec::new()), target) {
                (Ok(got), Some(want)) if !same(got.as_bytes(), want) => {
                    one("target", escape(got.as_bytes()).into_owned())
                }
                (Err(e), _) => errno(e),
                _ => (Vec::new(), false, 0),
            }
        }
        Kind::Other if !matches!(kind, FileType::Directory | FileType::Symlink) => (Vec::new(), false, 0),
        Kind::File if kind == FileType::RegularFile => {
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            match wanted.size {
                Some(want) if size > want => return one("longer", format!("{size} bytes, not {want}")),
                Some(want) if size < want => return one("shorter", format!("{size} bytes, not {want}")),
                _ => {}
            }
            if wanted.hashes.is_empty() {
                return (Vec::new(), false, 0);
            }
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            match rustix::fs::openat(&dir, name, flags, Mode::empty()) {
                Ok(fd) => contents(&mut File::from(fd), &wanted.hashes, progress),
                Err(e) => errno(e),
            }
        }
        Kind::Xattr(attribute) => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let fd = match rustix::fs::openat(&dir, name, flags, Mode::empty()) {
                Ok(fd) => fd,
                Err(e) => return errno(e),
            };
            match rustix::fs::fgetxattr(&fd, attribute.as_slice(), &mut [0u8; 0][..]) {
                Ok(len) if Some(len as u64) == wanted.size => (Vec::new(), false, 0),
                Ok(len) => one("changed", format!("the attribute has {len} bytes")),
                Err(Errno::NODATA) => one("missing", "the attribute".into()),
                Err(e) => errno(e),
            }
        }
        _ => other(),
    }
}

fn contents(file: &mut File, hashes: &[(Algorithm, String)], progress: &(dyn Fn(u64) + Sync)) -> Found {
    let algorithms: Vec<Algorithm> = hashes.iter().map(|(a, _)| *a).collect();
    let mut all = Hashes::new(&algorithms);
    let mut buf = vec![0; CHUNK];
    let mut bytes = 0u64;
    loop {
        match file.read(&mut buf) {
            Ok(0) => break,
            Ok(n) => {
                all.update(buf.get(..n).unwrap_or_default());
                bytes = bytes.saturating_add(n as u64);
                progress(n as u64);
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return (vec![("unreadable", e.to_string())], false, bytes),
        }
    }
    let want: String = hashes.iter().map(|(_, h)| h.as_str()).collect();
    let same = hex(&all.end()) == want;
    (if same { Vec::new() } else { vec![("changed", "its contents have another hash".into())] }, true, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_checksums_as_coreutils_write_them() {
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let read = |line: String| sum_line(line.as_bytes(), Algorithm::Sha256).map(|w| w.map(|w| w.path));
        assert_eq!(read(format!("{hash}  a b\n")), Ok(Some(b"a b".to_vec())));
        assert_eq!(read(format!("{hash} *a\\n")), Ok(Some(b"a\\n".to_vec())));
        assert_eq!(read(format!("\\{hash}  a\\nb\\\\\n")), Ok(Some(b"a\nb\\".to_vec())));
        assert!(read("no checksum\n".into()).is_err());
        assert!(read(format!("{}  a\n", &hash[1..])).is_err());
    }
}
