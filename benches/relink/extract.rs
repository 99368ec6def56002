//! Extraction against other ways to get the files of an image out, onto ext4, XFS and btrfs, in one run.

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
            "btrfs" => ok("mkfs.btrfs", ["-q", name]),
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

/// Whose way it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    Ours,
    /// Ours, with blocks shared.
    Shared,
    Peer,
    /// From a qcow2 image, ours and that of a peer, which needs another copy of the disk first.
    OursOfQcow2,
    PeerOfQcow2,
}

/// One way; `{out}` in its words is the folder that it writes to, `{work}` one on the same medium for what lies in between.
struct Way {
    what: &'static str,
    whose: Whose,
    command: Vec<String>,
    /// Whether it makes the folder by itself.
    makes: bool,
    /// Whether it is so slow that it is run once, warm, and stopped after [`STOP`] seconds.
    once: bool,
}

/// Seconds after which a slow way is stopped.
const STOP: &str = "30";

impl Way {
    fn run(&self, dir: &Path) -> Cost {
        let (out, work) = (dir.join("out"), dir.join("work"));
        fs::create_dir_all(&work).unwrap();
        if !self.makes {
            fs::create_dir_all(&out).unwrap();
        }
        let place = |w: &String| w.replace("{out}", out.to_str().unwrap()).replace("{work}", work.to_str().unwrap());
        let cost = run(&self.command.iter().map(place).collect::<Vec<_>>(), false);
        let _ = fs::remove_dir_all(&out);
        fs::remove_dir_all(&work).unwrap();
        cost
    }
}

/// All ways for a guest whose image is mounted at `mounted`, with a copy of it `beside` the destination, where blocks can be shared.
fn ways(guest: &Guest, kind: &str, mounted: &Path, volume: &Path, beside: Option<&Path>, qcow2: &Path) -> Vec<Way> {
    let ntfs = kind == "ntfs";
    let address = |image: &Path| format!("{}{}", image.display(), if ntfs { "//p1" } else { "" });
    let image = guest.image.to_str().unwrap();
    let mut ways = Vec::new();
    let mut way = |what, whose, makes, command: &[&str]| {
        ways.push(Way { what, whose, command: words(command), makes, once: what == "dissect target-fs cp" });
    };
    let ours = address(&guest.image);
    way("unimage extract", Whose::Ours, true, &[UNIMAGE, "extract", &ours, "{out}"]);
    way("unimage --hash sha256", Whose::Ours, true, &[UNIMAGE, "extract", &ours, "{out}", "--hash", "sha256"]);
    if let Some(beside) = beside {
        way("unimage, shared blocks", Whose::Shared, true, &[UNIMAGE, "extract", &address(beside), "{out}"]);
    }
    let from = format!("{}/.", mounted.display());
    let cp = if ntfs { "cp -a, ntfs-3g" } else { "cp -a, kernel mount" };
    way(cp, Whose::Peer, false, &["cp", "-a", "--reflink=never", &from, "{out}"]);
    let offset = if ntfs { "2048" } else { "0" };
    way("tsk_recover -a", Whose::Peer, false, &["tsk_recover", "-a", "-o", offset, image, "{out}"]);
    // 7z does not look into partitions: it is given the partition's device.
    let part = if ntfs { volume.to_str().unwrap() } else { image };
    way("7z x", Whose::Peer, true, &["7z", "x", "-y", "-o{out}", part]);
    if !ntfs {
        way("debugfs rdump", Whose::Peer, false, &["debugfs", "-R", "rdump / {out}", image]);
    }
    // Some milliseconds for each file: one destination is enough.
    if beside.is_none() && common::guest::have("target-fs") {
        let command = ["timeout", STOP, "target-fs", "-q", image, "cp", "/*", "-o", "{out}"];
        way("dissect target-fs cp", Whose::Peer, false, &command);
    } else if beside.is_none() {
        println!("(no target-fs: pip install dissect.target dissect.extfs dissect.ntfs)");
    }
    let qcow2_name = qcow2.to_str().unwrap();
    way("unimage, qcow2", Whose::OursOfQcow2, true, &[UNIMAGE, "extract", &address(qcow2), "{out}"]);
    let convert = "qemu-img convert -O raw \"$0\" {work}/raw && ";
    let recover = format!("{convert} tsk_recover -a -o {offset} {{work}}/raw {{out}}");
    way("convert, tsk_recover", Whose::PeerOfQcow2, false, &["sh", "-c", &recover, qcow2_name]);
    if !ntfs {
        let copy = format!(
            "{convert} mkdir {{work}}/m && mount -o loop,ro {{work}}/raw {{work}}/m && cp -a {{work}}/m/. {{out}}; code=$?; \
             umount {{work}}/m; exit $code"
        );
        way("convert, cp -a", Whose::PeerOfQcow2, false, &["sh", "-c", &copy, qcow2_name]);
    }
    ways
}

/// Prints a table for each destination: the best of two runs warm, made in turns, and one cold, to the end of the command; and how many
/// times as long as the first row each takes.
pub fn extract(title: &str, guest: &Guest, kind: &str, source: impl Fn(&Guest) -> Source) {
    let mounted = source(guest);
    let volume = common::Loop::attach(&guest.image, if kind == "ntfs" { common::guest::PART } else { 0 }, 0, true);
    let scratch = common::scratch();
    let qcow2 = scratch.path().join("image.qcow2");
    ok("qemu-img", ["convert", "-O", "qcow2", guest.image.to_str().unwrap(), qcow2.to_str().unwrap()]);
    for destination in ["ext4", "xfs", "btrfs"] {
        if destination == "btrfs" && !title.contains("large") {
            continue;
        }
        let medium = Medium::new(destination, 12);
        let image = medium.dir.join("image.raw");
        let beside = (destination != "ext4").then(|| {
            common::guest::copy_sparse(&guest.image, &image);
            image.as_path()
        });
        let mut ways = ways(guest, kind, &mounted.dir, &volume.device, beside, &qcow2);
        if destination == "btrfs" {
            ways.retain(|w| w.whose == Whose::Shared || w.what == "unimage extract" || w.what.starts_with("cp"));
        }
        println!("\n## {title}, onto {destination}: {} files", guest.files.len());
        println!(
            "{:<24} {:>9} {:>8}   {:>9} {:>8}   {:>11} {:>8}  exit",
            "", "warm", "", "cold", "", "processor", "memory"
        );
        let mut best: Vec<[Cost; 2]> = ways.iter().map(|_| [worst(), worst()]).collect();
        for (cold, round) in [(0, 0), (0, 1), (1, 0)] {
            for (way, best) in ways.iter().zip(&mut best).filter(|(w, _)| !w.once || (cold, round) == (0, 0)) {
                ok("sync", [""; 0]);
                if cold == 1 {
                    drop_caches();
                }
                let cost = way.run(&medium.dir);
                if cost.seconds < best[cold].seconds {
                    best[cold] = cost;
                }
            }
        }
        for (way, [warm, cold]) in ways.iter().zip(&best) {
            let (more, cold_time) =
                (if warm.code == 124 { ">" } else { " " }, if way.once { f64::NAN } else { cold.seconds });
            println!(
                "{:<24}{more}{:>7.2} s {:>7.1}x   {:>7.2} s {:>7.1}x   {:>9.2} s {:>4} MiB  {}",
                way.what,
                warm.seconds,
                warm.seconds / best[0][0].seconds,
                cold_time,
                cold_time / best[0][1].seconds,
                warm.cpu,
                warm.memory / 1024,
                warm.code
            );
        }
        // A peer that was stopped or failed is no measure.
        let least = |whose: Whose, cold: usize| {
            let of = ways.iter().zip(&best).filter(|(w, b)| w.whose == whose && !w.once && b[cold].code >= 0);
            of.map(|(_, b)| b[cold].seconds).fold(f64::MAX, f64::min)
        };
        let times = |peer: Whose, ours: Whose, cold: usize| least(peer, cold) / least(ours, cold);
        println!(
            "best peer: {:.1}x warm, {:.1}x cold",
            times(Whose::Peer, Whose::Ours, 0),
            times(Whose::Peer, Whose::Ours, 1)
        );
        if destination != "btrfs" {
            let (ours, peer) = (Whose::OursOfQcow2, Whose::PeerOfQcow2);
            println!("best peer, of qcow2: {:.1}x warm, {:.1}x cold", times(peer, ours, 0), times(peer, ours, 1));
        }
        let cp = ways.iter().position(|w| w.what.starts_with("cp"));
        if let (Some(cp), Some(shared)) = (cp, ways.iter().position(|w| w.whose == Whose::Shared)) {
            let times = |cold: usize| best[cp][cold].seconds / best[shared][cold].seconds;
            println!("cp -a / shared blocks: {:.0}x warm, {:.0}x cold", times(0), times(1));
        }
        let files = guest.files.len() as f64;
        let limit = 64.0 + files * 200.0 / f64::from(1 << 20);
        println!("memory: {} MiB of {limit:.0} MiB aimed at", best[0][0].memory / 1024);
    }
}

fn worst() -> Cost {
    Cost { seconds: f64::MAX, code: -1, ..Cost::default() }
}
