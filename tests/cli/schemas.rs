//! Every field of every JSON line is described in `docs/schemas.md`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::support::*;

/// The fields that `docs/schemas.md` describes, by the heading and the row that they stand under.
fn documented() -> BTreeMap<(String, String), BTreeSet<String>> {
    let mut all: BTreeMap<(String, String), BTreeSet<String>> = BTreeMap::new();
    let (mut section, mut row) = (String::new(), String::new());
    for line in include_str!("../../docs/schemas.md").lines() {
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
        ("unimage/plan/1", &["plan", "--json", image]),
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
    let start = std::time::Instant::now();
    let relinked = json(&relink);
    let clock = start.elapsed().as_secs_f64();
    let summary = relinked.last().unwrap();
    assert_eq!(summary["committed"], true);
    let seconds = |field: &str| summary[field].as_f64().unwrap();
    assert!(summary["written_copied_bytes"].as_u64().unwrap() > 0, "a guest without copies shows nothing: {summary}");
    assert!(seconds("copied_seconds") > 0.0, "{summary}");
    assert!(seconds("copied_seconds") + seconds("zeroed_seconds") < seconds("commit_seconds"), "{summary}");
    assert!(seconds("commit_seconds") <= clock, "{summary}");
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
