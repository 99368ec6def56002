//! A host volume with an image in many fragments, synthetic trees over its clusters, and what must hold after a relink.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;

use super::*;
use unimage::extent::{Extent, Map, Offset, Volume, What};
use unimage::fs::host::{Content, Host, HostFile, HostImage, Job, NewEntry, NewKind, NewTree, Origin};
use unimage::fs::{FileSystem, Kind, TimeUnit, Times, Timestamp, Tree};

#[path = "../common/apply.rs"]
mod apply;

/// A host volume with an image in many fragments and older files, and what fsck.fat says of it.
pub struct HostCase {
    pub shape: Shape,
    pub volume: Memory,
    pub fs: Arc<dyn FileSystem>,
    pub image: HostImage,
    /// Places of the image's clusters.
    pub clusters: Vec<u64>,
    pub unit: u64,
    pub checked: Vec<String>,
    /// Hashes of the older files by path.
    pub older: BTreeMap<String, String>,
}

/// The lines of `fsck.fat -n -v`, but for the summary.
pub fn fsck(bytes: &[u8]) -> Vec<String> {
    let (_dir, path) = written(bytes);
    let out = Command::new("fsck.fat").args(["-n", "-v", path.to_str().unwrap()]).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let path = path.to_str().unwrap().to_owned();
    text.lines().filter(|line| !(line.starts_with(&path) && line.contains(" clusters"))).map(str::to_owned).collect()
}

pub const IMAGE: &str = "vm/disk image.raw";
pub const SMALL: Shape = SHAPES[2];

impl HostCase {
    /// `clusters`: of the image. Its path is [`IMAGE`].
    pub fn new(shape: Shape, clusters: usize) -> Self {
        Self::at(shape, clusters, IMAGE)
    }
    pub fn at(shape: Shape, clusters: usize, path: &str) -> Self {
        let image = Image::new(shape);
        let unit = shape.cluster.parse::<usize>().unwrap() * shape.sector.parse::<usize>().unwrap();
        image.mkdir("/vm");
        image.mkdir("/Older Directory");
        image.put("/Older Directory/A FILE.TXT", &noise(1, 3000));
        image.put("/KEEP.BIN", &noise(2, unit * 3 + 5));
        let holes = 12;
        for i in 0..2 * holes {
            image.put(&format!("/Older Directory/filler number {i}"), &noise(100 + i, unit * 3));
        }
        for i in 0..holes {
            image.remove(&format!("/Older Directory/filler number {}", 2 * i));
        }
        image.rewind(shape);
        image.put(&format!("/{path}"), &noise(3, unit * clusters - unit / 2));
        image.put("/vm/after the image", &noise(4, unit + 1));
        Self::open(shape, image.bytes(), path)
    }
    pub fn open(shape: Shape, bytes: Vec<u8>, path: &str) -> Self {
        let volume = Memory::new(bytes);
        let fs = open_volume(&volume);
        let tree = fs.walk().unwrap();
        assert_eq!(tree.problems(), []);
        let (entry, _) = tree.order().find(|(e, _)| tree.path(*e) == path.as_bytes()).unwrap();
        let object = tree.entry(entry).object;
        let map = tree.map(tree.data(object).unwrap());
        let unit = fs.facts().unit;
        let clusters = map
            .extents()
            .iter()
            .flat_map(|e| {
                let What::Stored(place) = e.what else { panic!("{e:?}") };
                (0..e.len.div_ceil(unit)).map(move |i| place.offset.get() + i * unit)
            })
            .collect();
        let mut older = hashes(&*fs, &tree);
        older.remove(path);
        let checked = fsck(&volume.bytes);
        Self {
            shape,
            image: HostImage::of(HostFile { entry, object, map }),
            clusters,
            unit,
            checked,
            older,
            volume,
            fs,
        }
    }
    pub fn host(&self) -> &dyn Host {
        self.fs.as_host().unwrap()
    }
    pub fn job<'a>(&'a self, tree: &'a NewTree) -> Job<'a> {
        Job { tree, image: &self.image, zero_slack: true }
    }
    pub fn bytes_at(&self, at: u64, len: u64) -> &[u8] {
        &self.volume.bytes[at as usize..][..len as usize]
    }
    /// An extent list over these places, whole clusters but for the last.
    pub fn extents(&self, places: &[u64], size: u64) -> Vec<Extent<unimage::extent::Stream, Volume>> {
        let mut map = Map::new();
        let mut left = size;
        for place in places {
            map.push_stored(left.min(self.unit), unimage::extent::ReadAt::<Volume>::id(&self.volume), *place);
            left -= left.min(self.unit);
        }
        map.extents().to_vec()
    }
}

pub fn hashes(fs: &dyn FileSystem, tree: &Tree) -> BTreeMap<String, String> {
    tree.order()
        .filter(|(e, _)| tree.object(tree.entry(*e).object).kind == Kind::File)
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
        let mut free = case.clusters.clone();
        let mut random = seed | 1;
        // In random order: chains of any fragments.
        for i in (1..free.len()).rev() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            free.swap(i, (random >> 33) as usize % (i + 1));
        }
        Self { case, free, tree, sources: BTreeMap::new(), files: BTreeMap::new(), paths: vec![], random }
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
        let time = |secs| Some(Timestamp { secs, nanos: 120_000_000, unit: TimeUnit::Tick });
        let times = match i % 4 {
            0 => Times::default(),
            1 => Times {
                modified: time(1_234_567_891),
                accessed: time(1_300_000_000),
                created: time(1_200_000_001),
                changed: None,
            },
            2 => Times { modified: time(-5), ..Times::default() },
            _ => Times { modified: time(1_700_000_001), ..Times::default() },
        };
        let object = self.case.image.named.object;
        let origin = Some(Origin { volume: i, stream: None, object });
        self.tree.entries.push(NewEntry {
            parent,
            name: name.as_bytes().to_vec(),
            kind,
            times,
            attributes: if i.is_multiple_of(5) { 0x1821 } else { 0 },
            posix: None,
            xattrs: Vec::new(),
            security: None,
            origin,
        });
        i
    }
    pub fn dir(&mut self, parent: Option<usize>, name: &str) -> usize {
        self.push(parent, name, NewKind::Dir)
    }
    pub fn linked(&mut self, parent: Option<usize>, name: &str, size: u64) -> bool {
        let count = size.div_ceil(self.case.unit) as usize;
        if count > self.free.len() || count == 0 {
            return false;
        }
        let places = self.free.split_off(self.free.len() - count);
        let content = Content::Linked(self.case.extents(&places, size));
        let i = self.push(parent, name, NewKind::File { size, content });
        let mut bytes: Vec<u8> = places.iter().flat_map(|p| self.case.bytes_at(*p, self.case.unit).to_vec()).collect();
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
    pub fn empty(&mut self, parent: Option<usize>, name: &str) {
        let i = self.push(parent, name, NewKind::File { size: 0, content: Content::Empty });
        self.files.insert(self.paths[i].clone(), sha(b""));
    }
    pub fn next(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.random >> 33) % below.max(1)
    }
    /// Directories, linked, copied and empty files by chance.
    pub fn fill(&mut self, entries: usize) {
        let unit = self.case.unit;
        let mut dirs = vec![None];
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
            match self.next(10) {
                0 | 1 => {
                    let dir = self.dir(parent, &name);
                    dirs.push(Some(dir));
                }
                2 => self.empty(parent, &name),
                3 => {
                    let size = 1 + self.next(2 * unit) as usize;
                    self.copied(parent, &name, size);
                }
                _ => {
                    let size = 1 + self.next(6 * unit);
                    if !self.linked(parent, &name, size) {
                        self.empty(parent, &name);
                    }
                }
            }
        }
    }
}

pub use apply::apply;

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
    assert!(estimate.journal_bytes >= 2 * changed + staging.slack.iter().map(|(_, len)| u64::from(*len)).sum::<u64>());
    let after = apply(&case.volume.bytes, &staging, &wanted.sources);
    case.host().audit(Arc::new(case.volume.with(after.clone())), &job, &staging).unwrap();

    assert_eq!(fsck(&after), case.checked, "{:?}", case.shape);
    // Our reader, with the older files.
    let mut meant = wanted.files.clone();
    meant.extend(case.older.clone());
    let fs = open(after.clone());
    let tree = fs.walk().unwrap();
    assert_eq!(tree.problems(), []);
    assert_same(&hashes(&*fs, &tree), &meant);
    assert_eq!(fs.facts().serial, case.fs.facts().serial);
    after
}

/// Hashes of all files as fusefat, TSK and mtools read them.
pub fn check_foreign(wanted: &Wanted<'_>, after: &[u8]) {
    let mut meant = wanted.files.clone();
    meant.extend(wanted.case.older.clone());
    let upper = |map: &BTreeMap<String, String>| -> BTreeMap<String, String> {
        map.iter().map(|(path, hash)| (path.to_uppercase(), hash.clone())).collect()
    };
    let (dir, path) = written(after);
    let mount = Mounted::new(&path);
    let mut mounted = tree_hashes(mount.path());
    mounted.remove("LABEL");
    assert_same(&upper(&mounted), &upper(&meant));
    // TSK shows names of at most some 190 characters whole.
    let list = text("fls", &["-r", "-p", "-u", "-F", "-f", "fat", path.to_str().unwrap()]);
    let mut found = BTreeMap::new();
    for line in list.lines().filter(|l| !l.contains("\t$") && !l.ends_with("(Volume Label Entry)")) {
        let (number, name) = line.split_once(' ').unwrap().1.split_once(":\t").unwrap();
        found.insert(name.to_owned(), sha(&run("icat", &["-f", "fat", path.to_str().unwrap(), number])));
    }
    let short = |map: &BTreeMap<String, String>| -> BTreeMap<String, String> {
        map.iter().filter(|(p, _)| p.split('/').all(|n| n.len() < 120)).map(|(p, h)| (p.clone(), h.clone())).collect()
    };
    assert_same(&short(&found), &short(&meant));
    // mtools changes names that it can't show, never what is in them.
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    run("mcopy", &["-s", "-n", "-i", path.to_str().unwrap(), "::/", out.to_str().unwrap()]);
    let sorted = |map: &BTreeMap<String, String>| {
        let mut all: Vec<String> = map.values().cloned().collect();
        all.sort();
        all
    };
    assert_eq!(sorted(&tree_hashes(&out)), sorted(&meant));
}

pub fn tree_hashes(dir: &std::path::Path) -> BTreeMap<String, String> {
    let list = text("find", &[dir.to_str().unwrap(), "-type", "f", "-printf", "%P\\n"]);
    list.lines().map(|path| (path.to_owned(), sha(&std::fs::read(dir.join(path)).unwrap()))).collect()
}
