//! ext4 as host: synthetic trees over the blocks of an image, in all shapes that no guest would have at hand, judged by
//! e2fsck and by the kernel's mount.

mod ext_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use ext_support::{Memory, Mount, Random, Row, Rows, kernel_rows, make, run, same, scratch, sha};
use unimage::error::Error;
use unimage::extent::{Map, What};
use unimage::fs::host::{Content, Host, HostFile, HostImage, Job, NewEntry, NewKind, NewTree, Origin};
use unimage::fs::{FileSystem, Kind, ReadOptions, TimeUnit, Times, Timestamp};
use unimage::txn::{Checked, Staging};

/// A host with an image of noise at `vm/image`.
struct Case {
    dir: tempfile::TempDir,
    volume: Memory,
    fs: Arc<dyn FileSystem>,
    image: HostImage,
    /// Places of the image's units, in their order in the image.
    units: Vec<u64>,
    unit: u64,
    older: Rows,
    small: bool,
}

impl Case {
    fn new(mib: u64, args: &str, image_mib: usize) -> Self {
        let dir = scratch();
        let path = dir.path().join("host.img");
        make(&path, mib, args);
        {
            let mount = Mount::new(&path, "rw");
            let root = mount.path();
            fs::create_dir_all(root.join("vm")).unwrap();
            fs::create_dir_all(root.join("older/one")).unwrap();
            let mut r = Random(9);
            for n in 0..80 {
                fs::write(root.join(format!("older/file {n}")), r.bytes(n * 111)).unwrap();
            }
            for n in (0..80).step_by(3) {
                fs::remove_file(root.join(format!("older/file {n}"))).unwrap();
            }
            fs::write(root.join("vm/image"), r.bytes(image_mib << 20)).unwrap();
            fs::write(root.join("vm/other"), r.bytes(5000)).unwrap();
        }
        let older = kernel_rows(Mount::new(&path, "ro").path());
        let volume = Memory::new(fs::read(&path).unwrap());
        let fs = unimage::fs::ext::open(Arc::new(volume.clone()), ReadOptions::default()).unwrap().unwrap();
        let tree = fs.walk().unwrap();
        let (entry, _) = tree.order().find(|(e, _)| tree.path(*e) == b"vm/image").unwrap();
        let object = tree.entry(entry).object;
        let map = tree.map(tree.data(object).unwrap());
        let unit = fs.facts().unit;
        let units = map
            .extents()
            .iter()
            .flat_map(|e| {
                let What::Stored(place) = e.what else { panic!("{e:?}") };
                assert!(place.offset.get().is_multiple_of(unit) || unit < 4096);
                (0..e.len / unit).map(move |i| place.offset.get() + i * unit)
            })
            .collect();
        let small = args.contains("-I 128");
        Self { dir, image: HostImage::of(HostFile { entry, object, map }), volume, fs, units, unit, older, small }
    }
    fn host(&self) -> &dyn Host {
        self.fs.as_host().unwrap()
    }
    fn job<'a>(&'a self, tree: &'a NewTree) -> Job<'a> {
        Job { tree, image: &self.image, zero_slack: true }
    }
    fn link(&self, tree: &NewTree) -> Result<Staging, Error> {
        self.host().link(&self.job(tree))
    }
}

/// A tree in the making, with what the kernel must then show.
struct Wanted<'c> {
    case: &'c Case,
    tree: NewTree,
    free: Vec<u64>,
    paths: Vec<String>,
    rows: Rows,
    copies: BTreeMap<usize, Vec<u8>>,
    r: Random,
}

impl<'c> Wanted<'c> {
    fn new(case: &'c Case, into: &[&str], seed: u64) -> Self {
        let tree = NewTree {
            into: into.iter().map(|n| n.as_bytes().to_vec()).collect(),
            entries: vec![],
            ..Default::default()
        };
        let mut r = Random(seed * 2 + 1);
        let mut free = case.units.clone();
        for i in (1..free.len()).rev() {
            free.swap(i, r.below(i as u64 + 1) as usize);
        }
        Self { case, tree, free, paths: vec![], rows: Rows::new(), copies: BTreeMap::new(), r }
    }
    fn time(&mut self) -> Timestamp {
        let secs = self.r.below(1 << 33) as i64 - (1 << 31);
        Timestamp { secs, nanos: self.r.below(1_000_000_000) as u32, unit: TimeUnit::Nano }
    }
    /// Adds an entry; its row is what the kernel must show.
    fn push(&mut self, parent: Option<usize>, name: &str, kind: NewKind, data: Option<Vec<u8>>) -> usize {
        let into: Vec<String> = self.tree.into.iter().map(|n| String::from_utf8(n.clone()).unwrap()).collect();
        let path = match parent {
            Some(p) => format!("{}/{name}", self.paths[p]),
            None => [into, vec![name.into()]].concat().join("/"),
        };
        let i = self.tree.entries.len();
        self.paths.push(path.clone());
        let all = [self.time(), self.time(), self.time(), self.time()];
        let times =
            Times { modified: Some(all[0]), accessed: Some(all[1]), changed: Some(all[2]), created: Some(all[3]) };
        let link = matches!(kind, NewKind::Symlink(_));
        let mode = if link { 0o777 } else { self.r.below(0o10000) as u16 };
        let owner = (self.r.below(1 << 32) as u32 >> self.r.below(20), self.r.below(100_000) as u32);
        let mut xattrs = Vec::new();
        if !link && self.r.below(4) == 0 {
            for n in 0..self.r.below(5) {
                let len = self.r.below(60) as usize;
                xattrs.push((format!("trusted.key {n}").into_bytes(), self.r.bytes(len)));
            }
        }
        let row = match &kind {
            NewKind::HardLink(first) => self.rows[self.paths[*first].as_bytes()].clone(),
            kind => {
                let seconds = |t: Timestamp| {
                    if self.case.small {
                        (t.secs.clamp(i32::MIN.into(), i32::MAX.into()), 0)
                    } else {
                        (t.secs, t.nanos)
                    }
                };
                let mut times = all.map(|t| Some(seconds(t)));
                if self.case.small {
                    times[3] = None;
                }
                Row {
                    number: 0,
                    kind: match kind {
                        NewKind::Dir => "dir".into(),
                        NewKind::Symlink(_) => "symlink".into(),
                        NewKind::Special(Kind::Fifo) => "fifo".into(),
                        NewKind::Special(Kind::Socket) => "socket".into(),
                        NewKind::Special(Kind::CharDevice(a, b)) => format!("char {a}:{b}"),
                        NewKind::Special(Kind::BlockDevice(a, b)) => format!("block {a}:{b}"),
                        _ => "file".into(),
                    },
                    mode,
                    owner,
                    times,
                    target: if let NewKind::Symlink(t) = kind { Some(t.clone()) } else { None },
                    xattrs: xattrs.iter().map(|(k, v)| (String::from_utf8(k.clone()).unwrap(), v.clone())).collect(),
                    data: data.as_ref().map(|d| (d.len() as u64, sha(d))),
                }
            }
        };
        self.rows.insert(path.into_bytes(), row);
        let origin = Some(Origin { volume: i, stream: None, object: self.case.image.named.object });
        self.tree.entries.push(NewEntry {
            parent,
            name: name.as_bytes().to_vec(),
            kind,
            times,
            attributes: 0,
            posix: Some((mode, owner.0, owner.1)),
            xattrs,
            security: None,
            origin,
        });
        i
    }
    fn dir(&mut self, parent: Option<usize>, name: &str) -> usize {
        self.push(parent, name, NewKind::Dir, None)
    }
    /// A file over random units of the image, with a hole here and there.
    fn linked(&mut self, parent: Option<usize>, name: &str, size: usize, holes: bool) -> bool {
        let unit = self.case.unit as usize;
        let mut map = Map::new();
        let mut data = Vec::new();
        while data.len() < size {
            let n = unit.min(size - data.len());
            if holes && self.r.below(3) == 0 {
                map.push(n as u64, What::Zero);
                data.extend(std::iter::repeat_n(0, n));
                continue;
            }
            let Some(place) = self.free.pop() else { return false };
            map.push_stored(n as u64, self.case.volume.id(), place);
            data.extend_from_slice(&self.case.volume.bytes[place as usize..place as usize + n]);
        }
        let content = if size == 0 { Content::Empty } else { Content::Linked(map.extents().to_vec()) };
        self.push(parent, name, NewKind::File { size: size as u64, content }, Some(data));
        true
    }
    fn copied(&mut self, parent: Option<usize>, name: &str, size: usize) {
        let data = self.r.bytes(size);
        let kind = NewKind::File { size: size as u64, content: Content::Copied };
        let i = self.push(parent, name, kind, Some(data.clone()));
        self.copies.insert(i, data);
    }
    /// A bit of everything, in random places.
    fn fill(&mut self, count: usize) {
        let mut dirs = vec![None];
        let mut files = Vec::new();
        for n in 0..count {
            let parent = dirs[self.r.below(dirs.len() as u64) as usize];
            let pad = ["", " größe 🦀", &"long ".repeat(30)][self.r.below(3) as usize].to_owned();
            let name = format!("{n}{pad}");
            let size = [0, 1, 100, 5000, 40_000][self.r.below(5) as usize] + self.r.below(3000) as usize;
            match self.r.below(12) {
                0 | 1 => dirs.push(Some(self.dir(parent, &name))),
                2 => self.copied(parent, &name, size + 1),
                3 => {
                    let target = "t".repeat([1, 59, 60, 61, 300][self.r.below(5) as usize]);
                    self.push(parent, &name, NewKind::Symlink(target.into_bytes()), None);
                }
                4 => {
                    let all = [
                        Kind::Fifo,
                        Kind::Socket,
                        Kind::CharDevice(5, 1),
                        Kind::CharDevice(300, 70_000),
                        Kind::BlockDevice(259, 300),
                    ];
                    let kind = all[self.r.below(5) as usize];
                    self.push(parent, &name, NewKind::Special(kind), None);
                }
                5 if !files.is_empty() => {
                    let first = files[self.r.below(files.len() as u64) as usize];
                    self.push(parent, &name, NewKind::HardLink(first), None);
                }
                k => {
                    if !self.linked(parent, &name, size, k == 6) {
                        break;
                    }
                    files.push(self.tree.entries.len() - 1);
                }
            }
        }
    }
    /// The new volume: the staging through the checks of a commit, audited, applied to a copy, with the copies' bytes.
    fn applied(&self) -> PathBuf {
        let case = self.case;
        let job = case.job(&self.tree);
        let estimate = case.host().estimate(&job);
        let staging = case.link(&self.tree).unwrap();
        let taken: u64 = staging.filled.iter().map(|f| f.1).sum();
        assert!(taken <= (estimate.metadata_units + estimate.copy_units) * case.unit, "more than was estimated");
        let again = case.link(&self.tree).unwrap();
        assert!(staging == again, "the same change whenever it is computed");
        let checked = Checked::new(staging, Arc::new(case.volume.clone()), |after, staging| {
            case.host().audit(after, &job, staging)
        })
        .unwrap();
        let staging = checked.staging();
        let mut bytes = case.volume.bytes.to_vec();
        let mut put = |at: u64, new: &[u8]| bytes[at as usize..at as usize + new.len()].copy_from_slice(new);
        for fresh in &staging.fresh {
            put(fresh.at.get(), &fresh.bytes);
        }
        for copy in &staging.copies {
            let mut data = self.copies[&copy.entry].clone();
            data.resize(copy.to.iter().map(|t| t.1).sum::<u64>() as usize, 0);
            let mut from = 0;
            for (at, len) in &copy.to {
                put(at.get(), &data[from..from + *len as usize]);
                from += *len as usize;
            }
        }
        for write in staging.groups.iter().flat_map(|g| &g.writes) {
            put(write.at.get(), &write.bytes);
        }
        for (at, len) in &staging.slack {
            put(at.get(), &vec![0; *len as usize]);
        }
        put(staging.quarantine.at.get(), &staging.quarantine.open);
        let path = case.dir.path().join("after.img");
        fs::write(&path, &bytes).unwrap();
        put_back(&path, staging);
        path
    }
    /// Applies it, and lets e2fsck and the kernel judge.
    fn check(&self) {
        let path = self.applied();
        let said = complaints(&path);
        assert_eq!(said, "");
        let mut all = kernel_rows(Mount::new(&path, "ro").path());
        let mut wanted = self.case.older.clone();
        wanted.remove(b"vm/image".as_slice());
        let into: Vec<String> = self.tree.into.iter().map(|n| String::from_utf8(n.clone()).unwrap()).collect();
        for n in 1..=into.len() {
            // Directories that only lead there are the host's own affair.
            let path = into[..n].join("/").into_bytes();
            if !wanted.contains_key(&path) {
                all.remove(&path).unwrap();
            }
        }
        for (n, entry) in self.tree.entries.iter().enumerate() {
            if let NewKind::HardLink(first) = entry.kind {
                let number = |at: usize| all[self.paths[at].as_bytes()].number;
                assert_eq!(number(n), number(first));
            }
        }
        for path in self.rows.keys() {
            if let Some(row) = all.get_mut(path) {
                row.number = 0;
            }
        }
        wanted.extend(self.rows.clone());
        same(&wanted, &all);
        fs::remove_file(path).unwrap();
    }
}

/// The quarantine keeps everybody out, and the checksum of its superblock is right.
fn put_back(path: &Path, staging: &Staging) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(&staging.quarantine.closed, staging.quarantine.at.get()).unwrap();
    assert_eq!(staging.quarantine.closed.len(), 512, "one sector");
    let before = fs::read(path).unwrap();
    for how in ["-fp", "-fy", "-fn"] {
        let out = Command::new("e2fsck").arg(how).arg(path).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert_eq!(out.status.code(), Some(8), "{text}");
        assert!(text.contains("unsupported feature"), "{text}");
        assert!(!text.contains("checksum"), "{text}");
        assert!(before == fs::read(path).unwrap(), "e2fsck {how} wrote");
    }
    let dir = scratch();
    let tried = Command::new("mount").args(["-o", "loop"]).arg(path).arg(dir.path()).output().unwrap();
    assert!(!tried.status.success(), "it can be mounted");
    let volume = Arc::new(ext_support::FileVolume::open(path));
    let opened = unimage::fs::ext::open(volume, ReadOptions::default());
    assert!(opened.is_err_and(|e| e.to_string().contains("recover")));
    file.write_all_at(&staging.quarantine.open, staging.quarantine.at.get()).unwrap();
}

fn complaints(image: &Path) -> String {
    let out = Command::new("e2fsck").args(["-fn".as_ref(), image.as_os_str()]).output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let name = image.to_str().unwrap();
    let mine = |l: &&str| {
        !(l.starts_with("Pass ") || l.starts_with("e2fsck 1.") || l.starts_with(name) && l.contains(" files ("))
    };
    text.lines().filter(mine).collect::<Vec<_>>().join("\n")
}

const HOSTS: [(&str, u64); 6] = [
    ("-t ext4 -b 4096", 80),
    ("-t ext4 -b 1024", 80),
    ("-t ext4 -b 2048 -I 128 -O ^metadata_csum,uninit_bg", 80),
    ("-t ext4 -b 4096 -O bigalloc -C 16384", 120),
    ("-t ext4 -b 1024 -O ^metadata_csum,^64bit,^flex_bg,^has_journal -g 1024", 80),
    ("-t ext4 -b 1024 -O bigalloc,metadata_csum_seed -C 4096", 120),
];

#[test]
fn random_trees_on_all_hosts() {
    for (n, (args, mib)) in HOSTS.iter().enumerate() {
        let case = Case::new(*mib, args, 8);
        let all = [&[][..], &["out"], &["vm"], &["older", "one"], &["older", "new", "and another"]];
        for (m, into) in all.iter().enumerate() {
            let mut wanted = Wanted::new(&case, into, (n * 10 + m) as u64);
            wanted.fill([3, 40, 400, 150, 250][m]);
            wanted.check();
        }
    }
}

/// Directories with an index of one, two and three levels, and one that is too large for an index. The kernel finds each
/// name in them.
#[test]
fn large_directories() {
    for (args, mib, count, long) in [
        ("-t ext4 -b 1024 -N 60000", 120, 3000, false),
        ("-t ext4 -b 1024 -N 60000", 120, 20_000, false),
        ("-t ext4 -b 1024 -N 60000 -O large_dir,^metadata_csum", 300, 48_000, true),
        ("-t ext4 -b 1024 -N 60000", 300, 48_000, true),
        ("-t ext4 -b 4096 -N 60000", 120, 20_000, false),
    ] {
        let case = Case::new(mib, args, 1);
        let mut wanted = Wanted::new(&case, &["vm", "new"], 1);
        let dir = wanted.dir(None, "all of them");
        for n in 0..count {
            let name = if long { format!("{n} {}", "x".repeat(240)) } else { format!("name {n}") };
            wanted.linked(Some(dir), &name, 0, false);
        }
        let start = std::time::Instant::now();
        case.link(&wanted.tree).unwrap();
        println!("{count} names linked in {:?}", start.elapsed());
        let path = wanted.applied();
        assert_eq!(complaints(&path), "");
        let mount = Mount::new(&path, "rw");
        let dir = mount.path().join("vm/new/all of them");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), count);
        for path in wanted.paths.iter().skip(1).step_by(7) {
            assert!(fs::symlink_metadata(mount.path().join(path)).is_ok(), "{path}");
        }
        for n in 0..count / 20 {
            let name = if long { format!("{n} {}", "x".repeat(240)) } else { format!("name {n}") };
            fs::remove_file(dir.join(name)).unwrap();
            fs::write(dir.join(format!("afterwards {n}")), b"").unwrap();
        }
        drop(mount);
        assert_eq!(complaints(&path), "", "{args}");
        fs::remove_file(path).unwrap();
    }
}

/// A file of more than 10,000 fragments: a tree of several levels; and one with more than 2 GiB, which needs a feature.
#[test]
fn many_fragments_and_a_large_file() {
    for args in ["-t ext4 -b 1024", "-t ext4 -b 1024 -O bigalloc -C 2048"] {
        let case = Case::new(120, args, 24);
        let mut wanted = Wanted::new(&case, &["out"], 3);
        assert!(wanted.linked(None, "fragments", 11_000 * case.unit as usize - 77, false));
        assert!(wanted.linked(None, "fragments and holes", 1000 * case.unit as usize, true));
        wanted.check();
    }
    let case = Case::new(80, "-t ext4 -b 4096 -O ^large_file", 4);
    let mut wanted = Wanted::new(&case, &["out"], 3);
    let mut map = Map::new();
    let place = wanted.free.pop().unwrap();
    map.push(3 << 30, What::Zero);
    map.push_stored(100, case.volume.id(), place);
    let size = (3u64 << 30) + 100;
    wanted.push(None, "large", NewKind::File { size, content: Content::Linked(map.extents().to_vec()) }, None);
    let path = wanted.applied();
    assert_eq!(complaints(&path), "");
    let mount = Mount::new(&path, "ro");
    let meta = fs::metadata(mount.path().join("out/large")).unwrap();
    assert_eq!(meta.len(), size);
}

fn refused(result: Result<Staging, Error>, word: &str) {
    match result {
        Err(Error::Refused(why)) => assert!(why.contains(word) && !why.contains('\n'), "{word}: {why}"),
        other => panic!("{word}: {:?}", other.map(|_| ())),
    }
}

#[test]
fn what_ext_can_not_hold_is_refused() {
    let case = Case::new(40, "-t ext4 -b 4096 -N 300", 4);
    let one = |build: &dyn Fn(&mut Wanted<'_>), word: &str| {
        let mut wanted = Wanted::new(&case, &["older"], 1);
        build(&mut wanted);
        refused(case.link(&wanted.tree), word);
    };
    one(&|w| (0..2).for_each(|_| _ = w.linked(None, "same", 0, false)), "twice");
    one(&|w| _ = w.linked(None, "file 1", 0, false), "twice");
    for name in ["a/b", "", ".", "..", "nul\0", &"x".repeat(256)] {
        one(&|w| _ = w.linked(None, name, 0, false), "no name");
    }
    one(&|w| w.copied(None, "big", 60 << 20), "too little space");
    one(&|w| (0..400).for_each(|n| _ = w.linked(None, &n.to_string(), 0, false)), "inodes");
    one(&|w| _ = w.push(None, "l", NewKind::Symlink(vec![b't'; 4096]), None), "link to 4096");
    let linked = |places: &[u64]| {
        let mut map = Map::new();
        places.iter().for_each(|p| map.push_stored(4096, case.volume.id(), *p));
        NewKind::File { size: 4096 * places.len() as u64, content: Content::Linked(map.extents().to_vec()) }
    };
    let place = case.units[0];
    one(&|w| _ = w.push(None, "twice", linked(&[place, place]), None), "not the image's");
    one(&|w| (0..2).for_each(|n| _ = w.push(None, ["a", "b"][n], linked(&[place]), None)), "not the image's");
    one(&|w| _ = w.push(None, "odd", linked(&[place + 512]), None), "no units");
    let tree = case.fs.walk().unwrap();
    let other = tree.lookup([b"vm".as_slice(), b"other"]).unwrap();
    let What::Stored(other) = tree.extents(tree.data(other).unwrap())[0].what else { panic!() };
    one(&|w| _ = w.push(None, "other", linked(&[other.offset.get()]), None), "not the image's");
    let mut wanted = Wanted::new(&case, &["vm", "other", "x"], 1);
    wanted.linked(None, "a", 0, false);
    refused(case.link(&wanted.tree), "no directory");
}

/// Hosts that must not be written, and images that must not be removed; each made so by a real tool or by one byte.
#[test]
fn hosts_that_are_refused() {
    let case = Case::new(40, "-t ext4 -b 4096", 4);
    let refusals = |bytes: Vec<u8>| -> String {
        let volume = Memory::new(bytes);
        let fs = unimage::fs::ext::open(Arc::new(volume), ReadOptions::default()).unwrap().unwrap();
        let tree = fs.walk().unwrap();
        let (entry, _) = tree.order().find(|(e, _)| tree.path(*e) == b"vm/image").unwrap();
        let object = tree.entry(entry).object;
        let image = HostImage::of(HostFile { entry, object, map: tree.map(tree.data(object).unwrap()) });
        fs.as_host().unwrap().refusals(&image).unwrap().join("; ")
    };
    assert_eq!(refusals(case.volume.bytes.to_vec()), "");
    let path = case.dir.path().join("other.img");
    let used = format!("freeb {}", case.units[3] / 4096);
    for (commands, word) in [
        (&["ssv state 0"][..], "not clean"),
        (&["ssv state 3"], "not clean"),
        (&["ssv last_orphan 20"], "removed while they were open"),
        (&["feature needs_recovery"], "journal has to be replayed"),
        (&["feature quota"], "quota"),
        (&["feature shared_blocks"], "ro_compat 0x4000"),
        (&["feature read-only"], "ro_compat 0x1000"),
        (&["feature orphan_present"], "orphan file"),
        (&["feature casefold"], "incompat 0x20000"),
        (&["feature encrypt"], "incompat 0x10000"),
        (&["sif vm/image flags 0x80010"], "immutable"),
        (&["sif vm/image flags 0x80020"], "append-only"),
        (&["sif vm flags 0x80010"], "immutable"),
        (&["ln vm/image vm/second", "sif vm/image links_count 2"], "2 names"),
        (&[&used], "does not agree with itself"),
        (&["sif vm/other links_count 3"], "does not agree with itself"),
        (&["set_bg 0 free_blocks_count 7", "set_bg 0 checksum calc"], "does not agree with itself"),
    ] {
        fs::write(&path, &*case.volume.bytes).unwrap();
        for command in commands {
            run("debugfs", &["-w", "-R", command, path.to_str().unwrap()]);
        }
        let said = refusals(fs::read(&path).unwrap());
        assert!(said.contains(word), "{commands:?}: {said}");
    }
}

/// The audit finds what the writer did wrong: any change of a byte in the new structures.
#[test]
fn the_audit_finds_changes() {
    for args in ["-t ext4 -b 1024", "-t ext4 -b 4096 -O ^metadata_csum,^64bit"] {
        let case = Case::new(80, args, 4);
        let mut wanted = Wanted::new(&case, &["out"], 4);
        wanted.fill(120);
        let staging = case.link(&wanted.tree).unwrap();
        let job = case.job(&wanted.tree);
        let audited = |staging: Staging| {
            Checked::new(staging, Arc::new(case.volume.clone()), |after, s| case.host().audit(after, &job, s))
                .map(|_| ())
        };
        audited(staging.clone()).unwrap();
        let mut r = Random(11);
        let mut found = 0;
        let rounds = 60;
        for n in 0..rounds {
            let mut bad = staging.clone();
            let fresh = n % 2 == 0;
            let all: Vec<&mut Vec<u8>> = if fresh {
                bad.fresh.iter_mut().map(|f| &mut f.bytes).collect()
            } else {
                bad.groups.iter_mut().flat_map(|g| &mut g.writes).map(|w| &mut w.bytes).collect()
            };
            let pick = r.below(all.len() as u64) as usize;
            let bytes = all.into_iter().nth(pick).unwrap();
            // Bytes that mean something.
            let used: Vec<usize> = (0..bytes.len()).filter(|i| bytes[*i] != 0).collect();
            let at = used[r.below(used.len() as u64) as usize];
            bytes[at] ^= 1 << r.below(8);
            let seen = audited(bad).is_err();
            if !seen {
                println!("byte {at} of {} {pick} of {}", if fresh { "fresh" } else { "group write" }, used.len());
            }
            found += usize::from(seen);
        }
        // Without checksums a name may be as good as another (its hash decides), and padding is anybody's.
        let all = if args.contains("^metadata_csum") { rounds - 6 } else { rounds };
        assert!(found >= all, "{args}: {found} of {rounds} changes were found");
        for n in 0..6 {
            let mut bad = staging.clone();
            match n {
                0 => drop(bad.slack.pop()),
                1 => bad.groups.retain(|g| g.name != "image inode"),
                2 => bad.groups.retain(|g| g.name != "bitmaps"),
                3 => bad.groups.retain(|g| g.name != "descriptors"),
                4 => drop(bad.filled.pop()),
                _ => bad.quarantine.open[0x10] ^= 1,
            }
            assert!(audited(bad).is_err(), "{n}");
        }
    }
}
