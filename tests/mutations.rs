//! The committed fixtures: what is in them by foreign readers, and that no mutation of them leads to a panic, a hang or a broken
//! promise. The same checks are what the fuzzer runs (`fuzz/`); `tests/run.sh --long` gives them more rounds.

mod common;
mod exfat_support;
#[path = "common/machine.rs"]
mod machine;
#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::host::json_lines;
use common::mutate::{busy, mutate};
use common::{Noise, guest, long, ok, scratch, unimage};
use machine::{Fault, Machine, Surviving};
use unimage::relink::{self, Options};
use unimage::stack::{self, Address, OpenOptions};
use unimage::txn::HostVolume;

type Target = fn(&[u8]);

/// A fixture, and what is tried with its mutations.
const FIXTURES: [(&str, &[Target]); 11] = [
    ("fat12", &[targets::fat, targets::relink]),
    ("fat16", &[targets::fat]),
    ("fat32", &[targets::fat]),
    ("exfat", &[targets::exfat]),
    ("ntfs", &[targets::ntfs]),
    ("ext4", &[targets::ext]),
    ("gpt", &[targets::volume, targets::container]),
    ("mbr", &[targets::volume, targets::container]),
    ("host-fat12", &[targets::relink]),
    ("host-exfat", &[targets::relink]),
    ("host-ntfs", &[targets::relink]),
];

fn fixture(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/{name}.img.zst"));
    zstd::decode_all(fs::File::open(&path).unwrap()).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

#[test]
fn no_mutation_of_a_fixture_breaks_a_promise() {
    let limit = Duration::from_secs(if long() { 60 } else { 3 });
    for (name, targets) in FIXTURES {
        let sound = fixture(name);
        let busy = busy(&sound);
        for target in targets {
            target(&sound);
            let (start, mut noise, mut slowest, mut rounds) = (Instant::now(), Noise::new(2026), Duration::ZERO, 0_u32);
            while start.elapsed() < limit {
                let mut bytes = sound.clone();
                mutate(&mut bytes, &busy, &mut noise);
                let round = Instant::now();
                target(&bytes);
                slowest = slowest.max(round.elapsed());
                rounds += 1;
            }
            println!("{name}: {rounds} mutations, the slowest {slowest:?}");
            assert!(slowest < Duration::from_secs(20), "{name}: {slowest:?}");
        }
    }
}

/// Disks of every format as records, whose checksums are put right before they are opened.
#[test]
fn no_mutation_of_a_disk_breaks_a_promise() {
    let dir = scratch();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/disks.sh");
    ok("bash", [script.as_os_str(), dir.path().as_os_str()]);
    let limit = Duration::from_millis(if long() { 60_000 } else { 700 });
    let mut noise = Noise::new(2026);
    let mut formats = 0;
    for folder in fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()) {
        formats += 1;
        for seed in fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()) {
            let sound = fs::read(&seed).unwrap();
            targets::disk(&sound);
            // The first records are headers and tables.
            let places: Vec<usize> = (0..sound.len().saturating_sub(512).min(24 << 10)).step_by(512).collect();
            let (start, mut slowest, mut rounds) = (Instant::now(), Duration::ZERO, 0_u32);
            while start.elapsed() < limit {
                let mut bytes = sound.clone();
                mutate(&mut bytes, &places, &mut noise);
                let round = Instant::now();
                targets::disk(&bytes);
                slowest = slowest.max(round.elapsed());
                rounds += 1;
            }
            println!("{}: {rounds} mutations, the slowest {slowest:?}", seed.display());
            assert!(slowest < Duration::from_secs(20), "{}: {slowest:?}", seed.display());
        }
    }
    assert_eq!(formats, 6);
}

/// A finished relink's journal, taken apart so that its frames can be changed without their checksums being in the way.
#[test]
fn no_mutation_of_a_journal_breaks_a_promise() {
    let dir = scratch();
    let (host, journal) = (dir.path().join("host"), dir.path().join("journal"));
    fs::write(&host, fixture("host-fat12")).unwrap();
    let image = format!("{}//vm/disk.raw", host.display());
    unimage(["relink", &image, "--into", "/out", "--journal", journal.to_str().unwrap(), "--commit"]).exits(0);
    let (before, after) = (fixture("host-fat12"), fs::read(&host).unwrap());
    let frames = frames(&fs::read(&journal).unwrap());
    assert!(frames.len() >= 8, "{}", frames.len());
    let limit = Duration::from_secs(if long() { 120 } else { 6 });
    let (start, mut noise, mut rounds) = (Instant::now(), Noise::new(2026), 0_u32);
    while start.elapsed() < limit {
        let mut frames = frames.clone();
        if rounds % 5 != 0 {
            let which = noise.below(frames.len() as u64) as usize;
            let places: Vec<usize> = (0..frames[which].len()).step_by(512).collect();
            mutate_frame(&mut frames[which], &places, &mut noise);
        }
        let host = if noise.below(2) == 0 { &before } else { &after };
        let data = [&[noise.below(6) as u8, frames.len() as u8], frames.concat().as_slice(), host].concat();
        targets::journal(&data);
        rounds += 1;
    }
    println!("{rounds} journals");
}

/// The same of journals of a host that is so full that units of the image are filled, on that host as it is at each moment of the
/// relink.
#[test]
fn no_mutation_of_a_journal_of_a_full_host_breaks_a_promise() {
    let dir = scratch();
    let image = dir.path().join("guest");
    guest::tight(&image, 72 << 10, 5 << 10);
    let shape = exfat_support::host::Shape { unit: "1K", len: 512 << 10, fragments: 5, partition: false };
    let mut host = exfat_support::host::Host::with(shape, &image, &["-b", "64K"]);
    host.fill_up(3);
    let address = Address::parse(OsStr::new(&host.path("DISK.raw"))).unwrap();
    let mut stack = stack::open(&address, OpenOptions::default()).unwrap();
    stack.descend(OpenOptions::default()).unwrap();
    let prepared = relink::prepare(&stack, &Options { reuse: true, ..Options::default() }).unwrap();
    assert_eq!(prepared.refusals, Vec::<String>::new());
    let batches = prepared.plan.totals.space.reusing().unwrap().batches;
    assert!((3..15).contains(&batches), "{batches}");
    // The hosts of all moments; the last one is finished.
    let (before, mut hosts) = (fs::read(&host.file).unwrap(), Vec::new());
    let journal = loop {
        let machine = Machine::new(before.clone(), 1);
        machine.arm(Some((hosts.len() as u64, Fault::PowerCut)));
        let volume = HostVolume::new(machine.host(), host.base, host.len).unwrap();
        let done = prepared.commit_on(&volume, machine.journal(), &|_, _, _| ());
        machine.restart(Surviving::All);
        hosts.push(machine.host_bytes());
        if done.is_ok() {
            let medium = machine.journal().medium;
            let mut bytes = vec![0; medium.len() as usize];
            medium.read_at(0, &mut bytes).unwrap();
            break bytes;
        }
    };
    let frames = frames(&journal);
    assert!(frames.len() >= 8, "{}", frames.len());
    let data = |state: u8, durable: u64, frames: &[Vec<u8>], host: &[u8]| {
        [&[state | 8 | (durable as u8) << 4, frames.len() as u8], frames.concat().as_slice(), host].concat()
    };
    // As they are, they are finished from each moment on at which the quarantine stands: else mutations would say nothing.
    let after = hosts.last().unwrap();
    let ends = |host: &&Vec<u8>| targets::recovered(&data(6, 0, &frames, host)).is_some_and(|end| end == *after);
    let finished = hosts.iter().filter(ends).count();
    assert!(finished > 10, "{finished} of {}", hosts.len());
    let limit = Duration::from_secs(if long() { 120 } else { 6 });
    let (start, mut noise, mut rounds) = (Instant::now(), Noise::new(2026), 0_u32);
    while start.elapsed() < limit {
        let mut frames = frames.clone();
        if rounds % 5 != 0 {
            let which = noise.below(frames.len() as u64) as usize;
            let places: Vec<usize> = (0..frames[which].len()).step_by(512).collect();
            mutate_frame(&mut frames[which], &places, &mut noise);
        }
        let host = &hosts[noise.below(hosts.len() as u64) as usize];
        // Mostly *reusing*.
        let state = if noise.below(2) == 0 { 6 } else { noise.below(8) as u8 };
        targets::journal(&data(state, noise.below(batches + 1), &frames, host));
        rounds += 1;
    }
    println!("{rounds} journals");
}

fn mutate_frame(frame: &mut [u8], places: &[usize], noise: &mut Noise) {
    for _ in 0..=noise.below(4) {
        let at = (places[noise.below(places.len() as u64) as usize] + noise.below(512) as usize) % frame.len();
        // The length of the stored bytes stays: the frames would not be told apart any more.
        if !(8..12).contains(&at) {
            frame[at] = if noise.below(2) == 0 { frame[at] ^ (1 << noise.below(8)) } else { noise.next() as u8 };
        }
    }
}

/// The frames of a journal, by `docs/safety.md`, without their sums.
fn frames(journal: &[u8]) -> Vec<Vec<u8>> {
    let (mut frames, mut at) = (Vec::new(), 7 * 4096);
    while at + 48 <= journal.len() {
        let head = &journal[at..at + 16];
        let stored = u32::from_le_bytes(head[8..12].try_into().unwrap()) as usize;
        frames.push([head, &journal[at + 48..at + 48 + stored]].concat());
        at += 48 + stored;
        match &head[..4] {
            b"HEND" => at = at.next_multiple_of(4096),
            b"END." => break,
            _ => {}
        }
    }
    frames
}

/// What The Sleuth Kit lists of a fixture is what `ls` lists.
#[test]
fn the_fixtures_hold_what_their_scripts_say() {
    let dir = scratch();
    let image = dir.path().join("image");
    let address = image.to_str().unwrap();
    let cases: [(&str, &[&str], &str); 6] = [
        ("fat12", &["-f", "fat12"], ""),
        ("fat16", &["-f", "fat16"], ""),
        ("fat32", &["-f", "fat32"], ""),
        ("exfat", &["-f", "exfat"], ""),
        ("ntfs", &["-f", "ntfs"], ""),
        ("mbr", &["-f", "fat12", "-o", "300"], "//p6"),
    ];
    for (name, options, part) in cases {
        fs::write(&image, fixture(name)).unwrap();
        let listed = ok("fls", [&["-r", "-p", "-u"], options, &[address]].concat());
        let mut theirs: Vec<String> = listed
            .lines()
            .filter_map(|l| l.split_once('\t'))
            .filter(|(kind, path)| {
                !kind.starts_with("v/v") && !path.starts_with('$') && !path.ends_with("(Volume Label Entry)")
            })
            .map(|(_, path)| path.to_owned())
            .collect();
        let out = unimage(["ls", "-R", "--json", &format!("{address}{part}")]).exits(0);
        let mut ours: Vec<String> =
            json_lines(&out.stdout).1.iter().map(|row| row["path"].as_str().unwrap().to_owned()).collect();
        theirs.sort();
        ours.sort();
        assert!(!ours.is_empty(), "{name}");
        assert_eq!(ours, theirs, "{name}");
    }
    // A name that only the journal has: the kernel shows it, too, once it was mounted.
    fs::write(&image, fixture("ext4")).unwrap();
    let out = unimage(["ls", "-R", address]).exits(0);
    assert!(out.stdout.lines().any(|l| l == "folder/third"), "{out}");
    let before = ok("debugfs", ["-R", "ls -p folder", address]);
    assert!(before.contains("/file/") && !before.contains("/third/"), "{before}");
}
