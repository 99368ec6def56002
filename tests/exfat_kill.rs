//! exFAT as host: a real process killed at every write of a commit, of a recovery and of an undo, and with every write failing once.

mod common;
mod exfat_support;
#[path = "common/kill.rs"]
mod kill;

use std::path::{Path, PathBuf};

use common::host::{json_lines, rows};
use common::{Seens, guest, scratch, tree};
use exfat_support::host::{Host, IMAGE, Shape};
use kill::{Bed, Scene, fail_everywhere, kill_everywhere, kill_recoveries};

impl Bed for Host {
    fn file(&self) -> &Path {
        &self.file
    }
    fn journal(&self) -> PathBuf {
        Host::journal(self)
    }
    fn image(&self) -> String {
        self.path(IMAGE)
    }
    fn tree(&self) -> Seens {
        tree(&self.mount().dir)
    }
    fn fsck(&self) -> Vec<String> {
        Host::fsck(self)
    }
    fn changed(&self) -> Option<u64> {
        Host::changed(self)
    }
    fn untouched(&self) -> bool {
        Host::untouched(self)
    }
    fn reset(&self) {
        Host::reset(self);
    }
    fn reuses(&self) -> bool {
        self.exfat.free(&self.before).len() < 9
    }
    fn tables(&self, file: &Path) -> Vec<u8> {
        self.exfat.bitmap(file)
    }
}

fn scene(unit: &'static str, fragments: u64, partition: bool) -> Scene<Host> {
    let dir = scratch();
    let image = dir.path().join("guest");
    let files = guest::tiny_ntfs(&image, 2 << 20, 1024);
    let host = Host::with(Shape { unit, len: 6 << 20, fragments, partition }, &image, &["-b", "64K"]);
    let done = host.relink(&["--commit", "--json"]).exits(0);
    host.relinked("out", &rows(&done.stdout), &files);
    Scene::of(host)
}

#[test]
fn killed_at_every_call_of_a_commit() {
    for (unit, fragments, partition) in [("1K", 1, true), ("1K", 6, false), ("4K", 3, false)] {
        let ends = kill_everywhere(&scene(unit, fragments, partition), "relink", &|s| s.host.reset());
        assert!(ends.contains_key("before") && ends.contains_key("after"), "{ends:?}");
    }
}

#[test]
fn killed_at_every_call_of_an_undo() {
    for fragments in [1, 6] {
        let ends = kill_everywhere(&scene("1K", fragments, false), "undo", &Scene::to_after);
        assert!(ends.contains_key("before"), "{ends:?}");
    }
}

#[test]
fn killed_at_every_call_of_a_recovery() {
    kill_recoveries(&scene("1K", 6, false), if common::long() { 100 } else { 3 });
}

#[test]
fn every_call_of_a_commit_fails_once() {
    fail_everywhere(&scene("1K", 6, false), "relink", &|s| s.host.reset());
}

#[test]
fn every_call_of_an_undo_fails_once() {
    fail_everywhere(&scene("1K", 6, false), "undo", &Scene::to_after);
}

/// On a full host: units of the image are filled.
fn full() -> Scene<Host> {
    let dir = scratch();
    let image = dir.path().join("guest");
    let mut files = guest::tight(&image, 96 << 10, 5 << 10);
    // FAT has times of two seconds, and these are of when they were put in.
    files.values_mut().for_each(|file| file.mtime = 0);
    let shape = Shape { unit: "1K", len: 768 << 10, fragments: 5, partition: false };
    let mut host = Host::with(shape, &image, &["-b", "64K"]);
    host.fill_up(3);
    let done = host.relink(&["--reuse", "--commit", "--json"]).exits(0);
    let summary = json_lines(&done.stdout).2;
    assert!(summary["reuse"]["batches"].as_u64() > Some(2), "{summary}");
    host.relinked("out", &rows(&done.stdout), &files);
    Scene::of(host)
}

#[test]
fn killed_at_every_call_of_a_commit_to_a_full_host() {
    let ends = kill_everywhere(&full(), "relink", &|s| s.host.reset());
    assert!(ends.contains_key("before") && ends["after"] > 10, "{ends:?}");
}

#[test]
fn killed_at_every_call_of_a_recovery_of_a_full_host() {
    kill_recoveries(&full(), if common::long() { 100 } else { 2 });
}

#[test]
fn every_call_of_a_commit_to_a_full_host_fails_once() {
    fail_everywhere(&full(), "relink", &|s| s.host.reset());
}
