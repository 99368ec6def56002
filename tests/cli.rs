//! The command line: exit codes, help, what is printed and in which form, and that a terminal or disk that fails under
//! the output neither ends the program badly nor goes unsaid. Listings are held against The Sleuth Kit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use assert_cmd::cargo::cargo_bin;

mod cli_support;
use cli_support::{Host, Out, noise, ok, output, partitioned, scratch, unimage};

const VERBS: [&str; 8] = ["info", "ls", "cat", "map", "plan", "relink", "recover", "undo"];

/// A bare NTFS: a folder, fragments, a hole, streams, names that need an escape.
struct Ntfs {
    image: PathBuf,
    files: BTreeMap<String, Vec<u8>>,
    _dir: tempfile::TempDir,
}

fn ntfs() -> &'static Ntfs {
    static ONCE: OnceLock<Ntfs> = OnceLock::new();
    ONCE.get_or_init(|| {
        let dir = scratch();
        let image = dir.path().join("guest.raw");
        let mut files = BTreeMap::new();
        for i in 0..20 {
            files.insert(format!("folder/file {i}.bin"), noise(100 + i, 977 * i as usize));
        }
        files.insert("folder/deep/er/big".into(), noise(1, 300_000));
        files.insert("folder/big:Zone.Identifier".into(), b"[ZoneTransfer]\r\n".to_vec());
        files.insert("folder/big".into(), noise(2, 70_000));
        files.insert("ünïcode \u{1F600}.txt".into(), b"text".to_vec());
        let mut holed = vec![0; 1 << 20];
        holed.extend(noise(3, 8192));
        files.insert("holed".into(), holed);
        cli_support::ntfs(&image, 24 << 20, |at| {
            fs::create_dir_all(at.join("folder/deep/er")).unwrap();
            for (name, bytes) in files.iter().rev().filter(|(n, _)| !n.contains(':') && *n != "holed") {
                fs::write(at.join(name), bytes).unwrap();
            }
            fs::write(at.join("folder/big:Zone.Identifier"), &files["folder/big:Zone.Identifier"]).unwrap();
            let sparse = File::create(at.join("holed")).unwrap();
            sparse.write_all_at(&files["holed"][1 << 20..], 1 << 20).unwrap();
            fs::write(at.join("red\u{1b}[31m\nnext"), b"control").unwrap();
            fs::write(at.join("per%41cent"), b"%").unwrap();
        });
        Ntfs { image, files, _dir: dir }
    })
}

/// A bare FAT with the NTFS image on it as `vm/win.raw`, in two pieces.
fn host() -> &'static (PathBuf, tempfile::TempDir) {
    static ONCE: OnceLock<(PathBuf, tempfile::TempDir)> = OnceLock::new();
    ONCE.get_or_init(|| {
        let dir = scratch();
        let path = dir.path().join("host.raw");
        File::create(&path).unwrap().set_len(64 << 20).unwrap();
        let name = path.to_str().unwrap();
        ok("mkfs.fat", ["-F", "16", "-s", "4", "-n", "HOST", name]);
        let filler = dir.path().join("filler");
        fs::write(&filler, noise(5, 100_000)).unwrap();
        ok("mmd", ["-i", name, "::/vm"]);
        ok("mcopy", ["-i", name, filler.to_str().unwrap(), "::/first"]);
        ok("mcopy", ["-i", name, filler.to_str().unwrap(), "::/vm/Long name of a file.txt"]);
        // mtools takes the first free cluster: the image begins where the first file was and goes on behind the second.
        ok("mdel", ["-i", name, "::/first"]);
        ok("mcopy", ["-i", name, ntfs().image.to_str().unwrap(), "::/vm/win.raw"]);
        (path, dir)
    })
}

fn json(args: &[&str]) -> Vec<serde_json::Value> {
    let out = unimage(args).exits(0);
    out.stdout.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
}

fn entries(args: &[&str]) -> Vec<serde_json::Value> {
    json(args).into_iter().filter(|r| r["type"] == "entry").collect()
}

fn bytes_of(args: &[&str]) -> Vec<u8> {
    let out = Command::new(cargo_bin("unimage")).args(args).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    out.stdout
}

#[test]
fn every_verb_has_a_help_with_examples() {
    for verb in VERBS {
        let out = unimage([verb, "--help"]).exits(0);
        assert!(out.stdout.contains(&format!("Usage: unimage {verb}")), "{out}");
        assert!(out.stdout.contains(&format!("Examples:\n  unimage {verb} ")), "{out}");
        assert_eq!(out.stderr, "");
        assert!(!unimage([verb, "-h"]).exits(0).stdout.is_empty());
    }
    let all = unimage(["--help"]).exits(0).stdout;
    for verb in VERBS {
        assert!(all.lines().any(|l| l.trim_start().starts_with(&format!("{verb} "))), "{verb} in {all}");
    }
    assert_eq!(unimage(["--version"]).exits(0).stdout, format!("unimage {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn what_makes_no_sense_is_a_usage_error() {
    let image = ntfs().image.to_str().unwrap();
    let folder = format!("{image}//folder");
    let cases: &[&[&str]] = &[
        &[],
        &["list"],
        &["extract", image, "/x"],
        &["ls"],
        &["ls", ""],
        &["ls", "--json", "--bodyfile", image],
        &["ls", "--timezone", "CET", image],
        &["cat", &folder],
        &["map", &folder],
        &["relink", image],
        &["relink", image, "--into", "/a", "--commit"],
        &["relink", image, "--into", "/a", "--manifest", "m"],
        &["relink", image, "--into", "/a", "--slack", "some"],
        &["relink", image, "--into", "/a/../b"],
        &["recover"],
        &["undo"],
    ];
    for case in cases {
        let out = unimage(*case).exits(2);
        assert_eq!(out.stdout, "", "{out}");
        assert!(!out.stderr.is_empty(), "{out}");
    }
}

#[test]
fn what_is_not_there_or_unknown_is_an_input_error_that_names_it() {
    let dir = scratch();
    let file = dir.path().join("noise");
    fs::write(&file, noise(1, 1 << 20)).unwrap();
    let file = file.to_str().unwrap();
    let image = ntfs().image.to_str().unwrap();
    let cases = [
        ("ls", format!("{}/gone", dir.path().display()), "gone"),
        ("ls", format!("{image}//p3"), "p3"),
        ("ls", format!("{image}//folder/none"), "none"),
        ("cat", format!("{image}//folder/big:None"), "None"),
        ("ls", file.to_owned(), "noise"),
        ("ls", format!("{image}//folder/big//"), "big"),
        ("ls", format!("{image}@snap"), "snap"),
    ];
    for (verb, address, named) in cases {
        let out = unimage([verb, address.as_str()]).exits(3);
        assert!(out.stderr.starts_with("unimage: ") && out.stderr.contains(named), "{out}");
        assert_eq!(out.stderr.lines().count(), 1, "{out}");
    }
    for verb in ["recover", "undo"] {
        unimage([verb, &format!("{}/gone", dir.path().display())]).exits(3);
    }
}

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
fn cat_gives_the_bytes() {
    let guest = ntfs();
    let (host, _dir) = host();
    for image in [guest.image.display().to_string(), format!("{}//vm/win.raw//", host.display())] {
        let image = image.trim_end_matches('/');
        for (name, bytes) in &guest.files {
            assert!(bytes_of(&["cat", &format!("{image}//{name}")]) == *bytes, "{image}//{name}");
        }
    }
    // An image file is a file of its host.
    let whole = fs::read(&guest.image).unwrap();
    assert!(bytes_of(&["cat", &format!("{}//vm/win.raw", host.display())]) == whole);
    assert!(bytes_of(&["cat", guest.image.to_str().unwrap()]) == whole);
    assert!(bytes_of(&["cat", "--no-mmap", &format!("{}//holed", guest.image.display())]) == guest.files["holed"]);
}

#[test]
fn cat_of_what_can_not_be_read_says_where() {
    // The file system says that the file is there, the end of the image is not.
    let dir = scratch();
    let cut = dir.path().join("cut.raw");
    fs::copy(&ntfs().image, &cut).unwrap();
    let big = json(&["map", "--json", &format!("{}//folder/deep/er/big", cut.display())]);
    let last = big.iter().rfind(|r| r["type"] == "extent").unwrap();
    let end = last["at"][0].as_u64().unwrap() + last["len"].as_u64().unwrap() - 5000;
    File::options().write(true).open(&cut).unwrap().set_len(end).unwrap();
    let out = unimage(["cat", &format!("{}//folder/deep/er/big", cut.display())]).exits(3);
    assert!(out.stderr.starts_with("unimage: ") && out.stderr.contains("0x"), "{}", out.stderr);
}

#[test]
fn map_leads_to_the_bytes_on_the_ground() {
    let guest = ntfs();
    let (host, _dir) = host();
    let ground = File::open(host).unwrap();
    let mut levels_seen = 0;
    for name in ["folder/deep/er/big", "folder/big", "holed", "folder/file 3.bin", "folder/file 0.bin"] {
        let rows = json(&["map", "--json", &format!("{}//vm/win.raw//{name}", host.display())]);
        let columns = rows.iter().find(|r| r["type"] == "levels").unwrap()["levels"].as_array().unwrap().clone();
        let spaces: Vec<_> = columns.iter().map(|c| c["space"].as_str().unwrap()).collect();
        assert_eq!(spaces, ["volume", "image", "device", "volume", "image", "device"]);
        levels_seen += 1;
        let want = &guest.files[name];
        let mut at = 0;
        for e in rows.iter().filter(|r| r["type"] == "extent") {
            let (start, len) = (e["start"].as_u64().unwrap() as usize, e["len"].as_u64().unwrap() as usize);
            assert_eq!(start, at, "{name}");
            let mut got = vec![0; len];
            match e["what"].as_str().unwrap() {
                "stored" => {
                    let places = e["at"].as_array().unwrap();
                    assert_eq!(places.len(), columns.len());
                    ground.read_exact_at(&mut got, places[5].as_u64().unwrap()).unwrap();
                }
                "zero" => {}
                "resident" => got.copy_from_slice(&want[start..start + len]),
                other => panic!("{name}: {other}"),
            }
            assert!(got == want[start..start + len], "{name} at {start}");
            at += len;
        }
        assert_eq!(at, want.len(), "{name}");
    }
    assert_eq!(levels_seen, 5);
    // The image itself lies in two pieces on its host.
    let rows = json(&["map", "--json", &format!("{}//vm/win.raw", host.display())]);
    assert_eq!(rows.iter().filter(|r| r["type"] == "extent").count(), 2);
    let table = unimage(["map", &format!("{}//vm/win.raw", host.display())]).exits(0).stdout;
    assert_eq!(table.lines().count(), 3 + 1 + 2, "{table}");
    // A whole volume.
    let rows = json(&["map", "--json", guest.image.to_str().unwrap()]);
    assert_eq!(rows.iter().rfind(|r| r["type"] == "extent").unwrap()["at"][0], 0);
}

#[test]
fn info_shows_every_layer() {
    let (host, _dir) = host();
    let rows = entries(&["info", "--json", &format!("{}//vm/win.raw//", host.display())]);
    let seen: Vec<_> = rows.iter().map(|r| (r["kind"].as_str().unwrap(), r["fs"].as_str().unwrap_or("-"))).collect();
    assert_eq!(seen, [("image", "-"), ("volume", "fat16"), ("image", "-"), ("volume", "ntfs")]);
    assert_eq!((&rows[1]["label"], &rows[3]["label"]), (&"HOST".into(), &"GUEST".into()));
    assert_eq!(rows[2]["path"], "vm/win.raw");
    let text = unimage(["info", &format!("{}//vm/win.raw//", host.display())]).exits(0).stdout;
    assert!(text.contains("fat16 \"HOST\"") && text.contains("ntfs \"GUEST\""), "{text}");
    // Bytes that no probe knows are unknown, and that is no error of `info`.
    let dir = scratch();
    let file = dir.path().join("noise");
    fs::write(&file, noise(2, 1 << 20)).unwrap();
    assert!(unimage(["info", file.to_str().unwrap()]).exits(0).stdout.contains("unknown"));
}

#[test]
fn a_disk_lists_its_volumes() {
    let dir = scratch();
    let disk = dir.path().join("disk.raw");
    partitioned(&disk, 40 << 20);
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

/// The fields that `docs/schemas.md` describes, by the heading and the row that they stand under.
fn documented() -> BTreeMap<(String, String), BTreeSet<String>> {
    let mut all: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    let (mut section, mut row) = (String::new(), String::new());
    for line in include_str!("../docs/schemas.md").lines() {
        if let Some(head) = line.strip_prefix("## ") {
            (section, row) = (head.to_owned(), "entry".to_owned());
        } else if line.starts_with('`') {
            row = line.split('`').nth(1).unwrap().to_owned();
        } else if line.contains("`entry`") && !line.starts_with('|') {
            row = "entry".to_owned();
        } else if let Some(cell) = line.strip_prefix("| `") {
            let names = cell.split('|').next().unwrap();
            let names = format!("`{names}");
            let names = names.split('`').skip(1).step_by(2).map(str::to_owned);
            all.entry((section.clone(), row.clone())).or_default().extend(names);
        }
    }
    all
}

#[test]
fn every_field_of_every_row_is_described() {
    let docs = documented();
    let image = ntfs().image.to_str().unwrap();
    let (host, _dir) = host();
    let nested = format!("{}//vm/win.raw//", host.display());
    let big = format!("{nested}folder/big");
    let cases: &[(&str, &[&str])] = &[
        ("unimage/ls/1", &["ls", "--json", "-R", "--all", image]),
        ("unimage/ls/1", &["ls", "--json", host.to_str().unwrap()]),
        ("unimage/info/1", &["info", "--json", &nested]),
        ("unimage/map/1", &["map", "--json", &big]),
    ];
    for (schema, args) in cases {
        let rows = json(args);
        assert_eq!(rows.first().unwrap()["type"], "header", "{args:?}");
        assert_eq!(rows.first().unwrap()["schema"], *schema, "{args:?}");
        assert_eq!(rows.last().unwrap()["type"], "summary", "{args:?}");
        assert_eq!(rows.iter().filter(|r| r["type"] == "summary" || r["type"] == "header").count(), 2);
        described(&docs, schema, &rows);
    }
}

/// Every field of these rows is described under the heading of the schema.
#[track_caller]
fn described(docs: &BTreeMap<(String, String), BTreeSet<String>>, schema: &str, rows: &[serde_json::Value]) {
    let plan = ["unimage/relink/1", "unimage/manifest/1"].contains(&schema);
    for row in rows {
        let kind = row["type"].as_str().unwrap();
        let sections = |section: &str, name: &str| {
            section.contains(schema)
                || ["Rows of every verb", "Entries"].contains(&section)
                || (plan && section.contains("unimage/plan/1") && (name == kind || name == "place"))
        };
        let known: BTreeSet<&String> = docs
            .iter()
            .filter(|((section, name), _)| {
                sections(section, name) && (name == kind || (name == "place" && kind == "header"))
            })
            .flat_map(|(_, fields)| fields)
            .collect();
        for field in row.as_object().unwrap().keys().filter(|f| *f != "type") {
            assert!(known.contains(field), "{schema}: {kind}.{field} is not described; known: {known:?}");
        }
    }
}

fn shell(script: &str, args: &[&str]) -> Out {
    let mut command = Command::new("sh");
    command.arg("-c").arg(script).arg(cargo_bin("unimage")).args(args);
    output(&mut command)
}

#[test]
fn a_full_disk_under_the_output_is_said_and_is_an_error() {
    let image = ntfs().image.to_str().unwrap();
    let big = format!("{image}//folder/deep/er/big");
    for args in [
        &["ls", "-R", image][..],
        &["ls", "--json", image],
        &["info", image],
        &["map", image],
        &["cat", &big],
        &["--help"],
    ] {
        let out = shell("exec \"$0\" \"$@\" > /dev/full", args).exits(3);
        assert!(out.stderr.starts_with("unimage: standard output: "), "{out}");
    }
    // Standard error that fails changes nothing.
    let want = unimage(["ls", image]).exits(0).stdout;
    assert_eq!(shell("exec \"$0\" \"$@\" 2> /dev/full", &["ls", image]).exits(0).stdout, want);
    shell("exec \"$0\" \"$@\" 2> /dev/full", &["ls", &format!("{image}//gone")]).exits(3);
    shell("exec \"$0\" \"$@\" 2> /dev/full", &["nonsense"]).exits(2);
    shell("exec \"$0\" \"$@\" > /dev/full 2> /dev/full", &["ls", image]).exits(3);
}

#[test]
fn closed_outputs_do_no_harm() {
    let image = ntfs().image.to_str().unwrap();
    shell("exec \"$0\" \"$@\" >&-", &["ls", "-R", image]).exits(0);
    shell("exec \"$0\" \"$@\" 2>&-", &["ls", image]).exits(0);
    shell("exec \"$0\" \"$@\" >&- 2>&- <&-", &["ls", &format!("{image}//gone")]).exits(3);
    shell("exec \"$0\" \"$@\" >&- 2>&-", &["--help"]).exits(0);
}

#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let image = ntfs().image.to_str().unwrap();
    for args in [vec!["cat", image], vec!["ls", "-R", image]] {
        let mut child = Command::new(cargo_bin("unimage"))
            .args(&args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""), "{args:?}");
    }
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

#[test]
fn plan_and_relink_without_commit_write_nothing() {
    let host = Host::new();
    let image = host.image();
    let text = unimage(["plan", &image]).exits(0).stdout;
    for head in ["image ", "link ", "copy ", "skip ", "space ", "writes "] {
        assert!(text.lines().any(|l| l.starts_with(head)), "{head} in {text}");
    }
    let files = unimage(["plan", "--files", &image]).exits(0).stdout;
    assert!(files.lines().any(|l| l.starts_with("link ") && l.ends_with("  top.bin")), "{files}");
    assert!(files.lines().any(|l| l.starts_with("copy resident ") && l.ends_with("  small")), "{files}");
    let dry = unimage(["relink", &image, "--into", "/out"]).exits(0).stdout;
    assert!(dry.ends_with("Nothing was written: add --journal FILE --commit to do it.\n"), "{dry}");
    assert!(host.is_untouched());
    // The sums are those of the rows.
    let rows = json(&["plan", "--json", &image]);
    let sum = rows.last().unwrap();
    for (verdict, field) in [("link", "linked"), ("copy", "copied"), ("skip", "skipped")] {
        let of: Vec<_> = rows.iter().filter(|r| r["verdict"] == verdict && r["kind"] != "dir").collect();
        assert_eq!(sum[field]["files"], of.len(), "{field}");
        assert_eq!(sum[field]["bytes"], of.iter().map(|r| r["size"].as_u64().unwrap()).sum::<u64>(), "{field}");
    }
}

#[test]
fn a_refusal_is_listed_by_plan_and_ends_relink() {
    let host = Host::new();
    // Only a part of the image is named.
    let part = format!("{}//sub folder", host.image());
    let plan = unimage(["plan", "--json", &part]).exits(0);
    assert!(plan.stdout.lines().any(|l| l.contains("\"type\":\"refusal\"")), "{plan}");
    for more in [&[][..], &["--journal", host.journal().to_str().unwrap(), "--commit"]] {
        let out = unimage([&["relink", &part, "--into", "/out"], more].concat()).exits(4);
        assert!(out.stderr.starts_with("unimage: refused: ") && out.stderr.contains("--discard-rest"), "{out}");
        assert!(host.is_untouched() && !host.journal().exists());
    }
    // No image on a host.
    let out = unimage(["plan", host.file.to_str().unwrap()]).exits(2);
    assert!(out.stderr.contains("HOST//PATH"), "{out}");
}

#[test]
fn every_field_of_the_writing_verbs_is_described() {
    let host = Host::new();
    let docs = documented();
    let journal = host.journal();
    let journal = journal.to_str().unwrap();
    let manifest = host.dir.path().join("manifest");
    let image = host.image();
    let relink = ["relink", &image, "--into", "/out", "--json", "--journal", journal, "--commit", "--manifest"];
    let relink = [&relink[..], &[manifest.to_str().unwrap()]].concat();
    let plan = json(&["plan", "--json", &image]);
    let relinked = json(&relink);
    assert_eq!(relinked.last().unwrap()["committed"], true);
    let lines = fs::read_to_string(&manifest).unwrap();
    let manifest: Vec<serde_json::Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    // The manifest has the rows of the relink, and these are the rows of the plan.
    let rows = |all: &[serde_json::Value]| -> Vec<_> { all.iter().filter(|r| r["type"] == "entry").cloned().collect() };
    assert_eq!(rows(&manifest), rows(&relinked));
    assert_eq!(rows(&plan).len(), rows(&relinked).len());
    let recovered = json(&["recover", "--json", journal]);
    assert_eq!((&recovered[1]["outcome"], &recovered[1]["wrote"]), (&"finished".into(), &false.into()));
    let undone = json(&["undo", "--json", journal]);
    assert_eq!((&undone[1]["outcome"], &undone[1]["wrote"]), (&"taken-back".into(), &true.into()));
    for (schema, all) in [
        ("unimage/plan/1", plan),
        ("unimage/relink/1", relinked),
        ("unimage/manifest/1", manifest),
        ("unimage/recover/1", recovered),
        ("unimage/undo/1", undone),
    ] {
        described(&docs, schema, &all);
    }
}

#[test]
fn a_full_disk_under_the_output_never_stops_a_commit() {
    let host = Host::new();
    let journal = host.journal();
    let args = ["relink", &host.image(), "--into", "/out", "--journal", journal.to_str().unwrap(), "--commit"]
        .map(str::to_owned);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let out = shell("exec \"$0\" \"$@\" > /dev/full", &args).exits(1);
    assert!(out.stderr.contains("unimage: standard output: "), "{out}");
    unimage(["recover", journal.to_str().unwrap()]).exits(0);
    let list = unimage(["ls", "-R", host.file.to_str().unwrap()]).exits(0).stdout;
    assert!(list.lines().any(|l| l == "out/top.bin"), "{list}");
    shell("exec \"$0\" \"$@\" > /dev/full", &["undo", journal.to_str().unwrap()]).exits(1);
    assert!(host.is_as_before());
}

#[test]
fn an_interrupt_lets_the_commit_finish_and_a_second_one_leaves_it_to_recover() {
    let host = Host::new();
    let journal = host.journal();
    let args = ["relink", &host.image(), "--into", "/out", "--journal", journal.to_str().unwrap(), "--commit"]
        .map(str::to_owned);
    let log = host.dir.path().join("strace");
    let run = |what: &str| {
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o"]).arg(&log).args(["-e", &format!("inject=pwrite64:{what}")]);
        output(strace.arg(cargo_bin("unimage")).args(&args))
    };
    for signal in ["SIGINT", "SIGTERM"] {
        let out = run(&format!("signal={signal}:when=5")).exits(0);
        assert!(out.stderr.contains("finishing what was begun"), "{out}");
        assert!(out.stderr.contains(&format!("unimage recover {}", journal.display())), "{out}");
        unimage(["undo", journal.to_str().unwrap()]).exits(0);
        assert!(host.is_as_before());
        host.reset();
    }
    let out = run("signal=SIGHUP:when=5").exits(0);
    assert_eq!(out.stderr, "", "{out}");
    host.reset();
    // Slowed down, so that both are seen before the end.
    let out = run("signal=SIGINT:delay_exit=20000:when=4+1");
    assert_ne!(out.code, 0, "{out}");
    let out = unimage(["recover", journal.to_str().unwrap()]).exits(0);
    assert!(
        ["Finished", "Taken back", "complete already", "as before"].iter().any(|s| out.stdout.contains(s)),
        "{out}"
    );
    ok("fsck.fat", ["-n", host.name()]);
}
