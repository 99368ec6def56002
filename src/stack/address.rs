//! The text of an address: see `docs/addresses.md`.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::report::path::escape;

/// `SOURCE[@SNAPSHOT][//PATH[//PATH...]]`, split: see `docs/addresses.md`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The file, folder or block device.
    pub source: PathBuf,
    /// The snapshot of it.
    pub snapshot: Option<String>,
    /// The paths between `//`, escaped: each but the last leads to a file that is opened as an image. May be empty. An
    /// empty last one names the whole disk of the file before it.
    pub hops: Vec<String>,
}

/// What a path of this machine leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum There {
    Nothing,
    Folder,
    /// A file, device, or whatever else can have nothing below it.
    Leaf,
}

impl Address {
    /// Splits an address. Which `//` ends the source is found by looking at what is there: at most one of the paths that
    /// end at a `//` can be a file.
    ///
    /// # Errors
    /// [`Error::Usage`] for an empty text.
    pub fn parse(text: &OsStr) -> Result<Self> {
        Self::split(text.as_bytes(), &|path| match path.metadata() {
            Ok(m) if m.is_dir() => There::Folder,
            Ok(_) => There::Leaf,
            Err(_) => There::Nothing,
        })
    }

    fn split(text: &[u8], look: &dyn Fn(&Path) -> There) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::Usage("an address is SOURCE[//PATH...], not an empty text".into()));
        }
        let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
        let cuts: Vec<usize> = (1..text.len())
            .filter(|at| text.get(*at..).is_some_and(|t| t.starts_with(b"//")))
            .filter(|at| text.get(at.saturating_sub(1)) != Some(&b'/'))
            .collect();
        let whole = || std::iter::once(text.len());
        let made = |end: usize, snapshot: Option<(usize, usize)>| -> Self {
            let source = text.get(..snapshot.map_or(end, |s| s.0)).unwrap_or_default();
            let snapshot = snapshot.map(|(_, from)| escape(text.get(from..end).unwrap_or_default()).into_owned());
            Self { source: path(source), snapshot, hops: hops(text.get(end..).unwrap_or_default()) }
        };
        // A file as it is spelled, or the file before an `@`.
        for end in cuts.iter().copied().chain(whole()) {
            let part = text.get(..end).unwrap_or_default();
            if look(&path(part)) == There::Leaf {
                return Ok(made(end, None));
            }
            for (at, _) in part.iter().enumerate().rev().filter(|(_, b)| **b == b'@') {
                if at > 0 && look(&path(part.get(..at).unwrap_or_default())) == There::Leaf {
                    return Ok(made(end, Some((at, at.saturating_add(1)))));
                }
            }
        }
        // A folder, the longest; else the first `//` ends what is then not found.
        for end in cuts.iter().copied().chain(whole()).rev() {
            if look(&path(text.get(..end).unwrap_or_default())) == There::Folder {
                return Ok(made(end, None));
            }
        }
        Ok(made(cuts.first().copied().unwrap_or(text.len()), None))
    }
}

/// The paths of `//a//b`: without the slashes at their ends.
fn hops(text: &[u8]) -> Vec<String> {
    let Some(text) = text.strip_prefix(b"//") else { return Vec::new() };
    let mut out = Vec::new();
    let mut rest = text;
    loop {
        while let Some(less) = rest.strip_prefix(b"/") {
            rest = less;
        }
        let Some(end) = rest.windows(2).position(|w| w == b"//") else {
            out.push(typed(rest.strip_suffix(b"/").unwrap_or(rest)));
            return out;
        };
        out.push(typed(rest.get(..end).unwrap_or_default()));
        rest = rest.get(end.saturating_add(2)..).unwrap_or_default();
    }
}

/// A path as it was typed: text stays as it is, for it may hold escapes; bytes that are no text are escaped.
fn typed(raw: &[u8]) -> String {
    std::str::from_utf8(raw).map_or_else(|_| escape(raw).into_owned(), str::to_owned)
}

impl Address {
    /// The same in a snapshot of the image at a level: 0 is the source, 1 the file that the first path leads to.
    #[must_use]
    pub fn at_snapshot(&self, level: usize, snapshot: Option<&str>) -> Self {
        let mut out = self.clone();
        match level.checked_sub(1).and_then(|hop| out.hops.get_mut(hop)) {
            Some(hop) => {
                if let Some(snapshot) = snapshot {
                    hop.push('@');
                    hop.push_str(snapshot);
                }
            }
            None => out.snapshot = snapshot.map(str::to_owned),
        }
        out
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape(self.source.as_os_str().as_bytes()))?;
        if let Some(snapshot) = &self.snapshot {
            write!(f, "@{snapshot}")?;
        }
        for hop in &self.hops {
            write!(f, "//{hop}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(text: &str, files: &[&str], folders: &[&str]) -> (String, Option<String>, Vec<String>) {
        let address = Address::split(text.as_bytes(), &|p| {
            let p = p.to_str().unwrap();
            if files.contains(&p) {
                There::Leaf
            } else if folders.contains(&p) {
                There::Folder
            } else {
                There::Nothing
            }
        })
        .unwrap();
        (address.source.to_str().unwrap().to_owned(), address.snapshot, address.hops)
    }
    fn want(source: &str, snapshot: Option<&str>, hops: &[&str]) -> (String, Option<String>, Vec<String>) {
        (source.into(), snapshot.map(str::to_owned), hops.iter().map(|h| (*h).to_owned()).collect())
    }

    #[test]
    fn plain_addresses() {
        let files = ["d.raw", "/dev/sdb", "c.E01"];
        assert_eq!(split("d.raw", &files, &[]), want("d.raw", None, &[]));
        assert_eq!(split("d.raw//p1/etc", &files, &[]), want("d.raw", None, &["p1/etc"]));
        assert_eq!(split("/dev/sdb//p2/vm/win.vmdk", &files, &[]), want("/dev/sdb", None, &["p2/vm/win.vmdk"]));
        assert_eq!(split("c.E01//p2/b.vhdx//p1/s.txt", &files, &[]), want("c.E01", None, &["p2/b.vhdx", "p1/s.txt"]));
        assert_eq!(split("d.raw//a.img//", &files, &[]), want("d.raw", None, &["a.img", ""]));
        assert_eq!(split("d.raw//", &files, &[]), want("d.raw", None, &[""]));
        assert_eq!(split("d.raw///p1/x/", &files, &[]), want("d.raw", None, &["p1/x"]));
    }

    #[test]
    fn a_source_may_hold_the_separators() {
        assert_eq!(split("/a//b/d.raw//p1", &["/a//b/d.raw"], &["/a"]), want("/a//b/d.raw", None, &["p1"]));
        assert_eq!(split("//dev/sdb//p1", &["//dev/sdb"], &[]), want("//dev/sdb", None, &["p1"]));
        assert_eq!(split("me@home.raw//p1", &["me@home.raw", "me"], &[]), want("me@home.raw", None, &["p1"]));
        assert_eq!(split("/cases//set", &[], &["/cases", "/cases//set"]), want("/cases//set", None, &[]));
    }

    #[test]
    fn snapshots() {
        assert_eq!(split("d.qcow2@one//p1", &["d.qcow2"], &[]), want("d.qcow2", Some("one"), &["p1"]));
        assert_eq!(split("a@b.raw@2026", &["a@b.raw"], &[]), want("a@b.raw", Some("2026"), &[]));
    }

    #[test]
    fn what_is_not_there_ends_at_the_first_separator() {
        assert_eq!(split("gone.raw//p1//x", &[], &[]), want("gone.raw", None, &["p1", "x"]));
    }

    proptest! {
        #[test]
        fn shown_and_read_again(hops in proptest::collection::vec("[a-z%:@.]{1,6}(/[a-z ]{1,6}){0,3}", 0..4)) {
            let address = Address { source: "d.raw".into(), snapshot: None, hops };
            let text = address.to_string();
            let again = Address::split(text.as_bytes(), &|p| if p == Path::new("d.raw") { There::Leaf } else { There::Nothing });
            prop_assert_eq!(again.unwrap(), address);
        }
        #[test]
        fn any_text_is_split(text in proptest::collection::vec(proptest::sample::select(b"/@a\xff%4".to_vec()), 1..30)) {
            let address = Address::split(&text, &|_| There::Nothing).unwrap();
            prop_assert!(address.hops.iter().all(|h| !h.starts_with('/') && !h.contains("//")));
        }
    }
}
