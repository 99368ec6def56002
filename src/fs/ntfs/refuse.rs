//! Why an NTFS volume, or the image on it, must not be written (host-writers, 4.2).

use crate::error::Result;
use crate::extent::{Map, Offset, Stream};
use crate::fs::Kind;
use crate::fs::host::{HostFile, HostImage};
use crate::fs::ntfs::layout::{self, Boot, COMPRESSION_MASK, ENCRYPTED, FIRST_USER, MFT, MIRROR, VOLUME, kind};
use crate::fs::ntfs::old_dir::OldDir;
use crate::fs::ntfs::raw::RawRecord;
use crate::fs::ntfs::read::Ntfs;

const READ_ONLY: u32 = 1;
const SYSTEM: u32 = 4;
/// Bytes of a file of hibernation that say whether it is in use.
const HIBERNATION_HEAD: u64 = 4096;

/// Every reason, one sentence each.
pub(super) fn refusals(ntfs: &Ntfs, image: &HostImage) -> Result<Vec<String>> {
    let mut out = of_the_volume(ntfs)?;
    // A volume that can't be trusted says nothing of the image on it.
    if out.is_empty() {
        for (file, what) in image.called(&ntfs.state()?.tree) {
            of_the_image(ntfs, file, &what, &mut out)?;
        }
    }
    Ok(out)
}

fn of_the_volume(ntfs: &Ntfs) -> Result<Vec<String>> {
    let reader = &ntfs.reader;
    let boot = &reader.boot;
    let mut out = Vec::new();
    let first = reader.volume.read_vec(Offset::new(0), layout::STRIDE)?;
    let primary = Boot::is_ntfs(&first)
        && Boot::decode(crate::bytes::Fields::new("boot sector", Offset::new(0), &first)).is_ok_and(|b| b == *boot);
    if !primary {
        out.push("the host's boot sector is damaged, or a relink was not finished: see `recover`".into());
        return Ok(out);
    }
    let end = boot.sectors.saturating_mul(boot.sector);
    if end > reader.volume.len() {
        out.push(format!("the host's file system ends at byte {end}, the volume at {}", reader.volume.len()));
        return Ok(out);
    }
    if boot.cluster < 512 {
        out.push(format!("the host has clusters of {} bytes", boot.cluster));
    }
    out.extend(reader.remarks.iter().map(|r| format!("the host is damaged: {r}")));
    match ntfs.small(VOLUME, kind::VOLUME_INFORMATION).as_deref().and_then(layout::volume_information) {
        Some((3, 1, 0)) => {}
        Some((3, 1, flags)) => out.push(format!("the host is marked {}: {}", flag_words(flags), CHECK)),
        Some((major, minor, _)) => out.push(format!("the host is of NTFS version {major}.{minor}; 3.1 is written")),
        None => out.push("the host's $VOLUME_INFORMATION can't be read".into()),
    }
    match ntfs.log_is_clean() {
        Some(true) => {}
        Some(false) => out.push(format!(
            "the host's $LogFile has changes that are to be replayed: it was not unmounted, or Windows only went to sleep; {CHECK}"
        )),
        None => out.push(format!("the host's $LogFile has no restart page that is whole: {CHECK}")),
    }
    if let Some(why) = mirror(ntfs)? {
        out.push(why);
    }
    let state = match ntfs.state() {
        Ok(state) => state,
        Err(e) => {
            out.push(format!("the host can't be read as a whole: {e}"));
            return Ok(out);
        }
    };
    if let [first, ..] = state.tree.problems() {
        let places = if state.tree.problems().len() == 1 { "place" } else { "places" };
        out.push(format!("the host is damaged in {} {places}, the first: {}", state.tree.problems().len(), first.what));
    }
    out.extend(state.census.faults.iter().map(|f| format!("the host is damaged: {f}")));
    for (entry, depth) in state.tree.order() {
        if depth == 1
            && state.tree.name(entry).eq_ignore_ascii_case(b"hiberfil.sys")
            && hibernated(ntfs, state.tree.entry(entry).object)?
        {
            out.push("Windows is hibernated on the host (hiberfil.sys): start it and shut it down first".into());
        }
    }
    Ok(out)
}

const CHECK: &str = "let Windows check it with `chkdsk` first";

fn flag_words(flags: u16) -> String {
    let words = [
        (1u16, "dirty"),
        (2, "to have its log resized"),
        (4, "to be upgraded"),
        (8, "as mounted by Windows NT 4"),
        (0x10, "as having its change journal deleted"),
        (0x20, "to have its object identities repaired"),
        (0x4000, "as being checked"),
        (0x8000, "as changed by `chkdsk`"),
    ];
    let some: Vec<&str> = words.iter().filter(|(bit, _)| flags & bit != 0).map(|w| w.1).collect();
    format!("{} (flags {flags:#06x})", some.join(", "))
}

/// Records that `$MFTMirr` has too.
pub(super) fn mirror(ntfs: &Ntfs) -> Result<Option<String>> {
    let reader = &ntfs.reader;
    for (n, what) in [(MFT, "$MFT"), (MIRROR, "$MFTMirr")] {
        if RawRecord::read(reader, n).is_ok_and(|r| r.has_list()) {
            return Ok(Some(format!("{what} has an attribute list: such a host is not written yet")));
        }
    }
    let copy = match reader.open_value(MIRROR, kind::DATA, b"") {
        Ok(copy) => copy,
        Err(e) => return Ok(Some(format!("the host's $MFTMirr can't be read: {e}"))),
    };
    let len = copy.len().min(reader.mft.len()).min(1 << 20);
    let len = usize::try_from(len).unwrap_or(0);
    let mut first = vec![0; len];
    reader.read_mft(Offset::new(0), &mut first)?;
    let second = copy.read_vec(Offset::new(0), len)?;
    let record = reader.boot.record.max(1);
    let differ = first.chunks(record).zip(second.chunks(record)).position(|(a, b)| a != b);
    Ok(differ
        .map(|n| format!("the host's $MFT and $MFTMirr differ in record {n}: {CHECK}"))
        .or_else(|| (len < record.saturating_mul(4)).then(|| "the host's $MFTMirr is too small".into())))
}

fn hibernated(ntfs: &Ntfs, object: crate::fs::ObjectId) -> Result<bool> {
    use crate::fs::FileSystem;
    let tree = &ntfs.state()?.tree;
    let Some(stream) = tree.data(object) else { return Ok(false) };
    let opened = ntfs.open(tree, stream)?;
    if opened.len() < HIBERNATION_HEAD {
        return Ok(true);
    }
    let head = opened.read_vec(Offset::new(0), 4)?;
    Ok(head.eq_ignore_ascii_case(b"hibr"))
}

fn of_the_image(ntfs: &Ntfs, image: &HostFile, what: &str, out: &mut Vec<String>) -> Result<()> {
    let state = ntfs.state()?;
    let tree = &state.tree;
    let known = tree.order().any(|(e, _)| e == image.entry && tree.entry(e).object == image.object);
    let stream = known.then(|| tree.data(image.object)).flatten();
    let object = known.then(|| *tree.object(image.object));
    let (Some(stream), Some(object)) =
        (stream, object.filter(|o| o.kind == Kind::File && o.number >= FIRST_USER && !o.system))
    else {
        out.push(format!("{what} is no file of the host"));
        return Ok(());
    };
    for (bit, name) in [(READ_ONLY, "read-only"), (SYSTEM, "a system file")] {
        if object.attributes & bit != 0 {
            out.push(format!("{what} is marked as {name}: clear that attribute if it may be removed"));
        }
    }
    let chunk = ntfs.reader.file(object.number, 0)?;
    let records: std::collections::BTreeSet<u64> = chunk.recs.iter().map(|r| r.number).collect();
    for number in records {
        for a in &RawRecord::read(&ntfs.reader, number)?.attributes {
            match a.kind {
                kind::OBJECT_ID => out.push(
                    format!("{what} has an object identity ($OBJECT_ID), which links may follow: copy the image, or remove it with `fsutil objectid delete`"),
                ),
                kind::REPARSE_POINT => out.push(format!("{what} is a reparse point (deduplicated, in the cloud, ...)")),
                kind::DATA if !a.has_name() && a.flags & ENCRYPTED != 0 => out.push(format!("{what} is encrypted by EFS")),
                kind::DATA if !a.has_name() && a.flags & COMPRESSION_MASK != 0 => {
                    out.push(format!("{what} is compressed by the host"));
                }
                _ => {}
            }
        }
    }
    out.dedup();
    let one = match chunk.names.as_slice() {
        [_] => true,
        [a, b] => {
            let spaces = [a.space, b.space];
            a.parent == b.parent && spaces.contains(&layout::WIN32) && spaces.contains(&layout::DOS)
        }
        _ => false,
    };
    let parents: std::collections::BTreeSet<u64> = chunk.names.iter().map(|n| n.parent.number()).collect();
    for parent in parents {
        if let Err(e) = OldDir::read(&ntfs.reader, parent) {
            out.push(format!("the directory of {what} can't be changed: {e}"));
        }
    }
    if !one {
        out.push(format!("{what} has more than one name (hard links): remove the others first"));
    }
    let now: Map<Stream> = tree.map(stream);
    if now != image.map {
        out.push(format!("{what} is not where it was planned from: plan again"));
    }
    Ok(())
}
