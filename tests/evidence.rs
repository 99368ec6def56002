//! Evidence files: EWF as `ewfacquire` writes it, read back.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{Noise, UNIMAGE, ok, run, scratch};
use unimage::error::Error;
use unimage::extent::{Encoding, Image, Layer, Offset, What};
use unimage::stack::{self, Address, OpenOptions, Stack};

/// Bytes of the disk: no whole number of chunks.
const LEN: usize = (5 << 20) + 1536;
const CHUNK: usize = 32 << 10;

/// Zeros, noise and text by turns, some chunks long.
fn disk() -> Vec<u8> {
    let mut noise = Noise::new(5);
    let mut bytes = vec![0; LEN];
    for (i, chunk) in bytes.chunks_mut(CHUNK).enumerate() {
        match noise.below(3) {
            0 => {}
            1 => chunk.copy_from_slice(&noise.bytes(chunk.len())),
            _ => chunk.iter_mut().zip(format!("line {i}\n").bytes().cycle()).for_each(|(b, t)| *b = t),
        }
    }
    bytes
}

/// Acquires `raw` in this format; the first segment file.
fn acquire(raw: &Path, into: &Path, format: &str, compression: &str) -> PathBuf {
    let target = into.join("case");
    let segment = "1048576";
    let args =
        ["-u", "-q", "-f", format, "-c", compression, "-S", segment, "-d", "sha1", "-C", "C 12", "-e", "Ä. Person"];
    let mut command = std::process::Command::new("ewfacquire");
    common::output(command.args(args).arg("-t").arg(&target).arg(raw)).exits(0);
    let mut names: Vec<PathBuf> = fs::read_dir(into).unwrap().map(|e| e.unwrap().path()).collect();
    names.retain(|n| n.file_stem().is_some_and(|s| s == "case"));
    names.sort();
    names.remove(0)
}

fn opened(path: &Path) -> Result<Stack, Error> {
    stack::open(&Address::parse(path.as_os_str()).unwrap(), OpenOptions::default())
}

fn image(stack: &Stack) -> Arc<dyn Layer<Image>> {
    Arc::clone(&stack.last().unwrap().disk.image)
}

fn whole(image: &dyn Layer<Image>) -> Vec<u8> {
    image.read_vec(Offset::new(0), image.len() as usize).unwrap()
}

#[test]
fn every_format_that_ewfacquire_writes() {
    let dir = scratch();
    let raw = dir.path().join("disk.raw");
    let bytes = disk();
    fs::write(&raw, &bytes).unwrap();
    for format in ["encase1", "encase2", "encase5", "encase6", "encase7", "ftk", "smart", "linen6", "ewfx"] {
        for compression in ["none", "best", "empty-block"] {
            let into = scratch();
            let first = acquire(&raw, into.path(), format, compression);
            let stack = opened(&first).unwrap_or_else(|e| panic!("{format} {compression}: {e}"));
            let level = stack.last().unwrap();
            assert_eq!(level.disk.kind, if format == "smart" { "ewf-s01" } else { "ewf-e01" });
            assert_eq!(level.disk.remarks, [""; 0], "{format} {compression}");
            let image = image(&stack);
            assert!(whole(&*image) == bytes, "{format} {compression}: other bytes");
            // Anywhere, any length.
            let mut noise = Noise::new(9);
            for _ in 0..200 {
                let at = noise.below(LEN as u64) as usize;
                let len = noise.below(3 * CHUNK as u64).min((LEN - at) as u64) as usize;
                assert!(image.read_vec(Offset::new(at as u64), len).unwrap() == bytes[at..at + len]);
            }
            // What is said to be stored as it is, is.
            let segments: Vec<(_, Vec<u8>)> = std::iter::once((level.device.id(), fs::read(&first).unwrap()))
                .chain(level.disk.parts.iter().map(|p| (p.device.id(), fs::read(&p.name).unwrap())))
                .collect();
            let mut plain = 0;
            let mut end = 0;
            for e in image.map().unwrap().extents() {
                assert_eq!(e.start.get(), end);
                end += e.len;
                let What::Stored(p) = e.what else { continue };
                let file = &segments.iter().find(|(id, _)| *id == p.layer).unwrap().1;
                let at = p.offset.get() as usize;
                assert!(file[at..at + e.len as usize] == bytes[e.start.get() as usize..][..e.len as usize]);
                plain += e.len as usize;
            }
            assert_eq!(end as usize, LEN);
            let noisy = bytes
                .chunks(CHUNK)
                .filter(|c| compression == "none" || !(c.iter().all(|b| *b == 0) || c.starts_with(b"line")));
            assert!(
                plain <= LEN
                    && (compression == "empty-block"
                        || format == "smart"
                        || plain == noisy.map(<[u8]>::len).sum::<usize>()),
                "{format} {compression} {plain}"
            );
            // The hash that ewfacquire stored, by another program.
            let md5 = ok("md5sum", [&raw]);
            let stored = level.disk.hashes.iter().find(|h| h.algorithm == "md5").expect("an MD5");
            let hex: String = stored.value.iter().map(|b| format!("{b:02x}")).collect();
            assert!(md5.starts_with(&hex), "{format}: {md5} {hex}");
            let fact = |name| level.disk.facts.iter().find(|(n, _)| *n == name).map(|(_, v)| v.as_str());
            assert_eq!(fact("case_number"), Some("C 12"), "{format}");
        }
    }
}

/// Written by a script: what libewf reads of it was compared once, by the script's `--judge`.
#[test]
fn the_second_version() {
    let dir = scratch();
    let raw = dir.path().join("disk.raw");
    let bytes = disk();
    fs::write(&raw, &bytes).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/ex01.py");
    for (codec, per_segment) in [("plain", "1000"), ("zlib", "1000"), ("zlib", "7"), ("bzip2", "20"), ("plain", "13")] {
        let into = scratch();
        let args = [&script, &raw, &into.path().join("case"), Path::new(codec), Path::new(per_segment)];
        ok("python3", args.map(|a| a.as_os_str()));
        let first = into.path().join("case.Ex01");
        let stack = opened(&first).unwrap_or_else(|e| panic!("{codec} {per_segment}: {e}"));
        let disk = &stack.last().unwrap().disk;
        assert_eq!((disk.kind, disk.remarks.len()), ("ewf-ex01", 0), "{:?}", disk.remarks);
        assert!(whole(&*image(&stack)) == bytes, "{codec} {per_segment}: other bytes");
        let out = run(UNIMAGE, ["info".as_ref(), first.as_os_str(), "--check".as_ref()]).exits(0).stdout;
        assert_eq!(out.matches("stored, and right").count(), 2, "{out}");
        assert!(out.contains("examiner: Ä. Person"), "{out}");
        // One chunk damaged, one segment lost.
        let sound = fs::read(&first).unwrap();
        let mut file = sound.clone();
        let at = if sound.len() > 100_000 { sound.len() / 2 } else { 2000 };
        file[at] ^= 4;
        fs::write(&first, &file).unwrap();
        let out = run(UNIMAGE, ["info".as_ref(), first.as_os_str(), "--check".as_ref()]);
        assert!(out.code == 1 && out.stdout.contains("EWF chunk"), "{at}: {out}");
        fs::write(&first, &sound).unwrap();
        if per_segment != "1000" {
            fs::remove_file(into.path().join("case.Ex02")).unwrap();
            assert!(matches!(opened(&first), Err(Error::NotFound(_))));
        }
    }
}

#[test]
fn a_damaged_chunk_is_an_error_and_the_others_are_read() {
    let dir = scratch();
    let raw = dir.path().join("disk.raw");
    let bytes = disk();
    fs::write(&raw, &bytes).unwrap();
    for compression in ["none", "best"] {
        let into = scratch();
        let first = acquire(&raw, into.path(), "encase6", compression);
        let mut file = fs::read(&first).unwrap();
        // In the middle of the sectors of the first segment.
        let hit = 300_000;
        file[hit] ^= 0x40;
        fs::write(&first, &file).unwrap();
        let stack = opened(&first).unwrap();
        let image = image(&stack);
        let mut bad = 0;
        for (i, chunk) in bytes.chunks(CHUNK).enumerate() {
            match image.read_vec(Offset::new((i * CHUNK) as u64), chunk.len()) {
                Ok(read) => assert!(read == chunk, "chunk {i}"),
                Err(Error::Corrupt { structure, at, .. }) => {
                    assert_eq!(structure, "EWF chunk");
                    let at = u64::from_str_radix(at.rsplit("0x").next().unwrap(), 16).unwrap() as usize;
                    assert!(at <= hit && hit < at + CHUNK + 4, "{at}");
                    bad += 1;
                }
                Err(e) => panic!("{e}"),
            }
        }
        assert_eq!(bad, 1, "{compression}");
    }
}

/// Where the sections of a segment file are, by their names.
fn sections(file: &[u8]) -> Vec<(String, usize)> {
    let mut at = 13;
    let mut out = Vec::new();
    loop {
        let name = String::from_utf8_lossy(&file[at..at + 16]).trim_end_matches('\0').to_owned();
        let next = u64::from_le_bytes(file[at + 16..at + 24].try_into().unwrap()) as usize;
        out.push((name, at));
        if next <= at || next + 76 > file.len() {
            return out;
        }
        at = next;
    }
}

#[test]
fn the_copy_of_a_table_is_used_where_the_table_is_damaged() {
    let dir = scratch();
    let raw = dir.path().join("disk.raw");
    let bytes = disk();
    fs::write(&raw, &bytes).unwrap();
    let into = scratch();
    let first = acquire(&raw, into.path(), "encase6", "best");
    let sound = fs::read(&first).unwrap();
    let at = |name: &str| sections(&sound).into_iter().find(|(n, _)| n == name).unwrap().1;
    let (table, copy) = (at("table"), at("table2"));
    let damaged = |places: &[usize]| {
        let mut file = sound.clone();
        places.iter().for_each(|p| file[*p] ^= 1);
        fs::write(&first, &file).unwrap();
        opened(&first).unwrap()
    };
    // Header, and entries.
    for place in [table + 76, table + 76 + 24 + 8] {
        assert!(whole(&*image(&damaged(&[place]))) == bytes);
    }
    assert_eq!(damaged(&[table + 76]).last().unwrap().disk.remarks.len(), 1);
    // Both copies of the entries: what the other tables tell of is still read.
    let image = image(&damaged(&[table + 76 + 24 + 8, copy + 76 + 24 + 8]));
    let count = u32::from_le_bytes(sound[table + 76..table + 80].try_into().unwrap()) as usize;
    let behind = count * CHUNK;
    assert!(matches!(image.read_vec(Offset::new(0), 512), Err(Error::Corrupt { .. })));
    assert!(image.read_vec(Offset::new(behind as u64), LEN - behind).unwrap() == bytes[behind..]);
}

#[test]
fn a_missing_segment_is_an_error_for_every_verb() {
    let dir = scratch();
    let raw = dir.path().join("disk.raw");
    fs::write(&raw, disk()).unwrap();
    for (format, missing) in [("encase6", "case.E03"), ("encase6", "case.E06"), ("smart", "case.s02")] {
        let into = scratch();
        let first = acquire(&raw, into.path(), format, "none");
        fs::remove_file(into.path().join(missing)).unwrap();
        for verb in ["info", "ls"] {
            let out = run(UNIMAGE, [verb.as_ref(), first.as_os_str()]).exits(3);
            assert!(out.stderr.contains("is missing"), "{out}");
        }
    }
    // The other way round: a segment of another image by the right name.
    let (one, other) = (scratch(), scratch());
    let first = acquire(&raw, one.path(), "encase6", "none");
    let mut longer = disk();
    longer.resize(LEN + CHUNK, 7);
    fs::write(&raw, longer).unwrap();
    acquire(&raw, other.path(), "encase6", "none");
    fs::copy(other.path().join("case.E02"), one.path().join("case.E02")).unwrap();
    let out = run(UNIMAGE, ["info".as_ref(), first.as_os_str()]).exits(4);
    assert!(out.stderr.contains("another image"), "{out}");
}

/// A small file that says it has 2^60 bytes: what the tables don't tell of is one extent, and takes no time.
#[test]
fn a_size_that_is_made_up() {
    let dir = scratch();
    let raw = dir.path().join("disk.raw");
    fs::write(&raw, vec![b'a'; 4 * CHUNK]).unwrap();
    for (n, damage) in [false, true].into_iter().enumerate() {
        let into = scratch();
        let first = acquire(&raw, into.path(), "encase6", "best");
        let mut bytes = fs::read(&first).unwrap();
        for (name, at) in sections(&bytes) {
            let (body, sum) = (at + 76, if name == "volume" || name == "data" { 1048 } else { 20 });
            match name.as_str() {
                "volume" | "data" => bytes[body + 16..body + 24].copy_from_slice(&(1u64 << 51).to_le_bytes()),
                // More entries than the file has.
                "table" | "table2" if damage => bytes[body..body + 4].fill(0xFF),
                _ => continue,
            }
            let adler = adler32(&bytes[body..body + sum]).to_le_bytes();
            bytes[body + sum..body + sum + 4].copy_from_slice(&adler);
        }
        fs::write(&first, &bytes).unwrap();
        let start = std::time::Instant::now();
        let map = image(&opened(&first).unwrap()).map().unwrap();
        assert_eq!((map.len(), map.extents().len()), (1 << 60, 2 - n), "{map:?}");
        assert!(start.elapsed().as_secs() < 10);
    }
}

/// A chunk that is stored as it is and has no room for that: no extent leads beyond the end of the file.
#[test]
fn a_chunk_without_room_is_no_extent() {
    let dir = scratch();
    let raw = dir.path().join("disk.raw");
    fs::write(&raw, vec![b'a'; 4 * CHUNK]).unwrap();
    let into = scratch();
    let first = acquire(&raw, into.path(), "encase6", "best");
    let mut bytes = fs::read(&first).unwrap();
    // Each entry says that its chunk is deflated; from here on that it is not. Both tables, with their checksums.
    for (_, at) in sections(&bytes).into_iter().filter(|(name, _)| name.starts_with("table")) {
        let entries = at + 76 + 24;
        let end = entries + 4 * 4;
        (entries..end).step_by(4).for_each(|entry| bytes[entry + 3] &= 0x7F);
        let sum = adler32(&bytes[entries..end]).to_le_bytes();
        bytes[end..end + 4].copy_from_slice(&sum);
    }
    assert!(bytes.len() < CHUNK);
    fs::write(&first, &bytes).unwrap();
    let image = image(&opened(&first).unwrap());
    let map = image.map().unwrap();
    assert!(map.extents().iter().all(|e| e.what == What::Encoded(Encoding::Unreadable)), "{map:?}");
    assert!(matches!(image.read_vec(Offset::new(0), 512), Err(Error::Corrupt { .. })));
}

#[test]
fn any_damage_is_survived() {
    let dir = scratch();
    let raw = dir.path().join("disk.raw");
    fs::write(&raw, &disk()[..409_600]).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/ex01.py");
    for (format, seed) in [("encase6", 1), ("smart", 2), ("ex01", 3)] {
        let into = scratch();
        let (first, places) = if format == "ex01" {
            let first = into.path().join("case.Ex01");
            let args = [&script, &raw, &into.path().join("case"), Path::new("zlib"), Path::new("1000")];
            ok("python3", args.map(|a| a.as_os_str()));
            let len = fs::metadata(&first).unwrap().len() as usize;
            (first, vec![0, 32, len - 64, len - 200, len - 400, len - 800])
        } else {
            let first = acquire(&raw, into.path(), format, "best");
            let places = sections(&fs::read(&first).unwrap()).iter().map(|(_, at)| *at).collect();
            (first, places)
        };
        let sound = fs::read(&first).unwrap();
        let mut noise = Noise::new(seed);
        for _ in 0..300 {
            let mut file = sound.clone();
            for _ in 0..=noise.below(3) {
                // Mostly in descriptors and what follows them.
                let near = places[noise.below(places.len() as u64) as usize] + noise.below(200) as usize;
                let at = if noise.below(4) == 0 { noise.below(file.len() as u64) as usize } else { near };
                if let Some(b) = file.get_mut(at) {
                    *b = noise.below(256) as u8;
                }
            }
            if noise.below(5) == 0 {
                file.truncate(noise.below(file.len() as u64) as usize);
            }
            fs::write(&first, &file).unwrap();
            if let Ok(stack) = opened(&first) {
                let image = image(&stack);
                let _ = image.map();
                let len = image.len().min(400_000);
                for at in (0..len).step_by(CHUNK) {
                    let _ = image.read_vec(Offset::new(at), (len - at).min(CHUNK as u64) as usize);
                }
            }
        }
    }
}

#[test]
fn a_raw_disk_in_parts() {
    let dir = scratch();
    let bytes = disk();
    let place = |name: &str| dir.path().join(name);
    let write = |digits: bool| {
        for (i, part) in bytes.chunks(1 << 20).enumerate() {
            let name = if digits { format!("d.{:03}", i + 1) } else { format!("d.a{}", (b'a' + i as u8) as char) };
            fs::write(place(&name), part).unwrap();
        }
    };
    for (digits, first, second) in [(true, "d.001", "d.002"), (false, "d.aa", "d.ab")] {
        write(digits);
        // By any of them.
        for name in [first, second] {
            let stack = opened(&place(name)).unwrap();
            let disk = &stack.last().unwrap().disk;
            assert_eq!((disk.kind, disk.parts.len(), disk.remarks.len()), ("split-raw", 5, 1));
            assert!(whole(&*image(&stack)) == bytes, "{name}");
        }
        fs::remove_file(place(second)).unwrap();
        assert!(matches!(opened(&place(first)), Err(Error::NotFound(_))));
        fs::write(place(second), &bytes[..1000]).unwrap();
        // Of another size: no part.
        let stack = opened(&place(first)).unwrap();
        assert_eq!((stack.last().unwrap().disk.kind, image(&stack).len()), ("raw", 1 << 20));
        assert!(stack.last().unwrap().disk.remarks[0].contains("sizes"));
        // A disk of its own.
        let mut other = bytes[1 << 20..2 << 20].to_vec();
        other[510..512].copy_from_slice(&[0x55, 0xAA]);
        fs::write(place(second), &other).unwrap();
        let stack = opened(&place(first)).unwrap();
        assert_eq!((stack.last().unwrap().disk.kind, image(&stack).len()), ("raw", 1 << 20));
    }
}

#[test]
fn info_shows_the_notes_and_checks_the_hashes() {
    let dir = scratch();
    let raw = dir.path().join("disk.raw");
    fs::write(&raw, disk()).unwrap();
    let into = scratch();
    let first = acquire(&raw, into.path(), "encase6", "best");
    let [md5, sha1] = ["md5sum", "sha1sum"].map(|p| ok(p, [&raw]).split(' ').next().unwrap().to_owned());
    let info = |more: &[&str], code| {
        let args = ["info".as_ref(), first.as_os_str()].into_iter().chain(more.iter().map(|a| a.as_ref()));
        run(UNIMAGE, args).exits(code).stdout
    };
    let text = info(&[], 0);
    for line in ["case number: C 12", "examiner: Ä. Person", &format!("md5 {md5}: stored\n")] {
        assert!(text.contains(line), "{text}");
    }
    let text = info(&["--check"], 0);
    for line in [format!("md5 {md5}: stored, and right"), format!("sha1 {sha1}: stored, and right")] {
        assert!(text.contains(&line), "{text}");
    }
    let (_, rows, _) = common::host::json_lines(&info(&["--check", "--json"], 0));
    assert_eq!((rows[0]["right"].as_bool(), rows[0]["computed"]["sha1"].as_str()), (Some(true), Some(&*sha1)));
    // Another MD5 is stored, by sections whose own checksums are right.
    let last = into.path().join("case.E02");
    let mut file = fs::read(&last).unwrap();
    for (name, at) in sections(&file) {
        let sum = match name.as_str() {
            "hash" => 32,
            "digest" => 76,
            _ => continue,
        };
        let body = at + 76;
        file[body] ^= 1;
        let adler = adler32(&file[body..body + sum]);
        file[body + sum..body + sum + 4].copy_from_slice(&adler.to_le_bytes());
    }
    fs::write(&last, &file).unwrap();
    let text = info(&["--check"], 1);
    assert!(text.contains(&format!("stored, but WRONG: the disk has {md5}")), "{text}");
    // A damaged chunk: not checked, and said so.
    let mut file = fs::read(&first).unwrap();
    file[300_000] ^= 1;
    fs::write(&first, &file).unwrap();
    assert!(info(&["--check"], 1).contains("not checked: EWF chunk"));
    // Nothing stored, nothing to compare with.
    let out = run(UNIMAGE, ["info".as_ref(), raw.as_os_str(), "--check".as_ref()]).exits(1);
    assert!(out.stdout.contains("has stored no hash"), "{out}");
}

/// Adler-32 as RFC 1950 has it.
fn adler32(bytes: &[u8]) -> u32 {
    let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    b << 16 | a
}
