//! What goes with the image and is written nowhere, and whether it may.

use std::collections::BTreeSet;

use crate::container::Disk;
use crate::error::Result;
use crate::extent::{Offset, ReadAt, Space, What};
use crate::fs::{EntryId, Form, Kind, ObjectId, StreamId, Tree};
use crate::plan::{GuestVolume, Part, Plan, Reason, Row, Verdict};
use crate::relink::{Lost, Options};
use crate::stack::{Guest, Level};

/// Names of streams that NTFS itself gives to its own files.
const OWN_STREAMS: [&[u8]; 9] =
    [b"$SDS", b"$Bad", b"$J", b"$Max", b"$T", b"$Info", b"$Verify", b"$Corrupt", b"$Config"];

/// What compresses files as a whole.
pub const WOF: &str = "WOF (Compact OS)";

/// Bytes read at a time when looking for any that is not zero.
const CHUNK: u64 = 1 << 20;

/// Gathers losses, and the reasons to refuse that follow from them.
pub struct Rest<'o> {
    options: &'o Options,
    pub lost: Vec<Lost>,
    pub refusals: Vec<String>,
}

impl<'o> Rest<'o> {
    pub fn new(options: &'o Options) -> Self {
        Self { options, lost: Vec::new(), refusals: Vec::new() }
    }
    fn lose(&mut self, volume: &str, what: impl Into<String>, bytes: Option<u64>) {
        self.lost.push(Lost { volume: volume.into(), what: what.into(), bytes });
    }
    /// What may go only with `--discard-rest`.
    fn rest(&mut self, volume: &str, what: String, bytes: Option<u64>) {
        if !self.options.discard_rest {
            self.refusals.push(format!("{}{what}; --discard-rest lets it go with the image", prefix(volume)));
        }
        self.lose(volume, what, bytes);
    }
    /// What may go only with `--discard-unreadable`.
    fn unreadable(&mut self, volume: &str, what: String, bytes: Option<u64>) {
        if !self.options.discard_unreadable {
            self.refusals.push(format!("{}{what}; --discard-unreadable lets it go with the image", prefix(volume)));
        }
        self.lose(volume, what, bytes);
    }

    /// Other states of the disk that the image keeps.
    pub fn snapshots(&mut self, disk: &Disk) {
        let others = disk.snapshots.iter().enumerate().filter(|(n, _)| disk.snapshot != Some(*n));
        let names: Vec<String> = others.map(|(_, s)| format!("{} ({})", s.id, s.name)).collect();
        if !names.is_empty() {
            self.rest("", format!("{} snapshots that the image keeps: {}", names.len(), names.join(", ")), None);
        }
        if disk.snapshot.is_some() {
            self.rest("", "the state of today, of which the address names an older snapshot".into(), None);
        }
    }

    /// A volume of the image of which nothing is written.
    ///
    /// # Errors
    /// Where its bytes can't be read.
    pub fn left_out(&mut self, level: &Level, guest: &Guest) -> Result<()> {
        let name = name_of(level, guest.slot);
        match (&guest.fs, &guest.failed) {
            (Some(fs), _) => {
                let kind = fs.facts().kind;
                let tree = match guest.tree() {
                    Ok(tree) => tree,
                    Err(e) => {
                        self.unreadable(name, format!("a {kind} file system that can't be listed ({e})"), None);
                        return Ok(());
                    }
                };
                let left = Left::of(&tree, &BTreeSet::new(), None);
                if let Some(words) = left.words() {
                    let what = format!("{words} of a {kind} file system that the address does not name");
                    self.rest(name, what, Some(left.bytes));
                }
                self.nameless(name, &tree);
                self.hidden(name, &tree);
                self.damage(name, &tree);
            }
            (None, failed) => {
                let volume = guest.volume();
                if !all_zero(level, guest)? {
                    let why = failed.as_deref().unwrap_or("no file system was recognised");
                    self.rest(name, format!("unknown data ({why})"), Some(volume.len()));
                }
            }
        }
        Ok(())
    }

    /// What a volume that is written has beside what is written of it.
    pub fn of_guest(&mut self, name: &str, guest: &GuestVolume, plan: &Plan, volume: usize) {
        let tree = &guest.tree;
        let rows = || plan.rows.iter().filter(|r| r.volume == volume);
        if guest.part != Part::All {
            let kept: BTreeSet<EntryId> = rows().filter_map(|r| r.entry).collect();
            let left = Left::of(tree, &kept, Some(guest.part));
            if let Some(words) = left.words() {
                self.rest(name, format!("{words} that the address does not name"), Some(left.bytes));
            }
        }
        self.nameless(name, tree);
        self.hidden(name, tree);
        let sum = |reasons: &[Reason]| {
            let skipped =
                rows().filter(|r| r.verdict == Verdict::Skip && r.reason.is_some_and(|r| reasons.contains(&r)));
            skipped
                .fold((0u64, 0u64), |(n, bytes), row| (n.saturating_add(1), bytes.saturating_add(size_of(tree, row))))
        };
        let (n, bytes) = sum(&[Reason::Unreadable, Reason::FsEncrypted, Reason::ContainerEncrypted]);
        if n > 0 {
            let wof = rows().filter(|r| is_wof(tree, r)).count();
            let wof = match wof as u64 {
                0 => String::new(),
                wof => format!(", {wof} of them compressed by {WOF} (their streams WofCompressedData are written)"),
            };
            self.unreadable(name, format!("{} that can't be read or decoded{wof}", counted(n)), Some(bytes));
        }
        let (n, bytes) = sum(&[Reason::TooLarge, Reason::OutOfRange]);
        if n > 0 {
            self.rest(name, format!("{} larger than the host can hold", counted(n)), Some(bytes));
        }
        let (n, _) = sum(&[Reason::Special]);
        if n > 0 {
            self.lose(
                name,
                format!("{n} links or special files that the host has no form for (in the manifest)"),
                None,
            );
        }
        self.damage(name, tree);
    }

    /// Streams of the file system's own files that it does not make itself: somebody has put something there.
    fn hidden(&mut self, name: &str, tree: &Tree) {
        let own = tree.objects().filter(|(_, object)| object.system).flat_map(|(id, _)| tree.streams(id));
        let named = own.filter(|s| tree.stream_name(*s).is_some_and(|n| !OWN_STREAMS.contains(&n)));
        let (n, bytes) =
            named.fold((0u64, 0u64), |(n, bytes), s| (n.saturating_add(1), bytes.saturating_add(tree.stream(s).size)));
        if n > 0 {
            let streams = if n == 1 { "named stream" } else { "named streams" };
            self.rest(name, format!("{n} {streams} of the file system's own files"), Some(bytes));
        }
    }
    /// Objects with contents that are reached by no name.
    fn nameless(&mut self, name: &str, tree: &Tree) {
        let nameless = nameless(tree);
        if nameless.0 > 0 {
            let what = format!("{} that no directory leads to", counted(nameless.0));
            self.rest(name, what, Some(nameless.1));
        }
    }
    /// Damage that the walk met: what it hides is not known.
    fn damage(&mut self, name: &str, tree: &Tree) {
        let own = |object: Option<ObjectId>| object.is_some_and(|o| tree.object(o).system);
        let (mut problems, mut notes) = (Vec::new(), Vec::new());
        for problem in tree.problems().iter().filter(|p| !own(p.object)) {
            if problem.hides { &mut problems } else { &mut notes }.push(problem);
        }
        for note in notes {
            self.lose(name, note.what.as_str(), None);
        }
        let mut problems = problems.into_iter();
        if let Some(first) = problems.next() {
            let more = problems.count();
            let more = if more > 0 { format!(", and {more} more") } else { String::new() };
            self.unreadable(name, format!("damaged: {}{more}", first.what), None);
        }
    }

    /// Unallocated space of a volume: lost without a question, but named.
    pub fn unallocated(&mut self, name: &str, guest: &Guest) {
        let Some(facts) = guest.fs.as_ref().map(|fs| fs.facts()) else { return };
        if let Some(free) = facts.free_units.filter(|n| *n > 0) {
            self.lose(name, "unallocated space", Some(free.saturating_mul(facts.unit)));
        }
    }

    /// Bytes of the disk that no volume has.
    pub fn outside(&mut self, level: &Level) -> Result<()> {
        let image = level.disk.image.id();
        let mut used: Vec<(u64, u64)> = Vec::new();
        for slot in &level.table.slots {
            for e in slot.layer.map()?.extents() {
                if let What::Stored(p) = e.what
                    && p.layer == image
                {
                    used.push((p.offset.get(), p.offset.get().saturating_add(e.len)));
                }
            }
        }
        used.sort_unstable();
        let mut at = 0u64;
        let mut gaps = 0u64;
        for (start, end) in used {
            gaps = gaps.saturating_add(start.saturating_sub(at));
            at = at.max(end);
        }
        gaps = gaps.saturating_add(level.disk.image.len().saturating_sub(at));
        if gaps > 0 {
            self.lose("", "outside of any volume (partition tables, boot code, gaps)", Some(gaps));
        }
        Ok(())
    }
}

/// The name of a volume, for messages.
pub fn name_of(level: &Level, slot: usize) -> &str {
    level.table.slots.get(slot).map_or("", |s| s.name.as_str())
}

/// Whether a row's stream is unreadable because it is compressed as a whole.
pub fn is_wof(tree: &Tree, row: &Row) -> bool {
    row.reason == Some(Reason::Unreadable) && row.stream.is_some_and(|s| tree.stream(s).form == Form::Wof)
}

fn prefix(volume: &str) -> String {
    if volume.is_empty() { String::new() } else { format!("{volume}: ") }
}

fn counted(n: u64) -> String {
    if n == 1 { "1 file".into() } else { format!("{n} files") }
}

fn size_of(tree: &Tree, row: &Row) -> u64 {
    row.stream.map_or(0, |s| tree.stream(s).size)
}

fn size_of_object(tree: &Tree, object: ObjectId) -> u64 {
    tree.streams(object).fold(0, |sum, s| sum.saturating_add(tree.stream(s).size))
}

/// What of the user's a walk holds beside what is written.
#[derive(Default)]
struct Left {
    /// Files, by their names.
    files: u64,
    /// Folders with nothing in them; any other is told by what it holds.
    folders: u64,
    /// Named streams of folders, and of a file of which only one stream is written.
    streams: u64,
    /// The bytes of all of these.
    bytes: u64,
}

impl Left {
    /// Of a walk, without the entries `kept` and what `part` names.
    fn of(tree: &Tree, kept: &BTreeSet<EntryId>, part: Option<Part>) -> Self {
        let mut left = Self::default();
        left.named(tree, tree.root());
        for (entry, _) in tree.order() {
            let id = tree.entry(entry).object;
            let object = tree.object(id);
            match part {
                _ if object.system => {}
                Some(Part::Stream(only, stream)) if only == entry => left.beside(tree, id, stream),
                _ if kept.contains(&entry) => {}
                _ if object.kind != Kind::Dir => {
                    left.files = left.files.saturating_add(1);
                    left.bytes = left.bytes.saturating_add(size_of_object(tree, id));
                }
                // Its contents and its streams are what is written.
                Some(Part::Entry(top)) if top == entry => {}
                _ => {
                    left.folders = left.folders.saturating_add(tree.children(id).is_empty().into());
                    left.named(tree, id);
                }
            }
        }
        left
    }
    /// The named streams of a folder.
    fn named(&mut self, tree: &Tree, folder: ObjectId) {
        for stream in tree.streams(folder).filter(|s| tree.stream_name(*s).is_some()) {
            self.streams = self.streams.saturating_add(1);
            self.bytes = self.bytes.saturating_add(tree.stream(stream).size);
        }
    }
    /// What an object has beside one of its streams.
    fn beside(&mut self, tree: &Tree, object: ObjectId, kept: StreamId) {
        for stream in tree.streams(object).filter(|s| *s != kept) {
            let size = tree.stream(stream).size;
            match tree.stream_name(stream) {
                Some(_) => self.streams = self.streams.saturating_add(1),
                None => self.files = self.files.saturating_add((size > 0).into()),
            }
            self.bytes = self.bytes.saturating_add(size);
        }
    }
    /// How many of each; none where nothing is left.
    fn words(&self) -> Option<String> {
        let some = |n: u64, one: &str, more: &str| match n {
            0 => None,
            1 => Some(format!("1 {one}")),
            n => Some(format!("{n} {more}")),
        };
        let words: Vec<String> = [
            some(self.files, "file", "files"),
            some(self.folders, "empty folder", "empty folders"),
            some(self.streams, "named stream", "named streams"),
        ]
        .into_iter()
        .flatten()
        .collect();
        (!words.is_empty()).then(|| words.join(", "))
    }
}

/// Objects with contents that are reached by no name, and their bytes.
fn nameless(tree: &Tree) -> (u64, u64) {
    let mut named = vec![false; tree.objects().count()];
    for object in tree.order().map(|(e, _)| tree.entry(e).object).chain([tree.root()]) {
        if let Some(slot) = named.get_mut(object.index()) {
            *slot = true;
        }
    }
    let mut sum = (0u64, 0u64);
    for (id, object) in tree.objects() {
        let bytes = size_of_object(tree, id);
        if bytes > 0 && !object.system && named.get(id.index()) == Some(&false) {
            sum = (sum.0.saturating_add(1), sum.1.saturating_add(bytes));
        }
    }
    sum
}

/// Whether a volume holds nothing but zeros. Holes of the image are not read.
fn all_zero(level: &Level, guest: &Guest) -> Result<bool> {
    let map = match level.volume_in_host(guest.slot)? {
        Some(map) => map,
        None => return zeros(&**guest.volume(), 0, guest.volume().len()),
    };
    for e in map.extents() {
        if e.what != What::Zero && !zeros(&**guest.volume(), e.start.get(), e.len)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn zeros<S: Space>(layer: &dyn ReadAt<S>, start: u64, len: u64) -> Result<bool> {
    let mut buf = vec![0; usize::try_from(len.min(CHUNK)).unwrap_or_default()];
    let end = start.saturating_add(len);
    let mut at = start;
    while at < end {
        let part = usize::try_from(end.saturating_sub(at).min(CHUNK)).unwrap_or_default();
        let buf = buf.get_mut(..part).unwrap_or_default();
        layer.read_at(Offset::new(at), buf)?;
        if buf.iter().any(|b| *b != 0) {
            return Ok(false);
        }
        at = at.saturating_add(part as u64);
        if part == 0 {
            break;
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::{NewStream, Object, Times, TreeBuilder};

    fn words(tree: &Tree, kept: &[EntryId], part: Part) -> (Option<String>, u64) {
        let left = Left::of(tree, &kept.iter().copied().collect(), Some(part));
        (left.words(), left.bytes)
    }

    #[test]
    fn streams_and_empty_folders_that_the_address_does_not_name_are_told() {
        let mut builder = TreeBuilder::new();
        let object = |kind| {
            let (times, system) = (Times::default(), false);
            Object { kind, number: 0, times, attributes: 0, mode: None, owner: None, system }
        };
        let [root, folder, empty] = [Kind::Dir; 3].map(|kind| builder.object(object(kind)));
        let file = builder.object(object(Kind::File));
        let in_root = builder.entry(root, b"folder", folder);
        builder.entry(root, b"empty", empty);
        let in_folder = builder.entry(folder, b"file", file);
        for (of, name, size) in
            [(root, Some(&b"r"[..]), 1), (folder, Some(b"f"), 10), (file, None, 100), (file, Some(b"s"), 1000)]
        {
            builder.stream(of, NewStream { name, size, valid: size, form: Form::Inline, locator: 0 }, []);
        }
        let tree = builder.finish(root);
        let stream = |named: bool| tree.streams(file).find(|s| tree.stream_name(*s).is_some() == named).unwrap();
        let say = |words: &str| Some(words.to_owned());
        let rest = "1 empty folder, 2 named streams";
        assert_eq!(words(&tree, &[in_folder], Part::Entry(in_folder)), (say(rest), 11));
        // Of a file, the data go with the image where only a stream is named, and the other way round.
        let part = Part::Stream(in_folder, stream(true));
        assert_eq!(words(&tree, &[in_folder], part), (say(&format!("1 file, {rest}")), 111));
        let part = Part::Stream(in_folder, stream(false));
        assert_eq!(words(&tree, &[in_folder], part), (say("1 empty folder, 3 named streams"), 1011));
        // A folder's own streams are written with it.
        assert_eq!(words(&tree, &[in_folder], Part::Entry(in_root)), (say("1 empty folder, 1 named stream"), 1));
        let whole = Left::of(&tree, &BTreeSet::new(), None);
        assert_eq!((whole.words(), whole.bytes), (say(&format!("1 file, {rest}")), 1111));
    }
}
