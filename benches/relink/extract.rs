//! Extraction against other ways to get the files of an image out, onto ext4 and XFS, in one run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::guest::Guest;
use crate::common::{self, UNIMAGE, ok};
use crate::measure::{Cost, drop_caches, run, words};
use crate::relink::Source;

/// A fresh file system on a loop device.
struct Medium {
    dir: PathBuf,
    _at: tempfile::TempDir,
}

impl Medium {
    fn new(kind: &str, gib: u64) -> Self {
        let at = common::scratch();
        let (image, dir) = (at.path().join("medium"), at.path().join("m"));
        File::create(&image).unwrap().set_len(gib << 30).unwrap();
        fs::create_dir(&dir).unwrap();
        let name = image.to_str().unwrap();
        match kind {
            "xfs" => ok("mkfs.xfs", ["-q", name]),
            _ => ok("mkfs.ext4", ["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", name]),
        };
        ok("mount", ["-o", "loop", name, dir.to_str().unwrap()]);
        Self { dir, _at: at }
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        for _ in 0..100 {
            if Command::new("umount").arg(&self.dir).output().is_ok_and(|o| o.status.success()) {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

/// One way; `{out}` in its words is the folder that it writes to.
struct Way {
    what: &'static str,
    command: Vec<String>,
    /// Whether it makes the folder by itself.
    makes: bool,
}

impl Way {
    fn run(&self, out: &Path) -> Cost {
        if !self.makes {
            fs::create_dir_all(out).unwrap();
        }
        let command: Vec<String> = self.command.iter().map(|w| w.replace("{out}", out.to_str().unwrap())).collect();
        let cost = run(&command, false);
        fs::remove_dir_all(out).unwrap();
        cost
    }
}

/// Prints a table for each destination: the best of three runs in turns, warm and cold, to the end of the command; and of the warm ones,
/// the ratio to it.
pub fn extract(title: &str, guest: &Guest, kind: &str, source: impl Fn(&Guest) -> Source) {
    let mounted = source(guest);
    let volume = common::Loop::attach(&guest.image, if kind == "ntfs" { common::guest::PART } else { 0 }, 0, true);
    for destination in ["ext4", "xfs"] {
        let medium = Medium::new(destination, 12);
        // On XFS also with the image beside it, so that blocks can be shared.
        let beside = medium.dir.join("image.raw");
        if destination == "xfs" {
            common::guest::copy_sparse(&guest.image, &beside);
        }
        let address = |image: &Path| match kind {
            "ntfs" => format!("{}//p1", image.display()),
            _ => image.display().to_string(),
        };
        let image = guest.image.to_str().unwrap();
        let mut ways = Vec::new();
        let mut way = |what, makes, command: Vec<String>| ways.push(Way { what, command, makes });
        way("unimage extract", true, words(&[UNIMAGE, "extract", &address(&guest.image), "{out}"]));
        way(
            "unimage --hash sha256",
            true,
            words(&[UNIMAGE, "extract", &address(&guest.image), "{out}", "--hash", "sha256"]),
        );
        if destination == "xfs" {
            way("unimage, shared blocks", true, words(&[UNIMAGE, "extract", &address(&beside), "{out}"]));
        }
        let from = format!("{}/.", mounted.dir.display());
        way(
            if kind == "ntfs" { "cp -a, ntfs-3g" } else { "cp -a, kernel mount" },
            false,
            words(&["cp", "-a", &from, "{out}"]),
        );
        let offset = if kind == "ntfs" { "2048" } else { "0" };
        way("tsk_recover -a", false, words(&["tsk_recover", "-a", "-o", offset, image, "{out}"]));
        if kind == "ntfs" {
            // 7z does not look into partitions: it is given the partition's device.
            way("7z x", true, words(&["7z", "x", "-y", "-o{out}", volume.device.to_str().unwrap()]));
        } else {
            way("7z x", true, words(&["7z", "x", "-y", "-o{out}", image]));
            way("debugfs rdump", false, words(&["debugfs", "-R", "rdump / {out}", image]));
        }
        println!("\n## {title}, onto {destination}: {} files", guest.files.len());
        println!(
            "{:<24} {:>9} {:>8}   {:>9} {:>8}   {:>11} {:>8}  exit",
            "", "warm", "", "cold", "", "processor", "memory"
        );
        let out = medium.dir.join("out");
        let mut best: Vec<[Cost; 2]> = ways.iter().map(|_| [worst(), worst()]).collect();
        for cold in [0, 1] {
            for _ in 0..if cold == 0 { 3 } else { 2 } {
                for (way, best) in ways.iter().zip(&mut best) {
                    ok("sync", [""; 0]);
                    if cold == 1 {
                        drop_caches();
                    }
                    let cost = way.run(&out);
                    if cost.seconds < best[cold].seconds {
                        best[cold] = cost;
                    }
                }
            }
        }
        for (way, [warm, cold]) in ways.iter().zip(&best) {
            println!(
                "{:<24} {:>7.2} s {:>7.1}x   {:>7.2} s {:>7.1}x   {:>9.2} s {:>4} MiB  {}",
                way.what,
                warm.seconds,
                warm.seconds / best[0][0].seconds,
                cold.seconds,
                cold.seconds / best[0][1].seconds,
                warm.cpu,
                warm.memory / 1024,
                warm.code
            );
        }
    }
}

fn worst() -> Cost {
    Cost { seconds: f64::MAX, ..Cost::default() }
}
