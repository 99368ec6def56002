//! What `fsck.fat` and `fsck.exfat` say too much.

use std::path::Path;

use super::{Loop, run};
use crate::args;

/// Everything that `fsck.fat -n -v` says about a volume that is not its banner, its dump of the boot sector or its
/// summary; also its exit code when that is not 0. Empty for a volume without fault.
#[track_caller]
pub fn fsck_fat(file: &Path, offset: u64, len: u64) -> Vec<String> {
    let out = if offset == 0 {
        run("fsck.fat", args!["-n", "-v", *file.as_os_str()])
    } else {
        let on = Loop::attach(file, offset, len, true);
        run("fsck.fat", args!["-n", "-v", *on.device.as_os_str()])
    };
    let mut extra = unexpected_of_fsck(&out.stdout);
    extra.extend(out.stderr.lines().map(|l| format!("stderr: {l}")));
    if out.code != 0 {
        extra.push(format!("exit {}", out.code));
    }
    extra
}

/// Everything that `fsck.exfat -n -v` says about a volume that is not its banner, what it reads from the boot sector or its
/// summary; also its exit code when that is not 0. Empty for a volume without fault.
#[track_caller]
pub fn fsck_exfat(file: &Path, offset: u64, len: u64) -> Vec<String> {
    let out = if offset == 0 {
        run("fsck.exfat", args!["-n", "-v", *file.as_os_str()])
    } else {
        let on = Loop::attach(file, offset, len, true);
        run("fsck.exfat", args!["-n", "-v", *on.device.as_os_str()])
    };
    let known = ["exfatprogs version : ", "label: ", "sector size: ", "cluster size: ", "volume size: "];
    let summary = |l: &str| l.contains(": clean. directories ") && l.contains(", files ");
    let mut extra: Vec<String> =
        out.stdout.lines().chain(out.stderr.lines()).map(str::trim).map(str::to_owned).collect();
    if extra.iter().filter(|l| summary(l)).count() != 1 {
        extra.push("no summary".to_owned());
    }
    extra.retain(|l| !l.is_empty() && !summary(l) && !known.iter().any(|k| l.starts_with(k)));
    if out.code != 0 {
        extra.push(format!("exit {}", out.code));
    }
    extra
}

/// The lines that a silent `fsck.fat -n -v` would not print. Of each line that it may print there is exactly one.
pub fn unexpected_of_fsck(stdout: &str) -> Vec<String> {
    let number = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    let expected: &[&dyn Fn(&str) -> bool] = &[
        &|l| l.starts_with("fsck.fat 4."),
        &|l| l == "Checking we can access the last sector of the filesystem",
        &|l| l == "Boot sector contents:",
        &|l| l.starts_with("System ID \"") && l.ends_with('"'),
        &|l| l.starts_with("Media byte 0x") && (l.ends_with("(hard disk)") || l.contains("floppy")),
        &|l| l.strip_suffix(" bytes per logical sector").is_some_and(number),
        &|l| l.strip_suffix(" bytes per cluster").is_some_and(number),
        &|l| l.strip_suffix(" reserved sectors").or(l.strip_suffix(" reserved sector")).is_some_and(number),
        &|l| l.starts_with("First FAT starts at byte "),
        &|l| l.contains(" FATs, ") && l.ends_with(" bit entries"),
        &|l| l.contains(" bytes per FAT (= ") && (l.ends_with(" sectors)") || l.ends_with(" sector)")),
        &|l| l.starts_with("Root directory start"),
        &|l| l.starts_with("Data area starts at byte "),
        &|l| l.contains(" data clusters (") && l.ends_with(" bytes)"),
        &|l| l.contains(" sectors/track, ") && l.ends_with(" heads"),
        &|l| l.strip_suffix(" hidden sectors").is_some_and(number),
        &|l| l.strip_suffix(" sectors total").is_some_and(number),
        &|l| l == "Checking for unused clusters.",
        &|l| l == "Checking free cluster summary.",
        &|l| l.ends_with(" clusters") && l.contains(" files, ") && l.contains('/'),
    ];
    let mut left: Vec<_> = expected.iter().collect();
    let mut extra = Vec::new();
    // FAT12 and FAT16 have a further line, for the root directory's size.
    for line in stdout.lines().map(str::trim).filter(|l| !l.is_empty()) {
        if line.ends_with(" root directory entries") {
            continue;
        }
        match left.iter().position(|e| e(line)) {
            Some(i) => drop(left.remove(i)),
            None => extra.push(line.to_owned()),
        }
    }
    extra
}
