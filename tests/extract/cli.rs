//! The command line of `extract` and `verify`: what an address gives, filters, forms of manifests, what is there already.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use super::support::{extract, names_in, rows};
use crate::common::{self, guest, ok, unimage};
use crate::ext_support as ext;

fn set(names: &[&str]) -> std::collections::BTreeSet<String> {
    names.iter().map(|s| (*s).to_owned()).collect()
}

#[test]
fn what_an_address_names_is_what_comes_out() {
    let guest = guest::small_windows();
    let dir = common::scratch();
    let image = guest.image.to_str().unwrap();
    let out = |name: &str| dir.path().join(name);
    let run = |address: String, name: &str| {
        let said = unimage(["extract", &address, out(name).to_str().unwrap()]);
        assert!(said.code <= 1, "{said}");
    };
    run(image.into(), "disk/made/when/absent");
    assert_eq!(names_in(&out("disk/made/when/absent")), set(&["p1"]));
    run(format!("{image}//p1"), "volume");
    assert!(names_in(&out("volume")).contains("Users"));
    run(format!("{image}//p1/Users/u00"), "folder");
    assert!(
        names_in(&out("folder")).iter().all(|n| n.starts_with("Documents and more")),
        "{:?}",
        names_in(&out("folder"))
    );
    let (path, seen) = guest.files.iter().find(|(p, s)| p.ends_with("docx") && s.size > 5000).unwrap();
    run(format!("{image}//p1/{path}"), "file");
    let name = path.rsplit('/').next().unwrap();
    assert_eq!(names_in(&out("file")), set(&[name]));
    assert_eq!(common::sha256_file(&out("file").join(name)), seen.sha);
    let (path, seen) = guest.files.iter().find(|(p, _)| p.ends_with(":Zone.Identifier")).unwrap();
    run(format!("{image}//p1/{path}"), "stream");
    let (file, _) = path.rsplit('/').next().unwrap().rsplit_once(':').unwrap();
    assert_eq!(common::sha256_file(&out("stream").join(format!("{file}.stream.Zone.Identifier"))), seen.sha);
    for (address, code) in [(format!("{image}//p9"), 3), (format!("{image}//p1/gone"), 3), ("gone.raw".into(), 3)] {
        unimage(["extract", &address, out("none").to_str().unwrap()]).exits(code);
    }
    unimage(["extract", image, out("none").to_str().unwrap(), "--include", "[a"]).exits(2);
    unimage(["extract", image, out("none").to_str().unwrap(), "--resume"]).exits(2);
}

fn small(image: &std::path::Path) {
    ext::make(image, 20, "-t ext4");
    let mount = ext::Mount::new(image, "rw");
    let root = mount.path();
    for dir in ["docs/old", "src", "empty"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    for file in ["docs/a.txt", "docs/b.md", "docs/old/c.txt", "src/d.txt", "src/e.rs", "f.txt", "back\\slash\nline"] {
        fs::write(root.join(file), format!("contents of {file}")).unwrap();
    }
    fs::hard_link(root.join("docs/a.txt"), root.join("src/a again.txt")).unwrap();
    fs::remove_dir(root.join("lost+found")).unwrap();
}

#[test]
fn filters() {
    let dir = common::scratch();
    let image = dir.path().join("guest.raw");
    small(&image);
    let all = |name: &str, filters: &[&str]| -> Vec<String> {
        let out = dir.path().join(name);
        let (said, _) = extract(image.to_str().unwrap(), &out, filters);
        said.exits(0);
        common::tree(&out).into_keys().collect()
    };
    assert_eq!(
        all("a", &["--include", "*.txt"]),
        ["docs/a.txt", "docs/old/c.txt", "f.txt", "src/a again.txt", "src/d.txt"]
    );
    assert_eq!(all("b", &["--include", "docs"]), ["docs/a.txt", "docs/b.md", "docs/old/c.txt"]);
    assert_eq!(all("c", &["--include", "docs/*.txt"]), ["docs/a.txt"]);
    assert_eq!(all("d", &["--include", "docs/**/*.txt"]), ["docs/a.txt", "docs/old/c.txt"]);
    assert_eq!(
        all("e", &["--exclude", "*.txt", "--exclude", "docs/old"]),
        ["back\\slash\nline", "docs/b.md", "src/e.rs"]
    );
    // The first name that is wanted has the bytes.
    assert_eq!(all("f", &["--include", "src", "--exclude", "e.rs"]), ["src/a again.txt", "src/d.txt"]);
    assert!(!dir.path().join("f/docs").exists() && !dir.path().join("c/src").exists());
    assert!(dir.path().join("e/empty").is_dir());
}

#[test]
fn what_is_there_already_stays() {
    let dir = common::scratch();
    let image = dir.path().join("guest.raw");
    small(&image);
    let out = dir.path().join("out");
    fs::create_dir_all(out.join("docs")).unwrap();
    fs::set_permissions(out.join("docs"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::write(out.join("f.txt"), b"older").unwrap();
    fs::write(out.join("mine"), b"mine").unwrap();
    fs::create_dir(out.join("src")).unwrap();
    fs::create_dir(out.join("src/d.txt")).unwrap();
    let (said, rows) = extract(image.to_str().unwrap(), &out, &[]);
    let said = said.exits(1);
    assert!(said.stderr.contains("f.txt: skipped: exists"), "{said}");
    assert_eq!(fs::read(out.join("f.txt")).unwrap(), b"older");
    assert_eq!((rows["f.txt"]["method"].as_str(), rows["f.txt"]["written"].as_str()), (Some("skipped"), None));
    assert_eq!(fs::metadata(out.join("docs")).unwrap().permissions().mode() & 0o777, 0o750);
    assert!(out.join("docs/a.txt").exists());
    let (said, rows) = extract(image.to_str().unwrap(), &out, &["--overwrite"]);
    said.exits(1);
    assert_eq!(fs::read(out.join("f.txt")).unwrap(), b"contents of f.txt");
    assert_eq!(fs::read(out.join("mine")).unwrap(), b"mine");
    assert!(out.join("src/d.txt").is_dir() && rows["src/d.txt"]["reason"] == "exists", "a directory goes for no file");
}

#[test]
fn manifests_of_every_form() {
    let dir = common::scratch();
    let image = dir.path().join("guest.raw");
    small(&image);
    let run = |name: &str, more: &[&str]| {
        let out = dir.path().join(format!("out of {name}"));
        let manifest = dir.path().join(name);
        let mut args =
            vec!["extract", image.to_str().unwrap(), out.to_str().unwrap(), "--manifest", manifest.to_str().unwrap()];
        args.extend(more);
        unimage(&args).exits(0);
        (out, manifest)
    };
    // Foreign programs read them.
    for (name, program) in [("m.sha256", "sha256sum"), ("m.md5", "md5sum"), ("m.sha1sums", "sha1sum")] {
        let (out, manifest) = run(name, &[]);
        let said =
            common::output(std::process::Command::new(program).arg("-c").arg(&manifest).current_dir(&out)).exits(0);
        assert_eq!(said.stdout.lines().filter(|l| l.ends_with(": OK")).count(), 8, "{said}");
        unimage(["verify", manifest.to_str().unwrap(), out.to_str().unwrap()]).exits(0);
        fs::write(out.join("f.txt"), b"contents of f.txT").unwrap();
        unimage(["verify", manifest.to_str().unwrap(), out.to_str().unwrap()]).exits(1);
    }
    let python = |code: &str, file: &std::path::Path| ok("python3", ["-c", code, file.to_str().unwrap()]);
    let (_, manifest) = run("m.csv", &["--hash", "md5,sha256"]);
    let said = python(
        "import csv,sys\nr=list(csv.DictReader(open(sys.argv[1],newline='')))\nprint(len(r), sum(len(x['md5'])==32 for x in r), [x['path'] for x in r if 'slash' in x['path']])",
        &manifest,
    );
    assert_eq!(said.trim(), "13 8 ['back\\\\slash%0Aline']");
    let (_, manifest) = run("m.dfxml", &["--hash", "sha256"]);
    let said = python(
        "import sys,xml.etree.ElementTree as E\nn='{http://www.forensicswiki.org/wiki/Category:Digital_Forensics_XML}'\nt=E.parse(sys.argv[1]).getroot()\nf=t.findall(n+'fileobject')\nprint(len(f), sum(x.find(n+'hashdigest') is not None for x in f), t.find(n+'creator/'+n+'program').text)",
        &manifest,
    );
    assert_eq!(said.trim(), "13 8 unimage");
    // Whatever the number of threads, the rows are the same.
    let (_, one) = run("one.jsonl", &["--jobs", "1", "--hash", "sha256"]);
    let (_, many) = run("many.jsonl", &["--jobs", "7", "--hash", "sha256"]);
    assert_eq!(rows(&one), rows(&many));
}

#[test]
fn verify_finds_what_was_changed() {
    let dir = common::scratch();
    let image = dir.path().join("guest.raw");
    small(&image);
    let out = dir.path().join("out");
    let (said, _) = extract(image.to_str().unwrap(), &out, &["--hash", "blake3"]);
    said.exits(0);
    let manifest = out.with_extension("jsonl");
    let verify = |code: i32| {
        let said = unimage(["verify", "--json", manifest.to_str().unwrap(), out.to_str().unwrap()]).exits(code);
        let lines: Vec<serde_json::Value> = said.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let found = lines.iter().filter(|l| l["type"] == "difference");
        found.map(|l| format!("{} {}", l["path"].as_str().unwrap(), l["what"].as_str().unwrap())).collect::<Vec<_>>()
    };
    assert!(verify(0).is_empty());
    fs::write(out.join("f.txt"), b"contents of g.txt").unwrap();
    fs::write(out.join("docs/b.md"), b"contents of docs/b.md, and more").unwrap();
    fs::write(out.join("docs/old/c.txt"), b"less").unwrap();
    fs::remove_file(out.join("src/e.rs")).unwrap();
    fs::remove_dir(out.join("empty")).unwrap();
    fs::write(out.join("empty"), b"").unwrap();
    fs::remove_file(out.join("src/d.txt")).unwrap();
    std::os::unix::fs::symlink("../f.txt", out.join("src/d.txt")).unwrap();
    assert_eq!(
        verify(1),
        [
            "docs/b.md longer",
            "docs/old/c.txt shorter",
            "empty kind",
            "f.txt changed",
            "src/d.txt kind",
            "src/e.rs missing"
        ]
    );
    // A manifest that was cut off is no manifest, and one that leads out is not followed.
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, &text[..text.len() / 2]).unwrap();
    unimage(["verify", manifest.to_str().unwrap(), out.to_str().unwrap()]).exits(3);
    fs::write(&manifest, text.replace("\"written\":\"f.txt\"", "\"written\":\"../guest.raw\"")).unwrap();
    assert!(verify(1).contains(&"../guest.raw missing".to_owned()));
}

#[test]
fn a_relinks_manifest_can_be_verified() {
    let dir = common::scratch();
    let text = concat!(
        "{\"type\":\"header\",\"schema\":\"unimage/manifest/1\",\"version\":\"0.1.0\"}\n",
        "{\"type\":\"entry\",\"path\":\"d\",\"kind\":\"dir\",\"size\":0,\"verdict\":\"link\",\"written\":\"d\"}\n",
        "{\"type\":\"entry\",\"path\":\"d/f\",\"kind\":\"file\",\"size\":5,\"verdict\":\"link\",\"written\":\"d/f\"}\n",
        "{\"type\":\"entry\",\"path\":\"d/g\",\"kind\":\"file\",\"size\":5,\"verdict\":\"skip\",\"reason\":\"unreadable\"}\n",
        "{\"type\":\"summary\"}\n"
    );
    let manifest = dir.path().join("m.jsonl");
    fs::write(&manifest, text).unwrap();
    let root = dir.path().join("root");
    fs::create_dir_all(root.join("d")).unwrap();
    fs::write(root.join("d/f"), b"12345").unwrap();
    unimage(["verify", manifest.to_str().unwrap(), root.to_str().unwrap()]).exits(0);
    fs::write(root.join("d/f"), b"1234").unwrap();
    unimage(["verify", manifest.to_str().unwrap(), root.to_str().unwrap()]).exits(1);
}
