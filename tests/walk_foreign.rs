//! The walk and the maps, side by side with what `ntfs-3g`, `fls` and `istat` say of the same images.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::guest::{self, Guest};
use common::host::{Host, Place, Shape, json_lines, raw_text};
use common::{Seen, Seens, ok, scratch, unimage};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Size and time of each file, and of each stream (no time), by `ls -R --json`; directories are in the second list.
#[track_caller]
fn listed(address: &str) -> (BTreeMap<String, (u64, i128)>, Vec<String>) {
    let out = unimage(["ls", "-R", "--json", address]).exits(0);
    let (mut files, mut dirs) = (BTreeMap::new(), Vec::new());
    for row in json_lines(&out.stdout).1 {
        let path = raw_text(&row, "path");
        match row["kind"].as_str().unwrap() {
            "dir" => dirs.push(path),
            "file" | "stream" => {
                let time = row["mtime"]
                    .as_str()
                    .map_or(0, |t| OffsetDateTime::parse(t, &Rfc3339).unwrap().unix_timestamp_nanos());
                let time = if row["kind"] == "stream" { 0 } else { time };
                assert!(files.insert(path.clone(), (row["size"].as_u64().unwrap(), time)).is_none(), "twice: {path}");
            }
            other => panic!("{other}: {path}"),
        }
    }
    dirs.sort();
    (files, dirs)
}

fn sizes_and_times(files: &Seens) -> BTreeMap<String, (u64, i128)> {
    files.iter().map(|(p, s)| (p.clone(), (s.size, s.mtime))).collect()
}

/// The same of `fls -r -p -l`: to the second, control characters as `^`.
#[track_caller]
fn fls(image: &Path, more: &[&str]) -> (BTreeMap<String, (u64, i128)>, Vec<String>) {
    let mut a = vec!["-r", "-p", "-u", "-l"];
    a.extend(more);
    a.push(image.to_str().unwrap());
    let (mut files, mut dirs) = (BTreeMap::new(), Vec::new());
    for line in ok("fls", a).lines() {
        let f: Vec<&str> = line.split('\t').collect();
        // A stream of a folder is one of its entry for itself.
        let path = &f[1].replace("/.:", ":");
        let (kind, mtime, size) = (f[0], f[2], f[6]);
        if path.starts_with('$') || path.ends_with("(Volume Label Entry)") {
            continue;
        }
        if kind.starts_with("d/d") {
            // A stream of a folder is listed as one more folder.
            if path.contains(':') {
                files.insert(path.to_owned(), (size.parse().unwrap(), 0));
            } else {
                dirs.push(path.to_owned());
            }
            continue;
        }
        let stamp = format!("{}Z", mtime.trim_end_matches(" (UTC)").replace(' ', "T"));
        let time = OffsetDateTime::parse(&stamp, &Rfc3339).unwrap_or_else(|e| panic!("{e}: {line}"));
        let time = if path.contains(':') { 0 } else { time.unix_timestamp_nanos() };
        files.insert(path.to_owned(), (size.parse().unwrap(), time));
    }
    dirs.sort();
    (files, dirs)
}

fn as_fls(files: &BTreeMap<String, (u64, i128)>) -> BTreeMap<String, (u64, i128)> {
    let second = 1_000_000_000;
    files.iter().map(|(p, (s, t))| (shown(p), (*s, t.div_euclid(second) * second))).collect()
}

fn shown(path: &str) -> String {
    path.chars().map(|c| if c.is_control() { '^' } else { c }).collect()
}

#[track_caller]
fn equal<T: PartialEq + std::fmt::Debug>(a: &BTreeMap<String, T>, b: &BTreeMap<String, T>, what: &str) {
    let wrong: Vec<_> = a.iter().filter(|(k, v)| b.get(*k) != Some(v)).map(|(k, v)| (k, v, b.get(k))).collect();
    assert!(wrong.is_empty(), "{what}: {} differ, such as {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    let more: Vec<_> = b.keys().filter(|k| !a.contains_key(*k)).collect();
    assert!(more.is_empty(), "{what}: {} too many, such as {:#?}", more.len(), &more[..more.len().min(5)]);
}

fn ntfs_side_by_side(guest: &Guest) {
    let (files, dirs) = listed(&format!("{}//p1", guest.image.display()));
    equal(&sizes_and_times(&guest.files), &files, "ntfs-3g and ls");
    let (by_fls, dirs_by_fls) = fls(&guest.image, &["-o", "2048"]);
    equal(&by_fls, &as_fls(&files), "fls and ls");
    let dirs: Vec<_> = dirs.iter().map(|d| shown(d)).collect();
    assert_eq!(dirs, dirs_by_fls);
}

#[test]
fn twenty_thousand_files_of_ntfs() {
    ntfs_side_by_side(&guest::windows());
}

#[test]
fn every_form_of_ntfs() {
    ntfs_side_by_side(&guest::small_windows());
}

#[test]
fn fat_of_each_width() {
    let dir = scratch();
    for (width, sectors, len) in [(12, 4, 4 << 20), (16, 4, 16 << 20), (32, 1, 40 << 20)] {
        let image = dir.path().join(format!("{width}"));
        let put: Seens = guest::fat(&image, len, width, sectors);
        let (files, dirs) = listed(image.to_str().unwrap());
        let (by_fls, dirs_by_fls) = fls(&image, &["-f", &format!("fat{width}")]);
        // Names in 8.3 that are all capitals are told apart by no reader.
        equal(&by_fls, &as_fls(&files), "fls and ls");
        assert_eq!(dirs, dirs_by_fls);
        let sizes: BTreeMap<_, _> = files.iter().map(|(p, (s, _))| (p.to_lowercase(), *s)).collect();
        let put: BTreeMap<_, _> = put.iter().map(|(p, s): (&String, &Seen)| (p.to_lowercase(), s.size)).collect();
        equal(&put, &sizes, "mcopy and ls");
    }
}

#[test]
fn contents_are_those_that_ntfs3g_shows() {
    // Every form once, the first of each folder; also what is decoded: resident, sparse, compressed, streams.
    let Guest { image, files } = guest::small_windows();
    let mut in_folder = BTreeMap::new();
    for (path, seen) in &files {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let count: &mut usize = in_folder.entry(folder).or_default();
        *count += 1;
        if *count > 12 || path.contains('%') {
            continue;
        }
        let address = format!("{}//p1/{}", image.display(), path.replace('\t', "%09"));
        let out = std::process::Command::new(common::UNIMAGE).args(["cat", &address]).output().unwrap();
        assert!(out.status.success(), "{path}: {}", String::from_utf8_lossy(&out.stderr));
        assert_eq!(common::sha256(&out.stdout), seen.sha, "{path}");
    }
}

/// A line of `map`: start, length, and where in the volume and on the ground; none for zeros.
type Piece = (u64, u64, Option<(u64, u64)>);

#[track_caller]
fn mapped(address: &str) -> Vec<Piece> {
    let out = unimage(["map", "--json", address]).exits(0);
    let mut pieces = Vec::new();
    for line in out.stdout.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        if line["type"] == "extent" {
            let at = line["at"].as_array().unwrap();
            let at = at.first().map(|first| (first.as_u64().unwrap(), at.last().unwrap().as_u64().unwrap()));
            assert_eq!(at.is_some(), line["what"] == "stored", "{line}");
            pieces.push((line["start"].as_u64().unwrap(), line["len"].as_u64().unwrap(), at));
        }
    }
    pieces
}

#[test]
fn maps_are_those_of_istat() {
    let Guest { image, .. } = guest::small_windows();
    let paths = [
        "fragmented/grown 0.bin",
        "fragmented/grown 1.bin",
        "fragmented/grown 5.bin",
        "sparse/holes 0",
        "sparse/holes 4",
        "cut/cut 7",
        "more/exactly 65537",
        "more/first name",
        "compressed/does not compress",
        "Users/u00/Documents and more 002/Datei 00210 übergröße.jpeg",
    ];
    for path in paths {
        let pieces = mapped(&format!("{}//p1/{path}", image.display()));
        let mut clusters: Vec<u64> = Vec::new();
        for (start, len, at) in &pieces {
            for cluster in start / 4096..(start + len).div_ceil(4096) {
                // A piece that ends within a cluster (initialized size) shares it with the next.
                if cluster as usize == clusters.len() {
                    clusters.push(at.map_or(0, |(volume, _)| (volume - start % 4096) / 4096 + cluster - start / 4096));
                }
            }
        }
        let mut expected: Vec<u64> = Vec::new();
        for (at, n) in guest::runs_of(&image, 2048, path) {
            expected.extend((0..n).map(|i| if at == 0 { 0 } else { at + i }));
        }
        if path.starts_with("compressed") {
            // Stored plainly or not, the words of the map are others; the compressed ones are judged by their contents.
            continue;
        }
        // Clusters beyond the initialized size are there, and read as zeros: istat lists them, the map says zero.
        for (i, cluster) in clusters.iter().enumerate() {
            assert!(
                *cluster == expected[i] || *cluster == 0 && path.starts_with("sparse"),
                "{path}: cluster {i}: {clusters:?} {expected:?}"
            );
        }
        expected.truncate(clusters.len());
        assert_eq!(clusters.len(), expected.len(), "{path}");
        for (_, _, at) in pieces {
            if let Some((volume, ground)) = at {
                assert_eq!(ground, volume + guest::PART, "{path}");
            }
        }
    }
}

#[test]
fn a_map_through_two_levels_ends_where_the_bytes_are() {
    // The bytes at the ground offsets that are printed are the file's: read past all layers.
    use std::os::unix::fs::FileExt;
    let Guest { image, files } = guest::small_windows();
    let shape = Shape { width: 32, cluster_sectors: 1, len: 200 << 20, place: Place::Logical, fragments: 900 };
    let host = Host::new(shape, &image);
    let ground = std::fs::File::open(&host.file).unwrap();
    for path in ["fragmented/grown 2.bin", "sparse/holes 3", "more/exactly 65537"] {
        let address = format!("{}//p1/{path}", host.image());
        let mut bytes = vec![0; files[path].size as usize];
        for (start, len, at) in mapped(&address) {
            if let Some((_, at)) = at {
                ground.read_exact_at(&mut bytes[start as usize..(start + len) as usize], at).unwrap();
            }
        }
        assert_eq!(common::sha256(&bytes), files[path].sha, "{path}");
    }
}
