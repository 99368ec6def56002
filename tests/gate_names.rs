//! Images that name files which are none of theirs: nothing outside of an image's folder is opened, whatever it is called and
//! whatever links lead there. Judged by the system calls. CVE-2015-5163, CVE-2022-47951, CVE-2024-32498, CVE-2024-40767.

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::host::strace;
use common::{Out, UNIMAGE, ok, scratch, unimage};

/// What must not be seen.
const SECRET: &str = "root:x:0:0: what nobody may read through an image";

struct Case {
    dir: tempfile::TempDir,
}

impl Case {
    /// A folder `vm` for images, and secrets outside of it.
    fn new() -> Self {
        let dir = scratch();
        fs::create_dir_all(dir.path().join("vm/sub")).unwrap();
        let secret = SECRET.repeat(2000);
        fs::write(dir.path().join("secret"), &secret[..secret.len() / 512 * 512]).unwrap();
        Self { dir }
    }
    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
    fn text(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }
    /// A qcow2 over a file, which nobody looks at when it is made.
    fn over(&self, name: &str, backing: &str, format: Option<&str>) -> String {
        let path = self.text(name);
        let mut list = vec!["create", "-q", "-u", "-f", "qcow2", "-b", backing];
        // Without a format, qemu asks for the raw one to be put into the name.
        list.extend(["-F", format.unwrap_or("raw"), &path, "64k"]);
        ok("qemu-img", &list);
        if format.is_none() {
            let mut bytes = fs::read(&path).unwrap();
            let at = bytes.windows(4).position(|w| w == [0xE2, 0x79, 0x2A, 0xCA]).unwrap();
            // An extension that nobody knows.
            bytes[at..at + 4].copy_from_slice(&[0x11; 4]);
            fs::write(&path, bytes).unwrap();
        }
        path
    }
    /// Every verb on it ends with this code, and the secret is neither opened nor printed.
    #[track_caller]
    fn ends(&self, image: &str, code: i32, word: &str) {
        let whole = format!("{image}//");
        let (file, dest) = (format!("{image}//p1/x"), self.text("vm/out"));
        for verb in [
            vec!["info", image],
            vec!["ls", &whole],
            vec!["map", &whole],
            vec!["cat", &file],
            vec!["plan", image],
            vec!["extract", &whole, &dest],
            vec!["diff", &whole, &whole],
        ] {
            let (out, opened) = self.traced(&verb);
            assert_eq!(out.code, code, "{out}");
            assert!(out.stderr.contains(word), "{out}");
            assert!(!out.stdout.contains("root:x") && !out.stderr.contains("root:x"), "{out}");
            let outside: Vec<_> = opened.iter().filter(|path| !self.inside(path)).collect();
            assert!(outside.is_empty(), "{verb:?} opened {outside:?}");
        }
    }
    /// Runs the program; gives the real paths of the files that it opened, as the kernel has them.
    fn traced(&self, verb: &[&str]) -> (Out, Vec<String>) {
        let log = self.at("trace");
        let list: Vec<String> = verb.iter().map(|s| (*s).to_owned()).collect();
        let options = ["-yy", "-e", "trace=open,openat,openat2,connect,socket,execve"];
        let out = strace(&options, &log, UNIMAGE, &list);
        let text = fs::read_to_string(&log).unwrap();
        let calls = || text.lines().filter(|l| !l.contains("= -1 "));
        assert!(calls().all(|l| !l.contains("connect(") && !l.contains("socket(")), "{text}");
        assert_eq!(calls().filter(|l| l.contains("execve(")).count(), 1, "{text}");
        // `= 3</the/path>`
        let real =
            calls().filter_map(|l| l.rsplit_once("= ")?.1.split_once('<')?.1.rsplit_once('>').map(|p| p.0.to_owned()));
        (out, real.collect())
    }
    fn inside(&self, path: &str) -> bool {
        let own = self.dir.path().canonicalize().unwrap();
        let system =
            ["/etc/ld.so", "/lib", "/usr/lib", "/proc/", "/sys/", "/dev/null"].iter().any(|p| path.starts_with(p));
        system || Path::new(path).starts_with(own.join("vm")) || path.ends_with("/etc/localtime")
    }
}

#[test]
fn backing_files_outside() {
    let case = Case::new();
    symlink("../secret", case.at("vm/link")).unwrap();
    symlink(case.at("secret"), case.at("vm/whole")).unwrap();
    symlink("..", case.at("vm/sub/up")).unwrap();
    symlink("../..", case.at("vm/sub/out")).unwrap();
    let secret = case.text("secret");
    for (i, backing) in [
        &secret,
        "../secret",
        "./../secret",
        "sub/../../secret",
        "link",
        "whole",
        "sub/out/secret",
        "sub/up/../secret",
        "/proc/self/root/etc/passwd",
        "/etc/passwd",
        "/dev/zero",
        "/dev/sda",
    ]
    .into_iter()
    .enumerate()
    {
        let image = case.over(&format!("vm/{i}.qcow2"), backing, Some("raw"));
        case.ends(&image, 4, "--allow-dir");
    }
    // Inside of an image, a name does not lead out either.
    let image = case.over("vm/deep.qcow2", "../secret", Some("raw"));
    let host = case.text("vm/host.img");
    fs::File::create(&host).unwrap().set_len(8 << 20).unwrap();
    ok("mkfs.fat", [&host]);
    ok("mmd", ["-i", &host, "::vm"]);
    ok("mcopy", ["-i", &host, &image, "::vm/deep.qcow2"]);
    ok("mcopy", ["-i", &host, &secret, "::secret"]);
    let address = format!("{host}//vm/deep.qcow2//");
    let out = unimage(["info", &address]).exits(4);
    assert!(out.stderr.contains("--allow-dir //"), "{out}");
    unimage(["info", "--allow-dir", "//", &address]).exits(0);
}

#[test]
fn addresses_and_descriptions_instead_of_names() {
    let case = Case::new();
    for (i, backing) in [
        "nbd://127.0.0.1:10809/x",
        "https://127.0.0.1/x.raw",
        "json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}",
        "fat:/etc",
        "ssh://localhost/etc/passwd",
    ]
    .into_iter()
    .enumerate()
    {
        let image = case.over(&format!("vm/{i}.qcow2"), backing, Some("raw"));
        case.ends(&image, 4, "not followed");
    }
    let image = case.over("vm/file.qcow2", &format!("file:{}", case.text("secret")), Some("raw"));
    case.ends(&image, 4, "--allow-dir");
}

/// CVE-2024-32498: a data file, raw by declaration, that is any file of the machine.
#[test]
fn data_files_outside() {
    let case = Case::new();
    symlink("../secret", case.at("vm/link")).unwrap();
    for (i, data) in [case.text("secret"), "../secret".into(), "link".into(), "/etc/passwd".into()].iter().enumerate() {
        let (path, own) = (case.text(&format!("vm/{i}.qcow2")), case.text("vm/data"));
        for options in ["", ",data_file_raw=on"] {
            let option = format!("data_file={own}{options}");
            ok("qemu-img", ["create", "-q", "-f", "qcow2", "-o", &option, &path, "64k"]);
            ok("qemu-img", ["amend", "-f", "qcow2", "-o", &format!("data_file={own}"), &path]);
            // The name is put into its place in the header.
            let mut bytes = fs::read(&path).unwrap();
            let at = bytes.windows(4).position(|w| w == b"DATA").unwrap();
            bytes.splice(at + 4..at + 8, (data.len() as u32).to_be_bytes());
            let room = bytes.len() - 8 - at;
            assert!(data.len() < room);
            bytes[at + 8..at + 8 + own.len()].fill(0);
            bytes[at + 8..at + 8 + data.len()].copy_from_slice(data.as_bytes());
            fs::write(&path, bytes).unwrap();
            case.ends(&path, 4, "--allow-dir");
        }
    }
}

/// CVE-2022-47951: a descriptor of a VMDK whose flat extent is a file of the machine.
#[test]
fn extents_outside() {
    let case = Case::new();
    symlink("../secret", case.at("vm/link")).unwrap();
    for (i, extent) in [case.text("secret"), "../secret".into(), "link".into(), "/etc/passwd".into()].iter().enumerate()
    {
        let path = case.text(&format!("vm/{i}.vmdk"));
        let text = format!(
            "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\n\nRW 128 FLAT \"{extent}\" 0\n"
        );
        fs::write(&path, text).unwrap();
        case.ends(&path, 4, "--allow-dir");
    }
}

/// CVE-2015-5163 and CVE-2024-40767: an image in another's clothes leads to no file either.
#[test]
fn dressed_as_another() {
    let case = Case::new();
    // A qcow2 called raw names a file outside.
    let image = case.over("vm/disk.raw", "../secret", Some("raw"));
    case.ends(&image, 4, "--allow-dir");
    // A raw backing file that looks like a qcow2 is taken as the bytes that it is, and what it names is not followed.
    case.over("vm/inner", "../secret", Some("raw"));
    let outer = case.over("vm/outer.qcow2", "inner", Some("raw"));
    let (out, opened) = case.traced(&["info", &outer]);
    assert_eq!(out.code, 0, "{out}");
    assert!(opened.iter().all(|p| case.inside(p)) && opened.iter().any(|p| p.ends_with("vm/inner")), "{opened:?}");
    assert!(out.stdout.contains("inner, raw"), "{out}");
    // One whose format is not declared is not taken for raw; nor is one that is declared to be what it is not.
    fs::write(case.at("vm/bytes"), vec![7; 65536]).unwrap();
    let unsaid = case.over("vm/unsaid.qcow2", "bytes", None);
    case.ends(&unsaid, 4, "--allow-raw-parent");
    unimage(["info", "--allow-raw-parent", &unsaid]).exits(0);
    let wrong = case.over("vm/wrong.qcow2", "bytes", Some("qcow2"));
    case.ends(&wrong, 4, "declared to be of the format qcow2");
}

#[test]
fn cycles() {
    let case = Case::new();
    let own = case.over("vm/own.qcow2", "own.qcow2", Some("qcow2"));
    case.ends(&own, 4, "itself");
    case.over("vm/a.qcow2", "b.qcow2", Some("qcow2"));
    let b = case.over("vm/b.qcow2", "c.qcow2", Some("qcow2"));
    fs::hard_link(case.at("vm/a.qcow2"), case.at("vm/c.qcow2")).unwrap();
    case.ends(&b, 4, "itself");
    // More images than a chain may have.
    for i in 0..300 {
        case.over(&format!("vm/{i}"), &(i + 1).to_string(), Some("qcow2"));
    }
    case.over("vm/300", "bytes", Some("raw"));
    fs::write(case.at("vm/bytes"), vec![7; 65536]).unwrap();
    case.ends(&case.text("vm/0"), 4, "more than 256");
    unimage(["info", &case.text("vm/100")]).exits(0);
}

/// Numbers that would take all memory, or all time.
#[test]
fn huge_sizes() {
    let case = Case::new();
    let make = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let path = case.text(name);
        ok("qemu-img", ["create", "-q", "-f", "qcow2", &path, "1T"]);
        ok("qemu-io", ["-f", "qcow2", "-c", "write -P 5 0 1M", &path]);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        path
    };
    let be = |bytes: &mut [u8], at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    let l1 = |bytes: &[u8]| u64::from_be_bytes(bytes[40..48].try_into().unwrap()) as usize;
    type Change<'c> = &'c dyn Fn(&mut Vec<u8>);
    let cases: [(&str, Change<'_>); 8] = [
        ("size", &|b| be(b, 24, u64::MAX)),
        ("size2", &|b| be(b, 24, 1 << 62)),
        ("l1 entries", &|b| b[36..40].fill(0xff)),
        ("l1 place", &|b| be(b, 40, u64::MAX - 511)),
        ("snapshots", &|b| b[60..64].fill(0xff)),
        ("many snapshots", &|b| {
            b[60..64].copy_from_slice(&65_536u32.to_be_bytes());
            be(b, 64, 0x50000);
        }),
        // All entries of level 1 lead to one table: 2048 times the same clusters.
        ("one table", &|b| {
            let at = l1(b);
            let first = b[at..at + 8].to_vec();
            (0..2048).for_each(|i| b[at + i * 8..at + i * 8 + 8].copy_from_slice(&first));
        }),
        ("beyond", &|b| {
            let at = l1(b);
            be(b, at, 1 << 63 | 0x00ff_ffff_ffff_0000);
        }),
    ];
    for (name, change) in cases {
        let path = make(&format!("vm/{name}"), change);
        // Half a GiB of address space, ten seconds.
        let script = "ulimit -v 524288; exec timeout 10 \"$0\" map --json --no-mmap \"$1//\"";
        let out = Command::new("sh").args(["-c", script, UNIMAGE, &path]).output().unwrap();
        let code = out.status.code();
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(matches!(code, Some(0 | 3)) && !said.contains("panicked"), "{name}: {code:?} {said}");
        let printed = String::from_utf8_lossy(&out.stdout);
        if ["one table", "beyond"].contains(&name) {
            assert!(printed.contains("\"unreadable\""), "{name}: {printed}");
        }
    }
}
