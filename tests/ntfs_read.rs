//! The NTFS reader against ntfs-3g, The Sleuth Kit, and other readers of the same bytes.

mod ntfs_support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use ntfs_support::*;
use unimage::extent::{Encoding, Offset, What};
use unimage::fs::{EntryId, FileSystem, Form, Kind, StreamId, TimeUnit, Tree};

fn read(fs: &dyn FileSystem, tree: &Tree, stream: StreamId) -> Vec<u8> {
    let opened = fs.open(tree, stream).unwrap_or_else(|e| panic!("{stream:?}: {e}"));
    assert_eq!(opened.len(), tree.stream(stream).size);
    opened.read_vec(Offset::new(0), opened.len() as usize).unwrap_or_else(|e| panic!("{stream:?}: {e}"))
}

const TWIN: &[u8] = b"long name with a short twin.text";
const CLOUD: &[u8] = b"cloud file";

/// What a reader says of one name.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    kind: &'static str,
    size: u64,
    modified: (i64, u32),
    links: u64,
    sha: String,
    streams: BTreeMap<String, String>,
}

type All = BTreeMap<Vec<u8>, Seen>;

fn ours(fs: &dyn FileSystem, tree: &Tree) -> All {
    let mut links = BTreeMap::new();
    for (e, _) in tree.order() {
        *links.entry(tree.entry(e).object).or_insert(0) += 1;
    }
    let one = |e: EntryId| {
        let id = tree.entry(e).object;
        let object = tree.object(id);
        let modified = object.times.modified.unwrap();
        assert_eq!(modified.unit, TimeUnit::Tick);
        let data = tree.data(id).map(|s| read(fs, tree, s)).unwrap_or_default();
        let named = tree.streams(id).filter_map(|s| Some((tree.stream_name(s)?.to_vec(), sha(&read(fs, tree, s)))));
        Seen {
            kind: object.kind.word(),
            size: data.len() as u64,
            modified: (modified.secs, modified.nanos),
            links: links[&id],
            sha: sha(&data),
            streams: named.map(|(n, s)| (String::from_utf8(n).unwrap(), s)).collect(),
        }
    };
    let users = tree.order().filter(|(e, _)| !tree.object(tree.entry(*e).object).system);
    users.map(|(e, _)| (tree.path(e), one(e))).collect()
}

fn mounted(m: &Mount) -> All {
    let mut all = All::new();
    let mut dirs = vec![m.at.clone()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(&m.at).unwrap().as_os_str().as_bytes().to_vec();
            if name == CLOUD {
                continue;
            }
            let meta = fs::symlink_metadata(&path).unwrap();
            let data = if meta.is_file() { fs::read(&path).unwrap() } else { vec![] };
            // The driver shows a junction as a link; it has no streams through it.
            let kind = match meta.file_type() {
                t if t.is_dir() => "dir",
                t if t.is_symlink() => "junction",
                _ => "file",
            };
            let streams = if kind == "junction" { BTreeMap::new() } else { m.streams(&path) };
            let seen = Seen {
                kind,
                size: data.len() as u64,
                modified: (meta.mtime(), meta.mtime_nsec() as u32),
                // The driver counts the short twin of a name.
                links: if meta.is_file() { meta.nlink() - u64::from(name == TWIN) } else { 1 },
                sha: sha(&data),
                streams: streams.into_iter().map(|(n, v)| (String::from_utf8(n).unwrap(), sha(&v))).collect(),
            };
            if kind == "dir" {
                dirs.push(path);
            }
            all.insert(name, seen);
        }
    }
    all
}

fn assert_same(ours: &All, theirs: &All) {
    let names = |a: &All| a.keys().map(|k| String::from_utf8_lossy(k).into_owned()).collect::<BTreeSet<_>>();
    let (o, t) = (names(ours), names(theirs));
    assert_eq!(o.difference(&t).collect::<Vec<_>>(), Vec::<&String>::new(), "only here");
    assert_eq!(t.difference(&o).collect::<Vec<_>>(), Vec::<&String>::new(), "only there");
    for (name, seen) in ours {
        assert_eq!(seen, &theirs[name], "{}", String::from_utf8_lossy(name));
    }
}

/// Names, numbers and streams by `fls`, without deleted ones: (path, record, type of attribute).
fn fls(image: &Image) -> BTreeSet<(String, u64, u64)> {
    let out = String::from_utf8(run("fls", &["-r", "-p", image.str()])).unwrap();
    let line = |l: &str| {
        let (head, path) = l.split_once('\t')?;
        let address = head.split(' ').nth(1)?.trim_end_matches(':');
        let mut parts = address.split('-').map(|n| n.parse::<u64>());
        let (number, kind) = (parts.next()?.ok()?, parts.next()?.ok()?);
        (!head.contains('*') && !path.starts_with("$OrphanFiles")).then(|| (path.to_owned(), number, kind))
    };
    out.lines().filter_map(line).collect()
}

#[test]
fn every_name_size_time_and_byte_is_as_ntfs_3g_and_the_sleuth_kit_have_it() {
    for &shape in SHAPES {
        let image = filled(shape);
        let fs = open(image.bytes());
        let tree = fs.walk().unwrap();
        assert_eq!(tree.problems(), [], "{shape:?}");
        let mut here = ours(&*fs, &tree);
        // The driver shows reparse points that it does not know as broken links, The Sleuth Kit as the files they are.
        let cloud = here.remove(CLOUD).unwrap();
        let number = tree.object(tree.lookup([CLOUD]).unwrap()).number.to_string();
        assert_eq!((cloud.kind, cloud.sha), ("file", sha(&run("icat", &[image.str(), &number]))));
        let m = image.mount();
        assert_same(&here, &mounted(&m));
        drop(m);
        assert!(here.len() > 1400, "{shape:?}");

        // The Sleuth Kit: also the file system's own files. It has a row for each stream, and shows indexes as such.
        let mut mine = BTreeSet::new();
        for (e, _) in tree.order() {
            let id = tree.entry(e).object;
            let (path, number) = (String::from_utf8(tree.path(e)).unwrap(), tree.object(id).number);
            if tree.object(id).kind == Kind::Dir || tree.object(id).kind == Kind::Junction {
                mine.insert((path.clone(), number, 144));
            }
            for s in tree.streams(id) {
                let name = tree.stream_name(s).map(|n| String::from_utf8(n.to_vec()).unwrap());
                let named = name.map_or_else(String::new, |n| format!(":{n}"));
                mine.insert((format!("{path}{named}"), number, 128));
                // It shows those of a directory also by the directory's entry for itself.
                if tree.object(id).kind == Kind::Dir {
                    mine.insert((format!("{path}/.{named}"), number, 128));
                }
            }
        }
        let theirs = fls(&image);
        let index_of_metafile = |t: &&(String, u64, u64)| t.2 == 144 && t.0.contains(":$");
        let theirs: BTreeSet<_> = theirs.iter().filter(|t| !index_of_metafile(t)).cloned().collect();
        assert_eq!(mine.difference(&theirs).collect::<Vec<_>>(), Vec::<&_>::new(), "{shape:?}: only here");
        assert_eq!(theirs.difference(&mine).collect::<Vec<_>>(), Vec::<&_>::new(), "{shape:?}: only there");
    }
}

/// Clusters of the unnamed data by `istat`, 0 for a hole; none where it is resident.
fn istat(image: &Image, number: u64) -> Option<Vec<u64>> {
    let out = String::from_utf8_lossy(&run("istat", &[image.str(), &number.to_string()])).into_owned();
    let mut lines = out.lines().skip_while(|l| !(l.starts_with("Type: $DATA (128-") && l.contains("Name: N/A")));
    lines.next().filter(|l| l.contains("Non-Resident"))?;
    let rows = lines.take_while(|l| l.starts_with(|c: char| c.is_ascii_digit()));
    Some(rows.flat_map(str::split_whitespace).map(|n| n.parse().unwrap()).collect())
}

#[test]
fn extents_are_the_clusters_that_istat_prints() {
    for &shape in SHAPES {
        let image = filled(shape);
        let fs = open(image.bytes());
        let tree = fs.walk().unwrap();
        let names = ["large.bin", "scattered.sparse", "hole.sparse", "$MFT", "$LogFile"];
        for name in names {
            let id = tree.lookup([name.as_bytes()]).unwrap();
            // A cluster is stored where its first byte is: the rest may be beyond what was ever written.
            let map = tree.map(tree.data(id).unwrap());
            let cluster = |i: u64| {
                let at = Offset::new(i * shape.cluster);
                match map.slice(at..at.saturating_add(1)).next().unwrap().what {
                    What::Stored(p) => p.offset.get() / shape.cluster,
                    _ => 0,
                }
            };
            let clusters: Vec<u64> = (0..map.len().div_ceil(shape.cluster)).map(cluster).collect();
            let theirs = istat(&image, tree.object(id).number).unwrap();
            assert_eq!(clusters, theirs[..clusters.len()], "{name} of {shape:?}");
        }
        let of = |path: &str| tree.lookup(path.split('/').map(str::as_bytes)).unwrap();
        assert!(tree.extents(tree.data(of("scattered.sparse")).unwrap()).len() > 1300);
        let data = |path: &str| *tree.stream(tree.data(of(path)).unwrap());
        assert_eq!(data("sizes/00500.bin").form, Form::Inline);
        assert_eq!(istat(&image, tree.object(of("sizes/00500.bin")).number), None);
        assert_eq!(data("hole.sparse").form, Form::Plain);
        if shape.cluster <= 4096 {
            assert_eq!(data("compressed/text").form, Form::Compressed(16 * shape.cluster as u32));
            let whats = tree.extents(tree.data(of("compressed/text")).unwrap());
            assert!(whats.iter().any(|e| e.what == What::Encoded(Encoding::FsCompressed)));
            // What did not shrink lies there as it is.
            let whats = tree.extents(tree.data(of("compressed/noise")).unwrap());
            assert!(whats.iter().all(|e| matches!(e.what, What::Stored(_))), "{whats:?}");
        }
        assert_eq!(tree.target(of("junction")), Some(r"C:\Users\Größe".as_bytes()));
    }
}

#[test]
fn facts_are_those_of_ntfsinfo() {
    for &shape in SHAPES {
        let image = filled(shape);
        let facts = open(image.bytes()).facts();
        let info = String::from_utf8(run("ntfsinfo", &["-m", image.str()])).unwrap();
        let field = |name: &str| {
            let line =
                info.lines().find(|l| l.trim_start().starts_with(name)).unwrap_or_else(|| panic!("{name}: {info}"));
            line.split_once(':').unwrap().1.trim().to_owned()
        };
        assert_eq!(facts.kind, "ntfs");
        assert_eq!(facts.label, field("Volume Name"));
        assert_eq!(facts.unit.to_string(), field("Cluster Size"));
        assert_eq!(facts.units.to_string(), field("Volume Size in Clusters"));
        let free = field("Free Clusters");
        assert_eq!(facts.free_units.unwrap().to_string(), free.split(' ').next().unwrap());
        assert_eq!(facts.clean, Some(true), "{:?}", facts.remarks);
        let fsstat = String::from_utf8(run("fsstat", &[image.str()])).unwrap();
        assert!(fsstat.contains(&format!("Volume Serial Number: {}", facts.serial)), "{}\n{fsstat}", facts.serial);
    }
}

/// A reader of this format that somebody else wrote, where it is right: not for compressed files, short valid data, or pieces
/// in an attribute list (it gives other bytes for these, without an error).
#[test]
fn a_second_reader_agrees() {
    use ntfs::NtfsReadSeek;
    for &shape in SHAPES.iter().filter(|s| s.sector == 512) {
        let image = filled(shape);
        let bytes = image.bytes();
        let fs = open(bytes.clone());
        let tree = fs.walk().unwrap();
        let mut theirs = std::io::Cursor::new(bytes);
        let reader = ntfs::Ntfs::new(&mut theirs).unwrap();
        let mut compared = 0;
        for (e, _) in tree.order() {
            let id = tree.entry(e).object;
            let object = tree.object(id);
            let Some(stream) = tree.data(id) else { continue };
            let info = tree.stream(stream);
            if object.system || object.kind != Kind::File || info.valid < info.size {
                continue;
            }
            let file = reader.file(&mut theirs, object.number).unwrap();
            let listed =
                file.attributes_raw().any(|a| a.unwrap().ty().unwrap() == ntfs::NtfsAttributeType::AttributeList);
            if listed || !matches!(info.form, Form::Plain | Form::Inline) {
                continue;
            }
            let item = file.data(&mut theirs, "").unwrap().unwrap();
            let attribute = item.to_attribute().unwrap();
            if attribute.flags().contains(ntfs::NtfsAttributeFlags::COMPRESSED) {
                continue;
            }
            assert_eq!(attribute.value_length(), info.size, "{:?}", tree.path(e));
            let mut value = attribute.value(&mut theirs).unwrap();
            let mut have = vec![0; info.size as usize];
            value.read_exact(&mut theirs, &mut have).unwrap();
            assert!(have == read(&*fs, &tree, stream), "{:?}", tree.path(e));
            compared += 1;
        }
        assert!(compared > 500, "{shape:?}: {compared}");
    }
}
