//! What describes a virtual machine and leads to its disks: `.vmx`, `.ovf`, `.ova`, `.vbox`, a domain of libvirt. Such a file is
//! no disk: it is opened as the disk that it names, through the gate, and only to be read.

use std::sync::Arc;

use super::gate::{Gate, Opened, Wanted};
use super::{Disk, Format, OpenWith, Part, Role, paths};
use crate::error::{Error, Result};
use crate::extent::{Device, Offset, ReadAt};

mod tar;
mod text;
mod xml;

/// Most bytes of a description.
const MAX_LEN: u64 = 4 << 20;
/// Disks of one machine that are told.
const MAX_DISKS: usize = 256;

/// A disk of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    /// Where it is attached: `scsi0:0`, `vda`, ...
    slot: String,
    /// Its file, as a path with `/`.
    file: Vec<u8>,
    format: Format,
    /// Why it can't be opened, whatever is there.
    never: Option<String>,
}

/// What a description says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Machine {
    disks: Vec<Named>,
    /// Every disk file that is known, attached or not: among them are parents that their children don't name.
    media: Vec<Vec<u8>>,
}

/// Files among which a parent is sought that its child does not name, and the gate to them.
pub(super) struct Media<'a> {
    pub(super) gate: &'a dyn Gate,
    pub(super) files: Vec<Vec<u8>>,
}

/// Whether a file may describe a machine, by its first bytes.
pub(super) fn recognised(head: &[u8]) -> bool {
    text::recognised(head) || xml::recognised(head) || tar::recognised(head)
}

/// Opens the disk of the machine that `device` describes: the only one, or the one whose slot or file `with` has as snapshot.
/// None for bytes that describe no machine.
///
/// # Errors
/// [`Error::NotFound`] for a machine of no disk, or of several of which none is named; and as opening the disk.
pub(super) fn open(device: &Arc<dyn ReadAt<Device>>, head: &[u8], with: &OpenWith<'_>) -> Result<Option<Disk>> {
    if tar::recognised(head) {
        let archive = tar::Archive::open(device)?;
        let Some((name, description)) = archive.description()? else { return Ok(None) };
        let Some((kind, machine)) = described(&description)? else { return Ok(None) };
        let gate = archive.gate(name);
        let with = OpenWith { gate: &gate, ..*with };
        let mut disk = attached(&machine, kind, &with)?;
        // They lie within the archive, which is the one file that there is.
        disk.parts.clear();
        return Ok(Some(disk));
    }
    if device.len() > MAX_LEN {
        return Ok(None);
    }
    let bytes = device.read_vec(Offset::new(0), usize::try_from(device.len()).unwrap_or_default())?;
    match described(&bytes)? {
        Some((kind, machine)) => attached(&machine, kind, with).map(Some),
        None => Ok(None),
    }
}

/// The machine that a text describes, and what it is called by.
fn described(bytes: &[u8]) -> Result<Option<(&'static str, Machine)>> {
    if text::recognised(bytes) {
        return Ok(text::decode(bytes).map(|machine| ("VMX", machine)));
    }
    if xml::recognised(bytes) {
        return xml::decode(bytes);
    }
    Ok(None)
}

fn attached(machine: &Machine, kind: &str, with: &OpenWith<'_>) -> Result<Disk> {
    let list = || {
        let shown = |d: &Named| format!("{} ({})", d.slot, String::from_utf8_lossy(&d.file));
        machine.disks.iter().map(shown).collect::<Vec<_>>().join(", ")
    };
    let chosen =
        with.snapshot.and_then(|wanted| machine.disks.iter().find(|d| d.slot == wanted || d.file == wanted.as_bytes()));
    let (named, snapshot) = match (chosen, machine.disks.as_slice()) {
        (Some(named), _) => (named, None),
        (None, [named]) => (named, with.snapshot),
        (None, []) => return Err(Error::NotFound(format!("the machine that this {kind} describes has no disk"))),
        (None, _) => {
            return Err(Error::NotFound(format!(
                "the machine that this {kind} describes has several disks: name one of them behind an @, or its file: {}",
                list()
            )));
        }
    };
    if let Some(why) = &named.never {
        return Err(Error::Unsupported(format!("the disk {}: {why}", named.slot)));
    }
    let media = Media { gate: with.gate, files: machine.media.clone() };
    let with = OpenWith { snapshot, media: Some(&media), ..*with };
    let wanted = Wanted { name: &named.file, what: "disk", moved: true };
    let (Opened { device, name, remark, .. }, mut disk) = with.disk(&wanted, named.format)?;
    let mut remarks = vec![format!("this is the disk {} of the machine that the {kind} describes: {name}", named.slot)];
    remarks.extend(remark);
    remarks.append(&mut disk.remarks);
    disk.remarks = remarks;
    disk.parts.insert(0, Part { role: Role::Own, kind: disk.kind, name: name.clone(), device });
    disk.only_read = Some(format!("a description of a machine is no disk: the disk itself must be named, {name}"));
    Ok(disk)
}

/// A path as a description has it.
fn file(path: &str) -> Vec<u8> {
    paths::from_either(path)
}
