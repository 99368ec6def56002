//! Relinks on hosts with less than 1 % of free space, of a guest of which 30 % of the bytes have to be copied: `--reuse` puts the
//! copies into units of the image. Judged by the checkers and drivers of each host, against what other programs wrote into the guest.

mod common;
mod exfat_support;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::host::{Place, Row, json_lines, rows};
use common::{Loop, Mount, Noise, Out, Seens, ok, same_tree, scratch, sha256_file, tree, unimage};

const MIB: u64 = 1 << 20;

/// Files of any size below a folder, `len` bytes with what they take beside.
fn fill(root: &Path, len: u64, seed: u64) {
    let mut noise = Noise::new(seed);
    let mut left = len;
    for i in 0.. {
        let size = match i % 50 {
            7 => 900_000 + noise.below(900_000),
            n if n % 3 == 0 => noise.below(90_000),
            _ => noise.below(9000),
        };
        let cost = size.next_multiple_of(4096) + 128;
        if left < cost {
            break;
        }
        left -= cost;
        let dir = root.join(format!("folder {}/deeper {}", i / 200, i / 40));
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join(format!("a file with number {i}"));
        fs::write(&path, noise.bytes(size as usize)).unwrap();
        dated(&path, i);
    }
}

/// A time that FAT can hold.
fn dated(path: &Path, i: u64) {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_500_000_000 + 2 * i);
    File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

/// A guest of two FAT volumes of clusters of 4 KiB: the second one begins in the midst of a cluster, and has 30 % of all bytes. Both
/// are almost full.
fn guest(path: &Path) -> Seens {
    let parts = [(2048, 66 * MIB / 512), (2048 + 66 * MIB / 512 + 3, 30 * MIB / 512)];
    File::create(path).unwrap().set_len((parts[1].0 + parts[1].1) * 512 + MIB).unwrap();
    let mut table = String::from("label: dos\n");
    for (start, sectors) in parts {
        table += &format!("start={start}, size={sectors}, type=6\n");
    }
    let mut sfdisk = Command::new("sfdisk")
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    sfdisk.stdin.take().unwrap().write_all(table.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success());
    let mut seen = Seens::new();
    for (n, (start, sectors)) in (1..).zip(parts) {
        {
            let on = Loop::attach(path, start * 512, sectors * 512, false);
            ok("mkfs.fat", args!["-F", "16", "-s", "8", "-r", "64", *on.device.as_os_str()]);
        }
        let source = scratch();
        let root = source.path().join("top");
        fs::create_dir(&root).unwrap();
        fill(&root, sectors * 512 - MIB / 2, n);
        ok("mcopy", args!["-s", "-m", "-i", format!("{}@@{}", path.display(), start * 512), *root.as_os_str(), "::/"]);
        seen.extend(tree(&root).into_iter().map(|(name, file)| (format!("p{n}/top/{name}"), file)));
    }
    seen
}

/// A host that is no FAT or exFAT.
struct Plain {
    dir: tempfile::TempDir,
    file: PathBuf,
}

impl Plain {
    fn new(len: u64) -> Self {
        let dir = scratch();
        let file = dir.path().join("host.raw");
        File::create(&file).unwrap().set_len(len).unwrap();
        Self { dir, file }
    }
    /// The image and a file that leaves some free clusters of 4 KiB, through a mount.
    fn load(root: &Path, image: &Path, leave: u64) {
        fs::copy(image, root.join("disk.raw")).unwrap();
        fs::create_dir(root.join("older")).unwrap();
        fs::write(root.join("older/file"), Noise::new(5).bytes(50_000)).unwrap();
        let filler = root.join("filler");
        fs::write(&filler, [7; 5000]).unwrap();
        ok("sync", args!["-f", *filler.as_os_str()]);
        let free = rustix::fs::statvfs(root).unwrap().f_bfree;
        fs::write(&filler, Noise::new(7).bytes((free - leave) as usize * 4096)).unwrap();
    }
    /// NTFS with the image, and about so many free clusters.
    fn ntfs(image: &Path, mib: u64, leave: u64) -> Self {
        let host = Self::new(mib * MIB);
        ok("mkntfs", args!["-q", "-F", "-Q", "-p", "0", "-H", "16", "-S", "63", "-c", "4096", *host.file.as_os_str()]);
        let mount = Mount::ntfs(&host.file, 0, 0, "rw,noatime");
        Self::load(&mount.dir, image, leave);
        drop(mount);
        host
    }
    /// ext4 with the image, and about so many free blocks.
    fn ext(image: &Path, mib: u64, leave: u64) -> Self {
        let host = Self::new(mib * MIB);
        ok("mkfs.ext4", args!["-q", "-b", "4096", "-m", "0", "-J", "size=4", *host.file.as_os_str()]);
        {
            let on = Ext::mount(&host.file, "rw");
            Self::load(&on.dir, image, 1500);
        }
        // The driver keeps some blocks back: these go to a file by another way.
        let rest = host.dir.path().join("rest");
        let (free, _) = host.ext_blocks();
        fs::write(&rest, Noise::new(8).bytes((free - leave - 2) as usize * 4096)).unwrap();
        ok("debugfs", args!["-w", "-R", format!("write {} rest", rest.display()), *host.file.as_os_str()]);
        host
    }
    /// Free blocks, and all, by dumpe2fs.
    fn ext_blocks(&self) -> (u64, u64) {
        let said = ok("dumpe2fs", args!["-h", *self.file.as_os_str()]);
        let of = |what: &str| said.lines().find_map(|l| l.strip_prefix(what)).unwrap().trim().parse().unwrap();
        (of("Free blocks:"), of("Block count:"))
    }
    fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }
    fn relink(&self, more: &[&str]) -> Out {
        let address = format!("{}//disk.raw", self.file.display());
        let journal = self.journal().display().to_string();
        unimage([&["relink", &address, "--into", "/out", "--journal", &journal], more].concat())
    }
}

/// Refused without `--reuse`, in words that say so; done with it, and not to be undone. Gives the rows.
fn reused(relink: &dyn Fn(&[&str]) -> Out, journal: &Path, free: f64) -> Vec<Row> {
    let refused = relink(&["--commit"]).exits(4);
    assert!(refused.stderr.contains("with --reuse it would fit"), "{refused}");
    assert!(!journal.exists());
    let dry = relink(&["--reuse", "--json"]).exits(0);
    let summary = json_lines(&dry.stdout).2;
    assert!(!journal.exists());
    assert_eq!((&summary["undo"], &summary["reuse"]["used"]), (&false.into(), &true.into()), "{summary}");
    assert!(summary["reuse"]["batches"].as_u64() > Some(1), "{summary}");
    let of = |what: &str| summary[what]["bytes"].as_f64().unwrap();
    let share = of("copied") / (of("copied") + of("linked"));
    println!("{:.1} % copied, {:.2} % free, {}", share * 100.0, free * 100.0, summary["reuse"]);
    assert!(share > 0.3 && free < 0.01, "{share} {free}");
    let done = relink(&["--reuse", "--commit", "--json"]).exits(0);
    let size = fs::metadata(journal).unwrap().len();
    let most = json_lines(&done.stdout).2["journal_bytes"].as_u64().unwrap();
    assert!(size <= most, "{size} bytes of journal, {most} planned");
    let undo = unimage(args!["undo", *journal.as_os_str()]).exits(4);
    assert!(undo.stderr.contains("undo is off"), "{undo}");
    let recover = unimage(args!["recover", *journal.as_os_str()]).exits(0);
    assert!(recover.stdout.contains("nothing was written"), "{recover}");
    rows(&done.stdout)
}

/// A guest of 12 MB of files, as an image of some 2 MB: all has to be decoded, and is larger than the image's units.
fn packed(dir: &Path) -> PathBuf {
    let (raw, image) = (dir.join("raw"), dir.join("packed"));
    File::create(&raw).unwrap().set_len(16 * MIB).unwrap();
    ok("mkfs.fat", args!["-F", "16", "-s", "4", *raw.as_os_str()]);
    let root = dir.join("top");
    fs::create_dir(&root).unwrap();
    let mut noise = Noise::new(9);
    for i in 0..12 {
        fs::write(root.join(format!("log {i}")), noise.text(1_000_000)).unwrap();
    }
    ok("mcopy", args!["-s", "-i", *raw.as_os_str(), *root.as_os_str(), "::/"]);
    ok("qemu-img", args!["convert", "-q", "-c", "-O", "qcow2", *raw.as_os_str(), *image.as_os_str()]);
    assert!(fs::metadata(&image).unwrap().len() < 4 * MIB);
    image
}

/// What fits in no way: the plan says so, with and without `--reuse`, and nothing is written.
fn refused(kind: &str, file: &Path, plan: &dyn Fn(&[&str]) -> Out, relink: &dyn Fn(&[&str]) -> Out, journal: &Path) {
    let before = sha256_file(file);
    for (reuse, words) in [
        (&[][..], "; --reuse would not help"),
        (&["--reuse"], ", and units of the image that no file is linked to have "),
    ] {
        let what = format!("{kind} {reuse:?}");
        // The plan is a plan: it says why nothing can be done by it.
        let said = plan(&[reuse, &["--json"]].concat()).exits(0);
        let summary = json_lines(&said.stdout).2;
        let refusals: Vec<_> = said.stdout.lines().filter(|l| l.contains(r#""type":"refusal""#)).collect();
        assert!(matches!(refusals[..], [one] if one.contains(words)), "{what}: {refusals:?}");
        assert!(summary["space_needed"].as_u64() > summary["space_free"].as_u64(), "{what}: {summary}");
        assert!(summary["reuse"].is_null(), "{what}: {summary}");
        let text = plan(reuse).exits(0).stdout;
        let line = text.lines().find(|l| l.trim_start().starts_with("refused")).unwrap_or_default();
        assert!(line.contains("not enough free space on the host: ") && line.contains(words), "{what}: {text}");
        for commit in [&[][..], &["--commit"]] {
            let out = relink(&[reuse, commit].concat()).exits(4);
            let all: Vec<_> = out.stderr.lines().filter(|l| l.contains("refused: ")).collect();
            assert!(
                matches!(all[..], [one] if one.contains("not enough free space on the host: ") && one.contains(words)),
                "{what}: {out}"
            );
            assert!(!journal.exists(), "{what}");
        }
        assert_eq!(sha256_file(file), before, "{what}: something was written");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let dir = scratch();
    let image = packed(dir.path());
    let plan = |address: String| move |more: &[&str]| unimage([&["plan", address.as_str()], more].concat());
    let shape = exfat_support::host::Shape { unit: "4K", len: 32 * MIB, fragments: 3, partition: true };
    let mut host = exfat_support::host::Host::with(shape, &image, &["-b", "64K"]);
    host.fill_up(50);
    let address = host.path(exfat_support::host::IMAGE);
    refused("exFAT", &host.file, &plan(address), &|more| host.relink(more), &host.journal());

    let shape = common::host::Shape { width: 16, cluster_sectors: 8, len: 32 * MIB, place: Place::Bare, fragments: 3 };
    let mut host = common::host::Host::new(shape, &image);
    host.fill_up(50);
    refused("FAT", &host.file, &plan(host.image()), &|more| host.relink(more), &host.journal());

    for (kind, host) in [("NTFS", Plain::ntfs(&image, 40, 50)), ("ext4", Plain::ext(&image, 40, 50))] {
        let address = format!("{}//disk.raw", host.file.display());
        refused(kind, &host.file, &plan(address), &|more| host.relink(more), &host.journal());
    }
}

/// What the host has to hold: `older`, and the guest's files where the rows say.
fn expected(older: &Seens, rows: &[Row], guest: &Seens) -> Seens {
    let mut all = older.clone();
    for (path, seen) in guest {
        let row = rows.iter().find(|r| r.path == *path).unwrap_or_else(|| panic!("no row for {path:?}"));
        all.insert(format!("out/{}", row.written.as_ref().unwrap()), seen.clone());
    }
    all
}

#[test]
fn exfat() {
    let dir = scratch();
    let image = dir.path().join("guest");
    let files = guest(&image);
    for (unit, fragments) in [("4K", 1), ("4K", 90)] {
        let shape = exfat_support::host::Shape { unit, len: 120 * MIB, fragments, partition: fragments == 1 };
        let mut host = exfat_support::host::Host::new(shape, &image);
        host.fill_up(200);
        let free = 200.0 / f64::from(host.exfat.clusters);
        let rows = reused(&|more| host.relink(more), &host.journal(), free);
        host.relinked("out", &rows, &files);
    }
}

/// Large clusters, and few large files of which none begins where a cluster of the host does.
#[test]
fn exfat_with_large_clusters() {
    let dir = scratch();
    let image = dir.path().join("guest");
    File::create(&image).unwrap().set_len(92 * MIB).unwrap();
    ok("mkfs.fat", args!["-F", "16", "-s", "8", "-r", "64", *image.as_os_str()]);
    let root = dir.path().join("top");
    fs::create_dir(&root).unwrap();
    let mut noise = Noise::new(6);
    for i in 0..11 {
        let path = root.join(format!("disk {i}.vmdk"));
        fs::write(&path, noise.bytes(8_100_000 + i * 999)).unwrap();
        dated(&path, i as u64);
    }
    ok("mcopy", args!["-s", "-m", "-i", *image.as_os_str(), *root.as_os_str(), "::/"]);
    let files: Seens = tree(&root).into_iter().map(|(name, file)| (format!("top/{name}"), file)).collect();
    for (unit, leave, fragments, partition) in [("128K", 8, 1, true), ("128K", 8, 30, false), ("32K", 30, 60, true)] {
        let shape = exfat_support::host::Shape { unit, len: 120 * MIB, fragments, partition };
        let mut host = exfat_support::host::Host::new(shape, &image);
        host.fill_up(leave);
        let free = leave as f64 / f64::from(host.exfat.clusters);
        let rows = reused(&|more| host.relink(more), &host.journal(), free);
        host.relinked("out", &rows, &files);
    }
}

#[test]
fn fat() {
    let dir = scratch();
    let image = dir.path().join("guest");
    let files = guest(&image);
    let shape = common::host::Shape { width: 16, cluster_sectors: 8, len: 120 * MIB, place: Place::Gpt, fragments: 40 };
    let mut host = common::host::Host::new(shape, &image);
    host.fill_up(200);
    let rows = reused(&|more| host.relink(more), &host.journal(), 200.0 / f64::from(host.fat.clusters));
    host.relinked(&rows, &files);
}

#[test]
fn ntfs() {
    let dir = scratch();
    let image = dir.path().join("guest");
    let files = guest(&image);
    let host = Plain::ntfs(&image, 130, 200);
    let seen = || tree(&Mount::ntfs(&host.file, 0, 0, "ro").dir);
    let mut older = seen();
    older.remove("disk.raw").unwrap();
    let space = {
        let mount = Mount::ntfs(&host.file, 0, 0, "ro");
        rustix::fs::statvfs(&mount.dir).unwrap()
    };
    let rows = reused(&|more| host.relink(more), &host.journal(), space.f_bfree as f64 / space.f_blocks as f64);
    same_tree(&expected(&older, &rows, &files), &seen(), "the host after relink, read by ntfs-3g");
    for args in [&["ntfsresize", "-i", "-f"][..], &["ntfsfix", "-n"]] {
        let out = Command::new(args[0]).args(&args[1..]).arg(&host.file).stdin(Stdio::null()).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success() && !["ERROR", "WARN", "FAILED"].iter().any(|w| text.contains(w)), "{text}");
    }
}

#[test]
fn ext() {
    let dir = scratch();
    let image = dir.path().join("guest");
    let files = guest(&image);
    let host = Plain::ext(&image, 130, 200);
    let (free, blocks) = host.ext_blocks();
    let seen = || tree(&Ext::mount(&host.file, "ro").dir);
    let mut older = seen();
    older.remove("disk.raw").unwrap();
    let rows = reused(&|more| host.relink(more), &host.journal(), free as f64 / blocks as f64);
    same_tree(&expected(&older, &rows, &files), &seen(), "the host after relink, read by the kernel");
    let out = Command::new("e2fsck").arg("-fn").arg(&host.file).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let usual = |l: &&str| l.starts_with("Pass ") || l.starts_with("e2fsck ") || l.contains(" files (");
    assert_eq!(text.lines().find(|l| !usual(l)), None, "{text}");
}

/// A mount by the kernel.
struct Ext {
    dir: PathBuf,
    _at: tempfile::TempDir,
}

impl Ext {
    fn mount(file: &Path, how: &str) -> Self {
        let at = scratch();
        let dir = at.path().to_path_buf();
        ok("mount", args!["-t", "ext4", "-o", format!("loop,{how}"), *file.as_os_str(), *dir.as_os_str()]);
        Self { dir, _at: at }
    }
}

impl Drop for Ext {
    fn drop(&mut self) {
        ok("umount", args![*self.dir.as_os_str()]);
    }
}
