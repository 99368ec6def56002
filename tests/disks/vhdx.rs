//! VHDX: logs of files that qemu left open; differencing disks, made after the specification and judged by libvhdi; what is
//! damaged is refused and not read as it was before.

use std::fs;
use std::path::Path;
use std::process::Command;

use unimage::container::Role;
use unimage::container::gate::Allow;
use unimage::extent::{Offset, What};

use crate::common::{Noise, ok, scratch};
use crate::folder::{content, open, open_with};
use crate::qemu;
use crate::vhd::same_by_libvhdi;

const MIB: usize = 1 << 20;

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// CRC-32C, bit by bit.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, b| {
        (0..8).fold(crc ^ u32::from(*b), |c, _| if c & 1 == 1 { c >> 1 ^ 0x82F6_3B78 } else { c >> 1 })
    })
}

/// Makes the checksum of a structure right, which is at its byte 4.
fn seal(bytes: &mut [u8]) {
    bytes[4..8].fill(0);
    let sum = crc32c(bytes);
    put(bytes, 4, &sum.to_le_bytes());
}

/// Where the region lies whose GUID begins with these bytes.
fn region(bytes: &[u8], first: u32) -> usize {
    let table = 192 << 10;
    let entries = u32_at(bytes, table + 8) as usize;
    let at = (0..entries).map(|n| table + 16 + n * 32).find(|at| u32_at(bytes, *at) == first).unwrap();
    u64_at(bytes, at + 16) as usize
}

fn bat(bytes: &[u8]) -> usize {
    region(bytes, 0x2DC2_7766)
}

/// The header that counts.
fn header(bytes: &[u8]) -> usize {
    [64 << 10, 128 << 10].into_iter().max_by_key(|at| u64_at(bytes, at + 8)).unwrap()
}

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

/// What a block of a child is.
#[derive(Clone, Copy)]
pub enum Block {
    Absent,
    Zero,
    Full(u8),
    /// Every so many sectors are here, with this byte.
    Partly(usize, u8),
}

/// A child over the VHDX at `base`, in blocks of 2 MiB. `unused` fills what is the parent's in blocks that are partly here.
pub fn child(base: &Path, path: &Path, id: u8, size: u64, blocks: &[Block], unused: u8) {
    const BLOCK: usize = 2 * MIB;
    let name = base.file_name().unwrap().to_str().unwrap();
    qemu::create(path, "vhdx", "block_size=2M", size);
    let parent = fs::read(base).unwrap();
    let linkage = &parent[header(&parent) + 32..header(&parent) + 48];
    let g = |n: std::ops::Range<usize>, turn: bool| {
        let mut part = linkage[n].to_vec();
        if turn {
            part.reverse();
        }
        part.iter().map(|b| format!("{b:02x}")).collect::<String>()
    };
    let linkage =
        format!("{{{}-{}-{}-{}-{}}}", g(0..4, true), g(4..6, true), g(6..8, true), g(8..10, false), g(10..16, false));
    let mut bytes = fs::read(path).unwrap();
    for at in [64 << 10, 128 << 10] {
        bytes[at + 32..at + 48].fill(id);
        seal(&mut bytes[at..at + 4096]);
    }
    // The metadata: that there is a parent, and its locator.
    let meta = region(&bytes, 0x8B7C_A206);
    let count = u32_at(&bytes, meta + 8) >> 16;
    for n in 0..count as usize {
        let entry = meta + 32 + n * 32;
        if u32_at(&bytes, entry) == 0xCAA1_6737 {
            let item = meta + u32_at(&bytes, entry + 16) as usize;
            bytes[item + 4] |= 2;
        }
    }
    let mut locator = vec![0; 20 + 12 * 3];
    put(
        &mut locator,
        0,
        &[0xB7, 0xEF, 0x4A, 0xB0, 0x9E, 0xD1, 0x81, 0x4A, 0xB7, 0x89, 0x25, 0xB8, 0xE9, 0x44, 0x59, 0x13],
    );
    put(&mut locator, 18, &3u16.to_le_bytes());
    let pairs = [
        ("parent_linkage", linkage),
        ("absolute_win32_path", format!("\\\\?\\C:\\gone\\{name}")),
        ("relative_path", format!(".\\{name}")),
    ];
    for (n, (key, value)) in pairs.iter().enumerate() {
        for (m, text) in [*key, value.as_str()].iter().enumerate() {
            let text: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
            let at = locator.len() as u32;
            put(&mut locator, 20 + n * 12 + m * 4, &at.to_le_bytes());
            put(&mut locator, 20 + n * 12 + 8 + m * 2, &(text.len() as u16).to_le_bytes());
            locator.extend(text);
        }
    }
    let (entry, item) = (meta + 32 + count as usize * 32, 512 << 10);
    put(
        &mut bytes,
        entry,
        &[0x2D, 0x5F, 0xD3, 0xA8, 0x0B, 0xB3, 0x4D, 0x45, 0xAB, 0xF7, 0xD3, 0xD8, 0x48, 0x34, 0xAB, 0x0C],
    );
    put(&mut bytes, entry + 16, &(item as u32).to_le_bytes());
    put(&mut bytes, entry + 20, &(locator.len() as u32).to_le_bytes());
    put(&mut bytes, entry + 24, &4u32.to_le_bytes());
    put(&mut bytes, meta + 10, &(count as u16 + 1).to_le_bytes());
    put(&mut bytes, meta + item, &locator);
    // One chunk has 2048 blocks of 2 MiB: entry 2048 is that of the sector bitmap block.
    let bat = bat(&bytes);
    bytes.resize(bytes.len().next_multiple_of(MIB), 0);
    let bits = bytes.len();
    put(&mut bytes, bat + 2048 * 8, &(bits as u64 | 6).to_le_bytes());
    bytes.resize(bits + MIB, 0);
    for (n, block) in blocks.iter().enumerate() {
        let at = bytes.len() as u64;
        let entry = match block {
            Block::Absent => 0,
            Block::Zero => 2,
            Block::Full(byte) => {
                bytes.extend(vec![*byte; BLOCK]);
                at | 6
            }
            Block::Partly(step, byte) => {
                bytes.extend(vec![unused; BLOCK]);
                for sector in (0..4096).step_by(*step) {
                    bytes[bits + n * 512 + sector / 8] |= 1 << (sector % 8);
                    bytes[at as usize + sector * 512..][..512].fill(*byte);
                }
                at | 7
            }
        };
        put(&mut bytes, bat + n * 8, &entry.to_le_bytes());
    }
    fs::write(path, bytes).unwrap();
}

fn apply(want: &mut [u8], blocks: &[Block]) {
    for (block, part) in blocks.iter().zip(want.chunks_mut(2 * MIB)) {
        match block {
            Block::Absent => {}
            Block::Zero => part.fill(0),
            Block::Full(byte) => part.fill(*byte),
            Block::Partly(step, byte) => part.chunks_mut(512).step_by(*step).for_each(|s| s.fill(*byte)),
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
        let first = [Partly(3, 0x11), Absent, Full(0x22), zero, Absent, Partly(7, 0x33)];
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
