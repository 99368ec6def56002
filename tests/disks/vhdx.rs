//! VHDX: logs of files that qemu left open; differencing disks, made after the specification and judged by libvhdi; what is
//! damaged is refused and not read as it was before.

use std::fs;
use std::path::Path;
use std::process::Command;

use unimage::container::Role;
use unimage::container::gate::Allow;
use unimage::extent::{Offset, What};

use crate::common::vhdx::{Block, bat, child, header, put, seal, u32_at, u64_at};
use crate::common::{Noise, ok, scratch};
use crate::folder::{content, open, open_with};
use crate::qemu;
use crate::vhd::same_by_libvhdi;

const MIB: usize = 1 << 20;

/// Writes by `qemu-io`, which is killed when it syncs the file for the `when`th time: what it has in its log by then has
/// reached its place in part, or not at all. Syncs are counted for each of its threads, so it may also come to its end.
fn left_open(path: &Path, writes: &[(u64, u64, u8)], when: u64) {
    let inject = format!("inject=fdatasync:signal=KILL:when={when}");
    let mut args = vec![
        "-f".to_owned(),
        "-o".into(),
        "/dev/null".into(),
        "-e".into(),
        "trace=fdatasync".into(),
        "-e".into(),
        inject,
    ];
    args.extend(["qemu-io", "-f", "vhdx"].map(str::to_owned));
    for (at, len, byte) in writes {
        args.extend(["-c".into(), format!("write -P {byte} {at} {len}")]);
    }
    args.push(qemu::text(path).to_owned());
    Command::new("strace").args(args).output().unwrap();
}

/// What qemu reads of a copy after it repaired it; none where it can't.
fn repaired(path: &Path) -> Option<Vec<u8>> {
    let copy = path.with_extension("repaired");
    fs::copy(path, &copy).unwrap();
    let out =
        Command::new("qemu-img").args(["check", "-q", "-r", "all", "-f", "vhdx", qemu::text(&copy)]).output().unwrap();
    out.status.success().then(|| qemu::bytes(&copy, "vhdx"))
}

/// The entries of the log that are valid: where they lie and their bytes.
fn entries(bytes: &[u8]) -> Vec<(usize, usize)> {
    let h = header(bytes);
    let (at, len) = (u64_at(bytes, h + 72) as usize, u32_at(bytes, h + 68) as usize);
    let guid = &bytes[h + 48..h + 64];
    let valid = |e: &usize| &bytes[*e..*e + 4] == b"loge" && &bytes[*e + 32..*e + 48] == guid;
    (at..at + len).step_by(4096).filter(valid).map(|e| (e, u32_at(bytes, e + 8) as usize)).collect()
}

/// The sectors that an entry of the log writes.
fn written(bytes: &[u8], entry: usize) -> Vec<usize> {
    let descriptors = (0..u32_at(bytes, entry + 24) as usize).map(|n| entry + 64 + n * 32);
    descriptors.filter(|d| &bytes[*d..*d + 4] == b"desc").map(|d| u64_at(bytes, d + 16) as usize).collect()
}

#[test]
fn files_that_qemu_left_open() {
    let mut random = Noise::new(61);
    let dir = scratch();
    let path = dir.path().join("d.vhdx");
    let size = 40 << 20;
    let (mut replayed, mut empty, mut closed) = (0, 0, 0);
    for n in 0..200 {
        if replayed >= 4 && empty >= 1 && closed >= 1 {
            break;
        }
        let when = 1 + n % 16;
        qemu::create(&path, "vhdx", "block_size=1M", size);
        let writes: Vec<_> = (0..6)
            .map(|n| {
                ((n * 6 + random.below(5)) << 20 | random.below(100) << 9, 512 + random.below(300) * 512, 1 + n as u8)
            })
            .collect();
        left_open(&path, &writes, when);
        let good = fs::read(&path).unwrap();
        let want = repaired(&path).unwrap();
        let read = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            open(&path)
        };
        let disk = read(&good).unwrap();
        assert!(content(&disk) == want, "killed at sync {when}: {:?}", disk.remarks);
        if good[header(&good) + 48..][..16].iter().all(|b| *b == 0) {
            assert_eq!(disk.remarks, [""; 0]);
            closed += 1;
            continue;
        }
        let Some((last, len)) = entries(&good).into_iter().max_by_key(|(e, _)| u64_at(&good, e + 16)) else {
            assert!(disk.remarks.iter().any(|r| r.contains("nothing was replayed")), "{:?}", disk.remarks);
            empty += 1;
            continue;
        };
        replayed += 1;
        // What the log's last entry wrote had not reached its place: only the log knows of it.
        let mut stale = good.clone();
        let sectors = written(&good, last);
        sectors.iter().for_each(|at| stale[*at..at + 4096].fill(0));
        assert!(!sectors.is_empty());
        let disk = read(&stale).unwrap();
        assert!(disk.remarks.iter().any(|r| r.contains("log were replayed")), "{:?}", disk.remarks);
        assert!(content(&disk) == want && repaired(&path).unwrap() == want, "killed at sync {when}");
        // No entry is valid: refused, and not read as it was before.
        for damage in [last + 4, last + 16, last + 70, last + len - 1] {
            let mut torn = stale.clone();
            torn[damage] ^= 1;
            let error = read(&torn).unwrap_err().to_string();
            assert!(error.contains("VHDX log") && error.contains("not closed"), "{error}");
        }
        // The file is shorter than its log says that it was.
        let mut short = good.clone();
        put(&mut short, last + 48, &(1u64 << 40).to_le_bytes());
        seal(&mut short[last..last + len]);
        assert!(read(&short).unwrap_err().to_string().contains("it was cut"));
    }
    assert!(replayed >= 4 && empty >= 1 && closed >= 1, "{replayed} {empty} {closed}");
}

/// A disk that was left open with entries in its log.
pub fn dirty(path: &Path) {
    let writes: Vec<_> = (0..7).map(|n| (n << 20, MIB as u64, 7)).collect();
    for n in 0..200 {
        qemu::create(path, "vhdx", "block_size=1M", 8 << 20);
        left_open(path, &writes, 5 + n % 16);
        let bytes = fs::read(path).unwrap();
        if u64_at(&bytes, bat(&bytes)) & 7 == 6 && !entries(&bytes).is_empty() {
            return;
        }
    }
    panic!("qemu-io was never killed while its log was needed");
}

/// What the log writes over payload is read from there, and isn't said to be stored where it is not.
#[test]
fn a_log_that_writes_payload() {
    let dir = scratch();
    let path = dir.path().join("d.vhdx");
    dirty(&path);
    let mut bytes = fs::read(&path).unwrap();
    let payload = (u64_at(&bytes, bat(&bytes)) >> 20 << 20) as usize;
    assert!(payload > 0 && bytes[payload..payload + MIB].iter().all(|b| *b == 7));
    let (last, len) = *entries(&bytes).iter().max_by_key(|(e, _)| u64_at(&bytes, e + 16)).unwrap();
    put(&mut bytes, last + 64 + 16, &(payload as u64 + 8192).to_le_bytes());
    seal(&mut bytes[last..last + len]);
    fs::write(&path, &bytes).unwrap();
    let want = repaired(&path).unwrap();
    let disk = open(&path).unwrap();
    assert!(content(&disk) == want && want[8192..12288].iter().any(|b| *b != 7));
    let map = disk.image.map().unwrap();
    let there: Vec<_> = map.slice(Offset::new(8192)..Offset::new(12288)).collect();
    assert!(there.len() == 1 && matches!(there[0].what, What::Encoded(_)), "{there:?}");
}

#[test]
fn damaged_headers() {
    let dir = scratch();
    let path = dir.path().join("d.vhdx");
    let raw = qemu::raw(dir.path(), 5 << 20, &mut Noise::new(62));
    qemu::convert(&raw, "vhdx", "", &path);
    let want = fs::read(raw).unwrap();
    let good = fs::read(&path).unwrap();
    for at in [64 << 10, 128 << 10, 192 << 10] {
        let mut bytes = good.clone();
        bytes[at + 20] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let disk = open(&path).unwrap();
        assert!(content(&disk) == want);
        assert_eq!(disk.remarks.len(), 1, "{:?}", disk.remarks);
        bytes[at + if at == 192 << 10 { 64 << 10 } else { 64 << 10 ^ 192 << 10 } + 20] ^= 1;
    }
    for both in [[64 << 10, 128 << 10], [192 << 10, 256 << 10]] {
        let mut bytes = good.clone();
        both.iter().for_each(|at| bytes[at + 20] ^= 1);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(open(&path).unwrap_err().exit_code(), 3);
    }
    // An entry of the table that leads past the end, and one of a state that there is not.
    for (entry, word) in [(0x7FFFu64 << 20 | 6, "within the file"), (4, "state")] {
        let mut bytes = good.clone();
        let at = bat(&bytes);
        put(&mut bytes, at, &entry.to_le_bytes());
        fs::write(&path, &bytes).unwrap();
        let error = open(&path).unwrap().image.read_vec(Offset::new(0), 512).unwrap_err().to_string();
        assert!(error.contains("VHDX block allocation table entry") && error.contains(word), "{error}");
        assert!(error.contains(&format!("{at:#x}")), "{error}");
    }
}

fn apply(want: &mut [u8], blocks: &[Block]) {
    for (block, part) in blocks.iter().zip(want.chunks_mut(2 * MIB)) {
        match block {
            Block::Absent => {}
            Block::Zero => part.fill(0),
            Block::Full(byte) => part.fill(*byte),
            Block::Partly(step, byte) => part.chunks_mut(512).step_by(*step).for_each(|s| s.fill(*byte)),
            Block::Sectors(_) => unreachable!("not made here"),
        }
    }
}

/// libvhdi (20210425) is asked of a chain without what it gets wrong: it takes a block of zeros for the parent's, and where
/// the last parent has nothing it gives what a child's block has there by chance.
#[test]
fn differencing_disks() {
    use Block::{Absent, Full, Partly, Zero};
    let dir = scratch();
    let dir = dir.path();
    let size = 11 << 20;
    let raw = qemu::raw(dir, size, &mut Noise::new(63));
    let base = dir.join("base.vhdx");
    qemu::convert(&raw, "vhdx", "block_size=1M", &base);
    let (a, b) = (dir.join("a.vhdx"), dir.join("b.vhdx"));
    for (zero, unused) in [(Absent, 0), (Zero, 0x66)] {
        let mut want = fs::read(&raw).unwrap();
        let first = [Partly(3, 0x11), Absent, Full(0x22), zero.clone(), Absent, Partly(7, 0x33)];
        let second = [Partly(5, 0x44), Partly(2, 0x55), Absent, Absent, zero, Absent];
        child(&base, &a, 0xA1, size, &first, unused);
        child(&a, &b, 0xB2, size, &second, unused);
        apply(&mut want, &first);
        apply(&mut want, &second);
        let disk = open(&b).unwrap();
        assert_eq!((disk.kind, disk.remarks.as_slice(), disk.tables.len()), ("vhdx", [].as_slice(), 3));
        assert!(content(&disk) == want);
        let parts: Vec<_> = disk.parts.iter().map(|p| (p.role, p.name.as_str())).collect();
        assert_eq!(parts, [(Role::Parent(1), "a.vhdx"), (Role::Parent(2), "base.vhdx")]);
        if unused == 0 {
            same_by_libvhdi(&[&base, &a, &b], &want);
        }
    }

    // The base was written to: it has another identity.
    ok("qemu-io", ["-f", "vhdx", "-c", "write -P 1 0 512", qemu::text(&base)]);
    let error = open(&b).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
    let disk = open_with(&b, &Allow { other_parent: true, ..Allow::default() }).unwrap();
    assert!(disk.remarks.iter().any(|r| r.contains("identity")), "{:?}", disk.remarks);
    fs::remove_file(&base).unwrap();
    assert_eq!(open(&b).unwrap_err().exit_code(), 3);
}
