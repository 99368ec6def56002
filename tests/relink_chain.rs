//! Relinking chains: three qcow2 images over each other with a snapshot, on hosts of three kinds; judged by the hosts' own
//! checkers and drivers, against what foreign drivers showed of the guest before.

mod common;
#[path = "chain_support/disks.rs"]
mod disks;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::host::{Row, rows, strace};
use common::{Loop, Mount, Noise, Out, Seens, UNIMAGE, fsck_fat, guest, ok, run, same_tree, scratch, tree, unimage};

const CHAIN: [&str; 3] = ["base.qcow2", "mid.qcow2", "top.qcow2"];

/// Runs in a folder, so that names in images are relative.
#[track_caller]
fn at(dir: &Path, program: &str, list: &[&str]) {
    let out = Command::new(program).current_dir(dir).args(list).output().unwrap();
    assert!(out.status.success(), "{program} {list:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Writes into an image, through qemu, what `new` has otherwise than `old`; every third piece compressed.
fn write_differences(image: &Path, old: &[u8], new: &[u8], compress: bool) {
    const PIECE: usize = 64 << 10;
    let dir = scratch();
    let mut commands = vec!["-f".to_owned(), "qcow2".into()];
    for (i, (a, b)) in old.chunks(PIECE).zip(new.chunks(PIECE)).enumerate().filter(|(_, (a, b))| a != b) {
        let piece = dir.path().join(i.to_string());
        fs::write(&piece, b).unwrap();
        let how = if compress && i % 3 == 0 { "write -c" } else { "write" };
        commands.extend(["-c".into(), format!("{how} -s {} {} {}", piece.display(), i * PIECE, a.len())]);
    }
    assert!(commands.len() > 8, "nothing to write");
    commands.push(image.display().to_string());
    ok("qemu-io", commands);
}

/// What a guest is made of.
struct Guest {
    dir: tempfile::TempDir,
    /// What a foreign driver shows of it, in the state of today, with what it is below `--into`.
    files: Seens,
}

fn mounted(raw: &Path, kind: &str, options: &str) -> (PathBuf, Box<dyn std::any::Any>) {
    let len = fs::metadata(raw).unwrap().len();
    if kind == "ntfs" {
        let mount = Mount::ntfs(raw, 0, len, &format!("{options},streams_interface=windows"));
        return (mount.dir.clone(), Box::new(mount));
    }
    let mount = Ext::new(raw, options);
    (mount.0.path().to_owned(), Box::new(mount))
}

/// A mount of ext4 by the kernel.
struct Ext(tempfile::TempDir);

impl Ext {
    fn new(raw: &Path, options: &str) -> Self {
        let dir = scratch();
        ok(
            "mount",
            ["-t", "ext4", "-o", &format!("loop,{options}"), raw.to_str().unwrap(), dir.path().to_str().unwrap()],
        );
        Self(dir)
    }
}
impl Drop for Ext {
    fn drop(&mut self) {
        // A process that is being started elsewhere may have it for a moment.
        for _ in 0..100 {
            if run("umount", [self.0.path()]).code == 0 {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
}

fn fill(root: &Path, random: &mut Noise, names: &str, count: u64) {
    let dir = root.join(names);
    fs::create_dir(&dir).unwrap();
    for i in 0..count {
        let len = [0, 300, 4096, 20_000, 70_001, 400_000][(i % 6) as usize] + random.below(3000) as usize;
        // Some of it compresses.
        let bytes = if i % 4 == 0 { vec![i as u8 + 1; len] } else { random.bytes(len) };
        fs::write(dir.join(format!("file {i}")), bytes).unwrap();
    }
}

impl Guest {
    /// A chain with three states of a guest: the base, what was added then, and after a snapshot what was added and changed last.
    fn new(kind: &str) -> Self {
        let dir = scratch();
        let raw = dir.path().join("guest.raw");
        let mut random = Noise::new(31);
        let size = 48 << 20;
        if kind == "ntfs" {
            guest::bare_ntfs(&raw, size, 4096, |root| fill(root, &mut random, "first", 40));
        } else {
            File::create(&raw).unwrap().set_len(size).unwrap();
            ok("mkfs.ext4", ["-q", "-b", "4096", raw.to_str().unwrap()]);
            let (root, _mount) = mounted(&raw, kind, "rw");
            fill(&root, &mut random, "first", 40);
        }
        let states: Vec<Vec<u8>> = ["", "second", "third"]
            .into_iter()
            .map(|names| {
                if !names.is_empty() {
                    let (root, _mount) = mounted(&raw, kind, "rw");
                    fill(&root, &mut random, names, 30);
                    fs::write(root.join("first/file 5"), random.bytes(333_333)).unwrap();
                }
                fs::read(&raw).unwrap()
            })
            .collect();
        let (root, mount) = mounted(&raw, kind, "ro");
        let files = tree(&root);
        drop(mount);
        let here = |name: &str| dir.path().join(name);
        at(dir.path(), "qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "guest.raw", CHAIN[0]]);
        // The state of the base is the first.
        fs::write(here("first.raw"), &states[0]).unwrap();
        at(dir.path(), "qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "first.raw", CHAIN[0]]);
        at(dir.path(), "qemu-img", &["create", "-q", "-f", "qcow2", "-b", CHAIN[0], "-F", "qcow2", CHAIN[1]]);
        write_differences(&here(CHAIN[1]), &states[0], &states[1], false);
        at(dir.path(), "qemu-img", &["create", "-q", "-f", "qcow2", "-b", CHAIN[1], "-F", "qcow2", CHAIN[2]]);
        at(dir.path(), "qemu-img", &["snapshot", "-c", "before the third", CHAIN[2]]);
        write_differences(&here(CHAIN[2]), &states[1], &states[2], true);
        for name in ["guest.raw", "first.raw"] {
            fs::remove_file(here(name)).unwrap();
        }
        Self { dir, files }
    }
}

/// A host with the chain in a folder `vm`, among other files.
struct Host {
    kind: &'static str,
    dir: tempfile::TempDir,
    file: PathBuf,
    before: Seens,
}

impl Host {
    fn new(kind: &'static str, guest: &Path, names: &[&str]) -> Self {
        let dir = scratch();
        let file = dir.path().join("host.img");
        let source = dir.path().join("source");
        fs::create_dir_all(source.join("vm")).unwrap();
        fs::write(source.join("older.bin"), Noise::new(3).bytes(123_456)).unwrap();
        for name in names {
            fs::copy(guest.join(name), source.join("vm").join(name)).unwrap();
        }
        File::create(&file).unwrap().set_len(400 << 20).unwrap();
        let text = file.to_str().unwrap();
        match kind {
            "fat32" => {
                ok("mkfs.fat", ["-F", "32", "-s", "8", text]);
                let (vm, older) = (source.join("vm"), source.join("older.bin"));
                ok("mcopy", ["-s", "-i", text, vm.to_str().unwrap(), older.to_str().unwrap(), "::"]);
            }
            "ext4" => drop(ok("mkfs.ext4", ["-q", "-b", "4096", "-d", source.to_str().unwrap(), text])),
            _ => {
                {
                    let on = Loop::attach(&file, 0, 0, false);
                    ok("mkntfs", ["-F", "-Q", "-q", "-c", "4096", "-p", "0", on.device.to_str().unwrap()]);
                }
                let mount = Mount::ntfs(&file, 0, 0, "rw,big_writes");
                ok(
                    "cp",
                    [
                        "-r",
                        "-t",
                        mount.dir.to_str().unwrap(),
                        source.join("vm").to_str().unwrap(),
                        source.join("older.bin").to_str().unwrap(),
                    ],
                );
            }
        }
        fs::remove_dir_all(source).unwrap();
        let mut host = Self { kind, dir, file, before: Seens::new() };
        host.before = host.seen();
        assert_eq!(host.before.len(), names.len() + 1);
        assert_eq!(host.fsck(), Vec::<String>::new(), "the host that the test made");
        host
    }
    /// All files, by a foreign reader.
    fn seen(&self) -> Seens {
        let text = self.file.to_str().unwrap();
        let mut seen = match self.kind {
            "fat32" => {
                let out = scratch();
                ok("mcopy", ["-s", "-n", "-m", "-i", text, "::*", out.path().to_str().unwrap()]);
                tree(out.path())
            }
            "ext4" => {
                let mount = Ext::new(&self.file, "ro,noload");
                tree(mount.0.path())
            }
            _ => tree(&Mount::ntfs(&self.file, 0, 0, "ro").dir),
        };
        for file in seen.values_mut() {
            file.mtime = 0;
        }
        seen
    }
    fn fsck(&self) -> Vec<String> {
        let text = self.file.to_str().unwrap();
        let said = |out: Out| if out.code == 0 { Vec::new() } else { vec![format!("{}{}", out.stdout, out.stderr)] };
        match self.kind {
            "fat32" => fsck_fat(&self.file, 0, 400 << 20),
            "ext4" => said(run("e2fsck", ["-fn", text])),
            _ => {
                let on = Loop::attach(&self.file, 0, 0, true);
                said(run("ntfsfix", ["-n", on.device.to_str().unwrap()]))
            }
        }
    }
    fn journal(&self) -> String {
        self.dir.path().join("journal").to_str().unwrap().to_owned()
    }
    fn relink(&self, image: &str, more: &[&str]) -> Out {
        let address = format!("{}//vm/{image}", self.file.display());
        let journal = self.journal();
        let mut list = vec!["relink", &address, "--into", "out", "--journal", &journal, "--json"];
        list.extend(more);
        unimage(list)
    }
    /// What is on it is the guest's files below `out`, and of the older ones all but `gone`.
    #[track_caller]
    fn holds(&self, rows: &[Row], guest: &Seens, gone: &[&str]) {
        assert_eq!(self.fsck(), Vec::<String>::new(), "{}", self.kind);
        let written: BTreeMap<&str, &str> =
            rows.iter().filter_map(|r| Some((r.path.as_str(), r.written.as_deref()?))).collect();
        let mut want = self.before.clone();
        want.retain(|path, _| !gone.iter().any(|g| *path == format!("vm/{g}")));
        for (path, file) in guest {
            let to = written.get(path.as_str()).unwrap_or_else(|| panic!("{path} was not written"));
            want.insert(format!("out/{to}"), common::Seen { mtime: 0, ..file.clone() });
        }
        same_tree(&want, &self.seen(), self.kind);
    }
    #[track_caller]
    fn undone(&self) {
        unimage(["undo", &self.journal()]).exits(0);
        fs::remove_file(self.journal()).unwrap();
        assert_eq!(self.fsck(), Vec::<String>::new(), "{} after undo", self.kind);
        same_tree(&self.before, &self.seen(), "undone");
    }
}

fn counts(rows: &[Row], verdict: &str, reason: &str) -> usize {
    rows.iter().filter(|r| r.kind == "file" && r.verdict == verdict && r.reason == reason).count()
}

fn there_and_back(kind: &str, host: &'static str) {
    let guest = Guest::new(kind);
    let host = Host::new(host, guest.dir.path(), &CHAIN);
    // The snapshot would go with the image: not without a word.
    let refused = host.relink("top.qcow2", &["--commit"]).exits(4);
    assert!(
        refused.stderr.contains("before the third") && refused.stderr.contains("--discard-rest"),
        "{}",
        refused.stderr
    );
    same_tree(&host.before, &host.seen(), "refused");
    // The top alone: what is below stays, and is copied.
    let done = host.relink("top.qcow2", &["--commit", "--discard-rest"]).exits(0);
    let all = rows(&done.stdout);
    assert!(counts(&all, "link", "") >= 5 && counts(&all, "copy", "shared") >= 20, "{}", done.stdout);
    assert!(counts(&all, "copy", "container-compressed") >= 5, "{}", done.stdout);
    host.holds(&all, &guest.files, &CHAIN[2..]);
    host.undone();
    // The whole chain goes, and nothing of it needs to be copied but what is compressed or in pieces.
    let done = host.relink("top.qcow2", &["--commit", "--discard-rest", "--remove-chain"]).exits(0);
    let all = rows(&done.stdout);
    assert!(counts(&all, "link", "") >= 50 && counts(&all, "copy", "shared") == 0, "{}", done.stdout);
    host.holds(&all, &guest.files, &CHAIN);
    host.undone();
    // The image still reads, and so does its snapshot.
    let snapshot = format!("{}//vm/top.qcow2@before the third//", host.file.display());
    let listed = unimage(["ls", "-R", &snapshot]).exits(0);
    assert!(listed.stdout.contains("second") && !listed.stdout.contains("third"), "{}", listed.stdout);
    // The snapshot, relinked: its own address.
    let snapshot = snapshot.trim_end_matches('/');
    let journal = host.journal();
    unimage(["relink", snapshot, "--into", "out", "--journal", &journal, "--json", "--commit", "--discard-rest"])
        .exits(0);
    assert_eq!(host.fsck(), Vec::<String>::new());
    assert!(host.seen().keys().any(|p| p.starts_with("out/second/")) && !host.seen().contains_key("vm/top.qcow2"));
    host.undone();
}

#[test]
fn ntfs_on_fat32() {
    there_and_back("ntfs", "fat32");
}
#[test]
fn ntfs_on_ext4() {
    there_and_back("ntfs", "ext4");
}
#[test]
fn ext4_on_ntfs() {
    there_and_back("ext4", "ntfs");
}
#[test]
fn ext4_on_fat32() {
    there_and_back("ext4", "fat32");
}

/// Two states of an image differ in the files that were written in between, and little is read to find them.
#[test]
fn states_compared() {
    for kind in ["ntfs", "ext4"] {
        let guest = Guest::new(kind);
        let top = guest.dir.path().join(CHAIN[2]).to_str().unwrap().to_owned();
        let before = format!("{top}@before the third");
        let out = unimage(["diff", "--json", &before, &top]).exits(1);
        let lines: Vec<serde_json::Value> = out.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let of = |change: &str| -> Vec<&str> {
            let rows = lines.iter().filter(|l| l["type"] == "entry" && l["change"] == change && l["kind"] == "file");
            rows.map(|l| l["path"].as_str().unwrap()).collect()
        };
        assert_eq!(of("changed"), ["first/file 5"], "{}", out.stdout);
        let added = of("added");
        assert!(added.len() == 30 && added.iter().all(|p| p.starts_with("third/")), "{}", out.stdout);
        assert_eq!(of("removed"), [""; 0]);
        let read = lines.last().unwrap()["read"].as_u64().unwrap();
        assert!(read < 2 << 20, "{read} bytes were read");
        // The other way round, and nothing between a state and itself.
        let back = unimage(["diff", &top, &before]).exits(1);
        assert_eq!(back.stdout.lines().filter(|l| l.starts_with("removed") && l.contains("third/file")).count(), 30);
        assert_eq!(unimage(["diff", &before, &before]).exits(0).stdout, "");
        // Against a copy elsewhere, everything is read, and the same is found.
        let raw = guest.dir.path().join("copy.raw");
        ok(
            "qemu-img",
            [
                "convert",
                "-l",
                "snapshot.name=before the third",
                "-f",
                "qcow2",
                "-O",
                "raw",
                &top,
                raw.to_str().unwrap(),
            ],
        );
        let far = unimage(["diff", raw.to_str().unwrap(), &top]).exits(1);
        let near = unimage(["diff", &before, &top]).exits(1);
        assert_eq!(far.stdout, near.stdout);
        // A path in every state.
        let file = format!("{top}//third/file 4");
        let all = unimage(["ls", "--all-snapshots", "-l", &file]).exits(0).stdout;
        assert!(all.contains("\"before the third\"") && all.contains("(not there)") && all.contains("today:"), "{all}");
        // And what info says of it.
        let info = unimage(["info", "--json", &top]).exits(0).stdout;
        let image: serde_json::Value = serde_json::from_str(info.lines().nth(1).unwrap()).unwrap();
        let files: Vec<_> = image["files"].as_array().unwrap().iter().map(|f| f["depth"].as_u64().unwrap()).collect();
        assert_eq!(files, [1, 2]);
        assert_eq!(image["snapshots"][0]["name"], "before the third");
        assert!(image["snapshots"][0]["made"].as_str().unwrap().starts_with("20"));
    }
}

/// The file with the guest's data goes with the image, from whatever folder below.
#[test]
fn a_data_file_goes_with_its_image() {
    let made = scratch();
    let raw = made.path().join("guest.raw");
    let mut random = Noise::new(5);
    guest::bare_ntfs(&raw, 24 << 20, 4096, |root| fill(root, &mut random, "files", 40));
    let files = tree(&Mount::ntfs(&raw, 0, 0, "ro").dir);
    at(
        made.path(),
        "qemu-img",
        &["convert", "-f", "raw", "-O", "qcow2", "-o", "data_file=data.img", "guest.raw", "disk.qcow2"],
    );
    for kind in ["fat32", "ext4", "ntfs"] {
        let host = Host::new(kind, made.path(), &["disk.qcow2", "data.img"]);
        let done = host.relink("disk.qcow2", &["--commit"]).exits(0);
        let all = rows(&done.stdout);
        assert!(counts(&all, "link", "") >= 20, "{}", done.stdout);
        host.holds(&all, &files, &["disk.qcow2", "data.img"]);
        host.undone();
    }
}

/// A relink of several files that is killed is as before or as after, once it was recovered.
#[test]
fn killed_while_two_files_are_removed() {
    let made = scratch();
    let raw = made.path().join("guest.raw");
    let mut random = Noise::new(6);
    guest::bare_ntfs(&raw, 24 << 20, 4096, |root| fill(root, &mut random, "files", 40));
    let files = tree(&Mount::ntfs(&raw, 0, 0, "ro").dir);
    let options = "data_file=data.img";
    at(made.path(), "qemu-img", &["convert", "-f", "raw", "-O", "qcow2", "-o", options, "guest.raw", "disk.qcow2"]);
    for kind in ["ext4", "ntfs"] {
        let host = Host::new(kind, made.path(), &["disk.qcow2", "data.img"]);
        let (log, kept) = (host.dir.path().join("trace"), host.dir.path().join("kept.img"));
        guest::copy_sparse(&host.file, &kept);
        let address = format!("{}//vm/disk.qcow2", host.file.display());
        let list = ["relink", &address, "--into", "out", "--journal", &host.journal(), "--json", "--commit"];
        let list: Vec<String> = list.iter().map(|s| (*s).to_owned()).collect();
        let call = ["-e", "trace=pwrite64"];
        let done = strace(&call, &log, UNIMAGE, &list).exits(0);
        let all = rows(&done.stdout);
        host.holds(&all, &files, &["disk.qcow2", "data.img"]);
        let after = host.seen();
        let calls = fs::read_to_string(&log).unwrap().lines().filter(|l| l.contains("pwrite64(")).count();
        assert!(calls > 10, "{calls}");
        let mut ends = [0, 0];
        for when in (1..=calls).step_by(if common::long() { 1 } else { (calls / 12).max(1) }) {
            guest::copy_sparse(&kept, &host.file);
            let _ = fs::remove_file(host.journal());
            let inject = format!("inject=pwrite64:signal=KILL:when={when}");
            strace(&["-e", "trace=pwrite64", "-e", &inject], &log, UNIMAGE, &list);
            if Path::new(&host.journal()).exists() {
                let out = unimage(["recover", &host.journal()]);
                // A journal whose header was not written yet says so; nothing was touched then.
                assert!(matches!(out.code, 0 | 3), "killed at {when}: {out}");
            }
            assert_eq!(host.fsck(), Vec::<String>::new(), "{kind} killed at {when}");
            let seen = host.seen();
            let end = [&host.before, &after].iter().position(|s| **s == seen);
            ends[end.unwrap_or_else(|| panic!("{kind} killed at {when}: neither before nor after"))] += 1;
        }
        assert!(ends[0] > 0 && ends[1] > 0, "{kind}: {ends:?}");
    }
}

/// A parent that is not there is exit 3 for every verb; one that lies outside of the image's folder is refused.
#[test]
fn without_its_parent() {
    let guest = Guest::new("ntfs");
    let host = Host::new("fat32", guest.dir.path(), &CHAIN[1..]);
    let address = format!("{}//vm/top.qcow2", host.file.display());
    let whole = format!("{address}//");
    for list in [
        vec!["info", &whole],
        vec!["ls", &whole],
        vec!["map", &whole],
        vec!["plan", &address],
        vec!["relink", &address, "--into", "x"],
        vec!["cat", &format!("{address}//first/file 3")],
    ] {
        let out = unimage(list.clone()).exits(3);
        assert!(out.stderr.contains("base.qcow2") && out.stdout.is_empty(), "{list:?}: {}{}", out.stdout, out.stderr);
    }
    // The parent in a folder of this machine, which the user allows: what is stored there is on another volume.
    let allow = guest.dir.path().to_str().unwrap();
    let plan = unimage(["plan", "--json", "--allow-dir", allow, &address]).exits(0);
    let all = rows(&plan.stdout);
    assert!(counts(&all, "copy", "other-volume") >= 10, "{}", plan.stdout);
    let file = File::open(guest.dir.path().join(CHAIN[0])).unwrap();
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).unwrap();
    assert_eq!(&magic, b"QFI\xfb");
}
