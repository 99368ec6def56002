//! The rows of a plan: what becomes of every file and stream, and everything that the host can't hold of it. `plan`,
//! `relink` and the manifest have the same rows.

use std::io::Write;

use rayon::prelude::*;

use super::json::Row;
use super::{listing, path, text};
use crate::fs::host::{Content, NewKind};
use crate::fs::{EntryId, Kind, StreamId, Tree};
use crate::plan::{GuestVolume, Part, Plan, Reason, Tally, Totals};
use crate::relink::{Lost, Prepared, WOF, is_wof};
use crate::txn::Manifest;

/// Bytes that a row has, more or less.
const ROW: usize = 400;
/// Rows that one thread makes at a time.
const AT_ONCE: usize = 2048;
/// How many times as many are made beside each other.
const BESIDE: usize = 8;

/// How a row becomes a line: [`json`] or [`human`].
pub type Line = fn(&mut Vec<u8>, &Plan, &[GuestVolume], &crate::plan::Row);

/// The manifest of a relink: a header, a row for every file and stream, a summary. Handed to `sink` piece by piece.
///
/// # Errors
/// Those of `sink`.
pub fn write<E>(prepared: &Prepared, sink: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    sink(&head(prepared))?;
    lines(prepared, json, sink)?;
    sink(&foot(prepared))
}

/// The same, packed as a journal has it.
///
/// # Errors
/// Those of packing.
pub fn packed(prepared: &Prepared) -> std::io::Result<Manifest> {
    let mut all = Manifest::of(&head(prepared))?;
    let some = prepared.plan.rows.par_chunks(AT_ONCE).map(|rows| Manifest::of(&some(prepared, json, rows)));
    some.collect::<std::io::Result<Vec<_>>>()?.into_iter().for_each(|some| all.push(some));
    all.push(Manifest::of(&foot(prepared))?);
    Ok(all)
}

/// A line for every row, in order. Threads make them beside each other, not so many at a time that memory would matter.
///
/// # Errors
/// Those of `sink`.
pub fn lines<E>(prepared: &Prepared, line: Line, sink: &mut dyn FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
    prepared.plan.rows.chunks(AT_ONCE.saturating_mul(BESIDE)).try_for_each(|rows| {
        let made: Vec<Vec<u8>> = rows.par_chunks(AT_ONCE).map(|rows| some(prepared, line, rows)).collect();
        made.iter().try_for_each(|lines| sink(lines))
    })
}

fn some(prepared: &Prepared, line: Line, rows: &[crate::plan::Row]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len().saturating_mul(ROW));
    rows.iter().for_each(|row| line(&mut out, &prepared.plan, &prepared.guests, row));
    out
}

fn head(prepared: &Prepared) -> Vec<u8> {
    let mut out = Vec::new();
    let mut row = Row::new(&mut out, "header");
    row.word("schema", "unimage/manifest/1").word("version", env!("CARGO_PKG_VERSION"));
    place(&mut row, prepared);
    row.end();
    out
}

fn foot(prepared: &Prepared) -> Vec<u8> {
    let mut out = Vec::new();
    for lost in &prepared.lost {
        json_lost(&mut out, lost);
    }
    let mut row = Row::new(&mut out, "summary");
    totals(&mut row, &prepared.plan.totals);
    row.end();
    out
}

/// Where it is written to, and which image goes.
pub fn place(row: &mut Row<'_>, prepared: &Prepared) {
    let into = prepared.plan.tree.into.join(&b'/');
    row.word("host", prepared.host.0)
        .value("volume", &prepared.host.1)
        .path("image", "image_raw", &prepared.image)
        .value("removed", &prepared.removed.iter().map(|p| path::escape(p)).collect::<Vec<_>>())
        .value("stays", &prepared.stay)
        .path("into", "into_raw", &into)
        .word("slack", if prepared.plan.zero_slack { "zero" } else { "keep" });
}

/// The path of a row below the address, as the bytes of its names.
pub fn path_of(guest: &GuestVolume, row: &crate::plan::Row) -> Vec<u8> {
    path_below(guest.folder.as_deref(), guest.part, &guest.tree, row.entry, row.stream)
}

/// The path of an entry, or of a stream of it, below an address that names `part` of a volume; `folder` is the volume's name
/// where the address names all volumes.
pub fn path_below(
    folder: Option<&[u8]>,
    part: Part,
    tree: &Tree,
    entry: Option<EntryId>,
    stream: Option<StreamId>,
) -> Vec<u8> {
    let mut path = folder.unwrap_or_default().to_vec();
    if let Some(entry) = entry {
        let full = tree.path(entry);
        let above = match part {
            Part::All => 0,
            Part::Entry(top) | Part::Stream(top, _) => {
                let len = tree.path(top).len();
                match tree.object(tree.entry(top).object).kind {
                    Kind::Dir if matches!(part, Part::Entry(_)) => len.saturating_add(1),
                    _ => len.saturating_sub(tree.name(top).len()),
                }
            }
        };
        let below = full.get(above..).unwrap_or_default();
        if !path.is_empty() && !below.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(below);
    }
    if let Some(name) = stream.and_then(|s| tree.stream_name(s)) {
        path.push(b':');
        path.extend_from_slice(name);
    }
    path
}

/// The word for what a row is, and its bytes.
fn kind_and_size(tree: &Tree, row: &crate::plan::Row) -> (&'static str, u64) {
    let size = row.stream.map_or(0, |s| tree.stream(s).size);
    let object = row.entry.map_or(tree.root(), |e| tree.entry(e).object);
    match row.stream.and_then(|s| tree.stream_name(s)) {
        Some(_) => ("stream", size),
        None => (tree.object(object).kind.word(), size),
    }
}

/// One JSON line for a row of a plan.
pub fn json(out: &mut Vec<u8>, plan: &Plan, guests: &[GuestVolume], row: &crate::plan::Row) {
    let Some(guest) = guests.get(row.volume) else { return };
    let tree: &Tree = &guest.tree;
    let (kind, size) = kind_and_size(tree, row);
    let raw = path_of(guest, row);
    let mut line = Row::new(out, "entry");
    line.path("path", "path_raw", &raw).word("kind", kind).number("size", size);
    listing::object_fields(&mut line, tree, row.entry.map_or(tree.root(), |e| tree.entry(e).object));
    if let Some(name) = row.stream.and_then(|s| tree.stream_name(s)) {
        line.path("stream", "stream_raw", name);
    }
    line.word("verdict", row.verdict.word());
    if let Some(reason) = row.reason {
        line.word("reason", reason.word());
    }
    if is_wof(tree, row) {
        line.word("detail", WOF);
    }
    if let Some(at) = row.written {
        line.path("written", "written_raw", &plan.written_path(at));
        if row.renamed {
            line.value("renamed", &true);
        }
        if let Some(
            NewKind::File { content: Content::Linked(extents), .. }
            | NewKind::Stream { content: Content::Linked(extents), .. },
        ) = plan.tree.entries.get(at).map(|e| &e.kind)
        {
            line.number("extents", extents.len() as u64);
        }
    }
    line.end();
}

/// One line for people for a row of a plan.
pub fn human(out: &mut Vec<u8>, plan: &Plan, guests: &[GuestVolume], row: &crate::plan::Row) {
    let Some(guest) = guests.get(row.volume) else { return };
    let raw = path_of(guest, row);
    let (_, size) = kind_and_size(&guest.tree, row);
    text::left(out, 5, |out| out.extend_from_slice(row.verdict.word().as_bytes()));
    text::left(out, 21, |out| out.extend_from_slice(row.reason.map_or("-", Reason::word).as_bytes()));
    text::right(out, 14, |out| super::json::number(out, size));
    out.extend_from_slice(b"  ");
    out.extend_from_slice(path::escape(&raw).as_bytes());
    if is_wof(&guest.tree, row) {
        let _ = write!(out, "  ({WOF})");
    }
    if let Some(at) = row.written.filter(|_| row.renamed) {
        out.extend_from_slice(b" => ");
        out.extend_from_slice(path::escape(&plan.written_path(at)).as_bytes());
    }
    out.push(b'\n');
}

/// One JSON line for what goes with the image.
pub fn json_lost(out: &mut Vec<u8>, lost: &Lost) {
    Row::new(out, "lost").value("volume", &lost.volume).value("what", &lost.what).some("bytes", lost.bytes).end();
}

/// The sums of a plan, as fields.
pub fn totals(row: &mut Row<'_>, totals: &Totals) {
    let tally = |t: &Tally| serde_json::json!({"files": t.files, "bytes": t.bytes});
    let reasons: serde_json::Map<_, _> = totals.reasons.iter().map(|(r, t)| (r.word().to_owned(), tally(t))).collect();
    let space = &totals.space;
    row.value("linked", &tally(&totals.linked))
        .value("copied", &tally(&totals.copied))
        .value("skipped", &tally(&totals.skipped))
        .value("reasons", &reasons)
        .number("directories", totals.directories)
        .number("links", totals.links)
        .number("renamed", totals.renamed)
        .number("unit", space.unit)
        .number("space_needed", space.needed())
        .number("space_free", space.free())
        .number("space_image", space.image_units.saturating_mul(space.unit))
        .number("metadata_bytes", space.estimate.metadata_bytes)
        .number("journal_bytes", space.estimate.journal_bytes)
        .value("undo", &space.reusing().is_none());
    if let Some(reused) = space.reused {
        let bytes = reused.units.saturating_mul(space.unit);
        let (batches, kept) = (reused.batches, reused.kept_bytes);
        let reuse =
            serde_json::json!({"used": space.may_reuse, "bytes": bytes, "batches": batches, "kept_bytes": kept});
        row.value("reuse", &reuse);
    }
}

/// The plan in a few lines for people: where, how much, why, and what would be lost or refused.
pub fn summary(out: &mut Vec<u8>, prepared: &Prepared) {
    let mut line = |head: &str, rest: &str| {
        text::left(out, 9, |out| out.extend_from_slice(head.as_bytes()));
        out.extend_from_slice(rest.as_bytes());
        out.push(b'\n');
    };
    let totals = &prepared.plan.totals;
    let (kind, volume) = &prepared.host;
    let on = if volume.is_empty() { (*kind).to_owned() } else { format!("{kind}, volume {volume}") };
    line("image", &format!("{} (host: {on})", path::escape(&prepared.image)));
    for file in &prepared.removed {
        line("with it", &path::escape(file));
    }
    for file in &prepared.stay {
        line("stays", &text::clean(file));
    }
    line("into", &format!("/{}", path::escape(&prepared.plan.tree.into.join(&b'/'))));
    let tally = |t: &Tally| format!("{}, {}", text::counted(t.files, "file", "files"), text::size(t.bytes));
    line("link", &tally(&totals.linked));
    line("copy", &tally(&totals.copied));
    line("skip", &tally(&totals.skipped));
    for (reason, t) in &totals.reasons {
        line("", &format!("{:<21} {}", reason.word(), tally(t)));
    }
    line(
        "new",
        &format!(
            "{}, {}, {}",
            text::counted(totals.directories, "directory", "directories"),
            text::counted(totals.links, "link", "links"),
            text::counted(totals.renamed, "changed name", "changed names"),
        ),
    );
    let space = &totals.space;
    line("space", &format!("{} needed, {} free", text::size(space.needed()), text::size(space.free())));
    if let Some(reused) = space.reusing() {
        let bytes = text::size(reused.units.saturating_mul(space.unit));
        let batches = text::counted(reused.batches, "batch", "batches");
        line("reuse", &format!("{bytes} go to units of the image that nobody else needs, in {batches}: no undo"));
    }
    line(
        "writes",
        &format!(
            "{} of metadata, {} of journal at most",
            text::size(space.estimate.metadata_bytes),
            text::size(space.estimate.journal_bytes)
        ),
    );
    line("slack", if prepared.plan.zero_slack { "zeroed behind the ends of linked files" } else { "kept" });
    for lost in &prepared.lost {
        let bytes = lost.bytes.map(|b| format!(" ({})", text::size(b))).unwrap_or_default();
        let volume = if lost.volume.is_empty() { String::new() } else { format!("{}: ", lost.volume) };
        line("lost", &format!("{volume}{}{bytes}", text::clean(&lost.what)));
    }
    for refusal in &prepared.refusals {
        line("refused", &text::clean(refusal));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::extent::{LayerId, Map};
    use crate::fs::host::{HostName, NewEntry, NewTree};
    use crate::fs::{Form, NewStream, Object, Times, TreeBuilder};
    use crate::plan::Verdict;

    /// `d/` with `f` and its stream `s`.
    fn tree() -> Tree {
        let object = |kind| Object {
            kind,
            number: 1,
            times: Times::default(),
            attributes: 0,
            mode: None,
            owner: None,
            system: false,
        };
        let mut b = TreeBuilder::new();
        let root = b.object(object(Kind::Dir));
        let dir = b.object(object(Kind::Dir));
        let file = b.object(object(Kind::File));
        b.entry(root, b"d", dir);
        b.entry(dir, b"f", file);
        for name in [None, Some(&b"s"[..])] {
            b.stream(file, NewStream { name, size: 9, valid: 9, form: Form::Plain, locator: 0 }, []);
        }
        b.xattr(file, b"user.x".to_vec(), b"v".to_vec());
        b.finish(root)
    }

    /// The entries `d` and `d/f`, and the stream.
    fn parts(tree: &Tree) -> (EntryId, EntryId, StreamId) {
        let d = tree.child(tree.root(), b"d").unwrap();
        let f = tree.child(tree.entry(d).object, b"f").unwrap();
        let s = tree.streams(tree.entry(f).object).find(|s| tree.stream_name(*s).is_some()).unwrap();
        (d, f, s)
    }

    fn row(entry: Option<EntryId>, stream: Option<StreamId>) -> crate::plan::Row {
        crate::plan::Row {
            volume: 0,
            entry,
            stream,
            verdict: Verdict::Copy,
            reason: None,
            written: None,
            renamed: false,
        }
    }

    fn guest(folder: Option<&str>, part: Part) -> GuestVolume {
        let folder = folder.map(|f| HostName::from(f.as_bytes()));
        GuestVolume { folder, part, tree: Arc::new(tree()), layer: LayerId::fresh(), map: Map::new(), fs: None }
    }

    #[test]
    fn paths_are_those_below_the_address() {
        let tree = tree();
        let (d, f, s) = parts(&tree);
        let cases = [
            (None, Part::All, "d", "d/f", "d/f:s"),
            (Some("p1"), Part::All, "p1/d", "p1/d/f", "p1/d/f:s"),
            (None, Part::Entry(d), "", "f", "f:s"),
            (None, Part::Entry(f), "", "f", "f:s"),
            (None, Part::Stream(f, s), "", "f", "f:s"),
        ];
        for (folder, part, dir, file, stream) in cases {
            let guest = guest(folder, part);
            let data = tree.data(tree.entry(f).object);
            assert_eq!(path_of(&guest, &row(Some(d), None)), dir.as_bytes(), "{part:?}");
            assert_eq!(path_of(&guest, &row(Some(f), data)), file.as_bytes(), "{part:?}");
            assert_eq!(path_of(&guest, &row(Some(f), Some(s))), stream.as_bytes(), "{part:?}");
        }
        assert_eq!(path_of(&guest(Some("p1"), Part::All), &row(None, Some(s))), b"p1:s");
    }

    #[test]
    fn a_row_says_what_becomes_of_a_stream_and_what_the_host_can_not_hold() {
        let (_, f, s) = parts(&tree());
        let entry = NewEntry {
            parent: None,
            name: b"f.stream.s".to_vec(),
            kind: NewKind::File { size: 9, content: Content::Copied },
            times: Times::default(),
            attributes: 0,
            posix: None,
            xattrs: Vec::new(),
            security: None,
            origin: None,
        };
        let plan =
            Plan { tree: NewTree { into: Vec::new(), entries: vec![entry], ..Default::default() }, ..Plan::default() };
        let row = crate::plan::Row {
            reason: Some(Reason::Resident),
            written: Some(0),
            renamed: true,
            ..row(Some(f), Some(s))
        };
        let guests = [guest(None, Part::All)];
        let mut out = Vec::new();
        json(&mut out, &plan, &guests, &row);
        let got: serde_json::Value = serde_json::from_slice(&out).unwrap();
        let want = serde_json::json!({
            "type": "entry", "path": "d/f:s", "kind": "stream", "size": 9, "number": 1, "xattrs": [["user.x", "dg=="]],
            "stream": "s", "verdict": "copy", "reason": "resident", "written": "f.stream.s", "renamed": true,
        });
        assert_eq!(got, want);
        let mut out = Vec::new();
        human(&mut out, &plan, &guests, &row);
        assert_eq!(String::from_utf8(out).unwrap(), "copy resident                          9  d/f:s => f.stream.s\n");
    }
}
