//! `cargo bench --bench containers`: mapping a large qcow2 against `qemu-img map`, reading evidence files against `ewfexport`, opening
//! disks of 1 TiB, and look-ups in chains of any depth. Prints tables; `docs/benchmarks.md` says how to read them. Nothing here
//! fails for being slow. Words behind `--` choose the parts whose title contains one.

#[path = "../../tests/common/mod.rs"]
mod common;

use std::ffi::OsStr;
use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Noise, UNIMAGE, ok, scratch};
use unimage::extent::Offset;
use unimage::stack::{self, Address, OpenOptions, Stack};

const CLUSTER: u64 = 64 << 10;

/// The shortest of so many runs.
fn best(runs: u32, mut run: impl FnMut()) -> Duration {
    let timed = |_| {
        let start = Instant::now();
        run();
        start.elapsed()
    };
    (0..runs).map(timed).min().unwrap()
}

/// What a program took, its output thrown away.
#[derive(Clone, Copy)]
struct Cost {
    seconds: f64,
    processor: f64,
    kib: u64,
}

fn run(command: &[&str]) -> Cost {
    let dir = scratch();
    let report = dir.path().join("time");
    let start = Instant::now();
    let mut time = Command::new("/usr/bin/time");
    time.args(["-q", "-f", "%U %S %M", "-o"]).arg(&report).args(command);
    let status = time.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
    let seconds = start.elapsed().as_secs_f64();
    assert!(status.success(), "{command:?}: {status}");
    let report = std::fs::read_to_string(report).unwrap();
    let mut words = report.split_whitespace().map(|w| w.parse::<f64>().unwrap());
    let mut word = || words.next().unwrap();
    Cost { seconds, processor: word() + word(), kib: word() as u64 }
}

/// The best of so many runs of each, made in turns.
fn in_turns(rounds: u32, commands: &[&[&str]]) {
    let mut all: Vec<Option<Cost>> = vec![None; commands.len()];
    for _ in 0..rounds {
        for (best, command) in all.iter_mut().zip(commands) {
            let cost = run(command);
            *best = Some(match *best {
                Some(b) => {
                    Cost { seconds: b.seconds.min(cost.seconds), processor: b.processor.min(cost.processor), ..cost }
                }
                None => cost,
            });
        }
    }
    let first = all[0].unwrap();
    for (cost, command) in all.into_iter().zip(commands) {
        let cost = cost.unwrap();
        let name = Path::new(command[0]).file_name().unwrap().to_str().unwrap();
        println!(
            "{:<24} {:>9.3} s   {:>6.1}x   processor {:>8.3} s   {:>6.1}x   memory {:>6} KiB",
            format!("{name} {}", if command[1].starts_with('-') { "" } else { command[1] }),
            cost.seconds,
            first.seconds / cost.seconds,
            cost.processor,
            first.processor / cost.processor,
            cost.kib
        );
    }
}

fn opened(path: &Path) -> Stack {
    stack::open(&Address::parse(OsStr::new(path)).unwrap(), OpenOptions::default()).unwrap()
}

fn row(what: &str, took: Duration, more: &str) {
    println!("{what:<44} {:>10.3} ms   {more}", took.as_secs_f64() * 1e3);
}

/// A qcow2 in which every cluster is allocated, with nothing in it; its clusters in any order where `shuffled`.
fn allocated(dir: &Path, size: u64, shuffled: bool) -> PathBuf {
    let path = dir.join("allocated.qcow2");
    ok(
        "qemu-img",
        ["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path.to_str().unwrap(), &size.to_string()],
    );
    if shuffled {
        shuffle(&path, size);
    }
    path
}

/// Exchanges the places of clusters, entry by entry of all level 2 tables.
fn shuffle(path: &Path, size: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let read = |at: u64, len: usize| {
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, at).unwrap();
        bytes.chunks_exact(8).map(|b| u64::from_be_bytes(b.try_into().unwrap())).collect::<Vec<_>>()
    };
    let l1 = read(read(40, 8)[0], (size.div_ceil(CLUSTER * 8192) * 8) as usize);
    let tables: Vec<u64> = l1.iter().map(|e| e & 0x00ff_ffff_ffff_fe00).collect();
    let mut all: Vec<u64> = tables.iter().flat_map(|at| read(*at, CLUSTER as usize)).collect();
    let used = (size / CLUSTER) as usize;
    let mut noise = Noise::new(9);
    for i in (1..used).rev() {
        all.swap(i, noise.below(i as u64 + 1) as usize);
    }
    for (table, entries) in tables.iter().zip(all.chunks(8192)) {
        let bytes: Vec<u8> = entries.iter().flat_map(|e| e.to_be_bytes()).collect();
        file.write_all_at(&bytes, *table).unwrap();
    }
}

fn mapping() {
    for shuffled in [false, true] {
        let dir = scratch();
        let path = allocated(dir.path(), 100 << 30, shuffled);
        let text = path.to_str().unwrap();
        println!(
            "\n## mapping a qcow2 of 100 GiB, every cluster allocated, {}",
            if shuffled { "in any order" } else { "in order" }
        );
        let whole = format!("{text}//");
        in_turns(3, &[&["qemu-img", "map", "-f", "qcow2", "--output=json", text], &[UNIMAGE, "map", "--json", &whole]]);
        let mut extents = 0;
        let within = best(3, || {
            let stack = opened(&path);
            extents = stack.last().unwrap().disk.image.map().unwrap().extents().len();
        });
        row("open, and the map of the disk, in process", within, &format!("{extents} extents"));
    }
}

/// Evidence files of 1 GiB, half of it text and half of it noise, deflated and as it is.
fn evidence() {
    let dir = scratch();
    let raw = dir.path().join("disk.raw");
    let file = File::create(&raw).unwrap();
    let mut noise = Noise::new(12);
    for block in 0..1024u64 {
        let bytes = if block % 2 == 0 { noise.text(1 << 20) } else { noise.bytes(1 << 20) };
        file.write_all_at(&bytes, block << 20).unwrap();
    }
    for compression in ["deflate:fast", "deflate:none"] {
        let target = dir.path().join(compression.replace(':', "-"));
        let (target, raw) = (target.to_str().unwrap(), raw.to_str().unwrap());
        ok("ewfacquire", ["-u", "-q", "-f", "encase6", "-c", compression, "-S", "512MiB", "-t", target, raw]);
        println!("\n## reading an E01 of 1 GiB, {compression}");
        let first = format!("{target}.E01");
        let whole = format!("{first}//");
        in_turns(3, &[&["ewfexport", "-u", "-q", "-f", "raw", "-t", "-", &first], &[UNIMAGE, "cat", &whole]]);
        for name in std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()) {
            if name.extension().is_some_and(|e| e.to_str().unwrap().starts_with('E')) {
                std::fs::remove_file(name).unwrap();
            }
        }
    }
}

fn opening() {
    println!("\n## opening a disk of 1 TiB; in the qcow2 every cluster is allocated, in the others 64 MiB");
    let dir = scratch();
    let size = 1u64 << 40;
    let mut disks = vec![("qcow2", allocated(dir.path(), size, false))];
    for (format, options) in
        [("vhdx", "subformat=dynamic"), ("vmdk", "subformat=monolithicSparse"), ("vdi", ""), ("vpc", "")]
    {
        let path = dir.path().join(format!("disk.{format}"));
        let text = path.to_str().unwrap();
        let mut list = vec!["create", "-q", "-f", format];
        if !options.is_empty() {
            list.extend(["-o", options]);
        }
        let len = size.to_string();
        list.extend([text, &len]);
        ok("qemu-img", &list);
        let writes: Vec<String> = (0..64u64).map(|n| format!("write -P 7 {} 1M", n * (size / 64))).collect();
        let mut list = vec!["-f", format];
        writes.iter().for_each(|w| list.extend(["-c", w]));
        list.push(text);
        ok("qemu-io", list);
        disks.push((format, path));
    }
    for (format, path) in disks {
        let text = path.to_str().unwrap();
        println!("{format}");
        in_turns(5, &[&["qemu-img", "info", text], &[UNIMAGE, "info", text]]);
        row("open, in process", best(5, || drop(black_box(opened(&path)))), "");
    }
}

/// The same clusters, written to one image, or to the images of a chain by turns: the map of the disk has as many extents.
fn looking_up() {
    const CLUSTERS: u64 = 4000;
    println!("\n## a look-up in a chain of qcow2 images of 1 GiB, the same {CLUSTERS} clusters written all over it");
    let size = 1u64 << 30;
    for depth in [1, 10, 100] {
        let dir = scratch();
        let at = |n: u64| dir.path().join(format!("{n}.qcow2")).to_str().unwrap().to_owned();
        let mut noise = Noise::new(10);
        let places: Vec<u64> = (0..CLUSTERS).map(|_| noise.below(size / CLUSTER) * CLUSTER).collect();
        for n in 0..depth {
            let (path, len) = (at(n), size.to_string());
            let mut list = vec!["create", "-q", "-f", "qcow2"];
            let parent = n.checked_sub(1).map(at);
            if let Some(parent) = &parent {
                list.extend(["-b", parent, "-F", "qcow2"]);
            }
            list.extend([&*path, &len]);
            ok("qemu-img", list);
            let mut writes = vec!["-f".to_owned(), "qcow2".into()];
            for place in places.iter().skip(n as usize).step_by(depth as usize) {
                writes.extend(["-c".into(), format!("write -P 7 {place} 64k")]);
            }
            writes.push(path);
            ok("qemu-io", writes);
        }
        let stack = opened(Path::new(&at(depth - 1)));
        let image = &stack.last().unwrap().disk.image;
        let first = best(1, || drop(image.map().unwrap()));
        const LOOKS: u32 = 1_000_000;
        let took = best(5, || {
            let mut noise = Noise::new(11);
            for _ in 0..LOOKS {
                let at = noise.below(size - 1);
                black_box(image.extents(Offset::new(at)..Offset::new(at + 1)).unwrap());
            }
        });
        let extents = image.map().unwrap().extents().len();
        let each = took.as_secs_f64() * 1e9 / f64::from(LOOKS);
        row(
            &format!("chain of {depth}: resolving all of it once"),
            first,
            &format!("{extents} extents, then {each:.0} ns a look-up"),
        );
    }
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    for (title, part) in
        [("mapping", mapping as fn()), ("evidence", evidence), ("opening", opening), ("looking up", looking_up)]
    {
        if wanted.is_empty() || wanted.iter().any(|w| title.contains(w.as_str())) {
            part();
        }
    }
}
