//! Every verb on every kind of container that holds the same file system: what comes out is the same, whatever it lies in.

mod common;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::host::json_lines;
use common::{Noise, Seens, fsck_fat, ok, same_tree, scratch, tree, unimage};

const HOST: u64 = 300 << 20;

/// A FAT file system with some files, and what is in it.
fn guest(dir: &Path) -> (PathBuf, Seens) {
    let source = dir.join("source");
    fs::create_dir_all(source.join("Folder with a name")).unwrap();
    let mut noise = Noise::new(41);
    for n in 0..24u64 {
        let len = [0, 700, 2048, 30_000, 200_001, 500_000][(n % 6) as usize] + noise.below(2000) as usize;
        let bytes = if n % 4 == 0 { noise.text(len) } else { noise.bytes(len) };
        let folder = if n % 2 == 0 { "Folder with a name/" } else { "" };
        fs::write(source.join(format!("{folder}File number {n}.bin")), bytes).unwrap();
    }
    let raw = dir.join("guest.raw");
    File::create(&raw).unwrap().set_len(24 << 20).unwrap();
    ok("mkfs.fat", ["-F", "16", "-s", "8", raw.to_str().unwrap()]);
    for entry in fs::read_dir(&source).unwrap() {
        ok("mcopy", ["-s", "-i", raw.to_str().unwrap(), entry.unwrap().path().to_str().unwrap(), "::"]);
    }
    (raw, without_times(tree(&source)))
}

fn without_times(mut seen: Seens) -> Seens {
    seen.values_mut().for_each(|file| file.mtime = 0);
    seen
}

/// The guest in a container of its own folder: the name to be given, and how it was made.
fn containers(dir: &Path, raw: &Path) -> Vec<(PathBuf, String)> {
    let raw = raw.to_str().unwrap();
    let mut all = Vec::new();
    let folder = |n: usize| {
        let folder = dir.join(format!("c{n}"));
        fs::create_dir(&folder).unwrap();
        folder
    };
    for (n, (name, format, options)) in [
        ("disk.qcow2", "qcow2", "cluster_size=64k"),
        ("old.qcow2", "qcow2", "compat=0.10,cluster_size=4k"),
        ("parts.qcow2", "qcow2", "extended_l2=on"),
        ("data.qcow2", "qcow2", "data_file=data.bin,data_file_raw=on"),
        ("sparse.vmdk", "vmdk", "subformat=monolithicSparse"),
        ("flat.vmdk", "vmdk", "subformat=monolithicFlat"),
        ("two.vmdk", "vmdk", "subformat=twoGbMaxExtentSparse"),
        ("twoflat.vmdk", "vmdk", "subformat=twoGbMaxExtentFlat"),
        ("stream.vmdk", "vmdk", "subformat=streamOptimized"),
        ("fixed.vhd", "vpc", "subformat=fixed,force_size=on"),
        ("dynamic.vhd", "vpc", "subformat=dynamic,force_size=on"),
        ("fixed.vhdx", "vhdx", "subformat=fixed"),
        ("dynamic.vhdx", "vhdx", "subformat=dynamic"),
        ("dynamic.vdi", "vdi", "static=off"),
        ("static.vdi", "vdi", "static=on"),
    ]
    .into_iter()
    .enumerate()
    {
        let folder = folder(n);
        let list = ["convert", "-f", "raw", "-O", format, "-o", options, raw, name];
        let out = Command::new("qemu-img").current_dir(&folder).args(list).output().unwrap();
        assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
        all.push((folder.join(name), format!("{format} {options}")));
    }
    let packed = folder(50);
    let name = packed.join("packed.qcow2");
    ok("qemu-img", ["convert", "-c", "-f", "raw", "-O", "qcow2", raw, name.to_str().unwrap()]);
    all.push((name, "qcow2, compressed".into()));
    for (n, (format, compression, name)) in
        [("encase6", "fast", "case.E01"), ("encase6", "none", "case.E01"), ("smart", "best", "case.s01")]
            .into_iter()
            .enumerate()
    {
        let folder = folder(60 + n);
        let target = folder.join("case");
        ok(
            "ewfacquire",
            ["-u", "-q", "-f", format, "-c", compression, "-S", "4194304", "-t", target.to_str().unwrap(), raw],
        );
        all.push((folder.join(name), format!("ewf {format} {compression}")));
    }
    let parts = folder(70);
    let prefix = parts.join("disk.");
    ok("split", ["-b", "7M", "-d", "-a", "3", "--numeric-suffixes=1", raw, prefix.to_str().unwrap()]);
    all.push((parts.join("disk.001"), "split".into()));
    let plain = folder(71);
    fs::copy(raw, plain.join("disk.raw")).unwrap();
    all.push((plain.join("disk.raw"), "raw".into()));
    all
}

/// Reads of it in every way.
fn read(image: &Path, guest: &Seens, source: &Path) {
    let (name, whole) = (image.to_str().unwrap(), format!("{}//", image.display()));
    unimage(["info", name]).exits(0);
    let listed = unimage(["ls", "-R", &whole]).exits(0);
    let listed: BTreeSet<&str> = listed.stdout.lines().collect();
    assert!(guest.keys().all(|path| listed.contains(path.as_str())), "{listed:?}");
    for path in guest.keys().step_by(5) {
        let address = format!("{whole}{path}");
        let want = fs::read(source.join(path)).unwrap();
        let out = Command::new(common::UNIMAGE).args(["cat", &address]).output().unwrap();
        assert!(out.status.success() && out.stdout == want, "{address}");
        let out = unimage(["map", "--json", &address]).exits(0).stdout;
        let lines: Vec<serde_json::Value> = out.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let extents = lines.iter().filter(|l| l["type"] == "extent");
        let sum: u64 = extents.map(|l| l["len"].as_u64().unwrap()).sum();
        assert_eq!(sum, want.len() as u64, "{address}");
    }
    let same = unimage(["diff", &whole, &whole]).exits(0);
    assert_eq!(same.stdout, unimage(["diff", &whole, &whole]).exits(0).stdout);
    unimage(["plan", name]).exits(0);
    let dest = scratch();
    let (to, manifest) = (dest.path().join("out"), dest.path().join("manifest"));
    let (to, manifest) = (to.to_str().unwrap(), manifest.to_str().unwrap());
    unimage(["extract", &whole, to, "--manifest", manifest, "--hash", "sha256"]).exits(0);
    same_tree(guest, &without_times(tree(Path::new(to))), name);
    unimage(["verify", manifest, to]).exits(0);
}

/// Relinks it on a FAT32 host, and takes that back.
fn relinked(image: &Path, guest: &Seens) {
    let dir = scratch();
    let host = dir.path().join("host.img");
    File::create(&host).unwrap().set_len(HOST).unwrap();
    let text = host.to_str().unwrap();
    ok("mkfs.fat", ["-F", "32", "-s", "8", text]);
    let mut names = Vec::new();
    for entry in fs::read_dir(image.parent().unwrap()).unwrap() {
        let entry = entry.unwrap();
        ok("mcopy", ["-i", text, entry.path().to_str().unwrap(), "::"]);
        names.push(entry.file_name().into_string().unwrap());
    }
    let seen = || {
        let out = scratch();
        ok("mcopy", ["-s", "-n", "-m", "-i", text, "::*", out.path().to_str().unwrap()]);
        without_times(tree(out.path()))
    };
    let before = seen();
    let name = image.file_name().unwrap().to_str().unwrap();
    let journal = dir.path().join("journal");
    let journal = journal.to_str().unwrap();
    let address = format!("{text}//{name}");
    let plan = unimage(["plan", "--json", &address]).exits(0);
    let done = unimage(["relink", &address, "--into", "out", "--journal", journal, "--json", "--commit"]).exits(0);
    let rows = |text: &str| json_lines(text).1.iter().map(|r| (r["path"].clone(), r["verdict"].clone())).collect();
    let (planned, carried): (Vec<_>, Vec<_>) = (rows(&plan.stdout), rows(&done.stdout));
    assert_eq!(planned, carried, "{name}");
    assert_eq!(fsck_fat(&host, 0, HOST), Vec::<String>::new(), "{name}");
    let want: Seens = guest.iter().map(|(path, file)| (format!("out/{path}"), file.clone())).collect();
    same_tree(&want, &seen(), name);
    unimage(["undo", journal]).exits(0);
    assert_eq!(fsck_fat(&host, 0, HOST), Vec::<String>::new(), "{name} after undo");
    same_tree(&before, &seen(), name);
}

#[test]
fn what_comes_out_is_the_same() {
    let dir = scratch();
    let (raw, guest) = guest(dir.path());
    let source = dir.path().join("source");
    let all = containers(dir.path(), &raw);
    assert_eq!(all.len(), 21);
    for (image, made) in &all {
        println!("{made}");
        read(image, &guest, &source);
        relinked(image, &guest);
    }
}
