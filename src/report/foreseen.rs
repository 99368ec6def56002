//! A plan for an image that lies on a mounted file system: what an extraction beside it would share, copy and leave out.

use std::collections::BTreeMap;

use super::html::PlanRow;
use super::json::Row;
use super::{listing, path, text};
use crate::extract::{Foreseen, Item, Method, Outcome, Shape, Source};
use crate::plan::{Tally, Verdict};

/// File systems that a relink can write when they are not mounted, in the kernel's words.
const RELINKED: [&str; 9] = ["ext2", "ext3", "ext4", "vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk"];

/// An item, with what is said of it.
pub struct Line<'f> {
    source: &'f Source,
    item: &'f Item,
    outcome: Outcome,
    path: Vec<u8>,
}

/// Every item.
pub fn lines(all: &Foreseen) -> impl Iterator<Item = Line<'_>> {
    all.selection.items.iter().zip(&all.outcomes).filter_map(|(item, outcome)| {
        let source = all.selection.source(item)?;
        Some(Line { source, item, outcome: *outcome, path: all.selection.path(item) })
    })
}

impl Line<'_> {
    fn verdict(&self) -> Verdict {
        match self.outcome.method {
            Method::Made | Method::Reflink | Method::HardLink => Verdict::Link,
            Method::Copy | Method::Xattr => Verdict::Copy,
            Method::Pending | Method::Partial | Method::Failed | Method::Skipped => Verdict::Skip,
        }
    }
    fn reason(&self) -> Option<&'static str> {
        self.outcome.why.map(crate::extract::Why::word)
    }
    fn stream_name(&self) -> Option<&[u8]> {
        self.source.tree.stream_name(self.item.stream?)
    }
    /// Bytes, as the file reads.
    fn size(&self) -> u64 {
        if matches!(self.item.shape, Shape::Dir(_)) {
            return 0;
        }
        let stream = self.item.stream.or_else(|| self.source.tree.data(self.item.object));
        stream.map_or(0, |s| self.source.tree.stream(s).size)
    }

    /// Its JSON line.
    pub fn json(&self, out: &mut Vec<u8>) {
        let Self { source, item, outcome, .. } = self;
        let kind = match self.stream_name() {
            Some(_) => "stream",
            None => source.tree.object(item.object).kind.word(),
        };
        let mut row = Row::new(out, "entry");
        row.path("path", "path_raw", &self.path).word("kind", kind).number("size", self.size());
        listing::object_fields(&mut row, &source.tree, item.object);
        if let Some(name) = self.stream_name() {
            row.path("stream", "stream_raw", name);
        }
        row.word("verdict", self.verdict().word()).some("reason", self.reason());
        if outcome.shared > 0 || outcome.copied > 0 {
            row.number("shared", outcome.shared)
                .number("copied", outcome.copied)
                .number("extents", outcome.extents.into());
        }
        row.end();
    }

    /// Its line for people.
    pub fn human(&self, out: &mut Vec<u8>) {
        text::left(out, 5, |out| out.extend_from_slice(self.verdict().word().as_bytes()));
        text::left(out, 21, |out| out.extend_from_slice(self.reason().unwrap_or("-").as_bytes()));
        text::right(out, 14, |out| super::json::number(out, self.size()));
        out.extend_from_slice(b"  ");
        out.extend_from_slice(path::escape(&self.path).as_bytes());
        out.push(b'\n');
    }
}

/// Sums, streams counted by each of their names.
#[derive(Default)]
struct Sums {
    linked: Tally,
    copied: Tally,
    skipped: Tally,
    reasons: BTreeMap<&'static str, Tally>,
    directories: u64,
    links: u64,
    shared_bytes: u64,
    copied_bytes: u64,
}

fn sums(all: &Foreseen) -> Sums {
    let mut sums = Sums::default();
    for line in lines(all) {
        let up = |n: &mut u64, by: u64| *n = n.saturating_add(by);
        up(&mut sums.shared_bytes, line.outcome.shared);
        up(&mut sums.copied_bytes, line.outcome.copied);
        let size = line.size();
        let add = |t: &mut Tally| {
            t.files = t.files.saturating_add(1);
            t.bytes = t.bytes.saturating_add(size);
        };
        match (line.verdict(), line.item.shape) {
            (Verdict::Link, Shape::Dir(_)) => up(&mut sums.directories, 1),
            (Verdict::Link, Shape::Symlink | Shape::Special) => up(&mut sums.links, 1),
            (verdict, shape) => {
                if matches!(shape, Shape::HardLink(_)) {
                    up(&mut sums.links, 1);
                }
                add(match verdict {
                    Verdict::Link => &mut sums.linked,
                    Verdict::Copy => &mut sums.copied,
                    Verdict::Skip => &mut sums.skipped,
                });
                if let Some(reason) = line.reason() {
                    add(sums.reasons.entry(reason).or_default());
                }
            }
        }
    }
    sums
}

fn kind(all: &Foreseen) -> &str {
    all.on.as_ref().map_or("unknown", |on| on.kind.as_str())
}

/// Where the image lies.
pub fn place(row: &mut Row<'_>, all: &Foreseen) {
    use std::os::unix::ffi::OsStrExt;
    row.value("host", kind(all)).value("mounted", &true).number("unit", all.block);
    if let Some(on) = &all.on {
        row.value("volume", &path::escape(on.source.as_os_str().as_bytes())).path(
            "image",
            "image_raw",
            on.path.as_os_str().as_bytes(),
        );
    }
    row.some("not_shared", all.not_shared.as_ref());
}

/// What could not be read.
pub fn problems(out: &mut Vec<u8>, all: &Foreseen) {
    for problem in &all.selection.problems {
        Row::new(out, "problem").value("what", problem).end();
    }
}

/// The rows of a page.
pub fn rows(all: &Foreseen) -> impl Iterator<Item = PlanRow<'_>> {
    lines(all).map(|line| PlanRow {
        verdict: line.verdict().word(),
        reason: line.reason().unwrap_or_default().into(),
        size: line.size(),
        written: line.path.clone(),
        path: line.path,
    })
}

/// The sums, as fields of the last line.
pub fn totals(row: &mut Row<'_>, all: &Foreseen) {
    let tally = |t: &Tally| serde_json::json!({"files": t.files, "bytes": t.bytes});
    let sums = sums(all);
    let reasons: serde_json::Map<_, _> = sums.reasons.iter().map(|(r, t)| ((*r).to_owned(), tally(t))).collect();
    row.value("linked", &tally(&sums.linked))
        .value("copied", &tally(&sums.copied))
        .value("skipped", &tally(&sums.skipped))
        .value("reasons", &reasons)
        .number("directories", sums.directories)
        .number("links", sums.links)
        .number("shared_bytes", sums.shared_bytes)
        .number("copied_bytes", sums.copied_bytes)
        .number("unit", all.block)
        .number("space_needed", sums.copied_bytes)
        .number("space_free", all.free);
}

/// The plan in a few lines for people; `address` is what was asked for.
pub fn summary(out: &mut Vec<u8>, all: &Foreseen, address: &str) {
    let mut line = |head: &str, rest: &str| {
        text::left(out, 9, |out| out.extend_from_slice(head.as_bytes()));
        out.extend_from_slice(rest.as_bytes());
        out.push(b'\n');
    };
    let sums = sums(all);
    let on = match &all.on {
        Some(on) => format!("{}, mounted on {}", on.kind, on.at.display()),
        None => "a mounted file system".into(),
    };
    line("image", &text::clean(&format!("{address} (on {on})")));
    let tally = |t: &Tally| format!("{}, {}", text::counted(t.files, "file", "files"), text::size(t.bytes));
    line("link", &tally(&sums.linked));
    line("copy", &tally(&sums.copied));
    line("skip", &tally(&sums.skipped));
    for (reason, t) in &sums.reasons {
        line("", &format!("{reason:<21} {}", tally(t)));
    }
    let dirs = text::counted(sums.directories, "directory", "directories");
    line("new", &format!("{dirs}, {}", text::counted(sums.links, "link", "links")));
    line("bytes", &format!("{} shared, {} copied", text::size(sums.shared_bytes), text::size(sums.copied_bytes)));
    line("space", &format!("{} needed, {} free", text::size(sums.copied_bytes), text::size(all.free)));
    for problem in &all.selection.problems {
        line("problem", &text::clean(problem));
    }
    match &all.not_shared {
        None => line("do it", "unimage extract ADDR DEST, DEST on the same file system; the image stays as it is"),
        Some(why) => line("", &format!("nothing can be shared: {}", text::clean(why))),
    }
    if let Some(on) = all.on.as_ref().filter(|on| all.not_shared.is_some() && RELINKED.contains(&on.kind.as_str())) {
        let place = format!("{}/{}", on.source.display(), on.path.display());
        line("", &text::clean(&format!("once it is not mounted, a relink links in place: unimage plan {place}")));
    }
}
