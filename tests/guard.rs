//! Who else has the host: mounts, loop devices, FUSE, writers, partitions; and where a journal may lie. With the system's own tools.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use unimage::source::{guard, medium};

const MIB: u64 = 1 << 20;

fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(out.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap().trim().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Undoes what a test set up, also when it fails.
struct Undo(Vec<Vec<String>>);

impl Undo {
    fn later(&mut self, command: &[&str]) {
        self.0.push(command.iter().map(|s| (*s).to_owned()).collect());
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        while let Some(command) = self.0.pop() {
            let _ = Command::new(&command[0]).args(&command[1..]).output();
        }
    }
}

struct Bench {
    undo: Undo,
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { undo: Undo(Vec::new()), dir: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap() }
    }
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn folder(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        path
    }
    fn file(&self, name: &str, len: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(len).unwrap();
        path
    }
    fn attach(&mut self, args: &[&str]) -> String {
        let node = run("losetup", &[&["-f", "--show"], args].concat());
        self.undo.later(&["losetup", "-d", &node]);
        node
    }
    fn mount(&mut self, args: &[&str], at: &Path) {
        run("mount", &[args, &[text(at)]].concat());
        self.undo.later(&["umount", text(at)]);
    }
}

fn reasons(host: impl AsRef<Path>, at: u64, len: u64) -> Vec<String> {
    guard::host(host.as_ref(), at, len).unwrap()
}

fn assert_one(found: &[String], words: &str) {
    assert!(found.iter().any(|r| r.contains(words)), "{words:?} in {found:?}");
}

#[test]
fn a_file_that_nobody_has_may_be_written() {
    let b = Bench::new();
    let host = b.file("host.img", MIB);
    assert_eq!(reasons(&host, 0, MIB), [""; 0]);
    // A reader, such as this process's own, does no harm.
    let _reader = File::open(&host).unwrap();
    assert_eq!(reasons(&host, 0, MIB), [""; 0]);
}

#[test]
fn mounted_through_a_loop_device_over_a_part_of_the_file() {
    let mut b = Bench::new();
    let host = b.file("host.img", 16 * MIB);
    let other_name = b.path("other name");
    fs::hard_link(&host, &other_name).unwrap();
    let node = b.attach(&["-o", "1048576", "--sizelimit", "8388608", text(&host)]);
    run("mkfs.ext4", &["-q", &node]);
    assert_eq!(reasons(&host, MIB, 8 * MIB), [""; 0], "attached, but used by nobody");

    let at = b.folder("mounted here");
    b.mount(&[&node], &at);
    for name in [&host, &other_name] {
        assert_one(&reasons(name, MIB, 8 * MIB), "mounted here");
        assert_one(&reasons(name, 0, 16 * MIB), "it is mounted on");
        assert_eq!(reasons(name, 9 * MIB, 7 * MIB), [""; 0], "another part of the same file");
        assert_eq!(reasons(name, 0, MIB), [""; 0], "another part of the same file");
    }
    assert_one(&reasons(&node, 0, 8 * MIB), "it is mounted on");
    let Err(error) = medium::open_host(Path::new(&node), 0, 8 * MIB) else { panic!("opened a mounted device") };
    assert_eq!(error.exit_code(), 4, "{error}");

    // The journal: beside the host file it may lie, on what is mounted from the host it may not.
    let journal = |path: &Path| guard::journal(path, &host, MIB, 8 * MIB).unwrap();
    assert_eq!(journal(&b.path("new.journal")), [""; 0]);
    assert_one(&journal(&at.join("new.journal")), "on the host volume");
    assert_one(&guard::journal(&at.join("j"), Path::new(&node), 0, 8 * MIB).unwrap(), "on the host volume");
    assert_eq!(guard::journal(&at.join("j"), &host, 9 * MIB, 7 * MIB).unwrap(), [""; 0]);

    // Nor on what is mounted from a file in it.
    let inner = at.join("inner.img");
    File::create(&inner).unwrap().set_len(4 * MIB).unwrap();
    run("mkfs.ext4", &["-q", text(&inner)]);
    let inner_node = b.attach(&[text(&inner)]);
    let inner_at = b.folder("inner");
    b.mount(&[&inner_node], &inner_at);
    assert_one(&journal(&inner_at.join("new.journal")), "on the host volume");
}

#[test]
fn a_mount_in_another_namespace_counts() {
    let mut b = Bench::new();
    let host = b.file("host.img", 8 * MIB);
    run("mkfs.ext4", &["-q", text(&host)]);
    let node = b.attach(&[text(&host)]);
    let at = b.folder("apart");
    let script = format!("mount --make-rprivate / && mount {node} {} && echo ready && read line", at.display());
    let mut elsewhere = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_line(&mut elsewhere);
    assert!(!fs::read_to_string("/proc/self/mountinfo").unwrap().contains("/apart "), "it is not this one's mount");
    let found = reasons(&host, 0, 8 * MIB);
    elsewhere.stdin.take().unwrap().write_all(b"\n").unwrap();
    elsewhere.wait().unwrap();
    assert_one(&found, "it is mounted on");
}

fn wait_for_line(child: &mut Child) {
    use std::io::Read;
    let mut byte = [0];
    let out = child.stdout.as_mut().unwrap();
    while byte != *b"\n" {
        out.read_exact(&mut byte).unwrap();
    }
}

#[test]
fn mounted_by_fuse() {
    let mut b = Bench::new();
    let fat = b.file("fat.img", 8 * MIB);
    run("mkfs.fat", &[text(&fat)]);
    let ntfs = b.file("ntfs.img", 8 * MIB);
    run("mkntfs", &["-F", "-q", text(&ntfs)]);
    let (fat_at, ntfs_at) = (b.folder("fat"), b.folder("ntfs"));
    for write in ["ro", "rw+"] {
        run("fusefat", &["-o", write, text(&fat), text(&fat_at)]);
        b.undo.later(&["umount", text(&fat_at)]);
        assert_one(&reasons(&fat, 0, 8 * MIB), "fusefat");
        run("umount", &[text(&fat_at)]);
        wait_until(|| reasons(&fat, 0, 8 * MIB).is_empty());
    }
    run("ntfs-3g", &["-o", "ro", text(&ntfs), text(&ntfs_at)]);
    b.undo.later(&["umount", text(&ntfs_at)]);
    assert_one(&reasons(&ntfs, 0, 8 * MIB), "it is mounted on");
    run("umount", &[text(&ntfs_at)]);

    let node = b.attach(&[text(&ntfs)]);
    run("ntfs-3g", &[&node, text(&ntfs_at)]);
    b.undo.later(&["umount", text(&ntfs_at)]);
    assert_one(&reasons(&ntfs, 0, 8 * MIB), "it is mounted on");
    assert_one(&guard::journal(&ntfs_at.join("j"), &ntfs, 0, 8 * MIB).unwrap(), "on the host volume");
}

/// A FUSE process ends a moment after its mount.
fn wait_until(done: impl Fn() -> bool) {
    for _ in 0..500 {
        if done() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("waited for 10 seconds");
}

#[test]
fn held_open_by_another_process() {
    let mut b = Bench::new();
    let host = b.file("host.img", MIB);
    let node = b.attach(&[text(&host)]);
    for (redirection, path, expected) in [
        ("<", text(&host), None),
        ("<>", text(&host), Some("has it open for writing")),
        ("<>", &node, Some("has it open for writing")),
        ("<", &node, Some("has a loop device over it open")),
    ] {
        let script = format!("exec 3{redirection}{path}; echo ready; read line");
        let mut holder =
            Command::new("sh").args(["-c", &script]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        wait_for_line(&mut holder);
        let found = reasons(&host, 0, MIB);
        holder.stdin.take().unwrap().write_all(b"\n").unwrap();
        holder.wait().unwrap();
        match expected {
            None => assert_eq!(found, [""; 0], "{script}"),
            Some(words) => assert_one(&found, words),
        }
    }
    assert_eq!(reasons(&host, 0, MIB), [""; 0]);
    // This process's own writer is no other's.
    let _own = OpenOptions::new().write(true).open(&host).unwrap();
    assert_eq!(reasons(&host, 0, MIB), [""; 0]);
}

#[test]
fn of_a_disk_only_the_partition_that_is_written_matters() {
    let mut b = Bench::new();
    let image = b.file("disk.img", 20 * MIB);
    let disk = b.attach(&[text(&image)]);
    for (number, start) in [("1", "2048"), ("2", "18432")] {
        run("addpart", &[&disk, number, start, "16384"]);
        b.undo.later(&["delpart", &disk, number]);
    }
    let (first, second) = (format!("{disk}p1"), format!("{disk}p2"));
    wait_until(|| Path::new(&first).exists() && Path::new(&second).exists());
    run("mkfs.ext4", &["-q", &first]);
    let at = b.folder("first");
    b.mount(&[&first], &at);

    for (path, start) in [(disk.as_str(), MIB), (text(&image), MIB), (&first, 0)] {
        assert_one(&reasons(path, start, 8 * MIB), "it is mounted on");
    }
    for (path, start) in [(disk.as_str(), 9 * MIB), (text(&image), 9 * MIB), (&second, 0)] {
        assert_eq!(reasons(path, start, 8 * MIB), [""; 0], "{path}");
        assert_eq!(guard::journal(&at.join("j"), Path::new(path), start, 8 * MIB).unwrap(), [""; 0], "{path}");
    }
    assert_one(&guard::journal(&at.join("j"), Path::new(&disk), MIB, 8 * MIB).unwrap(), "on the host volume");

    // The kernel lets nobody have the whole disk now; the other partition can be had, through its own node.
    let refused = |start| match medium::open_host(Path::new(&disk), start, 8 * MIB) {
        Ok(_) => panic!("opened what is mounted"),
        Err(e) => e.exit_code(),
    };
    assert_eq!(refused(MIB), 4);
    let opened = medium::open_host(Path::new(&disk), 9 * MIB, 8 * MIB).unwrap();
    assert_eq!((opened.volume_at, opened.medium.len()), (0, 8 * MIB));
    opened.medium.write_at(4096, b"second").unwrap();
    opened.medium.sync().unwrap();
    drop(opened);
    let bytes = fs::read(&second).unwrap();
    assert_eq!(&bytes[4096..4102], b"second");
}

#[test]
fn swap_counts() {
    let mut b = Bench::new();
    let image = b.file("swap.img", 4 * MIB);
    let node = b.attach(&[text(&image)]);
    run("mkswap", &[&node]);
    run("swapon", &[&node]);
    b.undo.later(&["swapoff", &node]);
    assert_one(&reasons(&image, 0, 4 * MIB), "used as swap");
}

#[test]
fn where_a_journal_may_not_lie() {
    let mut b = Bench::new();
    let host = b.file("host.img", MIB);
    let journal = |path: &Path| guard::journal(path, &host, 0, MIB).unwrap();
    assert_eq!(journal(&b.path("beside.journal")), [""; 0]);
    assert_one(&journal(&host), "exists already");
    let dangling = b.path("dangling");
    std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
    assert_one(&journal(&dangling), "exists already");
    let memory = b.folder("memory");
    b.mount(&["-t", "tmpfs", "tmpfs"], &memory);
    assert_one(&journal(&memory.join("j")), "in memory");
    let error = guard::journal(&b.path("no such folder/j"), &host, 0, MIB).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    // Beside the host on which it lies: the host is not that file system, but a file of it.
    let disk = b.file("disk.img", 8 * MIB);
    run("mkfs.ext4", &["-q", text(&disk)]);
    let node = b.attach(&[text(&disk)]);
    let at = b.folder("disk");
    b.mount(&[&node], &at);
    let inside = at.join("host.img");
    File::create(&inside).unwrap().set_len(MIB).unwrap();
    assert_eq!(guard::journal(&at.join("j"), &inside, 0, MIB).unwrap(), [""; 0]);
}

#[test]
fn a_journal_is_made_once_and_has_one_user() {
    let b = Bench::new();
    let path = b.path("new.journal");
    let made = medium::create_journal(&path).unwrap();
    made.medium.write_at(0, b"some bytes").unwrap();
    made.medium.sync().unwrap();
    assert_eq!(medium::create_journal(&path).map(drop).unwrap_err().exit_code(), 4, "it exists");
    assert_eq!(medium::open_journal(&path).map(drop).unwrap_err().exit_code(), 4, "somebody works with it");
    drop(made);
    assert_eq!(medium::open_journal(&path).unwrap().medium.len(), 10);
    assert_eq!(medium::open_journal(&b.path("none")).map(drop).unwrap_err().exit_code(), 3);
}

#[test]
fn a_sparse_host_file_is_made_writable_before_it_is_written() {
    use std::os::unix::fs::MetadataExt;
    let b = Bench::new();
    let path = b.file("host.img", 4 * MIB);
    let host = medium::open_host(&path, 0, 4 * MIB).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().blocks(), 0);
    host.medium.reserve(MIB, MIB).unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.blocks() * 512 / MIB, metadata.len()), (1, 4 * MIB));
    assert_eq!(medium::open_host(&path, 0, MIB).map(drop).unwrap_err().exit_code(), 4, "one writer");
}
