//! Small NTFS hosts that hold an image in pieces among older files, bare or in a partition, and what foreign programs say of them.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::common::fat::first_difference;
use crate::common::guest::{copy_sparse, with_streams};
use crate::common::{Mount, Noise, Seens, ok, ok_bytes, scratch};

/// The name of the image on every host.
pub const IMAGE: &str = "disk.raw";

/// What a host looks like.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Bytes of a sector.
    pub sector: u64,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// MiB of the volume.
    pub mib: u64,
    /// Runs of the image on it, if free space allows.
    pub pieces: u64,
    /// Whether it is a partition of a disk.
    pub partition: bool,
}

/// A host in a file.
pub struct Host {
    /// The folder of the test.
    pub dir: tempfile::TempDir,
    /// The file.
    pub file: PathBuf,
    /// A copy of it from before.
    pub before: PathBuf,
    /// The image's address.
    pub image: String,
    /// Where the volume begins in the file, and its length.
    pub base: u64,
    pub len: u64,
    /// The older files.
    pub older: Seens,
    shape: Shape,
    in_use: OnceLock<Vec<(u64, u64)>>,
}

impl Host {
    /// With this image.
    #[track_caller]
    pub fn new(shape: Shape, guest: &Path) -> Self {
        let dir = scratch();
        let file = dir.path().join("host.img");
        let (base, len) = (if shape.partition { 1 << 20 } else { 0 }, shape.mib << 20);
        let volume = dir.path().join("made.raw");
        File::create(&volume).unwrap().set_len(len).unwrap();
        let (sector, cluster) = (shape.sector.to_string(), shape.cluster.to_string());
        let fixed = ["-q", "-F", "-Q", "-p", "0", "-H", "16", "-S", "63", "-s", &sector, "-c", &cluster];
        ok("mkntfs", [&fixed[..], &[volume.to_str().unwrap()]].concat());
        fill(&volume, &fs::read(guest).unwrap(), shape.pieces);
        fs::write(&file, [&vec![0; base as usize], &fs::read(&volume).unwrap()[..], &vec![0; base as usize]].concat())
            .unwrap();
        fs::remove_file(&volume).unwrap();
        if shape.partition {
            let table = dir.path().join("table");
            fs::write(&table, format!("label: dos\nstart=2048, size={}, type=7\n", len / 512)).unwrap();
            let stdin = File::open(&table).unwrap();
            assert!(Command::new("sfdisk").arg("-q").arg(&file).stdin(stdin).status().unwrap().success());
        }
        let image = format!("{}//{}{IMAGE}", file.display(), if shape.partition { "p1/" } else { "" });
        let before = dir.path().join("before.img");
        let mut host =
            Self { dir, file, before, image, base, len, older: Seens::new(), shape, in_use: OnceLock::new() };
        host.older = host.tree();
        host.older.remove(IMAGE).expect("the image is on the host");
        assert_eq!(host.check(), Vec::<String>::new(), "the host that the test made");
        copy_sparse(&host.file, &host.before);
        host
    }
    /// The journal's usual place.
    pub fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }
    /// All files and streams as `ntfs-3g` shows them; it does not repair anything.
    #[track_caller]
    pub fn tree(&self) -> Seens {
        let mount = Mount::ntfs(&self.file, self.base, self.len, "ro,norecover,streams_interface=windows");
        with_streams(&mount.dir)
    }
    /// Both bitmaps of a host in a file, as The Sleuth Kit reads them.
    pub fn bitmaps(&self, file: &Path) -> [Vec<u8>; 2] {
        let offset = (self.base / 512).to_string();
        ["6", "0-176"].map(|n| ok_bytes("icat", &["-f", "ntfs", "-o", &offset, file.to_str().unwrap(), n]))
    }
    /// Ranges of the file that were in use, and what is no cluster of the volume: what must come back bit for bit.
    pub fn in_use(&self) -> Vec<(u64, u64)> {
        self.in_use.get_or_init(|| self.find_in_use()).clone()
    }
    fn find_in_use(&self) -> Vec<(u64, u64)> {
        let [bits, _] = self.bitmaps(&self.before);
        let cluster = self.shape.cluster;
        let clusters = (self.len - 512) / cluster;
        let used = |n: &u64| bits[(n / 8) as usize] >> (n % 8) & 1 != 0;
        let mut all: Vec<_> = (0..clusters).filter(used).map(|n| (self.base + n * cluster, cluster)).collect();
        all.push((self.base + clusters * cluster, self.len - clusters * cluster));
        let end = fs::metadata(&self.before).unwrap().len();
        all.extend([(0, self.base), (self.base + self.len, end - self.base - self.len)]);
        all
    }
    /// What ntfsresize and ntfsfix say too much.
    pub fn check(&self) -> Vec<String> {
        (self.checker())(&self.file)
    }
    /// The same for any copy of the host.
    pub fn checker(&self) -> impl Fn(&Path) -> Vec<String> + use<> {
        let (base, len, apart) = (self.base as usize, self.len as usize, self.dir.path().join("apart.raw"));
        move |file| {
            fs::write(&apart, &fs::read(file).unwrap()[base..base + len]).unwrap();
            check(&apart)
        }
    }
    /// The first byte in use before that is not as it was.
    pub fn changed(&self) -> Option<u64> {
        assert_eq!(fs::metadata(&self.before).unwrap().len(), fs::metadata(&self.file).unwrap().len());
        first_difference(&self.before, &self.file, &self.in_use())
    }
    /// Whether every byte is as before, the free ones too.
    pub fn untouched(&self) -> bool {
        fs::read(&self.before).unwrap() == fs::read(&self.file).unwrap()
    }
    /// Takes the file back to what it was before, without a journal.
    pub fn reset(&self) {
        copy_sparse(&self.before, &self.file);
        let _ = fs::remove_file(self.journal());
    }
    /// Whether the host has its older files and these in `out`, and the checkers are content.
    #[track_caller]
    pub fn relinked(&self, guest: &Seens) {
        let mut meant = self.older.clone();
        meant.extend(guest.iter().map(|(path, seen)| (format!("out/{path}"), seen.clone())));
        crate::common::same_tree(&meant, &self.tree(), "the host after the relink");
        assert_eq!(self.check(), Vec::<String>::new(), "after the relink");
    }
}

/// Older files, and the image written in so many pieces, none beside its neighbour.
fn fill(volume: &Path, image: &[u8], pieces: u64) {
    let mount = Mount::ntfs(volume, 0, 0, "rw,noatime");
    let mut noise = Noise::new(3);
    for i in 0..6 {
        fs::write(mount.dir.join(format!("older {i}")), noise.bytes(300 * i)).unwrap();
    }
    let file = File::create(mount.dir.join(IMAGE)).unwrap();
    let part = (image.len() as u64 / pieces).next_multiple_of(4096);
    for i in 0..pieces {
        let from = ((i * 7 % pieces) * part).min(image.len() as u64);
        let to = (from + part).min(image.len() as u64);
        file.write_all_at(&image[from as usize..to as usize], from).unwrap();
    }
    drop(file);
    assert!(fs::read(mount.dir.join(IMAGE)).unwrap() == image);
}

/// What ntfsresize and ntfsfix say too much about a volume in a file.
fn check(volume: &Path) -> Vec<String> {
    let mut odd = Vec::new();
    for words in [&["ntfsresize", "-i", "-f"][..], &["ntfsfix", "-n"]] {
        let out = Command::new(words[0]).args(&words[1..]).arg(volume).stdin(Stdio::null()).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        if !out.status.success() || ["ERROR", "WARN", "FAILED"].iter().any(|w| text.contains(w)) {
            odd.push(text);
        }
    }
    odd
}
