//! ext4 as host: images with all sorts of guests are relinked by the program, and judged by e2fsck and by the kernel,
//! which then goes on writing.

mod ext_support;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;

use ext_support::host::{Host, Setting, ext_guest, journal, kept};
use ext_support::{Filling, Mount, Random, kernel_rows, run, scratch};

const GUEST: Filling = Filling { big_values: false, preallocate: true, names: 700 };

/// One host with one guest, there and used.
fn there(mib: u64, host: &str, guest: &str, how: Setting, into: &str) {
    let dir = scratch();
    let preallocate = guest.contains("-t ext4");
    let (image, mut rows) = ext_guest(dir.path(), guest, Filling { preallocate, ..GUEST });
    if host.contains("-b 1024") && guest.contains("-b 4096") {
        // All of its attributes are more than a small block holds.
        rows.get_mut(b"xattr-many".as_slice()).unwrap().xattrs.retain(|x| x.0 != "user.large");
    }
    let host_args = host;
    let host = Host::new(mib, host, &image, how);
    let (_keep, journal) = journal();
    host.relink(&format!("/{into}"), &journal);
    kept(&rows, &host.after(into), host_args.contains("-I 128"));
    host.used(into);
}

const PLAIN: Setting = Setting { beside: 3, pieces: false, scattered: false };
const PIECES: Setting = Setting { pieces: true, ..PLAIN };
const INDEXED: Setting = Setting { beside: 900, ..PIECES };

#[test]
fn host_4k() {
    there(256, "-t ext4 -b 4096", "-t ext4 -b 4096", INDEXED, "out");
}

#[test]
fn host_1k() {
    there(256, "-t ext4 -b 1024", "-t ext4 -b 1024", PIECES, "out/and/deeper");
}

#[test]
fn host_2k_into_the_images_directory() {
    there(256, "-t ext4 -b 2048", "-t ext4 -b 4096", INDEXED, "vm");
}

#[test]
fn host_with_small_inodes() {
    there(256, "-t ext4 -b 4096 -I 128", "-t ext4 -b 4096", PLAIN, "out");
}

#[test]
fn host_without_checksums() {
    there(256, "-t ext4 -b 4096 -O ^metadata_csum,^uninit_bg,^64bit,^flex_bg", "-t ext4 -b 4096", PLAIN, "out");
}

#[test]
fn host_with_descriptor_checksums() {
    there(256, "-t ext4 -b 1024 -O ^metadata_csum,uninit_bg,^64bit", "-t ext4 -b 1024", INDEXED, "deep/er");
}

#[test]
fn host_without_a_journal_and_without_indexes() {
    there(256, "-t ext4 -b 4096 -O ^has_journal,^dir_index", "-t ext4 -b 4096", INDEXED, "other");
}

#[test]
fn host_with_clusters() {
    there(256, "-t ext4 -b 4096 -O bigalloc -C 16384", "-t ext4 -b 4096", PIECES, "out");
    there(256, "-t ext4 -b 1024 -O bigalloc -C 4096", "-t ext4 -b 4096", INDEXED, "vm/in");
}

#[test]
fn host_with_a_stored_seed_and_an_orphan_file() {
    there(256, "-t ext4 -b 4096 -O metadata_csum_seed,orphan_file", "-t ext3 -b 4096", PIECES, "out");
}

#[test]
fn host_with_meta_groups_and_large_directories() {
    there(256, "-t ext4 -b 4096 -O meta_bg,^resize_inode,large_dir", "-t ext4 -b 4096", PLAIN, "out");
    there(256, "-t ext4 -b 1024 -O meta_bg,^resize_inode,sparse_super2 -g 2048", "-t ext2 -b 1024", PLAIN, "out");
}

#[test]
fn host_with_small_groups_and_inline_data() {
    there(
        256,
        "-t ext4 -b 4096 -g 2048 -N 30000 -O inline_data,ea_inode",
        "-t ext4 -b 1024 -O inline_data",
        INDEXED,
        "out",
    );
}

/// Guests without owners and modes get the image's: who may read the image may read what was in it.
#[test]
fn guests_without_owners() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let dir = scratch();
    let guest = dir.path().join("guest.img");
    File::create(&guest).unwrap().set_len(48 << 20).unwrap();
    run("mkntfs", &["-F".as_ref(), "-Q".as_ref(), "-q".as_ref(), guest.as_os_str()]);
    {
        let at = scratch();
        run(
            "ntfs-3g",
            &["-o".as_ref(), "streams_interface=windows".as_ref(), guest.as_os_str(), at.path().as_os_str()],
        );
        let mut r = Random(8);
        fs::create_dir_all(at.path().join("Users/größe 🦀")).unwrap();
        for n in 0..300 {
            fs::write(at.path().join(format!("Users/größe 🦀/file {n}")), r.bytes(n * 123)).unwrap();
        }
        fs::write(at.path().join("with a stream"), b"data").unwrap();
        fs::write(at.path().join("with a stream:name"), r.bytes(20_000)).unwrap();
        run("umount", &[at.path()]);
    }
    let mut host = Host::new(200, "-t ext4 -b 4096", &guest, PIECES);
    {
        let mount = Mount::new(&host.image, "rw");
        let image = mount.path().join("vm/disk.img");
        std::os::unix::fs::chown(&image, Some(1234), Some(5678)).unwrap();
        fs::set_permissions(&image, fs::Permissions::from_mode(0o640)).unwrap();
    }
    host.older = kernel_rows(Mount::new(&host.image, "ro").path());
    let (_keep, journal) = journal();
    host.relink("/out", &journal);
    let rows = host.after("out");
    let mut r = Random(8);
    for n in 0..300 {
        let row = &rows[format!("Users/größe 🦀/file {n}").as_bytes()];
        let data = r.bytes(n * 123);
        assert_eq!(row.data, Some((data.len() as u64, ext_support::sha(&data))));
        assert_eq!((row.mode, row.owner), (0o640, (1234, 5678)));
    }
    assert_eq!(rows[b"with a stream".as_slice()].data, Some((4, ext_support::sha(b"data"))));
    assert_eq!(rows[b"with a stream.stream.name".as_slice()].data, Some((20_000, ext_support::sha(&r.bytes(20_000)))));
    let mount = Mount::new(&host.image, "ro");
    let top = fs::metadata(mount.path().join("out")).unwrap();
    assert_eq!((top.mode() & 0o7777, top.uid(), top.gid()), (0o750, 1234, 5678));
    drop(mount);
    host.used("out");
}

/// A disk with a table: each partition has its folder. Owners of the guest's are kept, that of a folder is the image's.
#[test]
fn a_disk_with_partitions() {
    let dir = scratch();
    let (ext, rows) = ext_guest(dir.path(), "-t ext4 -b 4096", GUEST);
    let disk = dir.path().join("disk.img");
    let file = File::create(&disk).unwrap();
    file.set_len(80 << 20).unwrap();
    let mut sfdisk = Command::new("sfdisk")
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(&disk)
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    use std::io::Write;
    sfdisk.stdin.take().unwrap().write_all(b"label: gpt\nstart=2048, size=131072, type=L\n").unwrap();
    assert!(sfdisk.wait().unwrap().success());
    file.write_all_at(&fs::read(&ext).unwrap(), 1 << 20).unwrap();
    let host = Host::new(256, "-t ext4 -b 4096", &disk, PIECES);
    let (_keep, journal) = journal();
    host.relink("/vm", &journal);
    kept(&rows, &host.after("vm/p1"), false);
    host.used("vm/p1");
}
