//! Images in images: the same bytes by every way down, and addresses that lead to what they name.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use unimage::error::{Error, Result};
use unimage::extent::{Extent, Offset, Space, What};
use unimage::fs::Kind;
use unimage::stack::{Address, Guest, OpenOptions, Stack, Target, open};

use crate::support::{pattern, run};

fn at(path: &Path, address: &str) -> Result<Stack> {
    let text = format!("{}{address}", path.display());
    open(&Address::parse(text.as_ref())?, OpenOptions::default())
}

fn error(path: &Path, address: &str) -> Error {
    at(path, address).err().unwrap_or_else(|| panic!("{address} was opened"))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn make(path: &Path, len: u64) {
    File::create(path).unwrap().set_len(len).unwrap();
}

/// The partition `number` of the disk at `path`, made elsewhere as a file of the same size and put in its place.
fn fill(disk: &Path, number: usize, build: impl FnOnce(&Path)) {
    let json: serde_json::Value = serde_json::from_str(&run("sfdisk", &["--json", text(disk)], "")).unwrap();
    let parts = json["partitiontable"]["partitions"].as_array().unwrap();
    let part = parts.iter().find(|p| p["node"].as_str().unwrap().ends_with(&format!("{number}"))).unwrap();
    let (start, len) = (part["start"].as_u64().unwrap() * 512, part["size"].as_u64().unwrap() * 512);
    let piece = disk.with_extension("piece");
    make(&piece, len);
    build(&piece);
    File::options().write(true).open(disk).unwrap().write_all_at(&fs::read(&piece).unwrap(), start).unwrap();
    fs::remove_file(piece).unwrap();
}

struct Nest {
    dir: tempfile::TempDir,
    /// A bare FAT32 host with `Cases/mid.vhd` in fragments: a fixed VHD, MBR, whose p5 is NTFS with `Inner.raw`: a GPT disk, whose
    /// p1 is FAT16 with `Dir/hello.txt`.
    host: PathBuf,
    inner: Vec<u8>,
    hello: Vec<u8>,
}

fn nest() -> Nest {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (hello, inner, mid, vhd, host) =
        (path("hello.txt"), path("inner.raw"), path("mid.raw"), path("mid.vhd"), path("host.raw"));
    fs::write(&hello, pattern(50_000)).unwrap();

    make(&inner, 8 << 20);
    run("sfdisk", &["-q", text(&inner)], "label: gpt\n1: start=2048, size=12000\n2: start=14080, size=100\n");
    fill(&inner, 1, |volume| {
        run("mkfs.fat", &["-F", "16", "-s", "1", text(volume)], "");
        run("mmd", &["-i", text(volume), "::Dir"], "");
        run("mcopy", &["-i", text(volume), text(&hello), "::Dir/hello.txt"], "");
    });

    make(&mid, 30 << 20);
    run("sfdisk", &["-q", text(&mid)], "label: dos\n1: size=1MiB\n2: type=5\n5: size=25MiB, type=7\n");
    fill(&mid, 5, |volume| {
        run("mkfs.ntfs", &["-q", "-F", "-c", "4096", text(volume)], "");
        run("ntfscp", &["-q", text(volume), text(&inner), "Inner.raw"], "");
        run("ntfscp", &["-q", "-N", "box", text(volume), text(&inner), "Inner.raw"], "");
        run("ntfscp", &["-q", text(volume), text(&hello), "a:b.txt"], "");
    });
    run(
        "qemu-img",
        &["convert", "-f", "raw", "-O", "vpc", "-o", "subformat=fixed,force_size=on", text(&mid), text(&vhd)],
        "",
    );

    make(&host, 80 << 20);
    run("mkfs.fat", &["-F", "32", "-s", "1", text(&host)], "");
    // Every second of these goes again, and leaves gaps that the image is spread over.
    let filler = path("filler");
    fs::write(&filler, vec![1; 1 << 20]).unwrap();
    for i in 0..40 {
        run("mcopy", &["-i", text(&host), text(&filler), &format!("::f{i}")], "");
    }
    for i in (0..40).step_by(2) {
        run("mdel", &["-i", text(&host), &format!("::f{i}")], "");
    }
    // mtools would go on behind the last file: the hint where free clusters are is set to unknown.
    File::options().write(true).open(&host).unwrap().write_all_at(&[0xFF; 4], 512 + 492).unwrap();
    run("mmd", &["-i", text(&host), "::Cases"], "");
    run("mcopy", &["-i", text(&host), text(&vhd), "::Cases/mid.vhd"], "");
    let (inner, hello) = (fs::read(inner).unwrap(), fs::read(hello).unwrap());
    Nest { dir, host, inner, hello }
}

/// The bytes that extents of the ground stand for.
fn bytes_of<S: Space, B: Space>(ground: &[u8], extents: &[Extent<S, B>]) -> Vec<u8> {
    let mut out = Vec::new();
    for e in extents {
        match e.what {
            What::Stored(p) => out.extend_from_slice(&ground[p.offset.get() as usize..][..e.len as usize]),
            What::Zero => out.resize(out.len() + e.len as usize, 0),
            What::Encoded(how) => panic!("{how:?}"),
        }
    }
    out
}

#[test]
fn three_images_deep() {
    let nest = nest();
    let ground = fs::read(&nest.host).unwrap();
    let stack = at(&nest.host, "//Cases/mid.vhd//p5/Inner.raw//p1/Dir/hello.txt").unwrap();
    assert_eq!(
        stack.levels.iter().map(|l| (l.disk.kind, l.table.kind)).collect::<Vec<_>>(),
        [("raw", "none"), ("vhd", "mbr"), ("raw", "gpt")]
    );
    let last = stack.last().unwrap();
    let Target::Object(0, path, object) = &stack.target else { panic!("{:?}", stack.target) };
    assert_eq!(path, b"Dir/hello.txt");
    let guest = last.guest(0).unwrap();
    let tree = guest.tree().unwrap();
    let stream = tree.data(*object).unwrap();
    let file = guest.fs().unwrap().open(&tree, stream).unwrap();
    assert!(file.read_vec(Offset::new(0), nest.hello.len()).unwrap() == nest.hello);

    // Each volume of each level, by the extents on the ground, is what its layer reads.
    for (depth, level) in stack.levels.iter().enumerate() {
        for (position, slot) in level.table.slots.iter().enumerate() {
            let map = stack.volume_on_ground(depth, position).unwrap();
            assert_eq!(map.len(), slot.layer.len());
            let read = slot.layer.read_vec(Offset::new(0), slot.layer.len() as usize).unwrap();
            assert!(bytes_of(&ground, map.extents()) == read, "level {depth}, volume {position}");
        }
    }
    let inner_volume = &nest.inner[2048 * 512..(2048 + 12000) * 512];
    let map = stack.volume_on_ground(2, 0).unwrap();
    assert!(bytes_of(&ground, map.extents()) == inner_volume);
    assert!(map.extents().len() >= 3, "the host file is in fragments: {} extents", map.extents().len());

    // And the volume resolved to the host volume, whose bytes are those of the NTFS.
    assert_eq!(stack.host(), Some((1, 1)));
    let map = stack.volume_in_host(0).unwrap();
    let host = &stack.levels[1].table.slots[1].layer;
    let host = host.read_vec(Offset::new(0), host.len() as usize).unwrap();
    assert!(bytes_of(&host, map.extents()) == inner_volume);
}

#[test]
fn what_an_address_names() {
    let nest = nest();
    let target = |address: &str| at(&nest.host, address).unwrap().target;
    assert_eq!(target(""), Target::Disk);
    assert_eq!(target("//"), Target::Disk);
    assert!(matches!(target("//cases"), Target::Object(0, path, _) if path == b"cases"), "case does not matter on FAT");
    assert!(matches!(target("//Cases/mid.vhd"), Target::Object(..)));
    assert_eq!(target("//Cases/mid.vhd//"), Target::Disk);
    assert_eq!(target("//Cases/mid.vhd//p5"), Target::Volume(1));
    assert_eq!(target("//Cases/mid.vhd//p5/"), Target::Volume(1));
    assert!(matches!(target("//Cases/mid.vhd//p5/iNNER.RAW"), Target::Object(1, ..)), "nor on NTFS");
    assert!(matches!(target("//Cases/mid.vhd//p5/Inner.raw:box"), Target::Stream(1, ..)));
    assert!(matches!(target("//Cases/mid.vhd//p5/inner.raw:BOX"), Target::Stream(1, ..)));
    assert!(matches!(target("//Cases/mid.vhd//p5/a:b.txt"), Target::Object(1, ..)), "a name with a colon is a name");
    assert!(matches!(target("//Cases/mid.vhd//p5/Inner%2Eraw"), Target::Object(1, ..)), "escapes are read");
    assert!(matches!(target("//Cases/mid.vhd//p5/Inner.raw:box//p1/dir/HELLO.TXT"), Target::Object(0, ..)));
    assert_eq!(target("//Cases/mid.vhd//p5/Inner.raw//p2"), Target::Volume(1));

    let mut stack = at(&nest.host, "//Cases/mid.vhd").unwrap();
    stack.descend(OpenOptions::default()).unwrap();
    assert_eq!((stack.levels.len(), &stack.target), (2, &Target::Disk));
    assert_eq!(stack.host(), Some((0, 0)));
    assert_eq!(at(&nest.host, "").unwrap().host(), None);
    assert!(at(&nest.host, "").unwrap().volume_in_host(0).is_err());
}

#[test]
fn what_is_not_there_is_said_with_what_there_is() {
    let nest = nest();
    for (address, code, words) in [
        ("//Cases/gone", 3, "no gone in Cases, which has mid.vhd"),
        ("//p1", 3, "no partition table"),
        ("//Cases/mid.vhd//p9", 3, "no volume p9: the mbr table has p1, p5"),
        ("//Cases/mid.vhd//p5/x", 3, "no x in the root, which has"),
        ("//Cases/mid.vhd//p5/Inner.raw:other", 3, "no Inner.raw:other"),
        ("//Cases/mid.vhd/x", 3, "Cases/mid.vhd is a file"),
        ("//Cases//", 3, "expected a file to be opened as an image, it is a dir"),
        ("//Cases/mid.vhd//p5//", 3, "it is a volume"),
        ("//Cases/mid.vhd//p1/x", 3, "no file system was recognised (first bytes: 00 00"),
        ("//Cases/mid.vhd//p5/Inner.raw//p2/x", 3, "no file system was recognised"),
        ("@monday//x", 3, "no snapshot monday"),
    ] {
        let e = error(&nest.host, address);
        assert!(e.exit_code() == code && e.to_string().contains(words), "{address}: {e}");
    }
    let gone = error(&nest.dir.path().join("gone.raw"), "//p1");
    assert!(gone.to_string().contains("gone.raw") && gone.exit_code() == 3, "{gone}");
    // A volume of unknown bytes is still one that can be shown.
    let stack = at(&nest.host, "//Cases/mid.vhd//p1").unwrap();
    let guest = stack.last().unwrap().guest(0).unwrap();
    assert!(guest.fs.is_none() && guest.failed.is_none() && guest.tree().is_err());
}

/// What undo needs: the image as it was, opened through other bytes of the host volume.
#[test]
fn an_image_is_opened_out_of_given_bytes_of_a_volume() {
    let nest = nest();
    let volume = crate::support::bytes(fs::read(&nest.host).unwrap());
    let guest = Guest::probe(0, volume, OpenOptions::default().read);
    let level = guest.open_image("Cases/mid.vhd", OpenOptions::default()).unwrap();
    assert_eq!((level.disk.kind, level.guests.len()), ("vhd", 2));
    let tree = level.guest(1).unwrap().tree().unwrap();
    let found = tree.lookup([b"Inner.raw".as_slice()]).unwrap();
    assert_eq!(tree.object(found).kind, Kind::File);
    assert_eq!(tree.stream(tree.data(found).unwrap()).size, nest.inner.len() as u64);
    assert!(guest.open_image("Cases", OpenOptions::default()).is_err());
    assert!(guest.open_image("gone", OpenOptions::default()).is_err());
}

#[test]
fn images_in_images_end_somewhere() {
    let dir = tempfile::tempdir().unwrap();
    let (mut inner, mut address) = (dir.path().join("0"), String::new());
    fs::write(&inner, b"the innermost").unwrap();
    for depth in 1..=17u64 {
        let outer = dir.path().join(format!("{depth}"));
        make(&outer, (depth * 64) << 10);
        run("mkfs.fat", &["-F", "12", "-s", "1", text(&outer)], "");
        run("mcopy", &["-i", text(&outer), text(&inner), "::i"], "");
        inner = outer;
        address.push_str("//i");
    }
    let e = error(&inner, &address);
    assert!(e.to_string().contains("more than 16 images"), "{e}");
    let stack = at(&inner, address.strip_suffix("//i").unwrap()).unwrap();
    assert_eq!(stack.levels.len(), 16);
    let map = stack.volume_on_ground(15, 0).unwrap();
    let slot = &stack.last().unwrap().table.slots[0];
    let read = slot.layer.read_vec(Offset::new(0), slot.layer.len() as usize).unwrap();
    assert!(bytes_of(&fs::read(&inner).unwrap(), map.extents()) == read);
}
