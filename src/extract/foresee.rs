//! What an extraction onto the file system that the image lies on would share and copy: told from the extents, nothing is written.

use std::path::Path;

use rustix::io::Errno;

use super::Filter;
use super::dest;
use super::file;
use super::ground::{Ground, Grounds};
use super::jobs;
use super::outcome::{Method, Outcome, Why};
use super::recipe::{How, Part, Site};
use super::select::{Item, Selection, Shape, Source};
use super::sys;
use crate::error::{Error, Result};
use crate::extent::Map;
use crate::fs::host::NameRules;
use crate::source::guard::{MountedOn, mounted_on};
use crate::stack::Stack;

/// An extraction beside the image, foreseen.
pub struct Foreseen {
    /// The file system that the image lies on; none where the system does not tell.
    pub on: Option<MountedOn>,
    /// Bytes of its blocks.
    pub block: u64,
    /// Bytes that are free on it.
    pub free: u64,
    /// Why nothing can be shared; none where it can.
    pub not_shared: Option<String>,
    /// Everything that the address names.
    pub selection: Selection,
    /// What would become of each item.
    pub outcomes: Vec<Outcome>,
}

/// Foresees it for the files of `stack`.
///
/// # Errors
/// [`Error::Usage`] where the image is no file of a mounted file system, and whatever opening meets.
pub fn foresee(stack: &Stack) -> Result<Foreseen> {
    let grounds = Grounds::open(stack)?;
    let path = &stack.address.source;
    let first = grounds.iter().next().filter(|g| g.regular).ok_or_else(|| {
        Error::Usage(format!(
            "{}: expected an image that lies on a host, as HOST//PATH (a partition's device or image, and the path of the image on \
             it), or an image file of a mounted file system",
            stack.address
        ))
    })?;
    let statfs = rustix::fs::fstatfs(&first.file);
    let statfs =
        statfs.map_err(|e| Error::io(format!("asking for the file system of {}", path.display()), e.into()))?;
    let block = u64::try_from(statfs.f_bsize).unwrap_or(0);
    let on = mounted_on(&first.file, path);
    let mut not_shared = None;
    let mut sites = Vec::new();
    for (at, ground) in grounds.iter().enumerate() {
        let why = cannot_share(ground, first, block, path)?;
        let round_up = statfs.f_type as i64 != dest::XFS;
        sites.push(Site { ground: at, len: ground.len, block: why.is_none().then_some(block), round_up });
        not_shared = not_shared.or(why);
    }
    if sites.iter().any(|s| s.block.is_some()) {
        not_shared = None;
    }
    let selection = Selection::new(stack, &Filter::default(), NameRules::Posix, false)?;
    let mut parts = Vec::new();
    let mut room = Map::new();
    let mut outcomes: Vec<Outcome> = Vec::with_capacity(selection.items.len());
    for item in &selection.items {
        let outcome = match (item.shape, selection.source(item)) {
            (Shape::File, Some(source)) => {
                parts.clear();
                let site = |layer| sites.get(grounds.find(layer)?).copied();
                jobs::parts(source, item, site, &mut room, &mut parts);
                of_file(source, item, &parts, not_shared.is_some())
            }
            (Shape::HardLink(of), _) => {
                let of = outcomes.get(of as usize).copied().unwrap_or_default();
                Outcome { shared: 0, copied: 0, ..of }
            }
            (Shape::Xattr(_), Some(source)) => {
                let copied = item.stream.map_or(0, |s| source.tree.stream(s).size);
                Outcome { copied, ..Outcome::of(Method::Xattr, Some(Why::Attribute)) }
            }
            (Shape::Left(why), _) => Outcome::of(Method::Skipped, Some(why)),
            _ => Outcome::of(Method::Made, None),
        };
        outcomes.push(outcome);
    }
    Ok(Foreseen { on, block, free: statfs.f_bavail.saturating_mul(block), not_shared, selection, outcomes })
}

/// Why blocks of a ground file can't be shared with a new file beside `first`.
fn cannot_share(ground: &Ground, first: &Ground, block: u64, path: &Path) -> Result<Option<String>> {
    let dev = |g: &Ground| {
        let stat = rustix::fs::fstat(&g.file);
        stat.map(|s| s.st_dev).map_err(|e| Error::io(format!("looking at {}", path.display()), e.into()))
    };
    if !ground.regular || dev(ground)? != dev(first)? {
        return Ok(Some("the image's files lie on different file systems".into()));
    }
    if ground.len < block {
        return Ok(Some("the image is shorter than a block".into()));
    }
    Ok(match sys::can_share(&ground.file, block) {
        Ok(()) => None,
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => {
            Some("the file system that it lies on can't share blocks between files".into())
        }
        Err(Errno::ROFS) => Some("the file system that it lies on is mounted read-only".into()),
        Err(Errno::PERM | Errno::ACCESS) => {
            Some("it can't be told without the right to write to the image (nothing would be written)".into())
        }
        Err(other) => Some(format!("asking whether blocks can be shared failed: {other}")),
    })
}

/// What becomes of a file with these parts.
fn of_file(source: &Source, item: &Item, parts: &[Part], no_sharing: bool) -> Outcome {
    let Some(stream) = item.stream else { return Outcome::of(Method::Made, Some(Why::Empty)) };
    let size = source.tree.stream(stream).size;
    let mut outcome = Outcome::default();
    for part in parts {
        let len = part.len.min(size.saturating_sub(part.at));
        let bytes = match part.how {
            How::Hole => continue,
            How::Share(..) => &mut outcome.shared,
            How::Copy(..) | How::Decode => &mut outcome.copied,
        };
        *bytes = bytes.saturating_add(len);
        outcome.extents = outcome.extents.saturating_add(1);
    }
    let decoded = parts.iter().any(|p| p.how == How::Decode);
    if decoded && source.fs.open(&source.tree, stream).is_err() {
        return Outcome::of(Method::Partial, Some(Why::Unreadable));
    }
    let why = file::why(source, stream, parts, false, no_sharing);
    (outcome.method, outcome.why) = match (outcome.shared > 0, outcome.copied > 0) {
        _ if size == 0 => (Method::Made, Some(Why::Empty)),
        (true, true) => (Method::Reflink, why),
        (true, false) => (Method::Reflink, None),
        (false, true) => (Method::Copy, why),
        (false, false) => (Method::Made, None),
    };
    outcome
}
