//! `cargo bench --bench relink`: relinking against copying, and the walk against other readers, on the same images in
//! one run. Prints a table; `docs/benchmarks.md` says how to read it. No timed test: nothing here fails for being slow.

#[path = "../tests/common/mod.rs"]
mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use common::guest::{self, Guest};
use common::host::{Host, Place, Shape, json_lines};
use common::{Mount, UNIMAGE, ok};

/// Seconds and peak memory (KiB) of a command, by `/usr/bin/time`, and bytes that it wrote to files, by `strace` in
/// another run where `count` is asked for.
fn timed(command: &[String]) -> (f64, u64) {
    let log = common::scratch();
    let report = log.path().join("time");
    let status = Command::new("/usr/bin/time")
        .args(["-f", "%e %M", "-o"])
        .arg(&report)
        .args(command)
        .env("LC_ALL", "C.UTF-8")
        .env("MTOOLS_SKIP_CHECK", "1")
        .stdin(Stdio::null())
        .stdout(fs::File::create(log.path().join("out")).unwrap())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{command:?}: {status}");
    let text = fs::read_to_string(report).unwrap();
    let mut words = text.split_whitespace();
    (words.next().unwrap().parse().unwrap(), words.next().unwrap().parse().unwrap())
}

fn best(times: u32, command: &[String], before: impl Fn()) -> (f64, u64) {
    let run = |_| {
        before();
        let start = Instant::now();
        let (_, memory) = timed(command);
        (start.elapsed().as_secs_f64(), memory)
    };
    (0..times).map(run).min_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

fn drop_caches() {
    ok("sync", [""; 0]);
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

fn words(all: &[&str]) -> Vec<String> {
    all.iter().map(|s| (*s).to_owned()).collect()
}

fn relinks(name: &str, guest: &Guest) {
    let bytes: u64 = guest.files.values().map(|s| s.size).sum();
    println!(
        "\n## {name}: {} files, {} MB, in a raw GPT image of 2 GiB on FAT32, clusters of 4 KiB",
        guest.files.len(),
        bytes / 1_000_000
    );
    let shape = Shape { width: 32, cluster_sectors: 8, len: 8 << 30, place: Place::Bare, fragments: 4 };
    let host = Host::new(shape, &guest.image);
    let journal = host.journal().display().to_string();
    let command =
        words(&[UNIMAGE, "relink", &host.image(), "--into", "/out", "--journal", &journal, "--commit", "--json"]);
    let mut runs = Vec::new();
    for _ in 0..3 {
        host.reset();
        ok("sync", [""; 0]);
        let log = common::scratch();
        let start = Instant::now();
        let out = common::output(Command::new(&command[0]).args(&command[1..]));
        let seconds = start.elapsed().as_secs_f64();
        drop(log);
        assert!(out.code <= 1, "{out}");
        runs.push((seconds, out.stdout));
    }
    let (seconds, stdout) = runs.into_iter().min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    let summary = json_lines(&stdout).2;
    let number = |field: &str| summary[field].as_u64().unwrap_or_else(|| panic!("{field}: {summary}"));
    let (metadata, copied) = (number("written_metadata_bytes"), number("written_copied_bytes"));
    let (zeroed, journal_bytes) = (number("written_zeroed_bytes"), number("written_journal_bytes"));
    host.reset();
    let dry = words(&[UNIMAGE, "relink", &host.image(), "--into", "/out", "--json"]);
    let (plan, _) = best(3, &dry, || ());
    host.reset();
    let (_, memory) = timed(&command);
    let files = guest.files.len() as u64;
    println!("relink                     {seconds:8.2} s   peak memory {} MiB", memory / 1024);
    println!("  of it the plan           {plan:8.2} s");
    println!(
        "  metadata and journal     {:8} B a file ({} B + {} B)",
        (metadata + journal_bytes) / files,
        metadata,
        journal_bytes
    );
    println!(
        "  linked {}   copied {}   zeroed {zeroed} B   copied with whole clusters {copied} B",
        summary["linked"], summary["copied"]
    );

    // The same files onto the same kind of medium, through drivers: NTFS by ntfs-3g, FAT by fusefat.
    let target = host.dir.path().join("target.img");
    let fresh = || {
        let _ = fs::remove_file(&target);
        fs::File::create(&target).unwrap().set_len(8 << 30).unwrap();
        ok("mkfs.fat", ["-F", "32", "-s", "8", target.to_str().unwrap()]);
    };
    let source =
        Mount::ntfs(&guest.image, guest::PART, (2 << 30) - guest::PART - (1 << 20), "ro,streams_interface=none");
    // Names that FAT can't hold stop a copy: they are left out of both copies.
    let list = host.dir.path().join("list");
    let tops: Vec<String> = fs::read_dir(&source.dir)
        .unwrap()
        .map(|e| e.unwrap().path().display().to_string())
        .filter(|p| !p.ends_with("/names"))
        .collect();
    fs::write(&list, tops.join("\n")).unwrap();
    let stop = std::env::var("UNIMAGE_BENCH_STOP").unwrap_or_else(|_| "300".into());
    let copy = |what: &str, command: Vec<String>| {
        let start = Instant::now();
        let out = common::output(Command::new("timeout").arg(&stop).args(&command));
        ok("sync", [""; 0]);
        let s = start.elapsed().as_secs_f64();
        let more = if out.code == 124 { "more than " } else { "" };
        // A copy that stopped for another reason is no measurement: its first word is shown.
        let failed = if matches!(out.code, 0 | 124) { "" } else { out.stderr.lines().next().unwrap_or("failed") };
        println!(
            "{what:<26} {more}{s:8.2} s   {more}{:.0} times the relink   written at least {bytes} B   {failed}",
            s / seconds
        );
    };
    fresh();
    {
        let mount = Mount::fat(&target, "rw+");
        let mut command = words(&["cp", "-r", "--sparse=never", "--preserve=timestamps"]);
        command.extend(tops.clone());
        command.push(mount.dir.display().to_string());
        copy("cp -r, mounted copies", command);
    }
    fresh();
    let mut command = words(&["mcopy", "-s", "-m", "-Q", "-i", target.to_str().unwrap()]);
    command.extend(tops);
    command.push("::/".into());
    copy("mcopy -s", command);
    let ext = host.dir.path().join("copy");
    fs::create_dir(&ext).unwrap();
    copy("cp -r to the host's disk", words(&["cp", "-r", source.dir.to_str().unwrap(), ext.to_str().unwrap()]));
}

fn walks(name: &str, guest: &Guest) {
    println!("\n## the walk of {name}: {} files and streams", guest.files.len());
    let image = guest.image.to_str().unwrap();
    // 7z does not look into partitions of an image: it is given the volume alone.
    let volume = guest.image.with_extension("ntfs");
    let dir = common::scratch();
    let volume = dir.path().join(volume.file_name().unwrap());
    ok(
        "dd",
        ["bs=1M", "skip=1", "conv=sparse", "status=none", &format!("if={image}"), &format!("of={}", volume.display())],
    );
    let volume: &Path = &volume;
    let commands = [
        ("unimage ls -lR", words(&[UNIMAGE, "ls", "-l", "-R", &format!("{image}//p1")])),
        ("unimage ls -R --json", words(&[UNIMAGE, "ls", "-R", "--json", &format!("{image}//p1")])),
        ("fls -r -p", words(&["fls", "-r", "-p", "-o", "2048", image])),
        ("7z l", words(&["7z", "l", volume.to_str().unwrap()])),
    ];
    let mut first = [0.0; 2];
    for (what, command) in &commands {
        let (warm, memory) = best(5, command, || ());
        let (cold, _) = best(3, command, drop_caches);
        if first[0] == 0.0 {
            first = [warm, cold];
        }
        let rate = |s: f64| guest.files.len() as f64 / s;
        println!(
            "{what:<22} warm {warm:7.3} s {:9.0} files/s ({:5.1}x)   cold {cold:7.3} s {:9.0} files/s ({:5.1}x)   {} MiB",
            rate(warm),
            warm / first[0],
            rate(cold),
            cold / first[1],
            memory / 1024
        );
    }
}

fn main() {
    let (mixed, large) = (guest::windows(), guest::large_files());
    walks("200,000 small files", &guest::many_files());
    walks("20,000 mixed files", &mixed);
    relinks("large files", &large);
    relinks("20,000 mixed files", &mixed);
}
