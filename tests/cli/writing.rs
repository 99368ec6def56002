//! `plan` and `relink` on a small host; signals.

use std::fs;
use std::process::Command;

use crate::common::guest::bare_ntfs;
use crate::support::*;

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
    let out = unimage(["relink", host.file.to_str().unwrap(), "--into", "/out"]).exits(2);
    assert!(out.stderr.contains("HOST//PATH"), "{out}");
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
        output(strace.arg(UNIMAGE).args(&args))
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

#[test]
fn a_page_has_a_row_for_every_file_and_names_are_text_in_it() {
    let dir = scratch();
    let image = dir.path().join("image");
    bare_ntfs(&image, 3 << 20, 4096, |at| {
        for i in 0..5 {
            fs::write(at.join(format!("file {i}")), noise(i, 9000)).unwrap();
        }
        fs::write(at.join("<img src=x onerror=alert(1)>&.txt"), b"x").unwrap();
        fs::write(at.join("\u{202e}txt.exe'\""), b"x").unwrap();
    });
    let host = dir.path().join("host");
    fs::File::create(&host).unwrap().set_len(8 << 20).unwrap();
    ok("mkfs.fat", ["-F", "16", "-s", "1", host.to_str().unwrap()]);
    ok("mcopy", ["-i", host.to_str().unwrap(), image.to_str().unwrap(), "::/disk.raw"]);
    let page = dir.path().join("plan.html");
    let args = ["plan", "--html", page.to_str().unwrap(), &format!("{}//disk.raw", host.display())].map(str::to_owned);
    unimage(&args).exits(0);
    let html = fs::read_to_string(&page).unwrap();
    assert_eq!(html.matches("<tr class=").count(), 7);
    assert!(html.contains("&lt;img src=x onerror=alert(1)&gt;&amp;.txt") && !html.contains("<img"), "{html}");
    assert!(html.contains("txt.exe&#39;&quot;</bdi>"), "{html}");
    // Nothing is ever overwritten.
    let out = unimage(&args).exits(4);
    assert!(out.stderr.contains("exists already"), "{out}");
    assert_eq!(fs::read_to_string(&page).unwrap(), html);
}
