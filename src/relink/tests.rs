//! On a FAT host made by `mkfs.fat` and `mcopy`, with a guest disk partitioned by `sfdisk`.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::*;
use crate::error::{Error, Result};
use crate::plan::{Reason, Verdict};
use crate::stack::{self, Address, OpenOptions, Stack, Target};

const MIB: usize = 1 << 20;

fn run(program: &str, args: &[&OsStr], input: &str) {
    let mut child = Command::new(program)
        .args(args)
        .env("MTOOLS_SKIP_CHECK", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success(), "{program}: {}", String::from_utf8_lossy(&out.stderr));
}

/// A FAT file system of `len` bytes with these files, by their paths.
fn fat(path: &Path, len: usize, sectors: usize, files: &[(&str, &[u8])]) {
    fs::write(path, vec![0; len]).unwrap();
    run("mkfs.fat", &["-s".as_ref(), sectors.to_string().as_ref(), path.as_ref()], "");
    let from = path.with_extension("file");
    for (name, bytes) in files {
        fs::write(&from, bytes).unwrap();
        let mut dir = String::from("::");
        let (dirs, _) = name.rsplit_once('/').unwrap_or_default();
        for part in dirs.split('/').filter(|p| !p.is_empty()) {
            dir = format!("{dir}/{part}");
            let made = Command::new("mmd").args(["-D", "s", "-i"]).arg(path).arg(&dir).output().unwrap();
            let _ = made;
        }
        run("mcopy", &["-i".as_ref(), path.as_ref(), from.as_ref(), format!("::/{name}").as_ref()], "");
    }
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// A guest disk: `p1` a FAT with three files and a directory, `p2` what nobody knows, `p3` zeros.
fn guest(dir: &Path) -> Vec<u8> {
    let part = dir.join("p1");
    let big = noise(9000, 1);
    fat(&part, 4 * MIB, 4, &[("a.txt", &big), ("sub/b.txt", b"small"), ("sub/deep/c.txt", &noise(4096, 2))]);
    let mut disk = vec![0; 8 * MIB];
    disk[MIB..5 * MIB].copy_from_slice(&fs::read(&part).unwrap());
    disk[5 * MIB + 700..5 * MIB + 900].copy_from_slice(&noise(200, 3));
    let path = dir.join("guest");
    fs::write(&path, disk).unwrap();
    let table = "label: gpt\nstart=2048, size=8192\nstart=10240, size=2048\nstart=12288, size=2048\n";
    run("sfdisk", &["-q".as_ref(), path.as_ref()], table);
    fs::read(path).unwrap()
}

struct Host {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

fn host(len: usize, more: &[(&str, &[u8])]) -> Host {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("host.raw");
    let image = guest(dir.path());
    let mut files: Vec<(&str, &[u8])> = vec![("vm/disk.img", &image), ("older.txt", b"was here")];
    files.extend_from_slice(more);
    // Clusters of one sector: the guest's fall on them wherever its data begin.
    fat(&path, len, 1, &files);
    Host { _dir: dir, path }
}

impl Host {
    fn open(&self, rest: &str) -> Stack {
        let address = Address::parse(format!("{}{rest}", self.path.display()).as_ref()).unwrap();
        let mut stack = stack::open(&address, OpenOptions::default()).unwrap();
        if stack.levels.len() == 1 && matches!(stack.target, Target::Object(..)) {
            stack.descend(OpenOptions::default()).unwrap();
        }
        stack
    }
    fn prepare(&self, rest: &str, options: &Options) -> Prepared {
        prepare(&self.open(rest), options).unwrap()
    }
}

fn into(dir: &str) -> Options {
    Options { into: vec![dir.as_bytes().to_vec()], ..Options::default() }
}

fn written(prepared: &Prepared) -> Vec<String> {
    let rows = prepared.plan.rows.iter().filter_map(|r| r.written);
    rows.map(|at| String::from_utf8(prepared.plan.written_path(at)).unwrap()).collect()
}

/// Whether each of `found` holds the words at its place, and there are no more.
#[track_caller]
fn say(found: &[String], words: &[&str]) {
    assert_eq!(found.len(), words.len(), "{found:?}");
    for (found, words) in found.iter().zip(words) {
        assert!(found.contains(words), "{found:?} should say {words:?}");
    }
}

#[test]
fn the_whole_image_goes_only_when_unknown_data_may() {
    let host = host(16 * MIB, &[]);
    let prepared = host.prepare("//vm/disk.img", &into("out"));
    assert_eq!(written(&prepared), ["p1/a.txt", "p1/sub", "p1/sub/b.txt", "p1/sub/deep", "p1/sub/deep/c.txt"]);
    let verdicts: Vec<_> = prepared.plan.rows.iter().map(|r| (r.verdict, r.reason)).collect();
    assert!(verdicts.iter().all(|v| *v == (Verdict::Link, None)), "{verdicts:?}");
    // The zeros of p3 are no loss.
    say(&prepared.refusals, &["p2: unknown data"]);
    assert_eq!(prepared.image, b"vm/disk.img");
    assert_eq!((prepared.host.0, prepared.host.1.as_str()), ("fat16", ""));
    let prepared = host.prepare("//vm/disk.img", &Options { discard_rest: true, ..into("out") });
    say(&prepared.refusals, &[]);
    let lost: Vec<_> = prepared.lost.iter().map(|l| (l.volume.as_str(), l.bytes.is_some())).collect();
    assert_eq!(lost, [("p2", true), ("p1", true), ("", true)]);
    assert!(prepared.lost.iter().any(|l| l.what.contains("unallocated")));
}

#[test]
fn a_part_of_the_image_is_refused_while_the_rest_holds_files() {
    let host = host(16 * MIB, &[]);
    let prepared = host.prepare("//vm/disk.img//p1", &into("out"));
    say(&prepared.refusals, &["p2: unknown data"]);
    assert_eq!(written(&prepared)[..2], ["a.txt", "sub"]);
    let prepared = host.prepare("//vm/disk.img//p1/sub", &into("out"));
    say(&prepared.refusals, &["p2: unknown data", "p1: 1 file that the address does not name"]);
    assert_eq!(written(&prepared), ["b.txt", "deep", "deep/c.txt"]);
    let prepared = host.prepare("//vm/disk.img//p1/a.txt", &Options { discard_rest: true, ..into("out") });
    say(&prepared.refusals, &[]);
    assert_eq!(written(&prepared), ["a.txt"]);
    let lost = prepared.lost.iter().find(|l| l.what.contains("does not name")).unwrap();
    assert_eq!((lost.what.as_str(), lost.bytes), ("2 files that the address does not name", Some(5 + 4096)));
    // What holds the files is not named at all.
    let error = prepare(&host.open("//vm/disk.img//p2"), &into("out")).err().unwrap();
    assert_eq!(error.exit_code(), 3, "{error}");
}

#[test]
fn an_image_that_lies_on_no_host_is_a_wrong_address() {
    let host = host(16 * MIB, &[]);
    let error = prepare(&host.open(""), &into("out")).err().unwrap();
    assert!(matches!(error, Error::Usage(_)), "{error}");
    assert!(error.to_string().contains("HOST//PATH"), "{error}");
}

#[test]
fn a_directory_that_the_host_cannot_hold_is_a_wrong_option() {
    let host = host(16 * MIB, &[]);
    let error = prepare(&host.open("//vm/disk.img"), &into("a:b")).err().unwrap();
    assert_eq!(error.exit_code(), 2, "{error}");
}

#[test]
fn too_little_space_is_refused() {
    // Nothing can be linked on clusters that the guest's do not fall on, and there is no space for copies.
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("inner");
    fat(&inner, 8 * MIB, 1, &[("a", &noise(3 * MIB, 1)), ("b", &noise(3 * MIB, 2))]);
    let path = dir.path().join("host.raw");
    let image = [vec![0; 512], fs::read(&inner).unwrap()].concat();
    let mut table = image;
    table.truncate(8 * MIB);
    table[446..462].copy_from_slice(&[0, 0, 2, 0, 6, 0, 0, 0, 1, 0, 0, 0, 0xff, 0x3f, 0, 0]);
    table[510..512].copy_from_slice(&[0x55, 0xaa]);
    fat(&path, 16 * MIB, 8, &[("disk.img", &table), ("full", &noise(7 * MIB, 3))]);
    let host = Host { _dir: dir, path };
    let prepared = host.prepare("//disk.img", &into("out"));
    let reasons: Vec<_> = prepared.plan.rows.iter().map(|r| r.reason).collect();
    assert!(reasons.contains(&Some(Reason::Misaligned)), "{reasons:?}");
    assert!(prepared.refusals.iter().any(|r| r.contains("not enough free space")), "{:?}", prepared.refusals);
}

#[test]
fn a_root_directory_without_room_is_refused_by_the_plan() {
    let host = host(16 * MIB, &[]);
    let mut bytes = fs::read(&host.path).unwrap();
    let number = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let root = 512 * (number(14) + usize::from(bytes[16]) * number(22));
    let slots = number(17);
    for (i, slot) in bytes[root..root + 32 * slots].chunks_mut(32).enumerate().skip_while(|(_, slot)| slot[0] != 0) {
        slot[..12].copy_from_slice(format!("FULL{i:04}    ").as_bytes());
    }
    fs::write(&host.path, bytes).unwrap();
    let options = Options { discard_rest: true, ..into("out") };
    say(&host.prepare("//vm/disk.img", &options).refusals, &["the root directory has 512 slots"]);
    let below = Options { into: vec![b"vm".to_vec()], ..options };
    say(&host.prepare("//vm/disk.img", &below).refusals, &[]);
}

#[test]
fn the_digest_is_that_of_the_walk() -> Result<()> {
    let host = host(16 * MIB, &[]);
    let digest = |stack: &Stack| digest::of_image(stack.last()?);
    let one = digest(&host.open("//vm/disk.img"))?;
    assert_eq!(one, digest(&host.open("//vm/disk.img"))?);
    assert_eq!(one, digest(&host.open("//vm/disk.img//p1/sub"))?, "the whole image, whatever is named of it");
    let bytes = fs::read(&host.path).unwrap();
    let name = b"DEEP       ";
    let at = bytes.windows(11).position(|w| w == name).unwrap();
    let mut other = bytes;
    other[at] = b'S';
    fs::write(&host.path, other).unwrap();
    assert_ne!(one, digest(&host.open("//vm/disk.img"))?);
    Ok(())
}

#[test]
fn committed_and_taken_back() {
    let host = host(16 * MIB, &[]);
    let before = fs::read(&host.path).unwrap();
    let options = Options { discard_rest: true, decode_first: true, ..into("out") };
    let prepared = host.prepare("//vm/disk.img", &options);
    say(&prepared.refusals, &[]);
    let journal = host.path.with_extension("journal");
    let manifest = host.path.with_extension("jsonl");
    let quiet = |_: &'static str, _: u64, _: u64| ();
    let done = prepared.commit(&journal, Some(&manifest), &quiet).unwrap();
    assert!(done.metadata_bytes > 0 && done.journal_bytes > 0, "{done:?}");
    assert!(fs::read_to_string(&manifest).unwrap().contains("sub/deep/c.txt"));
    let out = Command::new("mtype").arg("-i").arg(&host.path).arg("::/out/p1/a.txt").output().unwrap();
    assert_eq!(out.stdout, noise(9000, 1));
    assert!(!Command::new("mtype").arg("-i").arg(&host.path).arg("::/vm/disk.img").output().unwrap().status.success());
    // The journal is there: a second one is refused, and so is the same one.
    let again = prepared.commit(&journal, None, &quiet).err().unwrap();
    assert_eq!(again.exit_code(), 4, "{again}");
    let again = prepared.commit(&host.path.with_extension("new"), Some(&manifest), &quiet).err().unwrap();
    assert!(again.to_string().contains("manifest's path"), "{again}");
    let elsewhere = host.path.with_extension("other");
    let again = prepared.commit(&elsewhere, None, &quiet).err().unwrap();
    assert!(again.to_string().contains("changed while"), "{again}");
    assert_eq!(again.exit_code(), 4);
    assert_eq!(recover(&journal, None, &quiet).unwrap(), Outcome::AlreadyFinished);
    assert_eq!(undo(&journal, None, &OpenOptions::default(), &quiet).unwrap(), Outcome::TakenBack);
    assert_eq!(undo(&journal, None, &OpenOptions::default(), &quiet).unwrap(), Outcome::AlreadyTakenBack);
    let after = host.prepare("//vm/disk.img", &options);
    assert_eq!(written(&after), written(&prepared));
    let fat_and_root = 600 * 512;
    assert!(before[..fat_and_root] == fs::read(&host.path).unwrap()[..fat_and_root], "tables as before");
}

#[test]
fn a_host_in_quarantine_is_never_said_to_be_finished() {
    let host = host(16 * MIB, &[]);
    let options = Options { discard_rest: true, ..into("out") };
    let journal = host.path.with_extension("journal");
    let quiet = |_: &'static str, _: u64, _: u64| ();
    host.prepare("//vm/disk.img", &options).commit(&journal, None, &quiet).unwrap();
    let done = fs::read(&host.path).unwrap();
    // A copy of the host from the midst of the commit: the sector that keeps everybody out, and a state bit.
    let mut shut = done.clone();
    shut[11..13].fill(0);
    shut[0x25] |= 1;
    let copy = host.path.with_extension("copy");
    fs::write(&copy, &shut).unwrap();
    assert_eq!(recover(&journal, None, &quiet).unwrap(), Outcome::AlreadyFinished);
    assert_eq!(recover(&journal, Some(&copy), &quiet).unwrap(), Outcome::Finished);
    assert!(fs::read(&copy).unwrap() == done);
    assert_eq!(undo(&journal, None, &OpenOptions::default(), &quiet).unwrap(), Outcome::TakenBack);
    fs::write(&copy, &shut).unwrap();
    let error = undo(&journal, Some(&copy), &OpenOptions::default(), &quiet).err().unwrap();
    assert!(error.to_string().contains("recover") && error.exit_code() == 4, "{error}");
    assert!(fs::read(&copy).unwrap() == shut, "nothing was written");
    assert_eq!(recover(&journal, Some(&copy), &quiet).unwrap(), Outcome::TakenBack);
    assert!(fs::read(&copy).unwrap()[..600 * 512] == fs::read(&host.path).unwrap()[..600 * 512]);
    // Another copy of the host than the one that was taken back.
    fs::write(&copy, &done).unwrap();
    let again = [recover(&journal, Some(&copy), &quiet), undo(&journal, Some(&copy), &OpenOptions::default(), &quiet)];
    for error in again.map(|outcome| outcome.err().unwrap()) {
        assert!(error.to_string().contains("another copy of that host") && error.exit_code() == 4, "{error}");
    }
    assert!(fs::read(&copy).unwrap() == done, "nothing was written");
    assert_eq!(undo(&journal, None, &OpenOptions::default(), &quiet).unwrap(), Outcome::AlreadyTakenBack);
    fs::remove_file(&host.path).unwrap();
    assert_eq!(undo(&journal, None, &OpenOptions::default(), &quiet).unwrap(), Outcome::AlreadyTakenBack);
}

#[test]
fn a_host_with_one_name_sixty_thousand_times_takes_no_time() {
    // A directory as a file, made a directory by its attribute: `.`, `..` and the same empty file over and over.
    let slot = |name: &[u8; 11], attr: u8| {
        let mut slot = [0; 32];
        slot[..11].copy_from_slice(name);
        slot[11] = attr;
        slot
    };
    let mut dir = [slot(b".          ", 0x10), slot(b"..         ", 0x10)].concat();
    for _ in 0..60_000 {
        dir.extend_from_slice(&slot(b"SAME    TXT", 0x20));
    }
    let host = host(16 * MIB, &[("many", &dir)]);
    let mut bytes = fs::read(&host.path).unwrap();
    let at = bytes.windows(12).position(|w| w == b"MANY       \x20").unwrap();
    bytes[at + 11] = 0x10;
    bytes[at + 28..at + 32].fill(0);
    let first = [bytes[at + 26], bytes[at + 27]];
    let own = bytes
        .windows(44)
        .position(|w| w[..12] == *b".          \x10" && w[32..] == *b"..         \x10" && w[26..28] == [0, 0]);
    bytes[own.unwrap() + 26..][..2].copy_from_slice(&first);
    fs::write(&host.path, bytes).unwrap();
    let prepared = host.prepare("//vm/disk.img", &Options { discard_rest: true, ..into("out") });
    say(&prepared.refusals, &[]);
    let start = std::time::Instant::now();
    prepared.commit(&host.path.with_extension("journal"), None, &|_, _, _| ()).unwrap();
    assert!(start.elapsed().as_secs() < 8, "quadratic: {:?}", start.elapsed());
}
