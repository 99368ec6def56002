//! A real process killed at every write of a commit, of a recovery and of an undo, and with every write failing once: after
//! `recover` the host is exactly as before (outside of units that were free) or exactly as after.

mod common;
#[path = "common/kill.rs"]
mod kill;

use std::path::{Path, PathBuf};

use common::host::{Host, Place, Shape, rows};
use common::{Seens, UNIMAGE, guest, scratch};
use kill::{Bed, Scene, kill_everywhere, kill_recoveries};

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

/// Each call fails once with each error; the exit code is never 0 for a host or journal that failed, and `recover` brings it to an end.
fn fail_everywhere(scene: &Scene<Host>, verb: &str, start: &dyn Fn(&Scene<Host>)) {
    start(scene);
    let calls = scene.calls(verb);
    for (call, count) in &calls {
        for error in ["EIO", "ENOSPC"] {
            for n in 1..=*count {
                let when = format!("{verb} with {error} at {call} number {n}");
                start(scene);
                let (out, log) = scene.traced(verb, Some(&format!("inject={call}:error={error}:when={n}")));
                // Which file it struck: standard output and standard error may fail without harm.
                let struck = log.lines().find(|l| l.contains("(INJECTED)")).unwrap_or_default().to_owned();
                let terminal = ["(1<", "(2<"].iter().any(|fd| struck.contains(&format!("{call}{fd}")));
                if struck.is_empty() || terminal {
                    assert!(matches!(out.code, 0 | 1 | 3), "{when}: {struck}: {out}");
                } else if struck.contains("host.img") || struck.contains("/journal") {
                    // A preallocation that the file system can't do is not an error.
                    let harmless = call == "fallocate" && (error == "EIO" || out.code == 0);
                    assert!(harmless || matches!(out.code, 3 | 4), "{when}: {struck}: {out}");
                    assert!(harmless || !out.stderr.trim().is_empty(), "{when}: {out}");
                    let text = &out.stderr;
                    assert!(
                        harmless
                            || text.contains("unimage recover")
                            || scene.host.changed().is_none()
                            || verb == "undo",
                        "{when}: no word of what to do: {out}"
                    );
                }
                if terminal && out.code == 0 {
                    // A failing terminal never changes what is committed.
                    let expected = if verb == "undo" { "before" } else { "after" };
                    assert_eq!(scene.settled(&when), expected, "{when}");
                }
                scene.recover(&when);
            }
        }
    }
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
