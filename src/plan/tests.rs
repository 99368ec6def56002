use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::mock::Mock;
use super::*;
use crate::extent::{Encoding, Extent, LayerId, Map, Offset, Place, Stream, Volume, What};
use crate::fs::host::{Content, HostFile, HostImage, NewKind};
use crate::fs::{Form, Kind, NewStream, Object, ObjectId, Times, TreeBuilder};

/// A guest of 1 MiB in an image that lies on a host in two pieces, the second before the first.
struct Job {
    builder: TreeBuilder,
    root: ObjectId,
    guest: LayerId,
    host: LayerId,
    image: Map<Stream, Volume>,
}

const HALF: u64 = 512 * 1024;
/// Where the halves of the image lie on the host: on units of up to 64 KiB behind its first 512 bytes.
const FIRST: u64 = 512 + 0x40_0000;
const SECOND: u64 = 512 + 0x10_0000;

impl Job {
    fn new() -> Self {
        let mut builder = TreeBuilder::new();
        let root = builder.object(object(Kind::Dir));
        let host = LayerId::fresh();
        let mut image = Map::new();
        image.push_stored(HALF, host, FIRST);
        image.push_stored(HALF, host, SECOND);
        Self { builder, root, guest: LayerId::fresh(), host, image }
    }
    fn at(&self, volume: u64) -> What<Volume> {
        What::Stored(Place { layer: self.guest, offset: Offset::new(volume) })
    }
    fn file(&mut self, parent: ObjectId, name: &str, pieces: &[(u64, What<Volume>)]) -> ObjectId {
        let object = self.builder.object(object(Kind::File));
        self.builder.entry(parent, name.as_bytes(), object);
        self.stream(object, None, pieces);
        object
    }
    fn stream(&mut self, object: ObjectId, name: Option<&str>, pieces: &[(u64, What<Volume>)]) -> StreamId {
        let size = pieces.iter().map(|p| p.0).sum();
        let name = name.map(str::as_bytes);
        let new = NewStream { name, size, valid: size, form: Form::Plain, locator: 0 };
        self.builder.stream(object, new, pieces.iter().copied())
    }
    fn dir(&mut self, parent: ObjectId, name: &str) -> ObjectId {
        let dir = self.builder.object(object(Kind::Dir));
        self.builder.entry(parent, name.as_bytes(), dir);
        dir
    }
    fn guest(self) -> (GuestVolume, HostImage) {
        let mut host = TreeBuilder::new();
        let root = host.object(object(Kind::Dir));
        let file = host.object(object(Kind::File));
        let entry = host.entry(root, b"disk.img", file);
        // The guest volume is the image as a whole.
        let map = self.image.extents().iter().map(|e| (e.len, e.what)).collect();
        let tree = Arc::new(self.builder.finish(self.root));
        let guest = GuestVolume { folder: None, part: Part::All, tree, layer: self.guest, map, fs: None };
        (guest, HostImage::of(HostFile { entry, object: file, map: self.image }))
    }
    fn plan(self, host: &Mock) -> Planned {
        self.plan_with(host, &Options::default())
    }
    fn plan_with(self, host: &Mock, options: &Options) -> Planned {
        let (guest, image) = self.guest();
        let plan = build(std::slice::from_ref(&guest), host, &image, &[b"out".to_vec()], options).unwrap().0;
        Planned { plan, guest }
    }
}

fn object(kind: Kind) -> Object {
    Object { kind, number: 0, times: Times::default(), attributes: 0, mode: None, owner: None, system: false }
}

struct Planned {
    plan: Plan,
    guest: GuestVolume,
}

impl Planned {
    /// Path in the guest with its stream, verdict, reason, and path written.
    fn rows(&self) -> Vec<(String, Verdict, Option<Reason>, String)> {
        let tree = &self.guest.tree;
        let rows = self.plan.rows.iter().map(|row| {
            let mut path = row.entry.map(|e| tree.path(e)).unwrap_or_default();
            if let Some(name) = row.stream.and_then(|s| tree.stream_name(s)) {
                path = [&path, b":".as_slice(), name].concat();
            }
            let written = row.written.map(|at| self.plan.written_path(at)).unwrap_or_default();
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
            (text(path), row.verdict, row.reason, text(written))
        });
        rows.collect()
    }
    fn row(&self, path: &str) -> (Verdict, Option<Reason>, String) {
        let (_, verdict, reason, written) = self.rows().into_iter().find(|r| r.0 == path).expect(path);
        (verdict, reason, written)
    }
    fn verdicts(&self) -> BTreeMap<String, (Verdict, Option<Reason>)> {
        self.rows().into_iter().map(|r| (r.0, (r.1, r.2))).collect()
    }
}

use Verdict::{Copy, Link, Skip};

#[test]
fn each_obstacle_has_its_reason() {
    let mut job = Job::new();
    let root = job.root;
    let zero = (4096, What::Zero);
    let inline = |how| [(100, What::Encoded(how))];
    let (a, b, c) = (job.at(0), job.at(4096), job.at(HALF - 4096));
    job.file(root, "whole", &[(4096, a)]);
    job.file(root, "fragments over the image's own", &[(8192, c), (100, b)]);
    job.file(root, "empty", &[]);
    job.file(root, "hole", &[(4096, job.at(0x4000)), zero]);
    job.file(root, "resident", &inline(Encoding::Inline));
    job.file(root, "lznt1", &inline(Encoding::FsCompressed));
    job.file(root, "efs", &inline(Encoding::FsEncrypted));
    job.file(root, "qcow2", &inline(Encoding::ContainerCompressed));
    job.file(root, "luks", &inline(Encoding::ContainerEncrypted));
    job.file(root, "gone", &inline(Encoding::Unreadable));
    job.file(root, "off by a sector", &[(4096, job.at(0x5000 + 512))]);
    job.file(root, "part of a unit in the middle", &[(512, job.at(0x6000)), (512, job.at(0x7000))]);
    job.file(root, "past the end", &[(4096, job.at(2 * HALF - 100))]);
    let planned = job.plan(&Mock::fat(4096));
    let expected = [
        ("whole", Link, None),
        ("fragments over the image's own", Link, None),
        ("empty", Link, Some(Reason::Empty)),
        ("hole", Copy, Some(Reason::HoleUnsupported)),
        ("resident", Copy, Some(Reason::Resident)),
        ("lznt1", Copy, Some(Reason::FsCompressed)),
        ("efs", Skip, Some(Reason::FsEncrypted)),
        ("qcow2", Copy, Some(Reason::ContainerCompressed)),
        ("luks", Skip, Some(Reason::ContainerEncrypted)),
        ("gone", Skip, Some(Reason::Unreadable)),
        ("off by a sector", Copy, Some(Reason::Misaligned)),
        ("part of a unit in the middle", Copy, Some(Reason::Misaligned)),
        ("past the end", Skip, Some(Reason::Unreadable)),
    ];
    let expected = expected.into_iter().map(|(path, v, r)| (path.to_owned(), (v, r))).collect();
    assert_eq!(planned.verdicts(), expected);
    let totals = &planned.plan.totals;
    assert_eq!(totals.linked, Tally { files: 3, bytes: 4096 + 8292 });
    assert_eq!(totals.copied, Tally { files: 6, bytes: 8192 + 300 + 4096 + 1024 });
    assert_eq!(totals.skipped, Tally { files: 4, bytes: 300 + 4096 });
    assert_eq!(totals.reasons[&Reason::Misaligned], Tally { files: 2, bytes: 4096 + 1024 });
}

#[test]
fn the_fragmented_file_points_at_the_hosts_units() {
    let mut job = Job::new();
    let root = job.root;
    job.file(root, "f", &[(8192, job.at(HALF - 4096)), (100, job.at(4096))]);
    let host = job.host;
    let planned = job.plan(&Mock::fat(4096));
    let NewKind::File { size: 8292, content: Content::Linked(extents) } = &planned.plan.tree.entries[0].kind else {
        panic!("{:?}", planned.plan.tree.entries[0]);
    };
    let expected: [Extent<Stream, Volume>; 3] = [
        Extent::stored(0, 4096, host, FIRST + HALF - 4096),
        Extent::stored(4096, 4096, host, SECOND),
        Extent::stored(8192, 100, host, FIRST + 4096),
    ];
    assert_eq!(extents[..], expected);
}

#[test]
fn the_first_claimant_of_a_unit_has_it() {
    let mut job = Job::new();
    let root = job.root;
    // Guest blocks of 1 KiB on a host of 4 KiB: `a` ends in the unit that `b` begins in, `c` has it to itself.
    job.file(root, "a", &[(5000, job.at(0))]);
    job.file(root, "b", &[(1000, job.at(4096))]);
    job.file(root, "c", &[(1000, job.at(0x2000))]);
    // Takes nothing of what it can't have as a whole: `e` gets the unit that `d` would have begun with.
    job.file(root, "d", &[(4096, job.at(0x4000)), (4096, job.at(0))]);
    job.file(root, "e", &[(4096, job.at(0x4000))]);
    job.file(root, "f, twice the same", &[(4096, job.at(0x6000)), (4096, job.at(0x6000))]);
    let planned = job.plan(&Mock::fat(4096));
    for (path, verdict, reason) in [
        ("a", Link, None),
        ("b", Copy, Some(Reason::Shared)),
        ("c", Link, None),
        ("d", Copy, Some(Reason::Shared)),
        ("e", Link, None),
        ("f, twice the same", Copy, Some(Reason::Shared)),
    ] {
        assert_eq!(planned.verdicts()[path], (verdict, reason), "{path}");
    }
}

#[test]
fn what_the_image_has_no_unit_of_its_own_for_is_not_linked() {
    let mut job = Job::new();
    let root = job.root;
    // The host stores the image with a hole, and another image beside it holds a part.
    let (host, other) = (job.host, LayerId::fresh());
    job.image = Map::new();
    job.image.push_stored(4096, host, FIRST);
    job.image.push(4096, What::Zero);
    job.image.push_stored(4096, host, SECOND);
    job.image.push_stored(4096, other, 0);
    for (name, at) in [("a", 0), ("b", 4096), ("c", 8192), ("d", 12288)] {
        job.file(root, name, &[(4096, job.at(at))]);
    }
    let (mut guest, image) = job.guest();
    let fat = Mock::fat(4096);
    let reasons = |guest: &GuestVolume, host: &Mock| -> Vec<_> {
        let plan = build(std::slice::from_ref(guest), host, &image, &[], &Options::default()).unwrap().0;
        plan.rows.iter().map(|r| (r.verdict, r.reason)).collect()
    };
    let other_volume = (Copy, Some(Reason::OtherVolume));
    assert_eq!(
        reasons(&guest, &fat),
        [(Link, None), (Copy, Some(Reason::HoleUnsupported)), (Link, None), other_volume]
    );
    let holes = Mock { units_at: 512, ..Mock::posix(4096) };
    assert_eq!(reasons(&guest, &holes), [(Link, None), (Link, None), (Link, None), other_volume]);
    // A unit of the host that is not this image's, though the image has one of that number elsewhere.
    guest.map = Map::run(4096, host, 512).resized(16384);
    let far = HostImage::of(HostFile {
        map: [(4096, What::Stored(Place { layer: host, offset: Offset::new(FIRST) }))]
            .into_iter()
            .chain([(4096, What::Stored(Place { layer: other, offset: Offset::new(512) }))])
            .collect(),
        ..image.named.clone()
    });
    let plan = build(std::slice::from_ref(&guest), &fat, &far, &[], &Options::default()).unwrap().0;
    assert_eq!(plan.rows[0].reason, Some(Reason::Shared));
    // A unit of the host that is not this image's: a parent's, which stays.
    guest.map = Map::run(4096, host, FIRST + 0x20_0000).resized(16384);
    assert_eq!(reasons(&guest, &fat)[0], (Copy, Some(Reason::Shared)));
}

#[test]
fn a_file_that_is_too_large_is_left_out() {
    let mut job = Job::new();
    let root = job.root;
    job.file(root, "fits", &[(4096, job.at(0))]);
    job.file(root, "linkable", &[(4097, job.at(0x4000))]);
    job.file(root, "not even that", &[(4097, What::Zero)]);
    let planned = job.plan(&Mock { max_file: 4096, ..Mock::fat(4096) });
    assert_eq!(planned.verdicts()["fits"], (Link, None));
    assert_eq!(planned.verdicts()["linkable"], (Skip, Some(Reason::TooLarge)));
    assert_eq!(planned.verdicts()["not even that"], (Skip, Some(Reason::TooLarge)));
}

#[test]
fn streams_become_files_beside() {
    let mut job = Job::new();
    let root = job.root;
    let (dir_at, at) = (job.at(0x1000), job.at(0x2000));
    let a = job.file(root, "a:b", &[]);
    job.stream(a, Some("x?"), &[(10, at)]);
    job.file(root, "a%3Ab.stream.x%3F", &[]);
    let dir = job.dir(root, "dir");
    job.stream(dir, Some("note"), &[(10, dir_at)]);
    let inner = job.file(dir, "NUL.txt", &[]);
    job.stream(inner, Some("s"), &[]);
    job.stream(root, Some("top"), &[]);
    let planned = job.plan(&Mock::fat(4096));
    let rows = planned.rows();
    let written: Vec<_> = rows.iter().map(|r| (r.0.as_str(), r.3.as_str())).collect();
    assert_eq!(
        written,
        [
            (":top", ".stream.top"),
            ("a%3Ab.stream.x%3F", "a%3Ab.stream.x%3F"),
            ("a:b", "a%3Ab"),
            ("a:b:x?", "a%3Ab.stream (2).x%3F"),
            ("dir", "dir"),
            ("dir:note", "dir.stream.note"),
            ("dir/NUL.txt", "dir/%4EUL.txt"),
            ("dir/NUL.txt:s", "dir/%4EUL.txt.stream.s"),
        ]
    );
    let renamed: Vec<_> = planned.plan.rows.iter().map(|r| r.renamed).collect();
    assert_eq!(renamed, [true, false, true, true, false, true, true, true]);
    assert_eq!(planned.row("dir:note").0, Link);
}

#[test]
fn streams_stay_streams_of_their_files_where_the_host_has_them() {
    let mut job = Job::new();
    let root = job.root;
    let (at, other, third) = (job.at(0x1000), job.at(0x2000), job.at(0x3000));
    let a = job.file(root, "a:b", &[(100, at)]);
    for name in ["Zone.Identifier", "zone.identifier", "x?", "sl/ash"] {
        job.stream(a, Some(name), &[(10, if name == "x?" { other } else { third })]);
    }
    let dir = job.dir(root, "dir");
    job.stream(dir, Some("note"), &[]);
    let planned = job.plan(&Mock { streams: true, ..Mock::fat(4096) });
    let rows = planned.rows();
    let written: Vec<_> = rows.iter().map(|r| (r.0.as_str(), r.3.as_str())).collect();
    let expected = [
        ("a:b", "a%3Ab"),
        // Two of one name to the host, and one that it can't have, become files.
        ("a:b:Zone.Identifier", "a%3Ab:Zone.Identifier"),
        ("a:b:sl/ash", "a%3Ab.stream.sl%2Fash"),
        ("a:b:x?", "a%3Ab:x?"),
        ("a:b:zone.identifier", "a%3Ab.stream.zone (2).identifier"),
        ("dir", "dir"),
        // Also those of a directory.
        ("dir:note", "dir:note"),
    ];
    assert_eq!(written, expected);
    assert_eq!(planned.row("a:b:x?"), (Link, None, "a%3Ab:x?".into()));
    let renamed: Vec<_> = planned.plan.rows.iter().map(|r| r.renamed).collect();
    assert_eq!(renamed, [true, false, true, false, true, false, false]);
    let of = |e: &crate::fs::host::NewEntry| matches!(e.kind, NewKind::Stream { of: 0, size: 10, .. });
    assert_eq!(planned.plan.tree.entries.iter().filter(|e| of(e)).count(), 2);
    // All bytes are counted once.
    assert_eq!(planned.plan.totals.linked.files + planned.plan.totals.copied.files, 6);
}

#[test]
fn names_that_are_there_or_differ_in_case_are_not_overwritten() {
    let mut job = Job::new();
    let root = job.root;
    for name in ["A", "a", "there"] {
        job.file(root, name, &[]);
    }
    let host = Mock { there: vec![b"THERE".to_vec()], ..Mock::fat(4096) };
    let planned = job.plan(&host);
    let written: Vec<_> = planned.rows().into_iter().map(|r| r.3).collect();
    assert_eq!(written, ["A", "a (2)", "there (2)"]);
    assert_eq!(planned.plan.totals.renamed, 2);
}

#[test]
fn further_names_are_links_where_there_are_some_and_copies_elsewhere() {
    let build = || {
        let mut job = Job::new();
        let root = job.root;
        let file = job.file(root, "a", &[(100, job.at(0))]);
        job.stream(file, Some("s"), &[(100, job.at(0x1000))]);
        job.builder.entry(root, b"b", file);
        job
    };
    let fat = build().plan(&Mock::fat(512));
    assert_eq!(fat.row("a"), (Link, None, "a".into()));
    assert_eq!(fat.row("a:s"), (Link, None, "a.stream.s".into()));
    assert_eq!(fat.row("b"), (Copy, Some(Reason::Shared), "b".into()));
    assert_eq!(fat.row("b:s"), (Copy, Some(Reason::Shared), "b.stream.s".into()));
    let posix = build().plan(&Mock { units_at: 512, ..Mock::posix(512) });
    assert_eq!(posix.row("b"), (Link, None, "b".into()));
    assert!(matches!(posix.plan.tree.entries[2].kind, NewKind::HardLink(0)));
    assert_eq!((posix.plan.totals.links, posix.plan.totals.linked.files), (1, 2));
}

#[test]
fn special_files_are_left_out_and_links_where_the_host_has_none() {
    let build = || {
        let mut job = Job::new();
        let root = job.root;
        let at = job.at(0x1000);
        for (name, kind) in [
            ("link", Kind::Symlink),
            ("pipe", Kind::Fifo),
            ("junction", Kind::Junction),
            ("reparse with data", Kind::Reparse(0x9000_001a)),
            ("reparse, data elsewhere", Kind::Reparse(0x8000_0017)),
        ] {
            let id = job.builder.object(object(kind));
            job.builder.entry(root, name.as_bytes(), id);
            match name {
                "link" => job.builder.target(id, b"over/there".to_vec()),
                "reparse with data" => drop(job.stream(id, None, &[(100, at)])),
                "reparse, data elsewhere" => drop(job.stream(id, None, &[(100, What::Zero)])),
                _ => {}
            }
        }
        job
    };
    let special = (Skip, Some(Reason::Special));
    let fat = build().plan(&Mock::fat(512)).verdicts();
    assert_eq!(fat["link"], special);
    assert_eq!(fat["pipe"], special);
    assert_eq!(fat["junction"], special);
    assert_eq!(fat["reparse with data"], (Link, None));
    assert_eq!(fat["reparse, data elsewhere"], special);
    let posix = build().plan(&Mock { units_at: 512, ..Mock::posix(512) });
    assert_eq!(posix.verdicts()["link"], (Link, None));
    let links = posix.plan.tree.entries.iter().filter(|e| matches!(&e.kind, NewKind::Symlink(t) if t == b"over/there"));
    assert_eq!(links.count(), 1);
}

#[test]
fn damage_and_what_the_file_system_keeps_for_itself() {
    let mut job = Job::new();
    let root = job.root;
    let broken = job.file(root, "broken", &[(100, job.at(0))]);
    job.builder.problem(Some(broken), &crate::error::Error::Unsupported("x".into()));
    let own = job.dir(root, "$Own");
    job.builder.object_mut(own).unwrap().system = true;
    let file = job.file(own, "$Journal", &[(100, job.at(0x1000))]);
    job.builder.object_mut(file).unwrap().system = true;
    let other = job.dir(root, "$Other");
    job.builder.object_mut(other).unwrap().system = true;
    job.file(other, "hidden by somebody", &[(100, job.at(0x2000))]);
    let known = job.file(root, "known", &[(100, job.at(0x3000))]);
    let (guest, image) = job.guest();
    let options = Options { unreadable: BTreeSet::from([(0, guest.tree.data(known).unwrap())]), ..Options::default() };
    let plan = build(std::slice::from_ref(&guest), &Mock::fat(512), &image, &[], &options).unwrap().0;
    let planned = Planned { plan, guest };
    let paths: Vec<_> = planned.rows().into_iter().map(|r| (r.0, r.1, r.2)).collect();
    let unreadable = Some(Reason::Unreadable);
    assert_eq!(
        paths,
        [
            ("$Other".into(), Link, None),
            ("$Other/hidden by somebody".into(), Link, None),
            ("broken".into(), Skip, unreadable),
            ("known".into(), Skip, unreadable),
        ]
    );
}

#[test]
fn volumes_have_folders_and_parts_are_parts() {
    let mut job = Job::new();
    let root = job.root;
    let dir = job.dir(root, "dir");
    job.file(dir, "in", &[(10, job.at(0x1000))]);
    let deep = job.dir(dir, "deep");
    job.file(deep, "deeper", &[]);
    job.file(root, "out", &[]);
    let (mut guest, image) = job.guest();
    let mut second = guest.clone();
    (guest.folder, second.folder) = (Some(b"p1".to_vec()), Some(b"p2".to_vec()));
    let host = Mock { there: vec![b"P1".to_vec()], ..Mock::fat(512) };
    let written = |guests: &[GuestVolume]| -> Vec<_> {
        let plan = build(guests, &host, &image, &[], &Options::default()).unwrap().0;
        let all = plan.rows.iter().map(|r| String::from_utf8(plan.written_path(r.written.unwrap())).unwrap());
        all.collect()
    };
    let paths = written(&[guest.clone(), second.clone()]);
    assert_eq!(paths[..2], ["p1 (2)/dir", "p1 (2)/dir/deep"]);
    assert_eq!(paths[5..7], ["p2/dir", "p2/dir/deep"]);
    guest.folder = None;
    let entry = |guest: &GuestVolume, name: &[u8], dir| guest.tree.child(dir, name).unwrap();
    guest.part = Part::Entry(entry(&guest, b"dir", guest.tree.root()));
    assert_eq!(written(std::slice::from_ref(&guest)), ["deep", "deep/deeper", "in"]);
    guest.part = Part::Entry(entry(&guest, b"in", dir));
    assert_eq!(written(std::slice::from_ref(&guest)), ["in"]);
    let stream = guest.tree.data(guest.tree.entry(entry(&guest, b"in", dir)).object).unwrap();
    guest.part = Part::Stream(entry(&guest, b"in", dir), stream);
    assert_eq!(written(std::slice::from_ref(&guest)), ["in"]);
}

#[test]
fn two_hundred_thousand_files_take_well_under_a_second() {
    let mut job = Job::new();
    let root = job.root;
    job.image = Map::new();
    // An image in 1,000 fragments of 1 MiB.
    for i in 0..1000u64 {
        job.image.push_stored(1 << 20, job.host, 512 + (i * 7919 % 1000) * (2 << 20));
    }
    for d in 0..2000u64 {
        let dir = job.dir(root, &format!("directory {d}"));
        for f in 0..100 {
            let at = job.at((d * 100 + f) * 4096);
            job.file(dir, &format!("some file {f}.txt"), &[(4000, at)]);
        }
    }
    let (guest, image) = job.guest();
    let start = std::time::Instant::now();
    let plan = build(std::slice::from_ref(&guest), &Mock::fat(4096), &image, &[], &Options::default()).unwrap().0;
    let took = start.elapsed();
    assert_eq!(plan.totals.linked.files, 200_000);
    println!("200,000 files: {took:?}");
    // A search for each name, or for each unit, would take minutes; a busy machine takes seconds.
    assert!(took.as_secs() < 60, "{took:?}");
}

prop_compose! {
    fn piece()(sectors in 1..20u64, at in prop::option::weighted(0.9, 0..2 * HALF / 512), tail in 0..512u64)
        -> (u64, Option<u64>) {
        (sectors * 512 - tail * u64::from(tail < 64), at.map(|at| at * 512))
    }
}

proptest! {
    #[test]
    fn linked_files_are_their_streams_and_share_no_unit(
        files in prop::collection::vec(prop::collection::vec(piece(), 0..4), 0..40),
        unit in prop_oneof![Just(512u64), Just(1024), Just(4096), Just(16384)],
        aligned in any::<bool>(),
        rich in any::<bool>(),
    ) {
        let mut job = Job::new();
        let root = job.root;
        for (i, pieces) in files.iter().enumerate() {
            let last = pieces.len().saturating_sub(1);
            let pieces: Vec<_> = pieces.iter().enumerate().map(|(n, (len, at))| {
                let len = if aligned && n < last { len.next_multiple_of(unit) } else { *len };
                let at = at.map(|at| if aligned { at / unit * unit } else { at });
                (len, at.map_or(What::Zero, |at| job.at(at)))
            }).collect();
            job.file(root, &format!("{i:03}"), &pieces);
        }
        let (guest, image) = job.guest();
        let host = Mock { rich, ..Mock::fat(unit) };
        let plan = build(std::slice::from_ref(&guest), &host, &image, &[], &Options::default()).unwrap().0;
        let again = build(std::slice::from_ref(&guest), &host, &image, &[], &Options::default()).unwrap().0;
        prop_assert_eq!(format!("{plan:?}"), format!("{again:?}"));

        let mut own = BTreeSet::new();
        for e in image.named.map.extents() {
            if let What::Stored(p) = e.what {
                own.extend((p.offset.get()..p.offset.get() + e.len).step_by(512));
            }
        }
        let mut owners: BTreeMap<u64, usize> = BTreeMap::new();
        for (i, row) in plan.rows.iter().enumerate() {
            let stream = row.stream.unwrap();
            let truth = crate::extent::compose(guest.tree.extents(stream).iter().copied(), |_| Some(&guest.map));
            let kind = row.written.map(|at| &plan.tree.entries[at].kind);
            match kind {
                Some(NewKind::File { size, content: Content::Linked(extents) }) => {
                    prop_assert_eq!(row.verdict, Verdict::Link);
                    let truth = truth.unwrap();
                    prop_assert_eq!(&extents[..], truth.extents());
                    prop_assert_eq!(*size, guest.tree.stream(stream).size);
                    for e in extents {
                        prop_assert_eq!(e.start.get() % unit, 0);
                        prop_assert!(e.end().get() == *size || e.len % unit == 0);
                        let What::Stored(p) = e.what else {
                            prop_assert!(rich);
                            continue;
                        };
                        prop_assert_eq!((p.offset.get() - 512) % unit, 0);
                        for at in (p.offset.get()..p.offset.get() + e.len).step_by(usize::try_from(unit).unwrap()) {
                            prop_assert_eq!(owners.insert(at, i), None, "unit at {} twice", at);
                            prop_assert!(own.contains(&at));
                        }
                    }
                }
                Some(NewKind::File { content: Content::Copied, .. }) => {
                    let map = truth.unwrap();
                    let stored = || map.extents().iter().filter_map(|e| match e.what {
                        What::Stored(p) => Some((e, p.offset.get())),
                        _ => None,
                    });
                    let ragged = |e: &&Extent<Stream, Volume>| {
                        !e.start.get().is_multiple_of(unit)
                            || e.end().get() != map.len() && !e.len.is_multiple_of(unit)
                    };
                    match row.reason.unwrap() {
                        Reason::HoleUnsupported => prop_assert!(!rich && stored().count() < map.extents().len()),
                        Reason::Misaligned => prop_assert!(
                            map.extents().iter().any(|e| ragged(&e)) || stored().any(|(_, at)| (at - 512) % unit != 0)
                        ),
                        Reason::Shared => {
                            let mut units = BTreeSet::new();
                            let conflict = stored().any(|(e, at)| {
                                (at..at + e.len).step_by(usize::try_from(unit).unwrap()).any(|u| {
                                    owners.contains_key(&u) || !units.insert(u)
                                })
                            });
                            prop_assert!(conflict, "shared with nobody");
                        }
                        other => prop_assert!(false, "{other:?}"),
                    }
                }
                Some(NewKind::File { size: 0, content: Content::Empty }) => {
                    prop_assert_eq!(row.reason, Some(Reason::Empty));
                }
                None => {
                    prop_assert_eq!(row.reason, Some(Reason::Unreadable));
                    prop_assert!(truth.is_err());
                }
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
