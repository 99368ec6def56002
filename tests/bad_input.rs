//! Damaged images through the command line: an error names a structure and its offset, what can be read is still listed,
//! and nothing panics, hangs or asks for memory by a number of the image.

mod common;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::guest::{self, copy_sparse};
use common::host::{Host, Place, Shape};
use common::{Noise, Out, output, scratch};

/// Runs the program with little memory and little time: what needs more of either was made to by the image.
#[track_caller]
fn bounded(a: &[&str]) -> Out {
    let mut command = Command::new("prlimit");
    command.args(["--as=4000000000", "timeout", "60", common::UNIMAGE]).args(a);
    let out = output(&mut command);
    assert!(!out.stderr.contains("panicked") && out.code < 124, "a panic, a hang or too much memory: {out}");
    out
}

/// All reading verbs over an image, none of which may do more than fail; where one fails it says why in one line.
#[track_caller]
fn read_all(image: &Path, volume: &str, file: &str) {
    let address = format!("{}{volume}", image.display());
    let verbs: [&[&str]; 5] = [
        &["info", &address],
        &["ls", "-R", "--json", &address],
        &["ls", "-lR", &address],
        &["cat", &format!("{address}{}{file}", if volume.is_empty() { "//" } else { "/" })],
        &["map", "--json", &format!("{address}{}{file}", if volume.is_empty() { "//" } else { "/" })],
    ];
    for verb in verbs {
        let out = bounded(verb);
        assert!(matches!(out.code, 0 | 1 | 3), "{out}");
        let said = ["\"problem\"", "problem:"].iter().any(|w| out.stdout.contains(w)) || !out.stderr.trim().is_empty();
        assert_eq!(out.code != 0, said, "an exit code without a word, or the other way round: {out}");
    }
}

struct Case {
    path: PathBuf,
    volume: &'static str,
    file: &'static str,
    /// Bytes from the image's beginning in which damage is done first: metadata.
    dense: u64,
}

fn cases(dir: &Path) -> Vec<Case> {
    let (a, b, c) = (dir.join("ntfs"), dir.join("fat"), dir.join("gpt"));
    guest::tiny_ntfs(&a, 2 << 20, 1024);
    guest::fat(&b, 4 << 20, 12, 4);
    guest::ntfs(&c, 16 << 20, |root| guest::special(root, &mut Noise::new(3)));
    vec![
        Case { path: a, volume: "", file: "top.bin", dense: 200 << 10 },
        Case { path: b, volume: "", file: "top/SHORT3.TXT", dense: 16 << 10 },
        Case { path: c, volume: "//p1", file: "fragmented/grown 1.bin", dense: 40 << 10 },
    ]
}

#[test]
fn truncated_anywhere() {
    let dir = scratch();
    for case in cases(dir.path()) {
        let len = fs::metadata(&case.path).unwrap().len();
        let cut = dir.path().join("cut");
        for at in [0, 1, 511, 512, 513, 1024, 4096, 17_000, 20_480, len / 8 + 7, len / 3, len / 2, len - 513, len - 1] {
            copy_sparse(&case.path, &cut);
            OpenOptions::new().write(true).open(&cut).unwrap().set_len(at).unwrap();
            read_all(&cut, case.volume, case.file);
        }
    }
}

#[test]
fn random_damage() {
    let dir = scratch();
    let rounds = if common::long() { 400 } else { 25 };
    for (n, case) in cases(dir.path()).iter().enumerate() {
        let len = fs::metadata(&case.path).unwrap().len();
        let bad = dir.path().join("bad");
        for round in 0..rounds {
            copy_sparse(&case.path, &bad);
            let file = OpenOptions::new().write(true).open(&bad).unwrap();
            let mut noise = Noise::new(1000 * n as u64 + round);
            for _ in 0..1 + noise.below(20) {
                let at = if noise.below(3) < 2 { noise.below(case.dense) } else { noise.below(len) };
                match noise.below(3) {
                    0 => file.write_all_at(&[noise.below(256) as u8], at).unwrap(),
                    1 => file.write_all_at(&[0xFF; 4], at.min(len - 4)).unwrap(),
                    _ => file.write_all_at(&noise.bytes(16), at.min(len - 16)).unwrap(),
                }
            }
            read_all(&bad, case.volume, case.file);
        }
    }
}

#[test]
fn a_damaged_record_is_named_with_its_offset_and_the_rest_is_listed() {
    let dir = scratch();
    let image = dir.path().join("image");
    let files = guest::tiny_ntfs(&image, 2 << 20, 1024);
    // The record of one file: found by its name, its signature is destroyed.
    let bytes = fs::read(&image).unwrap();
    let name: Vec<u8> = "file number 5.txt".encode_utf16().flat_map(u16::to_le_bytes).collect();
    let places: Vec<usize> =
        bytes.windows(name.len()).enumerate().filter(|(_, w)| *w == name).map(|(i, _)| i).collect();
    let record = places.iter().map(|p| p / 1024 * 1024).find(|r| &bytes[*r..*r + 4] == b"FILE").unwrap();
    OpenOptions::new().write(true).open(&image).unwrap().write_all_at(b"XXXX", record as u64).unwrap();
    let out = bounded(&["ls", "-R", "--json", image.to_str().unwrap()]);
    assert_eq!(out.code, 1, "{out}");
    for path in files.keys().filter(|p| !p.contains("number 5") && !p.contains(':')) {
        assert!(out.stdout.contains(&format!("\"path\":\"{path}\"")), "{path}: {out}");
    }
    let said = format!("{}{}", out.stdout, out.stderr);
    assert!(said.contains("MFT record") && said.chars().any(|c| c.is_ascii_digit()), "{out}");
}

#[test]
fn a_damaged_boot_sector_is_named_with_its_offset() {
    let dir = scratch();
    for case in cases(dir.path()) {
        let at = if case.volume.is_empty() { 0 } else { guest::PART };
        // Bytes per sector: of NTFS and FAT the same field. NTFS has a second boot sector in the volume's last one.
        let file = OpenOptions::new().write(true).read(true).open(&case.path).unwrap();
        file.write_all_at(&[0xEE, 0xEE], at + 11).unwrap();
        let mut sectors = [0; 8];
        file.read_exact_at(&mut sectors, at + 40).unwrap();
        if case.file.starts_with("top.bin") || !case.volume.is_empty() {
            let out = bounded(&["info", &format!("{}{}", case.path.display(), case.volume)]);
            assert!(format!("{}{}", out.stdout, out.stderr).contains("boot sector"), "{out}");
            file.write_all_at(&[0xEE, 0xEE], at + u64::from_le_bytes(sectors) * 512 + 11).unwrap();
        }
        let out = bounded(&["ls", &format!("{}{}", case.path.display(), case.volume)]);
        assert_eq!(out.code, 3, "{out}");
        assert_eq!(out.stderr.lines().count(), 1, "{out}");
        assert!(out.stdout.is_empty(), "{out}");
    }
}

#[test]
fn a_damaged_guest_is_never_relinked_silently() {
    // Random damage in the guest's metadata: what the program then writes is a host without fault, or nothing.
    let dir = scratch();
    let image = dir.path().join("image");
    guest::tiny_ntfs(&image, 2 << 20, 1024);
    let shape = Shape { width: 12, cluster_sectors: 2, len: 4 << 20, place: Place::Bare, fragments: 5 };
    let rounds = if common::long() { 200 } else { 12 };
    let mut done = 0;
    for round in 0..rounds {
        let bad = dir.path().join("bad");
        copy_sparse(&image, &bad);
        let file = OpenOptions::new().write(true).open(&bad).unwrap();
        let mut noise = Noise::new(77 + round);
        for _ in 0..1 + noise.below(6) {
            file.write_all_at(&[noise.below(256) as u8], noise.below(200 << 10)).unwrap();
        }
        let host = Host::new(shape, &bad);
        let out = host.relink(&["--commit", "--json", "--discard-unreadable", "--discard-rest"]);
        if out.code >= 2 {
            assert!(host.untouched(), "refused, and yet written: {out}");
            assert!(!out.stderr.trim().is_empty(), "{out}");
            continue;
        }
        done += 1;
        assert_eq!(host.fsck(), Vec::<String>::new(), "{out}");
        let (got, _) = host.tree();
        for (path, seen) in &host.older {
            assert_eq!(got.get(path).map(|s| &s.sha), Some(&seen.sha), "{path}");
        }
        host.journal_verb("undo").exits(0);
        assert_eq!(host.changed(), None, "round {round}");
    }
    assert!(done > 0, "no round came to a commit");
}
