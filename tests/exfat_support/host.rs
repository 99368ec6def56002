//! exFAT hosts that hold an image among older files, and what foreign readers see there.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use unimage::fs::host::{HostFile, HostImage};
use unimage::stack::{self, Address, OpenOptions};

use crate::args;
use crate::common::exfat::ExFat;
use crate::common::fat::first_difference;
use crate::common::guest::copy_sparse;
use crate::common::host::Row;
use crate::common::{Loop, Mount, Noise, Out, Seens, fsck_exfat, ok, same_tree, scratch, sha256, tree, unimage};

/// What a host looks like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Its clusters, as mkfs.exfat takes it.
    pub unit: &'static str,
    /// Bytes of the volume.
    pub len: u64,
    /// Runs of the image on it; 1: in one piece, without a chain.
    pub fragments: u64,
    /// Whether it is the second of two GPT partitions.
    pub partition: bool,
}

/// A host in a file.
pub struct Host {
    /// The folder of the test.
    pub dir: tempfile::TempDir,
    /// The file.
    pub file: PathBuf,
    /// The host volume's address.
    pub address: String,
    /// Its first byte.
    pub base: u64,
    /// Its length.
    pub len: u64,
    /// The older files.
    pub older: Seens,
    /// A copy of the file from before.
    pub before: PathBuf,
    /// The geometry.
    pub exfat: ExFat,
}

/// The name of the image on every host.
pub const IMAGE: &str = "disk.raw";

impl Host {
    /// A new host with older files and the image.
    #[track_caller]
    pub fn new(shape: Shape, image: &Path) -> Self {
        Self::with(shape, image, &[])
    }
    /// With further arguments of mkfs.exfat.
    #[track_caller]
    pub fn with(shape: Shape, image: &Path, mkfs: &[&str]) -> Self {
        let dir = scratch();
        let file = dir.path().join("host.img");
        let base = if shape.partition { 4 << 20 } else { 0 };
        let all = File::create(&file).unwrap();
        all.set_len(base + shape.len + if shape.partition { 1 << 20 } else { 0 }).unwrap();
        if shape.partition {
            let (start, sectors) = (base / 512, shape.len / 512);
            let second = format!("2:{start}:{}", start + sectors - 1);
            ok("sgdisk", args!["-a", "1", "-n", "1:2048:4095", "-n", second, "-t", "2:0700", *file.as_os_str()]);
        }
        {
            let on = Loop::attach(&file, base, shape.len, false);
            ok("mkfs.exfat", [&["-c", shape.unit, "-L", "HOST"], mkfs, &[on.device.to_str().unwrap()]].concat());
        }
        {
            let mount = Mount::exfat(&file, base, shape.len, "rw");
            add_older(&mount.dir);
        }
        let exfat = ExFat::open(&file, base);
        exfat.place(&file, image, IMAGE, shape.fragments);
        let mut host = Self {
            address: format!("{}{}", file.display(), if shape.partition { "//p2" } else { "" }),
            before: dir.path().join("before.img"),
            exfat,
            file,
            dir,
            base,
            len: shape.len,
            older: Seens::new(),
        };
        host.older = tree(&host.mount().dir);
        host.older.remove(IMAGE).expect("the image is on the host");
        assert_eq!(host.fsck(), Vec::<String>::new(), "the host that the test made");
        copy_sparse(&host.file, &host.before);
        host
    }
    /// Fills the free clusters but for so many.
    #[track_caller]
    pub fn fill_up(&mut self, leave: usize) {
        {
            let clusters = self.exfat.free(&self.file).len() - leave;
            let mount = Mount::exfat(&self.file, self.base, self.len, "rw");
            let bytes = Noise::new(7).bytes(clusters * self.exfat.cluster as usize);
            fs::write(mount.dir.join("filler.bin"), bytes).unwrap();
        }
        assert_eq!(self.exfat.free(&self.file).len(), leave);
        assert_eq!(self.fsck(), Vec::<String>::new(), "the host that the test filled");
        self.older = tree(&self.mount().dir);
        self.older.remove(IMAGE).expect("the image is on the host");
        copy_sparse(&self.file, &self.before);
    }
    /// A mount through which it can be read.
    #[track_caller]
    pub fn mount(&self) -> Mount {
        Mount::exfat(&self.file, self.base, self.len, "ro")
    }
    /// What `fsck.exfat -n -v` says too much.
    #[track_caller]
    pub fn fsck(&self) -> Vec<String> {
        fsck_exfat(&self.file, self.base, self.len)
    }
    /// All files as The Sleuth Kit gets them out.
    #[track_caller]
    pub fn recovered(&self) -> Seens {
        let to = tempfile::tempdir_in(self.dir.path()).unwrap();
        let offset = (self.base / 512).to_string();
        ok("tsk_recover", args!["-a", "-f", "exfat", "-o", offset, *self.file.as_os_str(), *to.path().as_os_str()]);
        tree(to.path())
    }
    /// The journal's usual place: beside the host's file.
    pub fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }
    /// The address of a path on the host.
    pub fn path(&self, path: &str) -> String {
        format!("{}{}{path}", self.address, if self.base == 0 { "//" } else { "/" })
    }
    /// Runs `relink` of the image into `/out`.
    #[track_caller]
    pub fn relink(&self, more: &[&str]) -> Out {
        self.relink_into("/out", more)
    }
    /// Runs `relink` of the image.
    #[track_caller]
    pub fn relink_into(&self, into: &str, more: &[&str]) -> Out {
        let mut a = vec!["relink".to_owned(), self.path(&IMAGE.to_ascii_uppercase()), "--into".into(), into.into()];
        a.extend(["--journal".to_owned(), self.journal().display().to_string()]);
        a.extend(more.iter().map(|s| (*s).to_owned()));
        unimage(a)
    }
    /// Runs `undo` or `recover`.
    #[track_caller]
    pub fn journal_verb(&self, verb: &str) -> Out {
        unimage(args![*verb, *self.journal().as_os_str()])
    }
    /// The first byte in use before that is not as it was; none: the host is exactly as before.
    pub fn changed(&self) -> Option<u64> {
        let mut ranges = self.exfat.in_use(&self.before);
        // Outside of the volume nothing may change at all.
        ranges.push((0, self.base));
        let end = File::open(&self.before).unwrap().metadata().unwrap().len();
        assert_eq!(end, File::open(&self.file).unwrap().metadata().unwrap().len(), "the file's length");
        ranges.push((self.exfat.end, end - self.exfat.end));
        first_difference(&self.before, &self.file, &ranges)
    }
    /// Every byte, the free ones too.
    pub fn untouched(&self) -> bool {
        let end = File::open(&self.before).unwrap().metadata().unwrap().len();
        first_difference(&self.before, &self.file, &[(0, end)]).is_none()
    }
    /// Takes the file back to what it was before.
    pub fn reset(&self) {
        copy_sparse(&self.before, &self.file);
        let _ = fs::remove_file(self.journal());
    }
    /// The boot sector's flags and percent in use.
    pub fn state(&self) -> (u8, u8) {
        use std::os::unix::fs::FileExt;
        let mut boot = [0; 512];
        File::open(&self.file).unwrap().read_exact_at(&mut boot, self.base).unwrap();
        (boot[0x6A], boot[0x70])
    }
    /// Checks everything that holds after a relink of this guest into `into`: its files, where the manifest says that
    /// they are, the older files, the checker, the image gone, the bitmap, the part in use.
    #[track_caller]
    pub fn relinked(&self, into: &str, rows: &[Row], guest: &Seens) {
        assert_eq!(self.fsck(), Vec::<String>::new(), "fsck.exfat -n -v after relink");
        let mut expected = self.older.clone();
        let mut by_path = BTreeMap::new();
        for row in rows {
            assert!(by_path.insert(row.path.as_str(), row).is_none(), "two rows for {:?}", row.path);
        }
        for (path, seen) in guest {
            let row = by_path.get(path.as_str()).unwrap_or_else(|| panic!("no row for {path:?}"));
            assert_eq!(row.size, seen.size, "size of {path:?} in its row");
            let to = row.written.as_ref().unwrap_or_else(|| panic!("{path:?} is not written: {row:?}"));
            let to = format!("{into}/{to}").trim_start_matches('/').to_owned();
            assert!(expected.insert(to.clone(), seen.clone()).is_none(), "two files at {to:?}");
        }
        let mut clusters = 0;
        {
            let mount = self.mount();
            let got = tree(&mount.dir);
            same_tree(&expected, &got, "the host after relink, read by exfat-fuse");
            // The streams of a file have no times of their own; the driver shows whole seconds.
            for (path, want) in expected.iter().filter(|(_, s)| s.mtime != 0) {
                let late = want.mtime - got[path].mtime;
                assert!((0..1_000_000_000).contains(&late), "time of {path:?}: {} for {}", got[path].mtime, want.mtime);
            }
            let mut todo = vec![mount.dir.clone()];
            while let Some(dir) = todo.pop() {
                for entry in fs::read_dir(&dir).unwrap() {
                    let path = entry.unwrap().path();
                    let meta = fs::symlink_metadata(&path).unwrap();
                    clusters += meta.size().div_ceil(self.exfat.cluster);
                    todo.extend(meta.is_dir().then_some(path));
                }
            }
        }
        // Every other reader finds the same bytes; it leaves out what is empty, and cuts the longest names.
        let shas = |all: &Seens| -> BTreeSet<(String, u64)> {
            all.values().filter(|s| s.size > 0).map(|s| (s.sha.clone(), s.size)).collect()
        };
        let recovered = self.recovered();
        let wanted = shas(&expected);
        let missing: Vec<_> = wanted.difference(&shas(&recovered)).cloned().collect();
        assert!(missing.is_empty(), "{} contents that tsk_recover did not get: {:?}", missing.len(), missing.first());
        for (path, seen) in &recovered {
            let other = expected.get(path).is_some_and(|e| e.sha != seen.sha);
            assert!(!other, "{path:?} by tsk_recover");
        }
        // By their paths, too, where it does not cut the name.
        let whole = |path: &str| path.rsplit('/').next().unwrap().len() <= 240;
        let lost: Vec<_> =
            expected.iter().filter(|(p, s)| s.size > 0 && whole(p) && !recovered.contains_key(*p)).take(3).collect();
        assert!(lost.is_empty(), "paths that tsk_recover did not get: {lost:?}");
        assert_eq!(self.audited(), Vec::<String>::new(), "the project's own audit");
        // The bitmap has what files and directories need, and what the volume's tables had before.
        let used = u64::from(self.exfat.clusters) - self.exfat.free(&self.file).len() as u64;
        let tables = self.own_clusters();
        assert_eq!(used, clusters + tables, "clusters in use");
        assert_eq!(self.state(), (0, (used * 100 / u64::from(self.exfat.clusters)) as u8), "flags, percent in use");
    }
    /// What the project itself has against the volume as it now is on the disk: damage, odd entries, clusters that are in use by the
    /// bitmap alone or by a file alone, dirt. A relink of an older file would be refused for it.
    pub fn audited(&self) -> Vec<String> {
        let address = Address::parse(OsStr::new(&self.address)).unwrap();
        let stack = stack::open(&address, OpenOptions::default()).unwrap();
        let guest = stack.levels[0].guests.iter().rfind(|g| g.fs.is_some()).expect("an exFAT volume");
        let (fs, tree) = (guest.fs().unwrap(), guest.tree().unwrap());
        let (entry, _) = tree.order().find(|(e, _)| tree.path(*e) == b"notes.txt").expect("an older file");
        let object = tree.entry(entry).object;
        let map = tree.map(tree.data(object).unwrap());
        fs.as_host().unwrap().refusals(&HostImage::of(HostFile { entry, object, map })).unwrap()
    }
    /// Clusters of the root directory (which the driver shows as of no size), the bitmap and the up-case table.
    fn own_clusters(&self) -> u64 {
        use std::os::unix::fs::FileExt;
        let file = File::open(&self.file).unwrap();
        let entry = |n: u32| {
            let mut four = [0; 4];
            file.read_exact_at(&mut four, self.exfat.fat_at + u64::from(n) * 4).unwrap();
            u32::from_le_bytes(four)
        };
        let (mut n, mut root) = (self.exfat.root, 0);
        while n != u32::MAX {
            root += 1;
            n = entry(n);
        }
        let mut bytes = vec![0; self.exfat.cluster as usize];
        file.read_exact_at(&mut bytes, self.exfat.at(self.exfat.root)).unwrap();
        let tables = bytes.chunks(32).filter(|e| e[0] == 0x81 || e[0] == 0x82);
        let tables: u64 =
            tables.map(|e| u64::from_le_bytes(e[24..32].try_into().unwrap()).div_ceil(self.exfat.cluster)).sum();
        root + tables
    }
    /// A digest of everything before the first cluster, and of the bitmap.
    pub fn digest(&self) -> String {
        use std::os::unix::fs::FileExt;
        let file = File::open(&self.file).unwrap();
        let mut bytes = vec![0; (self.exfat.heap_at - self.base) as usize];
        file.read_exact_at(&mut bytes, self.base).unwrap();
        bytes.extend(self.exfat.bitmap(&self.file));
        sha256(&bytes)
    }
}

fn add_older(root: &Path) {
    let mut noise = Noise::new(99);
    fs::create_dir_all(root.join("Older folder/below it")).unwrap();
    fs::create_dir(root.join("empty folder")).unwrap();
    fs::write(root.join("notes.txt"), noise.text(700)).unwrap();
    fs::write(root.join("Older folder/report of last year.odt"), noise.bytes(9000)).unwrap();
    for i in 0..6 {
        fs::write(root.join(format!("Older folder/below it/entry {i}")), noise.bytes(i * 400)).unwrap();
    }
    // Removed again: deleted entries, and gaps in front of the image.
    for i in 0..5 {
        fs::write(root.join(format!("gone with a rather long name, number {i}.tmp")), noise.bytes(3000)).unwrap();
    }
    for i in 0..5 {
        fs::remove_file(root.join(format!("gone with a rather long name, number {i}.tmp"))).unwrap();
    }
}
