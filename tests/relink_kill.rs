//! A real process killed at every write of a commit, of a recovery and of an undo, and with every write failing once: after
//! `recover` the host is exactly as before (outside of units that were free) or exactly as after.

mod common;
#[path = "common/kill.rs"]
mod kill;

use std::path::{Path, PathBuf};

use common::host::{Host, Place, Shape, json_lines, rows};
use common::{Seens, UNIMAGE, guest, scratch};
use kill::{Bed, Scene, fail_everywhere, kill_everywhere, kill_recoveries};

impl Bed for Host {
    fn file(&self) -> &Path {
        &self.file
    }
    fn journal(&self) -> PathBuf {
        Host::journal(self)
    }
    fn image(&self) -> String {
        Host::image(self)
    }
    fn tree(&self) -> Seens {
        Host::tree(self).0
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
        self.fat.free(&self.before) < 9
    }
    fn tables(&self, file: &Path) -> Vec<u8> {
        self.fat.table(file, 0).into_iter().flat_map(u32::to_le_bytes).collect()
    }
}

fn scene(shape: Shape, make: impl FnOnce(&Path) -> Seens) -> Scene<Host> {
    let dir = scratch();
    let image = dir.path().join("guest");
    let guest = make(&image);
    assert!(!guest.is_empty());
    let host = Host::new(shape, &image);
    let done = host.relink(&["--commit", "--json"]).exits(0);
    host.relinked(&rows(&done.stdout), &guest);
    Scene::of(host)
}

fn small() -> Scene<Host> {
    let shape = Shape { width: 12, cluster_sectors: 2, len: 3 << 20, place: Place::Gpt, fragments: 6 };
    scene(shape, |image| guest::tiny_ntfs(image, 2 << 20, 1024))
}

#[test]
fn killed_at_every_call_of_a_commit() {
    let scene = small();
    let ends = kill_everywhere(&scene, "relink", &|s| s.host.reset());
    assert!(ends.contains_key("before") && ends.contains_key("after"), "{ends:?}");
}

#[test]
fn killed_at_every_call_of_an_undo() {
    let scene = small();
    let ends = kill_everywhere(&scene, "undo", &Scene::to_after);
    assert!(ends.contains_key("before"), "{ends:?}");
}

#[test]
fn killed_at_every_call_of_a_recovery() {
    kill_recoveries(&small(), if common::long() { 100 } else { 3 });
}

#[test]
fn every_call_of_a_commit_fails_once() {
    let scene = small();
    fail_everywhere(&scene, "relink", &|s| s.host.reset());
}

#[test]
fn every_call_of_an_undo_fails_once() {
    let scene = small();
    fail_everywhere(&scene, "undo", &Scene::to_after);
}

#[test]
fn killed_on_a_fat32_host() {
    // The longer form of a commit: free counts, a backup boot sector.
    let shape = Shape { width: 32, cluster_sectors: 1, len: 36 << 20, place: Place::Bare, fragments: 4 };
    let scene = scene(shape, |image| guest::fat(image, 2 << 20, 12, 2));
    let ends = kill_everywhere(&scene, "relink", &|s| s.host.reset());
    assert!(ends.contains_key("before") && ends.contains_key("after"), "{ends:?}");
}

#[test]
fn a_closed_or_full_terminal_does_not_change_what_is_committed() {
    let scene = small();
    for redirect in [">&-", ">/dev/full", "2>&-", "2>/dev/full", ">&- 2>&-", ">/dev/full 2>/dev/full", "| true"] {
        scene.host.reset();
        let line = scene.arguments("relink").iter().map(|a| format!("'{a}'")).collect::<Vec<_>>().join(" ");
        let out = common::run("bash", ["-c", &format!("set -o pipefail; '{UNIMAGE}' {line} {redirect}")]);
        assert!(!out.stderr.contains("panicked"), "{out}");
        assert_eq!(scene.settled(redirect), "after", "{redirect}: {out}");
        scene.host.journal_verb("undo").exits(0);
        assert_eq!(scene.host.changed(), None, "{redirect}");
    }
}

/// On a full host: units of the image are filled.
fn full() -> Scene<Host> {
    let dir = scratch();
    let image = dir.path().join("guest");
    let mut files = guest::tight(&image, 96 << 10, 5 << 10);
    // FAT has times of two seconds, and these are of when they were put in.
    files.values_mut().for_each(|file| file.mtime = 0);
    let shape = Shape { width: 12, cluster_sectors: 2, len: 256 << 10, place: Place::Bare, fragments: 4 };
    let mut host = Host::new(shape, &image);
    host.fill_up(3);
    let done = host.relink(&["--reuse", "--commit", "--json"]).exits(0);
    let summary = json_lines(&done.stdout).2;
    assert!(summary["reuse"]["batches"].as_u64() > Some(2), "{summary}");
    host.relinked(&rows(&done.stdout), &files);
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
