//! `cat`, `map` and `info` against the bytes that were put in.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::support::*;

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
fn cat_lets_the_kernel_move_the_bytes() {
    let guest = ntfs();
    let dir = scratch();
    let image = dir.path().join("disk.raw");
    fs::copy(&guest.image, &image).unwrap();
    let whole = fs::read(&image).unwrap();
    let calls = |shell: &str| {
        let trace = dir.path().join("trace");
        let strace = format!("strace -f -o {} -e trace=sendfile,copy_file_range,write", trace.display());
        let line = format!("{strace} {UNIMAGE} cat {} {shell}", image.display());
        let done = std::process::Command::new("bash").args(["-o", "pipefail", "-c", &line]).output().unwrap();
        assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
        let moved = |call: &str| -> u64 {
            let text = fs::read_to_string(&trace).unwrap();
            let calls = text.lines().filter(|l| l.contains(call));
            calls.filter_map(|l| l.rsplit("= ").next()?.parse::<u64>().ok()).sum()
        };
        (moved("sendfile(") + moved("copy_file_range("), moved("write("), done.stdout)
    };
    // To a pipe, to a file, and behind what is in a file, which the kernel leaves to us.
    let (moved, written, seen) = calls("| cat");
    assert!(moved == whole.len() as u64 && written < 4096 && seen == whole, "{moved}, {written}");
    let file = dir.path().join("file");
    let (moved, written, _) = calls(&format!("> {}", file.display()));
    assert!(moved == whole.len() as u64 && written < 4096 && fs::read(&file).unwrap() == whole, "{moved}, {written}");
    let (_, written, _) = calls(&format!(">> {}", file.display()));
    assert!(written >= whole.len() as u64 && fs::read(&file).unwrap() == [&whole[..], &whole].concat(), "{written}");
    // A reader that leaves ends it, and nothing is wrong.
    let (.., seen) = calls("| head -c 10; true");
    assert_eq!(seen, whole[..10]);
}
