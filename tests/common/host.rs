//! Hosts: FAT volumes that hold an image among older files, bare or in a partition; and what foreign readers see there.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::fat::{Fat, first_difference};
use super::guest::copy_sparse;
use super::{Loop, Noise, Out, Seens, fsck_fat, ok, output, run, same_tree, tree, unimage};
use crate::args;

/// Where the host's volume lies in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The file is the volume.
    Bare,
    /// The second of two GPT partitions.
    Gpt,
    /// The first logical partition of an MBR.
    Logical,
}

/// What a host looks like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// 12, 16 or 32.
    pub width: u32,
    /// Sectors of 512 bytes in a cluster.
    pub cluster_sectors: u32,
    /// Bytes of the volume.
    pub len: u64,
    /// Where it lies.
    pub place: Place,
    /// Runs of the image on it.
    pub fragments: u64,
}

/// A host in a file.
pub struct Host {
    /// The folder of the test.
    pub dir: tempfile::TempDir,
    /// The file.
    pub file: PathBuf,
    /// The host volume's address.
    pub address: String,
    /// Its first byte.
    pub base: u64,
    /// Its length.
    pub len: u64,
    /// The older files.
    pub older: Seens,
    /// A copy of the file from before.
    pub before: PathBuf,
    /// The geometry.
    pub fat: Fat,
}

/// The name of the image on every host.
pub const IMAGE: &str = "DISK.RAW";

fn table(file: &Path, script: &str) {
    let mut sfdisk = Command::new("sfdisk")
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(file)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    sfdisk.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(sfdisk.wait().unwrap().success(), "sfdisk");
}

impl Host {
    /// A new host with older files and the image.
    #[track_caller]
    pub fn new(shape: Shape, image: &Path) -> Self {
        let dir = super::scratch();
        let file = dir.path().join("host.img");
        let start = 4096;
        let sectors = shape.len / 512;
        let (base, volume) = match shape.place {
            Place::Bare => (0, String::new()),
            Place::Gpt => (start * 512, "//p2".to_owned()),
            Place::Logical => (start * 512, "//p5".to_owned()),
        };
        let all = File::create(&file).unwrap();
        match shape.place {
            Place::Bare => all.set_len(shape.len).unwrap(),
            Place::Gpt => {
                all.set_len(base + shape.len + (1 << 20)).unwrap();
                table(
                    &file,
                    &format!("label: gpt\nstart=2048, size=1024, type=L\nstart={start}, size={sectors}, type=U\n"),
                );
            }
            Place::Logical => {
                all.set_len(base + shape.len + (1 << 20)).unwrap();
                let rest = sectors + start - 3072;
                table(
                    &file,
                    &format!(
                        "label: dos\nstart=2048, size=512, type=83\nstart=3072, size={rest}, type=5\nstart={start}, size={sectors}, type=c\n"
                    ),
                );
            }
        }
        {
            let on = (base != 0).then(|| Loop::attach(&file, base, shape.len, false));
            let device = on.as_ref().map_or(file.as_os_str(), |l| l.device.as_os_str());
            ok(
                "mkfs.fat",
                args![
                    "-F",
                    shape.width.to_string(),
                    "-s",
                    shape.cluster_sectors.to_string(),
                    "-S",
                    "512",
                    "-n",
                    "HOST",
                    "--mbr=n",
                    *device
                ],
            );
        }
        let mut host = Self {
            address: format!("{}{volume}", file.display()),
            before: dir.path().join("before.img"),
            fat: Fat::open(&file, base),
            file,
            dir,
            base,
            len: shape.len,
            older: Seens::new(),
        };
        assert_eq!(host.fat.width, shape.width, "mkfs.fat made another kind");
        host.add_older();
        host.fat.place(&host.file, image, IMAGE, shape.fragments);
        host.older = host.tree().0;
        host.older.remove(IMAGE).expect("the image is on the host");
        assert_eq!(fsck_fat(&host.file, base, shape.len), Vec::<String>::new(), "the host that the test made");
        copy_sparse(&host.file, &host.before);
        host
    }
    /// Fills the free clusters but for so many.
    #[track_caller]
    pub fn fill_up(&mut self, leave: u32) {
        let filler = self.dir.path().join("filler");
        let clusters = self.fat.free(&self.file) - leave;
        fs::write(&filler, Noise::new(7).bytes(clusters as usize * self.fat.cluster as usize)).unwrap();
        ok("mcopy", args!["-i", self.mtools(), *filler.as_os_str(), "::/FILLER.BIN"]);
        assert_eq!(self.fat.free(&self.file), leave);
        assert_eq!(fsck_fat(&self.file, self.base, self.len), Vec::<String>::new(), "the host that the test filled");
        self.older = self.tree().0;
        self.older.remove(IMAGE).expect("the image is on the host");
        copy_sparse(&self.file, &self.before);
    }
    /// How `mtools` name the volume.
    pub fn mtools(&self) -> String {
        if self.base == 0 { self.file.display().to_string() } else { format!("{}@@{}", self.file.display(), self.base) }
    }
    fn add_older(&self) {
        let source = self.dir.path().join("older");
        fs::create_dir_all(source.join("Older folder/below it")).unwrap();
        let mut noise = Noise::new(99);
        fs::write(source.join("NOTES.TXT"), noise.text(700)).unwrap();
        fs::write(source.join("Older folder/report of last year.odt"), noise.bytes(9000)).unwrap();
        for i in 0..6 {
            fs::write(source.join(format!("Older folder/below it/entry {i}")), noise.bytes(i * 400)).unwrap();
        }
        // One that is removed again: a deleted entry, and a gap in front of the image.
        fs::write(source.join("gone.tmp"), noise.bytes(3000)).unwrap();
        let volume = self.mtools();
        for name in ["NOTES.TXT", "gone.tmp", "Older folder"] {
            ok("mcopy", args!["-s", "-m", "-i", volume, *source.join(name).as_os_str(), "::/"]);
        }
        ok("mdel", args!["-i", volume, "::/gone.tmp"]);
    }
    /// All files as `mcopy` reads them, and all paths as `fls` lists them (directories end with `/`).
    /// `mcopy` writes two `_` for a character outside of the basic plane.
    #[track_caller]
    pub fn tree(&self) -> (Seens, Vec<String>) {
        let to = tempfile::tempdir_in(self.dir.path()).unwrap();
        ok("mcopy", args!["-s", "-n", "-m", "-i", self.mtools(), "::/", *to.path().as_os_str()]);
        (tree(to.path()), self.paths())
    }
    /// All paths as `fls` lists them; directories end with `/`. Deleted entries and the volume's label are left out.
    #[track_caller]
    pub fn paths(&self) -> Vec<String> {
        let offset = (self.base / 512).to_string();
        let kind = format!("fat{}", self.fat.width);
        let listed = ok("fls", args!["-r", "-p", "-u", "-f", kind, "-o", offset, *self.file.as_os_str()]);
        let mut paths = Vec::new();
        for line in listed.lines() {
            let (kind, path) = line.split_once('\t').unwrap();
            if path.starts_with('$') || path.ends_with("(Volume Label Entry)") || kind.starts_with("v/v") {
                continue;
            }
            paths.push(if kind.starts_with("d/d") { format!("{path}/") } else { path.to_owned() });
        }
        paths.sort();
        paths
    }
    /// What `fsck.fat -n -v` says too much.
    #[track_caller]
    pub fn fsck(&self) -> Vec<String> {
        fsck_fat(&self.file, self.base, self.len)
    }
    /// The journal's usual place: beside the host's file.
    pub fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }
    /// The address of the image.
    pub fn image(&self) -> String {
        self.path(&IMAGE.to_ascii_lowercase())
    }
    /// The address of a path on the host.
    pub fn path(&self, path: &str) -> String {
        format!("{}{}{path}", self.address, if self.base == 0 { "//" } else { "/" })
    }
    /// Runs `relink` of the image into `/out`.
    #[track_caller]
    pub fn relink(&self, more: &[&str]) -> Out {
        let mut a = vec!["relink".to_owned(), self.image(), "--into".into(), "/out".into()];
        a.extend(["--journal".to_owned(), self.journal().display().to_string()]);
        a.extend(more.iter().map(|s| (*s).to_owned()));
        unimage(a)
    }
    /// Runs `undo` or `recover`.
    #[track_caller]
    pub fn journal_verb(&self, verb: &str) -> Out {
        unimage(args![*verb, *self.journal().as_os_str()])
    }
    /// The first byte in use before that is not as it was; none: the host is exactly as before.
    pub fn changed(&self) -> Option<u64> {
        let mut ranges = self.fat.in_use(&self.before);
        // Outside of the volume nothing may change at all.
        ranges.push((0, self.base));
        let end = File::open(&self.before).unwrap().metadata().unwrap().len();
        assert_eq!(end, File::open(&self.file).unwrap().metadata().unwrap().len(), "the file's length");
        ranges.push((self.fat.end, end - self.fat.end));
        first_difference(&self.before, &self.file, &ranges)
    }
    /// Every byte, the free ones too.
    pub fn untouched(&self) -> bool {
        let end = File::open(&self.before).unwrap().metadata().unwrap().len();
        first_difference(&self.before, &self.file, &[(0, end)]).is_none()
    }
    /// Takes the file back to what it was before.
    pub fn reset(&self) {
        copy_sparse(&self.before, &self.file);
        let _ = fs::remove_file(self.journal());
    }
    /// Checks everything that holds after a relink of this guest into `/out`: its files, where the manifest says that
    /// they are, the older files, the checker, the image gone, nothing lost.
    #[track_caller]
    pub fn relinked(&self, rows: &[Row], guest: &Seens) {
        assert_eq!(self.fsck(), Vec::<String>::new(), "fsck.fat -n -v after relink");
        let (mut expected, mut names) = (self.older.clone(), std::collections::BTreeSet::new());
        let mut by_path = std::collections::BTreeMap::new();
        for row in rows {
            assert!(by_path.insert(row.path.as_str(), row).is_none(), "two rows for {:?}", row.path);
        }
        for (path, seen) in guest {
            let row = by_path.get(path.as_str()).unwrap_or_else(|| panic!("no row for {path:?}"));
            assert_eq!(row.size, seen.size, "size of {path:?} in its row");
            let to = row.written.as_ref().unwrap_or_else(|| panic!("{path:?} is not written: {row:?}"));
            names.insert(format!("out/{to}"));
            assert!(
                expected.insert(format!("out/{}", as_mcopy_writes(to)), seen.clone()).is_none(),
                "two files at {to:?}"
            );
        }
        let (got, paths) = self.tree();
        same_tree(&expected, &got, "the host after relink, read by mcopy");
        // FAT has times of two seconds; the streams of a file have none of their own.
        for (path, want) in expected.iter().filter(|(_, s)| s.mtime != 0) {
            let late = want.mtime - got[path].mtime;
            assert!((0..2_000_000_000).contains(&late), "time of {path:?}: {} for {}", got[path].mtime, want.mtime);
        }
        // The names in full, those outside of the basic plane too, by the other reader; and no others.
        let older: Vec<_> = self.older.keys().cloned().collect();
        let listed: std::collections::BTreeSet<_> = paths.iter().filter(|p| !p.ends_with('/')).cloned().collect();
        names.extend(older);
        // `fls` cuts the longest names of FAT; `mcopy` above has read them in full.
        let short = |p: &String| p.rsplit('/').next().unwrap().len() <= 240;
        names.retain(short);
        let listed: std::collections::BTreeSet<_> = listed.into_iter().filter(short).collect();
        let differ: Vec<_> = names.symmetric_difference(&listed).collect();
        assert!(differ.is_empty(), "only the plan or only fls has the paths {differ:?}");
        assert!(!paths.iter().any(|p| p == IMAGE), "the image is still there");
        // Every cluster in use belongs to a file or directory (else fsck.fat had said so); the sum says the rest.
        let files: u64 = expected.values().map(|s| s.size.div_ceil(self.fat.cluster)).sum();
        let dirs = paths.iter().filter(|p| p.ends_with('/')).count() as u64 + 1;
        let used = u64::from(self.fat.clusters - self.fat.free(&self.file));
        assert!(
            used >= files && used <= files + dirs * 64,
            "{used} clusters in use for {files} of files and {dirs} directories"
        );
    }
    /// A mount through which the host can be read, whatever lies around it.
    #[track_caller]
    pub fn mount(&self, options: &str) -> (super::Mount, Option<Loop>) {
        let read_only = options.split(',').any(|o| o == "ro");
        let on = (self.base != 0).then(|| Loop::attach(&self.file, self.base, self.len, read_only));
        let path = on.as_ref().map_or(self.file.clone(), |l| l.device.clone());
        (super::Mount::fat(&path, options), on)
    }
}

/// What `mcopy` makes of a name: two `_` for each character outside of the basic plane.
pub fn as_mcopy_writes(name: &str) -> String {
    name.chars().map(|c| if c > '\u{FFFF}' { "__".to_owned() } else { c.to_string() }).collect()
}

/// What the tests read of a row of `plan` and `relink`.
#[derive(Clone, Debug)]
pub struct Row {
    /// Guest path.
    pub path: String,
    /// `file`, `dir`, `stream`, ...
    pub kind: String,
    /// Bytes.
    pub size: u64,
    /// `link`, `copy`, `skip`.
    pub verdict: String,
    /// Why.
    pub reason: String,
    /// Path below `--into`.
    pub written: Option<String>,
}

/// The JSON lines of a verb: header, entries, summary; each line is parsed, and header and summary have to be there.
#[track_caller]
pub fn json_lines(stdout: &str) -> (serde_json::Value, Vec<serde_json::Value>, serde_json::Value) {
    let lines: Vec<serde_json::Value> =
        stdout.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect();
    let kind = |v: &serde_json::Value| v["type"].as_str().unwrap_or_default().to_owned();
    let (first, last) = (lines.first().expect("no output"), lines.last().unwrap());
    assert_eq!((kind(first).as_str(), kind(last).as_str()), ("header", "summary"), "first and last line");
    assert!(!first["schema"].is_null(), "a schema in the header: {first}");
    (first.clone(), lines.iter().filter(|l| kind(l) == "entry").cloned().collect(), last.clone())
}

/// A name or path of a row: where it is no plain text it is escaped, and as it is in base64 beside it.
pub fn raw_text(row: &serde_json::Value, field: &str) -> String {
    use base64::Engine;
    match row[format!("{field}_raw")].as_str() {
        Some(b) => String::from_utf8(base64::engine::general_purpose::STANDARD.decode(b).unwrap()).unwrap(),
        None => row[field].as_str().unwrap_or_default().to_owned(),
    }
}

/// The rows of `plan --json` or `relink --json`.
#[track_caller]
pub fn rows(stdout: &str) -> Vec<Row> {
    let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_owned();
    let entries = json_lines(stdout).1;
    let row = |v: &serde_json::Value| Row {
        path: raw_text(v, "path"),
        kind: text(&v["kind"]),
        size: v["size"].as_u64().unwrap_or(0),
        verdict: text(&v["verdict"]),
        reason: text(&v["reason"]),
        written: v["written"].as_str().map(|_| raw_text(v, "written")),
    };
    entries.iter().map(row).collect()
}

/// Runs a command under `strace` with the given options, its log in `log`.
pub fn strace(options: &[&str], log: &Path, program: &str, a: &[String]) -> Out {
    let mut command = Command::new("strace");
    // With the filter of the kernel only these calls stop the program, not all; but strace then sends no signals.
    if !options.iter().any(|o| o.contains("signal=")) {
        command.arg("--seccomp-bpf");
    }
    command.args(["-f", "-qq", "-o"]).arg(log).args(options).arg(program).args(a);
    output(&mut command)
}

/// Free and used numbers that `fsck.fat` prints are no secret: the summary line, for messages.
pub fn summary(file: &Path) -> String {
    run("fsck.fat", args!["-n", *file.as_os_str()]).stdout.lines().last().unwrap_or_default().to_owned()
}
