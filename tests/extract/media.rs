//! Media that fail: a file whose sectors give I/O errors, served by `qemu-storage-daemon` through FUSE.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::support::{extract, with_method};
use crate::common;
use crate::ext_support as ext;

/// A file with the bytes of another one, but for sectors that can't be read.
struct Failing {
    path: PathBuf,
    server: Child,
}

impl Failing {
    fn new(image: &Path, path: PathBuf, sectors: &[u64]) -> Self {
        fs::File::create(&path).unwrap();
        let rule =
            |sector: &u64| format!(r#"{{"event":"none","iotype":"read","errno":5,"sector":{sector},"once":false}}"#);
        let rules: Vec<_> = sectors.iter().map(rule).collect();
        let file =
            format!(r#"{{"driver":"file","node-name":"file","filename":"{}","read-only":true}}"#, image.display());
        let node = format!(
            r#"{{"driver":"raw","node-name":"node","read-only":true,"file":{{"driver":"blkdebug","image":"file","inject-error":[{}]}}}}"#,
            rules.join(",")
        );
        let export = format!(
            r#"{{"type":"fuse","id":"export","node-name":"node","mountpoint":"{}","writable":false}}"#,
            path.display()
        );
        let server = Command::new("qemu-storage-daemon")
            .args(["--blockdev", &file, "--blockdev", &node, "--export", &export])
            .stdin(Stdio::null())
            .spawn()
            .unwrap_or_else(|e| panic!("qemu-storage-daemon: {e}; tests/run.sh installs what is needed"));
        // Ended when dropped, also by a panic below.
        let this = Self { path, server };
        let len = fs::metadata(image).unwrap().len();
        for _ in 0..500 {
            if fs::metadata(&this.path).is_ok_and(|m| m.len() == len) {
                return this;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("qemu-storage-daemon serves nothing");
    }
}

impl Drop for Failing {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.server.id().to_string()).status();
        let _ = self.server.wait();
        let _ = Command::new("umount").arg(&self.path).stderr(Stdio::null()).status();
    }
}

#[test]
fn what_can_be_read_is_kept_and_the_run_goes_on() {
    let dir = common::scratch();
    let image = dir.path().join("guest.raw");
    ext::make(&image, 64, "-t ext4 -b 4096");
    {
        let mount = ext::Mount::new(&image, "rw");
        let mut noise = common::Noise::new(7);
        for i in 0..30 {
            fs::write(mount.path().join(format!("file {i:02}")), noise.bytes(20_000)).unwrap();
        }
        fs::write(mount.path().join("large"), noise.bytes((6 << 20) + 77)).unwrap();
        fs::write(mount.path().join("lost"), noise.bytes(3000)).unwrap();
    }
    let mut want = std::collections::BTreeMap::new();
    {
        let mount = ext::Mount::new(&image, "ro");
        for path in common::tree(mount.path()).into_keys() {
            let bytes = fs::read(mount.path().join(&path)).unwrap();
            want.insert(path, bytes);
        }
    }
    let block = |path: &str, n: usize| -> u64 {
        let said = common::ok("debugfs", ["-R", &format!("blocks \"/{path}\""), image.to_str().unwrap()]);
        said.split_whitespace().nth(n).unwrap().parse().unwrap()
    };
    // Where each bad sector is: its file, and its first byte there.
    let places = [
        ("file 11", 2 * 4096 + 512),
        ("large", 700 * 4096),
        ("large", (1 << 20) + 3584),
        ("large", 1535 * 4096 + 1024),
    ];
    let mut bad: Vec<u64> =
        places.iter().map(|(path, at)| block(path, at / 4096) * 8 + (*at as u64 % 4096) / 512).collect();
    bad.extend((0..8).map(|n| block("lost", 0) * 8 + n));
    let failing = Failing::new(&image, dir.path().join("failing.raw"), &bad);
    for (out, more) in [("plain", &["--link", "never"][..]), ("hashed", &["--hash", "sha256"])] {
        let out = dir.path().join(out);
        let (said, rows) = extract(failing.path.to_str().unwrap(), &out, more);
        let said = said.exits(1);
        assert_eq!(with_method(&rows, "partial"), ["file 11", "large"], "{said}");
        assert_eq!(with_method(&rows, "failed"), ["lost"], "{said}");
        assert!(!out.join("lost").exists() && rows["lost"]["reason"] == "unreadable", "{}", rows["lost"]);
        for (path, bytes) in want.iter().filter(|(path, _)| *path != "lost") {
            let row = &rows[path];
            let mut bytes = bytes.clone();
            let mut zeros = 0;
            for range in row["unreadable"].as_array().into_iter().flatten() {
                let (at, len) = (range[0].as_u64().unwrap() as usize, range[1].as_u64().unwrap() as usize);
                bytes[at..at + len].fill(0);
                zeros += len;
            }
            assert!(fs::read(out.join(path)).unwrap() == bytes, "{path}: {row}");
            // Not more than the pages that the sectors lie in, and all of the sectors.
            let of_this: Vec<_> = places.iter().filter(|(p, _)| p == path).collect();
            assert!(zeros <= of_this.len() * 4096 && zeros >= of_this.len() * 512, "{path}: {zeros}");
            for (_, at) in of_this {
                assert!(bytes[*at..*at + 512].iter().all(|b| *b == 0), "{path}: {row}");
            }
            assert_eq!(said.stderr.contains(path.as_str()), zeros > 0, "{path}: {said}");
            if !more.is_empty() && more[0] == "--hash" {
                assert_eq!(row["sha256"].is_null(), zeros > 0, "{row}");
            }
        }
    }
}
