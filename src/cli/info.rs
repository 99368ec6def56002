//! `info`: the tree of layers.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::Args;

use super::progress::Progress;
use super::{End, PARTLY, Session, names};
use crate::container::{self, Part, Role, Snapshot, check::Checked};
use crate::extent::{Extent, Offset, Volume, What};
use crate::fs::{Facts, TimeUnit, Timestamp};
use crate::report::json::Row;
use crate::report::{text, time};
use crate::stack::{Guest, Level};
use crate::volume::Slot;

/// Show what an image is: containers, partition tables, volumes, file systems
///
/// Each image on the way to what ADDR names is shown, the ground first. No file system is walked: this takes no time.
#[derive(Args)]
#[command(after_help = "Examples:
  unimage info disk.raw
  unimage info --json /dev/sdb//p2/vm/win.raw//    the disk, and the image on it")]
pub struct Info {
    /// The image
    #[arg(value_name = "ADDR")]
    address: OsString,
    /// Print JSON lines
    #[arg(long)]
    json: bool,
    /// Read the last image and compare it with the hashes that it has stored (E01)
    ///
    /// Exits with 1 where one is different or a part can't be read.
    #[arg(long)]
    check: bool,
}

impl Info {
    pub(super) fn run(&self, s: &mut Session<'_>) -> Result<u8, End> {
        let names = names(&s.address(&self.address)?);
        let stack = s.open(&self.address)?;
        if self.json {
            s.header("unimage/info/1");
        }
        let checked = if self.check { Some(check(stack.last()?)) } else { None };
        let mut volumes = 0u64;
        let mut problems = 0u64;
        for (depth, level) in stack.levels.iter().enumerate() {
            let name = names.get(depth).map_or("", String::as_str);
            volumes = volumes.saturating_add(level.guests.len() as u64);
            problems = problems.saturating_add(level.table.problems.len() as u64);
            problems = problems.saturating_add(level.guests.iter().filter(|g| g.failed.is_some()).count() as u64);
            let checked = checked.as_ref().filter(|_| depth.saturating_add(1) == stack.levels.len());
            problems = problems.saturating_add(checked.is_some_and(|c| !c.right()).into());
            if self.json {
                json(s.out.buffer(), depth, name, level, checked);
            } else {
                human(s.out.buffer(), depth, name, level, checked);
            }
            s.out.row()?;
        }
        if self.json {
            Row::new(s.out.buffer(), "summary")
                .number("images", stack.levels.len() as u64)
                .number("volumes", volumes)
                .number("problems", problems)
                .end();
        }
        Ok(if problems == 0 { 0 } else { PARTLY })
    }
}

/// What `--check` found.
struct Check {
    hashes: Vec<Checked>,
    failed: Option<String>,
}

impl Check {
    fn right(&self) -> bool {
        self.failed.is_none() && self.hashes.iter().all(Checked::is_right)
    }
}

fn check(level: &Level) -> Check {
    let disk = &level.disk;
    if disk.hashes.is_empty() {
        return Check { hashes: Vec::new(), failed: Some(format!("this {} image has stored no hash", disk.kind)) };
    }
    let progress = Progress::new("checking", Some(disk.image.len()));
    match container::check::check(&*disk.image, &disk.hashes, &mut |done| progress.add(done)) {
        Ok(hashes) => Check { hashes, failed: None },
        Err(e) => Check { hashes: Vec::new(), failed: Some(e.to_string()) },
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The offset at which the first byte of a volume is stored.
pub(super) fn stored_at(slot: &Slot) -> Option<u64> {
    match slot.layer.extents(Offset::new(0)..Offset::new(1)).ok()?.first()? {
        Extent::<Volume> { what: What::Stored(place), .. } => Some(place.offset.get()),
        _ => None,
    }
}

fn json(out: &mut Vec<u8>, depth: usize, name: &str, level: &Level, checked: Option<&Check>) {
    let mut row = Row::new(out, "entry");
    row.value("path", name)
        .word("kind", "image")
        .number("size", level.disk.image.len())
        .number("level", depth as u64)
        .word("container", level.disk.kind)
        .number("container_size", level.device.len())
        .word("table", level.table.kind)
        .number("sector", level.table.sector)
        .value("remarks", &level.disk.remarks)
        .value("problems", &level.table.problems)
        .value("files", &files(level))
        .value("snapshots", &snapshots(level))
        .some("snapshot", level.disk.snapshot.and_then(|n| level.disk.snapshots.get(n)).map(|s| s.id.as_str()));
    let facts: BTreeMap<_, _> = level.disk.facts.iter().map(|(name, value)| (*name, value.as_str())).collect();
    row.some("facts", (!facts.is_empty()).then_some(facts));
    let hashes: BTreeMap<_, _> = level.disk.hashes.iter().map(|h| (h.algorithm, hex(&h.value))).collect();
    row.some("hashes", (!hashes.is_empty()).then_some(hashes));
    if let Some(checked) = checked {
        let computed: BTreeMap<_, _> = checked.hashes.iter().map(|c| (c.stored.algorithm, hex(&c.computed))).collect();
        row.value("computed", &computed).value("right", &checked.right()).some("failed", checked.failed.as_ref());
    }
    row.end();
    for guest in &level.guests {
        let Some(slot) = level.table.slots.get(guest.slot) else { continue };
        let mut row = Row::new(out, "entry");
        row.value("path", &slot.name).word("kind", "volume").number("size", slot.layer.len());
        row.number("level", depth as u64).some("offset", stored_at(slot)).value("about", &slot.about);
        if let Some(fs) = &guest.fs {
            let Facts { kind, label, serial, unit, units, free_units, clean, remarks } = fs.facts();
            row.word("fs", kind)
                .value("label", &label)
                .value("serial", &serial)
                .number("unit", unit)
                .number("units", units)
                .some("free_units", free_units)
                .some("clean", clean)
                .value("remarks", &remarks);
        }
        row.some("failed", guest.failed.as_ref()).end();
    }
}

/// The further files of an image.
fn files(level: &Level) -> Vec<serde_json::Value> {
    let file = |part: &Part| {
        let depth = match part.role {
            Role::Own => 0,
            Role::Parent(n) => n,
        };
        serde_json::json!({"path": part.name, "depth": depth, "container": part.kind, "size": part.device.len()})
    };
    level.disk.parts.iter().map(file).collect()
}

/// Each snapshot, and the bytes that it has alone, where these can be told.
fn kept(level: &Level) -> Vec<(&Snapshot, Option<u64>)> {
    if level.disk.snapshots.is_empty() {
        return Vec::new();
    }
    let alone = level.disk.tables.first().map(|t| t.alone()).and_then(Result::ok).unwrap_or_default();
    level.disk.snapshots.iter().enumerate().map(|(n, s)| (s, alone.get(n).copied())).collect()
}

/// When a snapshot was made.
pub(super) fn made(snapshot: &Snapshot) -> Option<String> {
    let (secs, nanos) = snapshot.made?;
    let mut text = Vec::new();
    time::rfc3339(&mut text, Timestamp { secs, nanos, unit: TimeUnit::Nano });
    String::from_utf8(text).ok()
}

fn snapshots(level: &Level) -> Vec<serde_json::Value> {
    let one = |(s, alone): &(&Snapshot, Option<u64>)| {
        serde_json::json!({
            "id": s.id, "name": s.name, "made": made(s), "size": s.len, "memory": s.memory, "alone": alone
        })
    };
    kept(level).iter().map(one).collect()
}

fn human(out: &mut Vec<u8>, depth: usize, name: &str, level: &Level, checked: Option<&Check>) {
    let indent = depth.saturating_mul(4);
    let mut line = |more: usize, text: &str| {
        out.resize(out.len().saturating_add(indent).saturating_add(more), b' ');
        out.extend_from_slice(text::clean(text).as_bytes());
        out.push(b'\n');
    };
    let bytes = |n: u64| format!("{} ({n} bytes)", text::size(n));
    line(0, name);
    line(2, &format!("container {}, {}", level.disk.kind, bytes(level.disk.image.len())));
    for remark in &level.disk.remarks {
        line(4, remark);
    }
    for (name, value) in &level.disk.facts {
        line(4, &format!("{}: {value}", name.replace('_', " ")));
    }
    for hash in &level.disk.hashes {
        let found = checked.and_then(|c| c.hashes.iter().find(|c| c.stored == *hash));
        let word = match found {
            None => "stored".to_owned(),
            Some(c) if c.is_right() => "stored, and right".to_owned(),
            Some(c) => format!("stored, but WRONG: the disk has {}", hex(&c.computed)),
        };
        line(4, &format!("{} {}: {word}", hash.algorithm, hex(&hash.value)));
    }
    if let Some(why) = checked.and_then(|c| c.failed.as_ref()) {
        line(4, &format!("problem: not checked: {why}"));
    }
    for part in &level.disk.parts {
        let indent = match part.role {
            Role::Own => 4,
            Role::Parent(n) => n.saturating_mul(2).saturating_add(2),
        };
        let what = if part.role == Role::Own { "file" } else { "over" };
        line(indent, &format!("{what} {}, {}, {}", part.name, part.kind, bytes(part.device.len())));
    }
    for (s, alone) in kept(level) {
        let made = made(s).map(|made| format!(" of {made}")).unwrap_or_default();
        let alone = alone.map(|n| format!(", {} its own", text::size(n))).unwrap_or_default();
        let memory = if s.memory > 0 { format!(", memory {}", text::size(s.memory)) } else { String::new() };
        line(4, &format!("snapshot {} \"{}\"{made}, {}{alone}{memory}", s.id, s.name, bytes(s.len)));
    }
    match level.table.kind {
        "none" => line(2, "no partition table"),
        kind => line(2, &format!("{kind} partition table, {}-byte sectors", level.table.sector)),
    }
    for problem in &level.table.problems {
        line(4, &format!("problem: {problem}"));
    }
    for guest in &level.guests {
        let Some(slot) = level.table.slots.get(guest.slot) else { continue };
        let name = if slot.name.is_empty() { "volume" } else { &slot.name };
        let at = stored_at(slot).map(|at| format!(" at {at}")).unwrap_or_default();
        let about = if slot.about.is_empty() { String::new() } else { format!(", {}", slot.about) };
        line(2, &format!("{name}{at}, {}{about}", bytes(slot.layer.len())));
        volume(guest, &mut line);
    }
}

/// The file system of a volume.
fn volume(guest: &Guest, line: &mut dyn FnMut(usize, &str)) {
    match (&guest.fs, &guest.failed) {
        (Some(fs), _) => {
            let facts = fs.facts();
            let mut text = facts.kind.to_owned();
            if !facts.label.is_empty() {
                text.push_str(&format!(" \"{}\"", facts.label));
            }
            if !facts.serial.is_empty() {
                text.push_str(&format!(", serial {}", facts.serial));
            }
            text.push_str(&format!(", {} units of {} bytes", text::count(facts.units), facts.unit));
            if let Some(free) = facts.free_units {
                text.push_str(&format!(", {} free", text::size(free.saturating_mul(facts.unit))));
            }
            match facts.clean {
                Some(true) => text.push_str(", clean"),
                Some(false) => text.push_str(", not closed cleanly"),
                None => {}
            }
            line(4, &text);
            for remark in &facts.remarks {
                line(6, remark);
            }
        }
        (None, Some(failed)) => line(4, &format!("problem: {failed}")),
        (None, None) => line(4, "unknown: no file system was recognised"),
    }
}
