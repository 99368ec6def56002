//! NTFS hosts made by mkntfs and ntfs-3g with an image in many pieces, trees over its clusters, and what must hold after.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use unimage::error::{Error, Result};
use unimage::extent::{Extent, LayerId, Map, Offset, ReadAt, Stream, Volume, What};
use unimage::fs::host::{Content, Host, HostFile, HostImage, Job, NewEntry, NewKind, NewTree, Origin};
use unimage::fs::{FileSystem, Kind, ReadOptions, TimeUnit, Times, Timestamp, Tree};

pub use crate::apply::apply;
use crate::judge::judge;
pub use crate::ntfs_support::{Image, Shape, noise, run, sha};

/// A volume in memory.
#[derive(Clone)]
pub struct Memory {
    pub bytes: Arc<Vec<u8>>,
    id: LayerId,
}

impl Memory {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { bytes: Arc::new(bytes), id: LayerId::fresh() }
    }
    /// Other bytes of the same layer.
    pub fn with(&self, bytes: Vec<u8>) -> Self {
        Self { bytes: Arc::new(bytes), id: self.id }
    }
    pub fn open(&self) -> Arc<dyn FileSystem> {
        unimage::fs::ntfs::open(Arc::new(self.clone()), ReadOptions::default()).unwrap().expect("an NTFS volume")
    }
}

impl ReadAt<Volume> for Memory {
    fn id(&self) -> LayerId {
        self.id
    }
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read_at(&self, at: Offset<Volume>, buf: &mut [u8]) -> Result<()> {
        let start = at.get() as usize;
        let from = start.checked_add(buf.len()).and_then(|end| self.bytes.get(start..end));
        buf.copy_from_slice(from.ok_or_else(|| Error::past_end(at, buf.len() as u64, self.len()))?);
        Ok(())
    }
}

pub const IMAGE: &str = "vm/disk image.raw";

/// A host with an image and older files.
pub struct HostCase {
    pub volume: Memory,
    pub fs: Arc<dyn FileSystem>,
    pub image: HostImage,
    /// Places of the image's clusters.
    pub clusters: Vec<u64>,
    pub unit: u64,
    /// Hashes of the older files by path.
    pub older: BTreeMap<String, String>,
}

impl HostCase {
    /// An image of so many clusters in at most twice so many pieces.
    pub fn new(shape: Shape, clusters: usize, pieces: usize) -> Self {
        let unit = shape.cluster as usize;
        Self::open(made(shape, &noise(3, unit * clusters - unit / 2), pieces, |_| {}))
    }
    pub fn open(bytes: Vec<u8>) -> Self {
        let volume = Memory::new(bytes);
        let fs = volume.open();
        let tree = fs.walk().unwrap();
        assert_eq!(tree.problems(), []);
        let (entry, _) = tree.order().find(|(e, _)| tree.path(*e) == IMAGE.as_bytes()).unwrap();
        let object = tree.entry(entry).object;
        let map = tree.map(tree.data(object).unwrap());
        let unit = fs.facts().unit;
        let clusters = map
            .extents()
            .iter()
            .filter_map(|e| match e.what {
                What::Stored(place) => Some((place.offset.get(), e.len)),
                _ => None,
            })
            .flat_map(|(at, len)| (0..len.div_ceil(unit)).map(move |i| at + i * unit))
            .collect();
        let mut older = hashes(&*fs, &tree);
        older.remove(IMAGE);
        Self { image: HostImage::of(HostFile { entry, object, map }), clusters, unit, older, volume, fs }
    }
    pub fn host(&self) -> &dyn Host {
        self.fs.as_host().unwrap()
    }
    pub fn job<'a>(&'a self, tree: &'a NewTree) -> Job<'a> {
        Job { tree, image: &self.image, zero_slack: false }
    }
    fn bytes_at(&self, at: u64, len: u64) -> &[u8] {
        &self.volume.bytes[at as usize..][..len as usize]
    }
    /// An extent list over these places, whole clusters but for the last; none is a hole.
    pub fn extents(&self, places: &[Option<u64>], size: u64) -> Vec<Extent<Stream, Volume>> {
        let mut map = Map::new();
        let mut left = size;
        for place in places {
            let len = left.min(self.unit);
            match place {
                Some(at) => map.push_stored(len, self.volume.id(), *at),
                None => map.push(len, What::Zero),
            }
            left -= len;
        }
        map.extents().to_vec()
    }
}

/// The bytes of a host with this image and older files, and whatever `more` makes.
pub fn made(shape: Shape, image: &[u8], pieces: usize, more: impl FnOnce(&crate::ntfs_support::Mount)) -> Vec<u8> {
    let host = Image::new(shape);
    let unit = shape.cluster as usize;
    let m = host.mount();
    m.put("keep.bin", &noise(2, unit * 3 + 5));
    for i in 0..40 {
        m.put(&format!("Older Directory/a file {i}.txt"), &noise(i, 700));
        m.put(&format!("vm/older {i}"), &noise(100 + i, 10));
    }
    // Records that are free again, with sequence numbers of their own.
    for i in 0..15 {
        fs::remove_file(m.path(&format!("vm/older {}", 2 * i))).unwrap();
    }
    more(&m);
    // Only gaps between other files are free when the image is written.
    let step = image.len().div_ceil(unit).div_ceil(pieces).max(1) * unit;
    let filler = |i: usize| m.path(&format!("Older Directory/filler {i}"));
    for i in 0..2 * pieces + 8 {
        fs::write(filler(i), noise(i as u64, step)).unwrap();
    }
    let mut all = fs::File::create(m.path("all the rest")).unwrap();
    let part = noise(9, 1 << 20);
    for size in [1 << 20, unit] {
        while all.write_all(&part[..size]).is_ok() {}
    }
    drop(all);
    for i in 0..pieces + 4 {
        fs::remove_file(filler(2 * i)).unwrap();
    }
    fs::write(m.path(IMAGE), image).unwrap();
    fs::remove_file(m.path("all the rest")).unwrap();
    drop(m);
    host.bytes()
}

/// Hashes of the users' files.
pub fn hashes(fs: &dyn FileSystem, tree: &Tree) -> BTreeMap<String, String> {
    tree.order()
        .filter(|(e, _)| {
            let o = tree.object(tree.entry(*e).object);
            o.kind == Kind::File && !o.system
        })
        .map(|(e, _)| {
            let opened = fs.open(tree, tree.data(tree.entry(e).object).unwrap()).unwrap();
            let bytes = opened.read_vec(Offset::new(0), opened.len() as usize).unwrap();
            (String::from_utf8(tree.path(e)).unwrap(), sha(&bytes))
        })
        .collect()
}

/// A tree in the making, with what its files must contain.
pub struct Wanted<'c> {
    pub case: &'c HostCase,
    pub free: Vec<u64>,
    pub tree: NewTree,
    pub sources: BTreeMap<usize, Vec<u8>>,
    /// Hashes by path below the root.
    pub files: BTreeMap<String, String>,
    /// Hashes of streams by the path of their file and their name.
    pub streams: BTreeMap<(String, String), String>,
    pub paths: Vec<String>,
    pub random: u64,
}

impl<'c> Wanted<'c> {
    pub fn new(case: &'c HostCase, into: &[&str], seed: u64) -> Self {
        let tree = NewTree {
            into: into.iter().map(|n| n.as_bytes().to_vec()).collect(),
            entries: vec![],
            ..Default::default()
        };
        let free = case.clusters.clone();
        let mut all = Self {
            case,
            free,
            tree,
            sources: BTreeMap::new(),
            files: BTreeMap::new(),
            streams: BTreeMap::new(),
            paths: vec![],
            random: seed | 1,
        };
        // In random order: files in as many pieces as they have clusters.
        for i in (1..all.free.len()).rev() {
            let j = all.next(i as u64 + 1) as usize;
            all.free.swap(i, j);
        }
        all
    }
    pub fn next(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below.max(1)
    }
    pub fn push(&mut self, parent: Option<usize>, name: &str, kind: NewKind) -> usize {
        let path = match parent {
            Some(p) => format!("{}/{name}", self.paths[p]),
            None => {
                let into: Vec<_> = self.tree.into.iter().map(|n| String::from_utf8(n.clone()).unwrap()).collect();
                [into, vec![name.to_owned()]].concat().join("/")
            }
        };
        self.paths.push(path);
        let i = self.tree.entries.len();
        let time = |secs| Some(Timestamp { secs, nanos: 123_456_700, unit: TimeUnit::Tick });
        let times = match i % 4 {
            0 => Times::default(),
            1 => Times {
                modified: time(1_234_567_891),
                accessed: time(1_300_000_000),
                created: time(1),
                changed: time(2),
            },
            2 => Times { modified: time(-5_000_000_000), ..Times::default() },
            _ => Times { created: time(1_700_000_001), ..Times::default() },
        };
        let object = self.case.image.named.object;
        self.tree.entries.push(NewEntry {
            parent,
            name: name.as_bytes().to_vec(),
            kind,
            times,
            attributes: if i.is_multiple_of(5) { 0x1827 } else { 0 },
            posix: None,
            xattrs: vec![],
            security: None,
            origin: Some(Origin { volume: i, stream: None, object }),
        });
        i
    }
    pub fn dir(&mut self, parent: Option<usize>, name: &str) -> usize {
        self.push(parent, name, NewKind::Dir)
    }
    /// With a hole after every `holes`th cluster; 0 for none.
    pub fn linked(&mut self, parent: Option<usize>, name: &str, size: u64, holes: usize) -> bool {
        let count = size.div_ceil(self.case.unit) as usize;
        if count > self.free.len() || count == 0 {
            return false;
        }
        let mut places: Vec<Option<u64>> = self.free.split_off(self.free.len() - count).into_iter().map(Some).collect();
        if holes > 0 {
            for (i, place) in places.iter_mut().enumerate().filter(|(i, _)| i % holes == holes - 1) {
                if i % 2 == 0 || i > 20 {
                    self.free.extend(place.take());
                }
            }
        }
        let content = Content::Linked(self.case.extents(&places, size));
        let i = self.push(parent, name, NewKind::File { size, content });
        let one = |p: &Option<u64>| {
            p.map_or(vec![0; self.case.unit as usize], |p| self.case.bytes_at(p, self.case.unit).to_vec())
        };
        let mut bytes: Vec<u8> = places.iter().flat_map(one).collect();
        bytes.truncate(size as usize);
        self.files.insert(self.paths[i].clone(), sha(&bytes));
        true
    }
    pub fn copied(&mut self, parent: Option<usize>, name: &str, size: usize) {
        let i = self.push(parent, name, NewKind::File { size: size as u64, content: Content::Copied });
        let bytes = noise(1000 + i as u64, size);
        self.files.insert(self.paths[i].clone(), sha(&bytes));
        self.sources.insert(i, bytes);
    }
    pub fn empty(&mut self, parent: Option<usize>, name: &str) -> usize {
        let i = self.push(parent, name, NewKind::File { size: 0, content: Content::Empty });
        self.files.insert(self.paths[i].clone(), sha(b""));
        i
    }
    pub fn hard_link(&mut self, parent: Option<usize>, name: &str, first: usize) {
        let i = self.push(parent, name, NewKind::HardLink(first));
        let hash = self.files[&self.paths[first]].clone();
        self.files.insert(self.paths[i].clone(), hash);
    }
    /// A stream of the file at `of`: copied, or of clusters of the image.
    pub fn stream(&mut self, of: usize, name: &str, size: u64, linked: bool) {
        let count = size.div_ceil(self.case.unit) as usize;
        let path = self.paths[of].clone();
        let i = self.tree.entries.len();
        let (content, bytes) = if linked && size > 0 && count <= self.free.len() {
            let places = self.free.split_off(self.free.len() - count);
            let bytes = places.iter().flat_map(|p| self.case.bytes_at(*p, self.case.unit).to_vec()).collect();
            let places: Vec<_> = places.into_iter().map(Some).collect();
            (Content::Linked(self.case.extents(&places, size)), bytes)
        } else if size > 0 {
            (Content::Copied, noise(1000 + i as u64, size as usize))
        } else {
            (Content::Empty, vec![])
        };
        if matches!(content, Content::Copied) {
            self.sources.insert(i, bytes.clone());
        }
        self.push(None, name, NewKind::Stream { of, size, content });
        self.streams.insert((path, name.to_owned()), sha(&bytes[..size as usize]));
    }
    /// Directories, linked, sparse, copied and empty files and further names by chance.
    pub fn fill(&mut self, entries: usize) {
        let unit = self.case.unit;
        let mut dirs = vec![None];
        let mut files = Vec::new();
        for i in 0..entries {
            let parent = dirs[self.next(dirs.len() as u64) as usize];
            let name = match self.next(6) {
                0 => format!("FILE{i}.TXT"),
                1 => format!("a rather long name that begins alike {i}"),
                2 => format!("größe {i}.日本"),
                3 => format!("{}{i}", "x".repeat(self.next(240) as usize)),
                4 => format!("f{i}.jpeg"),
                _ => format!("🦀 {i}"),
            };
            let at = self.tree.entries.len();
            match self.next(12) {
                0 | 1 => {
                    let dir = self.dir(parent, &name);
                    dirs.push(Some(dir));
                    continue;
                }
                2 => _ = self.empty(parent, &name),
                3 => {
                    let size = 1 + self.next(2 * unit) as usize;
                    self.copied(parent, &name, size);
                }
                4 if !files.is_empty() => {
                    let first = files[self.next(files.len() as u64) as usize];
                    self.hard_link(parent, &name, first);
                    continue;
                }
                n => {
                    let size = 1 + self.next(6 * unit);
                    if !self.linked(parent, &name, size, if n == 5 { 2 } else { 0 }) {
                        self.empty(parent, &name);
                    }
                }
            }
            files.push(at);
            // TSK loses the name of an empty stream that ends its attribute: not of a multiple of four units.
            for (n, name) in ["Zone.Identifier", "größen 🦀"].into_iter().enumerate() {
                let (here, size) = (self.next(8), self.next(20_000));
                if here == n as u64 {
                    self.stream(at, name, if size < 2000 { 0 } else { size }, size % 2 == 0);
                }
            }
        }
    }
}

/// A folder on a real disk, removed at the end of the test.
pub fn scratch() -> tempfile::TempDir {
    let root = Path::new(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(root).unwrap();
    tempfile::tempdir_in(root).unwrap()
}

pub fn written(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("volume.img");
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// A mount whose program must not say a word.
pub struct Mounted {
    child: std::process::Child,
    pub at: PathBuf,
}

impl Mounted {
    pub fn new(volume: &Path, options: &str) -> Self {
        let at = volume.with_extension("mounted");
        fs::create_dir_all(&at).unwrap();
        let options = format!("no_detach,streams_interface=xattr,{options}");
        let child =
            Command::new("ntfs-3g").args(["-o", &options]).args([volume, &at]).stderr(Stdio::piped()).spawn().unwrap();
        let device = |path: &Path| std::os::unix::fs::MetadataExt::dev(&fs::metadata(path).unwrap());
        let mut mounted = Self { child, at };
        for _ in 0..1000 {
            if device(&mounted.at) != device(volume) {
                return mounted;
            }
            if let Some(status) = mounted.child.try_wait().unwrap() {
                panic!("ntfs-3g: {status}: {}", mounted.said());
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        panic!("ntfs-3g did not mount");
    }
    fn said(&mut self) -> String {
        let mut text = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut text).unwrap();
        }
        text
    }
    pub fn close(mut self) {
        let done = (0..200).any(|_| {
            let done = Command::new("umount").arg(&self.at).stderr(Stdio::null()).status().unwrap().success();
            if !done {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            done
        });
        assert!(done, "ntfs-3g can't be unmounted");
        assert!(self.child.wait().unwrap().success());
        // What it tells of every mount, when it stays in the foreground, and of reparse points that it knows nothing of.
        let usual = [
            "Could not load plugin ",
            "Hint ",
            "Version ",
            "Mounted ",
            "Cmdline options:",
            "Mount options:",
            "Ownership and permissions",
            "Unmounting ",
        ];
        let said = self.said();
        let odd: Vec<_> = said.lines().filter(|l| !usual.iter().any(|u| l.starts_with(u))).collect();
        assert!(odd.is_empty(), "{odd:?}");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|s| s.is_none()) {
            let _ = Command::new("umount").arg("-l").arg(&self.at).status();
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

pub fn tree_hashes(dir: &Path) -> BTreeMap<String, String> {
    let list = String::from_utf8(run("find", &[dir.to_str().unwrap(), "-type", "f", "-printf", "%P\\n"])).unwrap();
    list.lines().map(|path| (path.to_owned(), sha(&fs::read(dir.join(path)).unwrap()))).collect()
}

pub fn assert_same(found: &BTreeMap<String, String>, meant: &BTreeMap<String, String>) {
    let missing: Vec<_> = meant.iter().filter(|(p, h)| found.get(*p) != Some(h)).map(|(p, _)| p).take(5).collect();
    let more: Vec<_> = found.keys().filter(|p| !meant.contains_key(*p)).take(5).collect();
    assert!(missing.is_empty() && more.is_empty(), "missing or different: {missing:?}, more: {more:?}");
}

/// What the judge of whole volumes has to say about one in a file.
pub fn judged(path: &Path) -> BTreeSet<String> {
    let file = fs::File::open(path).unwrap();
    judge(&|at, len| {
        let mut bytes = vec![0; len];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, at).unwrap();
        bytes
    })
}

/// The same of one in memory.
pub fn judged_bytes(bytes: &[u8]) -> BTreeSet<String> {
    judge(&|at, len| bytes[at as usize..][..len].to_vec())
}

/// What was not odd before a relink is not odd after it.
pub fn not_worse(before: &BTreeSet<String>, after: &BTreeSet<String>) {
    let new: Vec<_> = after.difference(before).take(20).collect();
    assert!(new.is_empty(), "{new:#?}");
}

/// ntfsresize, ntfsfix and the judge of whole volumes have nothing to say. But mkntfs does not number free records, and ntfs-3g leaves
/// the copies in records as they were.
pub fn content(path: &Path) {
    let mut odd = judged(path);
    odd.retain(|o| !o.starts_with("copies in the record") && !o.starts_with("free record"));
    assert!(odd.is_empty(), "{} breaches, the first: {:#?}", odd.len(), odd.iter().take(20).collect::<Vec<_>>());
    checked(path);
}

/// ntfsresize and ntfsfix have nothing to say.
pub fn checked(path: &Path) {
    let out = Command::new("ntfsresize").args(["-i", "-f"]).arg(path).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && !text.contains("ERROR") && !text.contains("WARN"), "{text}");
    let out = Command::new("ntfsfix").arg("-n").arg(path).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success() && text.contains("processed successfully") && !text.contains("FAILED"), "{text}");
    // Of ntfsprogs-plus, which Debian does not have: where somebody built it.
    if let Some(ntfsck) = std::env::var_os("UNIMAGE_NTFSCK") {
        let out = Command::new(ntfsck).arg("-n").arg(path).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{text}");
    }
}

/// Everything that must hold of a relink, by the audit and by foreign programs.
pub fn check(wanted: &Wanted<'_>) -> Vec<u8> {
    let case = wanted.case;
    let job = case.job(&wanted.tree);
    assert_eq!(case.host().refusals(&case.image).unwrap(), Vec::<String>::new());
    let estimate = case.host().estimate(&job);
    let staging = case.host().link(&job).unwrap();
    let taken: u64 = staging.filled.iter().map(|(_, len)| len / case.unit).sum();
    let copied: u64 = staging.copies.iter().flat_map(|c| &c.to).map(|(_, len)| len / case.unit).sum();
    assert_eq!((estimate.metadata_units, estimate.copy_units), (taken - copied, copied));
    let changed: u64 = staging.groups.iter().flat_map(|g| &g.writes).map(|w| w.bytes.len() as u64).sum();
    assert!(estimate.journal_bytes >= 2 * changed);
    let after = apply(&case.volume.bytes, &staging, &wanted.sources);
    case.host().audit(Arc::new(case.volume.with(after.clone())), &job, &staging).unwrap();
    // Its form, as a commit would look at it, and once more the audit.
    let volume: Arc<dyn ReadAt<Volume>> = Arc::new(case.volume.clone());
    unimage::txn::Checked::new(staging, volume, |after, staging| case.host().audit(after, &job, staging)).unwrap();
    let mut meant = wanted.files.clone();
    meant.extend(case.older.clone());
    let fs = Memory::new(after.clone()).open();
    let tree = fs.walk().unwrap();
    assert_eq!(tree.problems(), []);
    assert_same(&hashes(&*fs, &tree), &meant);
    not_worse(&judged_bytes(&case.volume.bytes), &judged_bytes(&after));
    foreign(&after, &meant, &wanted.streams);
    after
}

/// Checkers are content; ntfs-3g and TSK show the same files and streams; ntfs-3g then writes, and all of that holds again.
pub fn foreign(after: &[u8], meant: &BTreeMap<String, String>, streams: &BTreeMap<(String, String), String>) {
    let (_dir, path) = written(after);
    foreign_at(&path, meant, streams, &[]);
}

/// The same of a volume in a file; the files at `special` are always among those that are looked at and extended.
pub fn foreign_at(
    path: &Path,
    meant: &BTreeMap<String, String>,
    streams: &BTreeMap<(String, String), String>,
    special: &[&str],
) {
    holds(path, meant, streams, special);
    let (mut left, mut streams) = (meant.clone(), streams.clone());
    rewrite(path, &mut left, &mut streams, special);
    holds(path, &left, &streams, special);
}

/// Checkers are content; ntfs-3g and TSK show the same files and streams.
fn holds(
    path: &Path,
    meant: &BTreeMap<String, String>,
    streams: &BTreeMap<(String, String), String>,
    special: &[&str],
) {
    content(path);
    let mount = Mounted::new(path, "ro,norecover");
    assert_same(&tree_hashes(&mount.at), meant);
    for ((path, name), hash) in streams {
        let mut value = vec![0; 1 << 16];
        let len = rustix::fs::lgetxattr(mount.at.join(path), format!("user.{name}"), &mut value[..])
            .unwrap_or_else(|e| panic!("{path}:{name}: {e}"));
        assert_eq!(&sha(&value[..len]), hash, "{path}:{name}");
    }
    mount.close();
    let file = path.to_str().unwrap();
    let list = String::from_utf8(run("fls", &["-r", "-p", "-u", "-F", "-f", "ntfs", file])).unwrap();
    let mut found = 0;
    for line in list.lines().filter(|l| !l.contains("\t$")) {
        let (number, name) = line.split_once(' ').unwrap().1.split_once(":\t").unwrap();
        // A stream stands behind a colon, which no name has.
        if let Some((path, stream)) = name.split_once(':') {
            // TSK cuts long names; a file of more names has its streams under each of them.
            let found = sha(&run("icat", &["-f", "ntfs", file, number]));
            match streams.get(&(path.to_owned(), stream.to_owned())) {
                Some(hash) => assert_eq!(&found, hash, "{line}"),
                None => assert!(streams.iter().any(|((_, s), h)| s.starts_with(stream) && *h == found), "{line}"),
            }
            continue;
        }
        let Some(hash) = meant.get(name) else { panic!("{line}") };
        found += 1;
        let every = if meant.len() < 30_000 { 97 } else { 997 };
        if meant.len() < 2000 || found % every == 0 || special.contains(&name) {
            let number = number.trim_end_matches("(realloc)");
            assert_eq!(&sha(&run("icat", &["-f", "ntfs", file, number])), hash, "{line}");
        }
    }
    assert_eq!(found, meant.len());
}

/// ntfs-3g creates, extends and deletes.
fn rewrite(
    path: &Path,
    left: &mut BTreeMap<String, String>,
    streams: &mut BTreeMap<(String, String), String>,
    special: &[&str],
) {
    let mount = Mounted::new(path, "norecover");
    let meant = left.clone();
    let step = (meant.len() / 40).max(1);
    for (i, name) in meant.keys().enumerate().filter(|(i, _)| i % step == 0) {
        let at = mount.at.join(name);
        match i / step % 3 {
            0 => {
                fs::remove_file(&at).unwrap();
                left.remove(name);
                streams.retain(|(path, _), _| path != name);
            }
            1 => {
                let same = fs::metadata(&at).unwrap();
                // A file of more names would change under all of them.
                if std::os::unix::fs::MetadataExt::nlink(&same) == 1 {
                    OpenOptions::new().append(true).open(&at).unwrap().write_all(&noise(i as u64, 70_000)).unwrap();
                    left.insert(name.clone(), sha(&fs::read(&at).unwrap()));
                }
            }
            _ => {
                let other = format!("{}/new {i}", name.rsplit_once('/').map_or("", |d| d.0));
                let other = other.trim_start_matches('/');
                fs::write(mount.at.join(other), noise(i as u64, 5000)).unwrap();
                left.insert(other.to_owned(), sha(&noise(i as u64, 5000)));
            }
        }
    }
    for name in special {
        let at = mount.at.join(name);
        OpenOptions::new().append(true).open(&at).unwrap().write_all(&noise(4, 300_000)).unwrap();
        left.insert((*name).to_owned(), sha(&fs::read(&at).unwrap()));
    }
    mount.close();
}
