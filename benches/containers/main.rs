//! `cargo bench --bench containers`: mapping a large qcow2 against `qemu-img map`, opening one of 1 TiB, and look-ups in chains
//! of any depth. Prints a table; `docs/benchmarks.md` says how to read it. Nothing here fails for being slow.

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

fn quietly(program: &str, list: &[&str]) {
    let status = Command::new(program).args(list).stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "{program} {list:?}");
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
        let theirs = best(3, || quietly("qemu-img", &["map", "-f", "qcow2", "--output=json", text]));
        row("qemu-img map --output=json", theirs, "");
        let times =
            |took: Duration| format!("qemu-img takes {:.1} times as long", theirs.as_secs_f64() / took.as_secs_f64());
        let whole = format!("{text}//");
        let ours = best(3, || quietly(UNIMAGE, &["map", "--json", &whole]));
        row("unimage map --json", ours, &times(ours));
        let mut extents = 0;
        let within = best(3, || {
            let stack = opened(&path);
            extents = stack.last().unwrap().disk.image.map().unwrap().extents().len();
        });
        row("open, and the map of the disk, in process", within, &format!("{}, {extents} extents", times(within)));
    }
}

fn opening() {
    println!("\n## opening a qcow2 of 1 TiB, every cluster allocated");
    let dir = scratch();
    let path = allocated(dir.path(), 1 << 40, false);
    let took = best(5, || quietly(UNIMAGE, &["info", path.to_str().unwrap()]));
    row("unimage info", took, "");
    row("open, in process", best(5, || drop(black_box(opened(&path)))), "");
}

fn looking_up() {
    println!("\n## a look-up in a chain of qcow2 images of 1 GiB");
    let dir = scratch();
    let at = |n: usize| dir.path().join(format!("{n}.qcow2"));
    let size = 1u64 << 30;
    let mut noise = Noise::new(10);
    for n in 0..100 {
        let path = at(n);
        let mut list = vec!["create".to_owned(), "-q".into(), "-f".into(), "qcow2".into()];
        match n.checked_sub(1) {
            None => list.extend(["-o".into(), "preallocation=metadata".into()]),
            Some(parent) => list.extend(["-b".into(), at(parent).display().to_string(), "-F".into(), "qcow2".into()]),
        }
        list.extend([path.display().to_string(), size.to_string()]);
        ok("qemu-img", list);
        let mut writes = vec!["-f".to_owned(), "qcow2".into()];
        for _ in 0..40 {
            writes.extend(["-c".into(), format!("write -P 7 {} 64k", noise.below(size / CLUSTER) * CLUSTER)]);
        }
        writes.push(path.display().to_string());
        ok("qemu-io", writes);
    }
    for depth in [1, 10, 100] {
        let stack = opened(&at(depth - 1));
        let image = &stack.last().unwrap().disk.image;
        let first = best(1, || drop(image.map().unwrap()));
        const LOOKS: u32 = 1_000_000;
        let mut noise = Noise::new(11);
        let took = best(3, || {
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
    mapping();
    opening();
    looking_up();
}
