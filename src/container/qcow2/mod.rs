//! qcow2: clusters found by two levels of tables, over a backing file; snapshots that keep a level 1 table of their own.

use std::sync::Arc;

use self::layout::{Extensions, Header, MAGIC, MAX_L1, MAX_SNAPSHOTS, SNAPSHOT, SnapshotHead};
use self::table::{Qcow2, State};
use super::gate::Wanted;
use super::{Disk, Format, OpenWith, Part, Role, Snapshot};
use crate::bytes::Fields;
use crate::error::{Error, Result};
use crate::extent::{Device, Offset, ReadAt};

mod layout;
mod owners;
mod table;
mod unpack;

/// Bytes of all fixed and variable fields of the snapshots, at most.
const MAX_SNAPSHOT_BYTES: u64 = 64 << 20;

/// A snapshot and its level 1 table.
struct Kept {
    about: Snapshot,
    l1: (u32, u64),
}

/// Whether an image that begins with these bytes is one.
pub(super) fn recognised(head: &[u8]) -> bool {
    head.starts_with(MAGIC)
}

/// Opens `device`, which begins as qcow2.
///
/// # Errors
/// A header that is damaged or has features that are not known, no such snapshot, and what the gate says of the backing file and
/// the data file.
pub(super) fn open(device: &Arc<dyn ReadAt<Device>>, with: &OpenWith<'_>) -> Result<Disk> {
    // The header, its extensions and the backing file's name lie in the first cluster, of which 2 MiB is the largest.
    let first = device.read_vec(Offset::new(0), usize::try_from(device.len().min(2 << 20)).unwrap_or_default())?;
    let head = Header::decode(Fields::new("qcow2 header", Offset::new(0), &first))?;
    let all = Fields::<Device>::new("qcow2 header", Offset::new(0), &first);
    let until = head.backing.map_or(head.cluster(), |(at, _)| at).min(first.len() as u64);
    let len = usize::try_from(until.saturating_sub(head.end)).unwrap_or_default();
    let from = usize::try_from(head.end).unwrap_or(usize::MAX);
    let extensions = match len {
        0 => Extensions::default(),
        len => Extensions::decode(all.part("qcow2 header extension", from, len)?)?,
    };
    let mut remarks = Vec::new();
    let (kept, bad) = snapshots(&**device, &head);
    remarks.extend(bad.map(|e| format!("the list of snapshots can't be read to its end: {e}")));
    let chosen = with.snapshot.and_then(|wanted| {
        let by_id = kept.iter().position(|k| k.about.id == wanted);
        by_id.or_else(|| kept.iter().position(|k| k.about.name == wanted))
    });
    if let (Some(wanted), None) = (with.snapshot, chosen) {
        return Err(super::no_snapshot(wanted, "qcow2", kept.iter().map(|k| &k.about)));
    }
    let (len, l1) = match chosen.and_then(|n| kept.get(n)) {
        Some(kept) => (kept.about.len, kept.l1),
        None => (head.size, head.l1),
    };
    let mut own = Vec::new();
    let mut data = None;
    if head.data_file {
        let name = extensions.data_file.as_deref().ok_or_else(|| all.wrong(0, "the name of its data file"))?;
        let opened = with.part(&Wanted { name: plain(name, "data file")?, what: "data file", moved: false })?;
        remarks.extend(opened.remark);
        own.push(Part { role: Role::Own, kind: "data", name: opened.name, device: Arc::clone(&opened.device) });
        data = Some(opened.device);
    }
    let parent = match head.backing {
        None => None,
        Some((at, len)) => {
            let name = all.slice(usize::try_from(at).unwrap_or(usize::MAX), len as usize)?;
            let format = match extensions.backing_format.as_deref() {
                None => Format::Unsaid,
                Some(b"raw" | b"host_device" | b"file") => Format::Raw,
                Some(b"qcow2") => Format::Kind("qcow2"),
                Some(b"vmdk") => Format::Kind("vmdk"),
                Some(b"vdi") => Format::Kind("vdi"),
                Some(b"vpc") => Format::Kind("vhd"),
                Some(b"vhdx") => Format::Kind("vhdx"),
                Some(other) => {
                    let other = String::from_utf8_lossy(other);
                    return Err(Error::Unsupported(format!("a backing file of the format {other:?}")));
                }
            };
            let wanted = Wanted { name: plain(name, "backing file")?, what: "backing file", moved: false };
            Some(with.parent(&wanted, format)?)
        }
    };
    if head.dirty {
        remarks.push(
            "it was not closed: counts of references may be wrong; which clusters are whose is read as its owner would"
                .into(),
        );
    }
    if head.corrupt {
        remarks.push("its owner marked it as corrupt".into());
    }
    match head.crypt {
        0 => {}
        1 => remarks.push("encrypted (AES): what is stored can't be read".into()),
        2 => remarks.push("encrypted (LUKS): what is stored can't be read".into()),
        other => return Err(Error::Unsupported(format!("a qcow2 image with encryption method {other}"))),
    }
    let tables = kept.iter().map(|k| k.l1).collect();
    let state = State { len, l1, snapshots: tables, name: with.name() };
    let table = Qcow2::open(Arc::clone(device), data, head, state)?;
    let mut disk = Disk::chained("qcow2", Arc::new(table), own, parent)?;
    remarks.append(&mut disk.remarks);
    disk.remarks = remarks;
    disk.snapshots = kept.into_iter().map(|k| k.about).collect();
    disk.snapshot = chosen;
    Ok(disk)
}

/// A name of a file, without what QEMU reads out of a name.
fn plain<'n>(name: &'n [u8], what: &str) -> Result<&'n [u8]> {
    let name = name.strip_prefix(b"file:").unwrap_or(name);
    let protocol = name.split(|b| *b == b'/').next().is_some_and(|first| first.contains(&b':'));
    if protocol {
        return Err(Error::Refused(format!(
            "the {what} {:?} is not a file's name but an address or a description: it is not followed",
            String::from_utf8_lossy(name)
        )));
    }
    Ok(name)
}

/// The snapshots that an image lists, and what was wrong with the rest.
fn snapshots(device: &dyn ReadAt<Device>, head: &Header) -> (Vec<Kept>, Option<Error>) {
    let mut out = Vec::new();
    let (count, mut at) = head.snapshots;
    let limit = at.saturating_add(MAX_SNAPSHOT_BYTES);
    if count > MAX_SNAPSHOTS {
        let error =
            Error::corrupt("qcow2 header", Offset::<Device>::new(60), format!("up to {MAX_SNAPSHOTS} snapshots"));
        return (out, Some(error));
    }
    for _ in 0..count {
        match snapshot(device, head, at) {
            Ok((kept, len)) => {
                out.push(kept);
                at = at.saturating_add(len);
            }
            Err(e) => return (out, Some(e)),
        }
        if at > limit {
            let error = Error::corrupt("qcow2 snapshot", Offset::<Device>::new(at), "a list of up to 64 MiB");
            return (out, Some(error));
        }
    }
    (out, None)
}

fn snapshot(device: &dyn ReadAt<Device>, header: &Header, at: u64) -> Result<(Kept, u64)> {
    let place = Offset::new(at);
    let fixed = device.read_vec(place, SNAPSHOT)?;
    let f = Fields::new("qcow2 snapshot", place, &fixed);
    let head = SnapshotHead::decode(&f)?;
    let [extra, id, name] = head.follow;
    let bytes =
        device.read_vec(place.saturating_add(SNAPSHOT as u64), extra.saturating_add(id).saturating_add(name))?;
    let rest = Fields::new("qcow2 snapshot", place.saturating_add(SNAPSHOT as u64), &bytes);
    let text = |at: usize, len: usize| rest.slice(at, len).map(|b| String::from_utf8_lossy(b).into_owned());
    let memory = if extra >= 8 { rest.u64_be(0)? } else { head.memory.into() };
    let len = if extra >= 16 { rest.u64_be(8)? } else { header.size };
    let (entries, l1_at) = head.l1;
    if u64::from(entries).saturating_mul(8) > MAX_L1 || len.div_ceil(header.per_l2()) > entries.into() {
        return Err(f.wrong(8, format!("a level 1 table for {len} bytes, it has {entries} entries")));
    }
    let about = Snapshot {
        id: text(extra, id)?,
        name: text(extra.saturating_add(id), name)?,
        made: Some((head.made.0.into(), head.made.1)),
        len,
        memory,
    };
    Ok((Kept { about, l1: (entries, l1_at) }, head.bytes()))
}
