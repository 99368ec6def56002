//! NTFS as host: a real process killed at every write of a commit, of a recovery and of an undo, and with every write failing once.

mod common;
#[path = "common/kill.rs"]
mod kill;
#[path = "ntfs_support/host.rs"]
mod ntfs_host;

use std::path::{Path, PathBuf};

use common::{Seens, guest, scratch, unimage};
use kill::{Bed, Scene, fail_everywhere, kill_everywhere, kill_recoveries};
use ntfs_host::{Host, Shape};

impl Bed for Host {
    fn file(&self) -> &Path {
        &self.file
    }
    fn journal(&self) -> PathBuf {
        Host::journal(self)
    }
    fn image(&self) -> String {
        self.image.clone()
    }
    fn tree(&self) -> Seens {
        Host::tree(self)
    }
    fn fsck(&self) -> Vec<String> {
        self.check()
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
        self.bitmaps(file).concat()
    }
}

/// A host whose relink of a small NTFS guest is done: its files and streams are there.
fn scene(shape: Shape) -> Scene<Host> {
    let dir = scratch();
    let image = dir.path().join("guest");
    let files = guest::tiny_ntfs(&image, 2 << 20, shape.cluster as u32);
    let host = Host::new(shape, &image);
    let journal = host.journal().display().to_string();
    unimage(["relink", &host.image, "--into", "/out", "--journal", &journal, "--commit"]).exits(0);
    host.relinked(&files);
    Scene::of(host)
}

const SMALL: Shape = Shape { sector: 512, cluster: 512, mib: 5, pieces: 12, partition: true };

#[test]
fn killed_at_every_call_of_a_commit() {
    for shape in [SMALL, Shape { sector: 4096, cluster: 4096, mib: 8, pieces: 3, partition: false }] {
        let ends = kill_everywhere(&scene(shape), "relink", &|s| s.host.reset());
        assert!(ends.contains_key("before") && ends.contains_key("after"), "{ends:?}");
    }
}

#[test]
fn killed_at_every_call_of_an_undo() {
    let ends = kill_everywhere(&scene(SMALL), "undo", &Scene::to_after);
    assert!(ends.contains_key("before"), "{ends:?}");
}

#[test]
fn killed_at_every_call_of_a_recovery() {
    kill_recoveries(&scene(SMALL), if common::long() { 100 } else { 3 });
}

#[test]
fn every_call_of_a_commit_fails_once() {
    fail_everywhere(&scene(SMALL), "relink", &|s| s.host.reset());
}

#[test]
fn every_call_of_an_undo_fails_once() {
    fail_everywhere(&scene(SMALL), "undo", &Scene::to_after);
}
