//! Damaged security descriptors, extended attributes and reparse points, of the guest and of the host: nothing panics or hangs, and
//! what the host does not refuse is linked so that its audit finds nothing.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use crate::host::*;
use crate::kept::descriptor;
use crate::mutate::mutate;
use crate::ntfs_support::{Image, Mount, Noise, junction};
use crate::targets;

/// Bytes of a cluster.
const CLUSTER: usize = 512;

/// A few of each.
fn fill(m: &Mount) {
    for i in 0..8u8 {
        let name = format!("secured {i}");
        m.put(&name, &noise(u64::from(i), 500 * usize::from(i)));
        m.set_xattr(&name, "system.ntfs_acl", &descriptor(i));
    }
    for (name, ea) in [
        ("one", &b"\x14\0\0\0\0\x04\x06\0NAME\0value\0\0"[..]),
        ("two", b"\x0C\0\0\0\0\x01\x02\0A\0xy\x0C\0\0\0\x80\x01\x02\0B\0zz"),
    ] {
        m.put(name, b"with extended attributes");
        m.set_xattr(name, "system.ntfs_ea", ea);
    }
    for i in 0..3 {
        let name = format!("junction {i}");
        fs::create_dir(m.path(&name)).unwrap();
        m.set_xattr(&name, "system.ntfs_reparse_data", &junction(&format!(r"\??\C:\target {i}")));
    }
    m.put("link of WSL", b"");
    m.set_xattr("link of WSL", "system.ntfs_reparse_data", b"\x1D\0\0\xA0\x0D\0\0\0\x02\0\0\0../target");
    m.put("cloud file", &noise(12, 3000));
    m.set_xattr("cloud file", "system.ntfs_reparse_data", &[0x1A, 0, 0, 0x90, 4, 0, 0, 0, 1, 2, 3, 4]);
}

/// Sectors of a volume that hold such attributes, `$Secure` with its data, or the index of reparse points.
fn sectors(bytes: &[u8], own: impl Fn(usize) -> bool) -> Vec<usize> {
    let le = |at: usize, n: usize| bytes[at..at + n].iter().rev().fold(0, |n, b| n << 8 | usize::from(*b));
    let mut all = BTreeSet::new();
    let mut add = |from: usize, to: usize| all.extend((from / 512..to.div_ceil(512)).map(|n| n * 512));
    let records = (0..bytes.len()).step_by(1024).filter(|at| own(*at) && bytes[*at..].starts_with(b"FILE"));
    for record in records {
        let secure = le(record + 0x2C, 4) == 9;
        let mut at = record + le(record + 0x14, 2);
        while at + 0x48 < record + 1024 && le(at, 4) != 0xFFFF_FFFF {
            let (kind, size) = (le(at, 4), le(at + 4, 4));
            let of_points = bytes[at + 9] == 2 && bytes[at + le(at + 10, 2)..].starts_with(b"$\0R\0");
            if size == 0 || at + size > record + 1024 {
                break;
            }
            if secure || of_points || [0x50, 0xC0, 0xD0, 0xE0].contains(&kind) {
                add(at, at + size);
                if bytes[at + 8] == 1 {
                    let pairs = at + le(at + 0x20, 2);
                    let (count, place) = (usize::from(bytes[pairs] & 15), usize::from(bytes[pairs] >> 4));
                    let from = le(pairs + 1 + count, place) * CLUSTER;
                    add(from, from + (le(pairs + 1, count) * CLUSTER).min(4096));
                }
            }
            at += size;
        }
    }
    all.into_iter().collect()
}

#[test]
fn no_damage_of_descriptors_attributes_and_points_breaks_a_promise() {
    let guest = Image::new(Shape { sector: 512, cluster: CLUSTER as u64, mib: 4 });
    let mount = guest.mount();
    fill(&mount);
    drop(mount);
    let image = guest.bytes();
    // The image is the only file that is large enough to be tried as one.
    let host = Image::new(Shape { sector: 512, cluster: CLUSTER as u64, mib: 12 });
    let mount = host.mount();
    fill(&mount);
    mount.put(IMAGE, &image);
    drop(mount);
    let host = host.bytes();
    let clusters: Vec<usize> = HostCase::open(host.clone()).clusters.into_iter().map(|at| at as usize).collect();
    let of_image: BTreeSet<usize> = clusters.iter().copied().collect();
    let places = [sectors(&image, |_| true), sectors(&host, |at| !of_image.contains(&at))];
    assert!(places.iter().all(|p| p.len() > 20), "{places:?}");
    let of_guest: Vec<usize> = places[0].iter().map(|at| clusters[at / CLUSTER] + at % CLUSTER).collect();
    targets::relink(&host);
    targets::ntfs(&image);
    let long = std::env::var_os("UNIMAGE_LONG").is_some_and(|v| v == "1");
    let limit = Duration::from_secs(if long { 120 } else { 8 });
    let (start, mut noise, mut slowest, mut rounds) = (Instant::now(), Noise::new(2026), Duration::ZERO, 0u32);
    while start.elapsed() < limit {
        let round = Instant::now();
        let mut bytes = if rounds % 4 == 0 { image.clone() } else { host.clone() };
        match rounds % 4 {
            0 => {
                mutate(&mut bytes, &places[0], &mut noise);
                targets::ntfs(&bytes);
            }
            1 => {
                mutate(&mut bytes, &places[1], &mut noise);
                targets::relink(&bytes);
            }
            _ => {
                mutate(&mut bytes, &of_guest, &mut noise);
                targets::relink(&bytes);
            }
        }
        slowest = slowest.max(round.elapsed());
        rounds += 1;
    }
    println!("{rounds} rounds, the slowest {slowest:?}");
    assert!(slowest < Duration::from_secs(20), "{slowest:?}");
}
