//! What the tests of the command line need: a bare NTFS with everything in it, a small FAT host.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use crate::common::guest::bare_ntfs;
pub use crate::common::guest::partitioned;
pub use crate::common::{Out, UNIMAGE, noise, ok, output, scratch, unimage};

/// A bare NTFS: a folder, fragments, a hole, streams, names that need an escape.
pub struct Ntfs {
    pub image: PathBuf,
    pub files: BTreeMap<String, Vec<u8>>,
    _dir: tempfile::TempDir,
}

pub fn ntfs() -> &'static Ntfs {
    static ONCE: OnceLock<Ntfs> = OnceLock::new();
    ONCE.get_or_init(|| {
        let dir = scratch();
        let image = dir.path().join("guest.raw");
        let mut files = BTreeMap::new();
        for i in 0..20 {
            files.insert(format!("folder/file {i}.bin"), noise(100 + i, 977 * i as usize));
        }
        files.insert("folder/deep/er/big".into(), noise(1, 300_000));
        files.insert("folder/big:Zone.Identifier".into(), b"[ZoneTransfer]\r\n".to_vec());
        files.insert("folder/big".into(), noise(2, 70_000));
        files.insert("ünïcode \u{1F600}.txt".into(), b"text".to_vec());
        let mut holed = vec![0; 1 << 20];
        holed.extend(noise(3, 8192));
        files.insert("holed".into(), holed);
        bare_ntfs(&image, 24 << 20, 4096, |at| {
            fs::create_dir_all(at.join("folder/deep/er")).unwrap();
            for (name, bytes) in files.iter().rev().filter(|(n, _)| !n.contains(':') && *n != "holed") {
                fs::write(at.join(name), bytes).unwrap();
            }
            fs::write(at.join("folder/big:Zone.Identifier"), &files["folder/big:Zone.Identifier"]).unwrap();
            let sparse = File::create(at.join("holed")).unwrap();
            sparse.write_all_at(&files["holed"][1 << 20..], 1 << 20).unwrap();
            fs::write(at.join("red\u{1b}[31m\nnext"), b"control").unwrap();
            fs::write(at.join("per%41cent"), b"%").unwrap();
        });
        Ntfs { image, files, _dir: dir }
    })
}

/// A bare FAT with the NTFS image on it as `vm/win.raw`, in two pieces.
pub fn host() -> &'static (PathBuf, tempfile::TempDir) {
    static ONCE: OnceLock<(PathBuf, tempfile::TempDir)> = OnceLock::new();
    ONCE.get_or_init(|| {
        let dir = scratch();
        let path = dir.path().join("host.raw");
        File::create(&path).unwrap().set_len(64 << 20).unwrap();
        let name = path.to_str().unwrap();
        ok("mkfs.fat", ["-F", "16", "-s", "4", "-n", "HOST", name]);
        let filler = dir.path().join("filler");
        fs::write(&filler, noise(5, 100_000)).unwrap();
        ok("mmd", ["-i", name, "::/vm"]);
        ok("mcopy", ["-i", name, filler.to_str().unwrap(), "::/first"]);
        ok("mcopy", ["-i", name, filler.to_str().unwrap(), "::/vm/Long name of a file.txt"]);
        // mtools takes the first free cluster: the image begins where the first file was and goes on behind the second.
        ok("mdel", ["-i", name, "::/first"]);
        ok("mcopy", ["-i", name, ntfs().image.to_str().unwrap(), "::/vm/win.raw"]);
        (path, dir)
    })
}

pub fn json(args: &[&str]) -> Vec<serde_json::Value> {
    let out = unimage(args).exits(0);
    out.stdout.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

pub fn entries(args: &[&str]) -> Vec<serde_json::Value> {
    json(args).into_iter().filter(|r| r["type"] == "entry").collect()
}

pub fn bytes_of(args: &[&str]) -> Vec<u8> {
    let out = Command::new(UNIMAGE).args(args).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

pub fn shell(script: &str, args: &[&str]) -> Out {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(UNIMAGE).args(args);
    output(&mut command)
}

/// A small FAT16 with an older file and, as `disk.raw`, an NTFS image.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub file: PathBuf,
    guest: Vec<u8>,
    before: Vec<u8>,
    /// Bytes before the data area: boot sector, both FATs, the root directory.
    tables: usize,
}

impl Host {
    pub fn new() -> Self {
        let dir = scratch();
        let image = dir.path().join("image");
        bare_ntfs(&image, 3 << 20, 4096, |at| {
            fs::create_dir(at.join("sub folder")).unwrap();
            for i in 0..8 {
                fs::write(at.join(format!("sub folder/file number {i}.txt")), noise(10 + i, 1700 * i as usize))
                    .unwrap();
            }
            fs::write(at.join("top.bin"), noise(20, 30_000)).unwrap();
            fs::write(at.join("top.bin:alt"), noise(21, 2000)).unwrap();
            fs::write(at.join("small"), b"resident").unwrap();
        });
        let file = dir.path().join("host.raw");
        let name = file.to_str().unwrap();
        File::create(&file).unwrap().set_len(8 << 20).unwrap();
        ok("mkfs.fat", ["-F", "16", "-s", "1", name]);
        let older = dir.path().join("older");
        fs::write(&older, noise(30, 10_000)).unwrap();
        ok("mcopy", ["-i", name, older.to_str().unwrap(), "::/Older file.bin"]);
        ok("mcopy", ["-i", name, image.to_str().unwrap(), "::/disk.raw"]);
        let said = ok("fsck.fat", ["-n", "-v", name]);
        let start = said.lines().find_map(|l| l.trim().strip_prefix("Data area starts at byte ")).unwrap();
        let tables = start.split(' ').next().unwrap().parse().unwrap();
        Self { guest: fs::read(&image).unwrap(), before: fs::read(&file).unwrap(), dir, file, tables }
    }
    pub fn name(&self) -> &str {
        self.file.to_str().unwrap()
    }
    /// The address of the image.
    pub fn image(&self) -> String {
        format!("{}//disk.raw", self.name())
    }
    pub fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }
    /// Whether no byte of it was written.
    pub fn is_untouched(&self) -> bool {
        fs::read(&self.file).unwrap() == self.before
    }
    /// Whether its tables are as they were, and the image is there with all its bytes.
    pub fn is_as_before(&self) -> bool {
        let back = self.dir.path().join("back");
        ok("mcopy", ["-n", "-o", "-i", self.name(), "::/disk.raw", back.to_str().unwrap()]);
        fs::read(&self.file).unwrap()[..self.tables] == self.before[..self.tables]
            && fs::read(&back).unwrap() == self.guest
    }
    pub fn reset(&self) {
        fs::write(&self.file, &self.before).unwrap();
        let _ = fs::remove_file(self.journal());
    }
}
