//! Help, wrong command lines, and what is not there.

use std::fs;

use crate::support::*;

const VERBS: [&str; 8] = ["info", "ls", "cat", "map", "plan", "relink", "recover", "undo"];

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
        &["unpack", image, "/x"],
        &["extract", image],
        &["verify", image],
        &["diff", image],
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
        &["relink", image, "--into", ""],
        &["relink", image, "--into", "/a", "--journal", "same", "--manifest", "./same", "--commit"],
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
        assert!(unimage([verb, "/dev/null"]).exits(3).stderr.contains("a regular file"));
    }
}
