//! A run that is killed at any time and gone on with gives what one run gives.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::support::{kernel_view, names_in};
use crate::common::{self, UNIMAGE};
use crate::ext_support::{self as ext, Filling};

/// The manifest without its first line, in which only the command differs.
fn body(manifest: &Path) -> String {
    fs::read_to_string(manifest).unwrap().split_once('\n').unwrap().1.to_owned()
}

fn args(image: &Path, out: &Path) -> Vec<String> {
    let manifest = out.with_extension("jsonl");
    [
        "extract",
        image.to_str().unwrap(),
        out.to_str().unwrap(),
        "--hash",
        "sha256",
        "--manifest",
        manifest.to_str().unwrap(),
    ]
    .map(str::to_owned)
    .to_vec()
}

#[test]
fn killed_at_any_time() {
    let dir = common::scratch();
    let image = dir.path().join("guest.raw");
    ext::make(&image, 300, "-t ext4");
    {
        let mount = ext::Mount::new(&image, "rw");
        ext::fill(mount.path(), Filling { preallocate: true, names: 1000, ..Filling::default() });
        fs::write(mount.path().join("large"), common::Noise::new(1).bytes(60 << 20)).unwrap();
    }
    let whole = dir.path().join("whole");
    let start = std::time::Instant::now();
    common::unimage(args(&image, &whole)).exits(0);
    let took = start.elapsed();
    let resumed = |out: &Path| [args(&image, out), vec!["--resume".into()]].concat();
    common::unimage(resumed(&whole)).exits(0);
    let (want, manifest) = (kernel_view(&whole), body(&whole.with_extension("jsonl")));
    let rounds = if common::long() { 60 } else { 10 };
    let mut dice = ext::Random(0x1234_5678_9abc_def1);
    let mut killed = 0;
    for round in 0..rounds {
        let out = dir.path().join(format!("out{round}"));
        // A file that is there already: nobody takes it for a half one.
        fs::create_dir(&out).unwrap();
        fs::create_dir(out.join("sizes")).unwrap();
        fs::write(out.join("sizes/4"), b"older").unwrap();
        let mut tries = 0;
        let code = loop {
            let mut a = args(&image, &out);
            if tries > 0 {
                a.push("--resume".into());
            }
            tries += 1;
            let mut child = Command::new(UNIMAGE).args(&a).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            if tries <= 3 {
                std::thread::sleep(Duration::from_nanos(dice.below(took.as_nanos() as u64)));
                let _ = child.kill();
            }
            let status = child.wait().unwrap();
            if let Some(code) = status.code() {
                break code;
            }
            killed += 1;
        };
        assert_eq!(code, 1, "the older file is said");
        // Also when nothing is left to do.
        common::unimage(resumed(&out)).exits(1);
        assert_eq!(fs::read(out.join("sizes/4")).unwrap(), b"older");
        let mut got = kernel_view(&out);
        // The older file, and its directory, keep what they had.
        let mut want = want.clone();
        for path in ["sizes/4", "sizes"] {
            want.remove(path.as_bytes());
            got.remove(path.as_bytes());
        }
        ext::same(&want, &got);
        let text = body(&out.with_extension("jsonl"));
        let differ: Vec<_> = manifest.lines().zip(text.lines()).filter(|(a, b)| a != b).map(|(_, b)| b).collect();
        assert_eq!(manifest.lines().count(), text.lines().count());
        let expected = |l: &&str| l.contains("\"path\":\"sizes/4\"") || l.contains("\"type\":\"summary\"");
        assert!(differ.iter().all(expected), "round {round}: {differ:#?}");
        assert!(!out.with_extension("jsonl.log").exists());
        fs::remove_dir_all(&out).unwrap();
    }
    assert!(killed >= rounds / 2, "{killed}");
}

#[test]
fn an_interrupt_leaves_a_manifest_and_says_how_to_go_on() {
    let dir = common::scratch();
    let image = dir.path().join("guest.raw");
    ext::make(&image, 600, "-t ext4");
    {
        let mount = ext::Mount::new(&image, "rw");
        let mut noise = common::Noise::new(1);
        for i in 0..6 {
            fs::write(mount.path().join(format!("large {i}")), noise.bytes(64 << 20)).unwrap();
        }
    }
    let out = dir.path().join("out");
    let mut interrupted = false;
    for wait in [30, 60, 100, 150] {
        let a = args(&image, &out);
        let child = Command::new(UNIMAGE).args(&a).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        let got = child.wait_with_output().unwrap();
        let manifest = out.with_extension("jsonl");
        // It may have come before the program could take it, or after its end.
        if got.status.code() == Some(1) {
            let rows = super::support::rows(&manifest);
            assert_eq!(rows["*"]["interrupted"], true, "{}", rows["*"]);
            for (path, row) in rows.iter().filter(|(_, r)| r["kind"] == "file") {
                let there = out.join(path).exists();
                assert_eq!(there, row["reason"] != "interrupted", "{path}: {row}");
            }
            interrupted = true;
            let mut a = a;
            a.push("--resume".into());
            common::unimage(&a).exits(0);
            let rows = super::support::rows(&manifest);
            assert_eq!(rows["*"]["files"], 6);
            common::unimage(["verify", manifest.to_str().unwrap(), out.to_str().unwrap()]).exits(0);
            // Once more: there is nothing to do.
            common::unimage(&a).exits(0);
        }
        let _ = fs::remove_dir_all(&out);
        for name in names_in(dir.path()).iter().filter(|n| n.starts_with("out")) {
            let _ = fs::remove_file(dir.path().join(name));
        }
        if interrupted {
            return;
        }
    }
    panic!("no run was interrupted");
}

#[test]
fn another_image_or_other_options_are_refused() {
    let dir = common::scratch();
    let image = dir.path().join("guest.raw");
    ext::make(&image, 20, "-t ext4");
    {
        fs::write(ext::Mount::new(&image, "rw").path().join("x"), b"x").unwrap();
    }
    let out = dir.path().join("out");
    fs::write(
        dir.path().join("out.jsonl.log"),
        "{\"type\":\"header\",\"schema\":\"unimage/extract-log/1\",\"digest\":\"x\",\"began\":[0,0]}\n",
    )
    .unwrap();
    let mut a = args(&image, &out);
    a.push("--resume".into());
    let said = common::unimage(&a).exits(4);
    assert!(said.stderr.contains("another extraction"), "{said}");
    assert!(!out.join("x").exists());
    // Without --resume a manifest that is there is not touched.
    fs::write(out.with_extension("jsonl"), b"older").unwrap();
    a.pop();
    common::unimage(&a).exits(4);
    assert_eq!(fs::read(out.with_extension("jsonl")).unwrap(), b"older");
}
