//! `ls` against The Sleuth Kit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::support::*;

/// What `fls -r -p` lists, without what it makes up or finds deleted: kind and path.
fn fls(image: &Path) -> BTreeSet<(char, String)> {
    let out = ok("fls", ["-r", "-p", image.to_str().unwrap()]);
    let line = |l: &str| -> Option<(char, String)> {
        let (head, path) = l.split_once(":\t").unwrap_or_else(|| panic!("{l}"));
        let kind = head.chars().next()?;
        let real = matches!(kind, 'r' | 'd') && !head.contains('*') && !path.starts_with('$');
        (real && !path.ends_with("(Volume Label Entry)")).then(|| (kind, path.to_owned()))
    };
    out.lines().filter_map(line).collect()
}

/// The same of `unimage ls -R --json`.
fn listed(image: &Path) -> BTreeSet<(char, String)> {
    let letter = |kind: &str| match kind {
        "dir" => 'd',
        _ => 'r',
    };
    entries(&["ls", "-R", "--json", image.to_str().unwrap()])
        .iter()
        .map(|e| (letter(e["kind"].as_str().unwrap()), e["path"].as_str().unwrap().to_owned()))
        .collect()
}

#[test]
fn ls_lists_what_fls_lists() {
    let odd = |p: &&(char, String)| !p.1.contains("next") && !p.1.contains("per%");
    for image in [&ntfs().image, &host().0] {
        let (ours, theirs) = (listed(image), fls(image));
        assert!(theirs.len() >= 3);
        let ours: BTreeSet<_> = ours.iter().filter(odd).collect();
        assert_eq!(ours, theirs.iter().filter(odd).collect());
        // The plain form has the same paths, but for streams.
        let plain = unimage(["ls", "-R", image.to_str().unwrap()]).exits(0).stdout;
        let plain: BTreeSet<&str> = plain.lines().filter(|p| !p.contains("next") && !p.contains("per%")).collect();
        assert_eq!(plain, ours.iter().map(|(_, p)| p.as_str()).filter(|p| !p.contains(':')).collect());
    }
}

#[test]
fn a_bodyfile_says_what_fls_says_of_sizes_and_times() {
    /// Name, size and the four times; NTFS streams by their names.
    fn rows(text: &str) -> BTreeMap<String, Vec<String>> {
        let row = |l: &str| {
            let f: Vec<&str> = l.split('|').collect();
            assert_eq!(f.len(), 11, "{l}");
            (f[1].trim_start_matches('/').to_owned(), f[6..].iter().map(|s| (*s).to_owned()).collect())
        };
        text.lines().map(row).collect()
    }
    for image in [&ntfs().image, &host().0] {
        let path = image.to_str().unwrap();
        let theirs = rows(&ok("fls", ["-r", "-p", "-m", "/", path]));
        let ours = rows(&unimage(["ls", "-R", "--bodyfile", path]).exits(0).stdout);
        let mut compared = 0;
        for (name, got) in &ours {
            if name.contains("next") || name.contains("per%") {
                continue;
            }
            let mut want = theirs.get(name).unwrap_or_else(|| panic!("fls has no {name}")).clone();
            // The size of a directory is that of its index or its clusters there, and none here.
            if want[0] != got[0] {
                assert_eq!(got[0], "0", "{name}");
                want[0] = "0".into();
            }
            assert_eq!(*got, want, "{name}: size, atime, mtime, ctime, crtime");
            compared += 1;
        }
        assert!(compared >= 3);
    }
}

#[test]
fn control_characters_of_a_name_never_reach_the_terminal() {
    let image = ntfs().image.to_str().unwrap();
    for mode in [&["-R"][..], &["-l"], &["--json"], &["--bodyfile"]] {
        let out = unimage([&["ls", image], mode].concat()).exits(0).stdout;
        assert!(!out.contains(|c: char| c.is_control() && c != '\n'), "{mode:?}");
        assert!(out.contains("red%1B[31m%0Anext"), "{mode:?}: {out}");
    }
    // What is printed can be given back as an address.
    for (name, bytes) in [("red%1B[31m%0Anext", "control"), ("per%2541cent", "%")] {
        assert_eq!(bytes_of(&["cat", &format!("{image}//{name}")]), bytes.as_bytes());
    }
    let row = entries(&["ls", "--json", &format!("{image}//red%1B[31m%0Anext")]);
    assert_eq!(row[0]["path_raw"], "cmVkG1szMW0KbmV4dA==");
    // Nor in an error.
    let out = unimage(["ls", &format!("{image}//\u{1b}[2Jgone")]).exits(3);
    assert!(!out.stderr.trim_end().contains(char::is_control), "{out:?}");
}

#[test]
fn a_disk_lists_its_volumes() {
    let dir = scratch();
    let disk = dir.path().join("disk.raw");
    partitioned(&disk, 40 << 20, "L");
    let guest = fs::read(&ntfs().image).unwrap();
    File::options().write(true).open(&disk).unwrap().write_all_at(&guest, 1 << 20).unwrap();
    let disk = disk.to_str().unwrap();
    assert_eq!(unimage(["ls", disk]).exits(0).stdout, "p1\n");
    let row = &entries(&["ls", "--json", disk])[0];
    assert_eq!((&row["kind"], &row["fs"], &row["offset"]), (&"volume".into(), &"ntfs".into(), &(1 << 20).into()));
    let all = unimage(["ls", "-R", disk]).exits(0).stdout;
    assert!(all.lines().any(|l| l == "p1/folder/deep/er/big"), "{all}");
    let part = unimage(["ls", "-R", &format!("{disk}//p1")]).exits(0).stdout;
    assert_eq!(all.lines().count(), part.lines().count() + 1);
    let deep = unimage(["ls", "-R", &format!("{disk}//p1/folder/deep")]).exits(0).stdout;
    assert_eq!(deep, "er\ner/big\n");
    assert_eq!(unimage(["ls", &format!("{disk}//p1/folder/big")]).exits(0).stdout, "big\n");
    assert_eq!(
        unimage(["ls", &format!("{disk}//p1/folder/big:Zone.Identifier")]).exits(0).stdout,
        "big:Zone.Identifier\n"
    );
}

#[test]
fn times_without_a_zone_are_moved_by_the_option() {
    let (host, _dir) = host();
    let mtime = |more: &[&str]| {
        let rows = entries(&[&["ls", "--json"], more, &[&format!("{}//vm", host.display())]].concat());
        rows[0]["mtime"].as_str().unwrap().to_owned()
    };
    let (utc, east) = (mtime(&[]), mtime(&["--timezone", "+02:00"]));
    let secs = |t: &str| ok("date", ["-u", "-d", t, "+%s"]).trim().parse::<i64>().unwrap();
    assert_eq!(secs(&utc) - secs(&east), 7200);
    // NTFS keeps UTC.
    let image = ntfs().image.to_str().unwrap();
    assert_eq!(entries(&["ls", "--json", image]), entries(&["ls", "--json", "--timezone", "-05:00", image]));
}
