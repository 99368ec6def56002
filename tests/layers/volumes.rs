//! Partition tables that real tools made: every partition is where `sfdisk` says that it is.

use std::fs::File;
use std::path::Path;

use unimage::extent::What;
use unimage::stack::{Address, OpenOptions, Stack, open};

use crate::support::run;

fn disk(dir: &Path, name: &str, mib: u64) -> String {
    let path = dir.join(name);
    File::create(&path).unwrap().set_len(mib << 20).unwrap();
    path.to_str().unwrap().to_owned()
}

fn opened(path: &str) -> Stack {
    open(&Address::parse(path.as_ref()).unwrap(), OpenOptions::default()).unwrap()
}

/// Name, first byte, bytes of each volume.
fn volumes(stack: &Stack) -> Vec<(String, u64, u64)> {
    stack.levels[0]
        .table
        .slots
        .iter()
        .map(|s| {
            let map = s.layer.map().unwrap();
            let [one] = map.extents() else { panic!("a partition is one run") };
            let What::Stored(place) = one.what else { panic!("a partition is stored") };
            (s.name.clone(), place.offset.get(), one.len)
        })
        .collect()
}

/// The same as `sfdisk --json` has it, without extended partitions.
fn by_sfdisk(path: &str) -> Vec<(String, u64, u64)> {
    let json: serde_json::Value = serde_json::from_str(&run("sfdisk", &["--json", path], "")).unwrap();
    let table = &json["partitiontable"];
    let sector = table["sectorsize"].as_u64().unwrap();
    let parts = table["partitions"].as_array().unwrap();
    parts
        .iter()
        .filter(|p| !["5", "f", "85"].contains(&p["type"].as_str().unwrap()))
        .map(|p| {
            let node = p["node"].as_str().unwrap().strip_prefix(path).unwrap();
            let number = node.trim_start_matches('p');
            (format!("p{number}"), p["start"].as_u64().unwrap() * sector, p["size"].as_u64().unwrap() * sector)
        })
        .collect()
}

#[test]
fn gpt() {
    let dir = tempfile::tempdir().unwrap();
    let path = disk(dir.path(), "gpt.raw", 64);
    run(
        "sfdisk",
        &[&path],
        "label: gpt\n1: size=8MiB, name=\"first, of all\"\n2: size=4MiB, type=swap\n7: size=20MiB\n",
    );
    let stack = opened(&path);
    assert_eq!(volumes(&stack), by_sfdisk(&path));
    let table = &stack.levels[0].table;
    assert_eq!((table.kind, table.sector, table.problems.len()), ("gpt", 512, 0), "{:?}", table.problems);
    assert!(table.slots[0].about.starts_with("Linux filesystem \"first, of all\""), "{}", table.slots[0].about);
}

#[test]
fn mbr_with_logical_partitions() {
    let dir = tempfile::tempdir().unwrap();
    let path = disk(dir.path(), "mbr.raw", 64);
    run(
        "sfdisk",
        &[&path],
        "label: dos\n1: size=8MiB, type=c, bootable\n2: type=5, size=40MiB\n5: size=4MiB\n6: size=6MiB, type=7\n7: size=2MiB\n",
    );
    let stack = opened(&path);
    assert_eq!(volumes(&stack), by_sfdisk(&path));
    assert_eq!((stack.levels[0].table.kind, stack.levels[0].table.problems.len()), ("mbr", 0));
}
