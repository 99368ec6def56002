//! Descriptions in XML: OVF (DSP0243 by DMTF), `.vbox` of VirtualBox, a domain of libvirt.

use std::collections::HashMap;

use roxmltree::{Document, Node};

use super::super::Format;
use super::{MAX_DISKS, Machine, Named, file};
use crate::error::{Error, Result};

/// Whether these may be the first bytes of such a file: text that begins with a tag.
pub(super) fn recognised(head: &[u8]) -> bool {
    let head = head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(head);
    head.trim_ascii_start().starts_with(b"<") && !head.iter().take(512).any(|b| *b == 0)
}

/// The machine; none for XML of another kind, or what is no XML.
///
/// # Errors
/// [`Error::Corrupt`] for what begins like one of these and can't be read.
pub(super) fn decode(bytes: &[u8]) -> Result<Option<(&'static str, Machine)>> {
    let text = String::from_utf8_lossy(bytes);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let document = match Document::parse(text) {
        Ok(document) => document,
        Err(e) if ["<VirtualBox", "<Envelope", "<ovf:Envelope", "<domain"].iter().any(|w| text.contains(w)) => {
            return Err(Error::Corrupt {
                structure: "description of a machine".into(),
                at: format!("line {}", e.pos().row),
                expected: format!("XML ({e})"),
            });
        }
        Err(_) => return Ok(None),
    };
    let root = document.root_element();
    let (kind, mut machine) = match root.tag_name().name() {
        "Envelope" => ("OVF", ovf(root)),
        "VirtualBox" => ("VirtualBox machine", virtualbox(root)),
        "domain" => ("domain of libvirt", libvirt(root)),
        _ => return Ok(None),
    };
    machine.disks.truncate(MAX_DISKS);
    machine.media.truncate(MAX_DISKS);
    Ok(Some((kind, machine)))
}

/// An attribute by its name, in whatever name space.
fn attribute<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.attributes().find(|a| a.name() == name).map(|a| a.value())
}

fn elements<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> impl Iterator<Item = Node<'a, 'i>> {
    node.descendants().filter(move |n| n.is_element() && n.tag_name().name() == name)
}

fn ovf(root: Node<'_, '_>) -> Machine {
    let files: HashMap<&str, Node<'_, '_>> =
        elements(root, "File").filter_map(|f| Some((attribute(f, "id")?, f))).collect();
    let mut machine = Machine::default();
    for disk in elements(root, "Disk") {
        let Some(found) = attribute(disk, "fileRef").and_then(|id| files.get(id)) else { continue };
        let Some(href) = attribute(*found, "href") else { continue };
        let packed = attribute(*found, "compression").filter(|c| !c.is_empty() && *c != "identity");
        let never = packed.map(|c| format!("its file {href} is compressed ({c})"));
        let never = never.or_else(|| attribute(*found, "chunkSize").map(|_| format!("its file {href} is in chunks")));
        let slot = attribute(disk, "diskId").unwrap_or_default().to_owned();
        machine.disks.push(Named { slot, file: file(&unescaped(href)), format: Format::Unsaid, never });
    }
    machine
}

/// A relative URL as a path.
fn unescaped(url: &str) -> String {
    let mut out = Vec::new();
    let mut rest = url.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let code =
            after.get(..2).and_then(|c| std::str::from_utf8(c).ok()).and_then(|c| u8::from_str_radix(c, 16).ok());
        match code {
            Some(code) if *byte == b'%' => {
                out.push(code);
                rest = after.get(2..).unwrap_or_default();
            }
            _ => {
                out.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn virtualbox(root: Node<'_, '_>) -> Machine {
    let known: Vec<(String, String)> = elements(root, "HardDisk")
        .filter_map(|d| Some((attribute(d, "uuid")?.to_ascii_lowercase(), attribute(d, "location")?.to_owned())))
        .collect();
    let mut machine = Machine { media: known.iter().map(|(_, at)| file(at)).collect(), ..Machine::default() };
    for controller in elements(root, "StorageController") {
        // Snapshots keep what was attached then: only what is attached now is the machine's.
        if controller.ancestors().any(|a| a.tag_name().name() == "Snapshot") {
            continue;
        }
        let name = attribute(controller, "name").unwrap_or_default();
        for device in elements(controller, "AttachedDevice").filter(|d| attribute(*d, "type") == Some("HardDisk")) {
            let image = elements(device, "Image").next().and_then(|i| attribute(i, "uuid"));
            let Some(image) = image.map(str::to_ascii_lowercase) else { continue };
            let number = |what: &str| attribute(device, what).unwrap_or("0");
            let slot = format!("{name}:{}:{}", number("port"), number("device"));
            let at = known.iter().find(|(uuid, _)| *uuid == image).map(|(_, at)| file(at));
            let never = at.is_none().then(|| format!("no hard disk {image} is in the register of media"));
            let (file, format) = (at.unwrap_or_default(), Format::Unsaid);
            machine.disks.push(Named { slot, file, format, never });
        }
    }
    machine
}

fn libvirt(root: Node<'_, '_>) -> Machine {
    let mut machine = Machine::default();
    for disk in elements(root, "disk") {
        if !matches!(attribute(disk, "device"), None | Some("disk" | "lun")) {
            continue;
        }
        let child = |name: &'static str| disk.children().find(move |n| n.tag_name().name() == name);
        let slot = child("target").and_then(|t| attribute(t, "dev")).unwrap_or_default().to_owned();
        let source = child("source");
        let at = source.and_then(|s| attribute(s, "file"));
        let never = match (at, source.and_then(|s| attribute(s, "dev"))) {
            (Some(_), _) => None,
            (None, Some(device)) => Some(format!("it is the device {device} of the machine that it ran on")),
            (None, None) => Some("its source is no file".to_owned()),
        };
        let format = match child("driver").and_then(|d| attribute(d, "type")) {
            Some("raw") => Format::Raw,
            Some("qcow2") => Format::Kind("qcow2"),
            Some("vmdk") => Format::Kind("vmdk"),
            Some("vdi") => Format::Kind("vdi"),
            Some("vpc") => Format::Kind("vhd"),
            _ => Format::Unsaid,
        };
        machine.disks.push(Named { slot, file: file(at.unwrap_or_default()), format, never });
    }
    machine
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seen(text: &str) -> Vec<(String, String, Format, bool)> {
        let machine = decode(text.as_bytes()).unwrap().unwrap().1;
        let one = |d: Named| (d.slot, String::from_utf8(d.file).unwrap(), d.format, d.never.is_some());
        machine.disks.into_iter().map(one).collect()
    }

    const LIBVIRT: &str = "<!-- made by virsh -->\n<domain type='kvm'><name>x</name><devices>\
        <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/a/x.qcow2'/><target dev='vda'/></disk>\
        <disk type='file' device='cdrom'><source file='/a/x.iso'/><target dev='sda'/></disk>\
        <disk type='block'><driver type='raw'/><source dev='/dev/sdb'/><target dev='vdb'/></disk></devices></domain>";

    #[test]
    fn three_kinds() {
        let ovf = "<?xml version=\"1.0\"?><ovf:Envelope xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\"><ovf:References>\
            <ovf:File ovf:id=\"f1\" ovf:href=\"a%20b.vmdk\"/><ovf:File ovf:id=\"f2\" ovf:href=\"c.gz\" ovf:compression=\"gzip\"/>\
            </ovf:References><ovf:DiskSection><ovf:Disk ovf:diskId=\"d1\" ovf:fileRef=\"f1\"/><ovf:Disk ovf:diskId=\"d2\" ovf:fileRef=\"f2\"/>\
            <ovf:Disk ovf:diskId=\"blank\"/></ovf:DiskSection></ovf:Envelope>";
        assert_eq!(
            seen(ovf),
            [
                ("d1".into(), "a b.vmdk".into(), Format::Unsaid, false),
                ("d2".into(), "c.gz".into(), Format::Unsaid, true)
            ]
        );
        assert_eq!(
            seen(LIBVIRT),
            [
                ("vda".into(), "/a/x.qcow2".into(), Format::Kind("qcow2"), false),
                ("vdb".into(), String::new(), Format::Raw, true)
            ]
        );
        let vbox = "<VirtualBox xmlns=\"http://www.virtualbox.org/\"><Machine><MediaRegistry><HardDisks>\
            <HardDisk uuid=\"{AA}\" location=\"base.vdi\"><HardDisk uuid=\"{bb}\" location=\"Snapshots/{bb}.vdi\"/></HardDisk>\
            </HardDisks></MediaRegistry><Snapshot><StorageControllers><StorageController name=\"SATA\"><AttachedDevice type=\"HardDisk\">\
            <Image uuid=\"{aa}\"/></AttachedDevice></StorageController></StorageControllers></Snapshot><StorageControllers>\
            <StorageController name=\"SATA\"><AttachedDevice type=\"HardDisk\" port=\"0\" device=\"0\"><Image uuid=\"{bb}\"/></AttachedDevice>\
            <AttachedDevice type=\"DVD\" port=\"1\"/></StorageController></StorageControllers></Machine></VirtualBox>";
        assert_eq!(seen(vbox), [("SATA:0:0".into(), "Snapshots/{bb}.vdi".into(), Format::Unsaid, false)]);
        assert_eq!(
            decode(vbox.as_bytes()).unwrap().unwrap().1.media,
            [b"base.vdi".to_vec(), b"Snapshots/{bb}.vdi".to_vec()]
        );
    }

    #[test]
    fn others() {
        assert_eq!(decode(b"<html><body/></html>").unwrap(), None);
        assert_eq!(decode(b"< not XML").unwrap(), None);
        // Entities that grow are not expanded: a document type is refused.
        let bomb = "<!DOCTYPE domain [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;\">]><domain>&b;</domain>";
        assert!(decode(bomb.as_bytes()).is_err());
        assert!(!recognised(b"\0<") && !recognised(b"<\0"));
    }

    proptest! {
        #[test]
        fn any_cut_and_byte(cut in 0..LIBVIRT.len(), at in 0..LIBVIRT.len(), byte in any::<u8>()) {
            let mut bytes = LIBVIRT.as_bytes().to_vec();
            bytes[at] = byte;
            bytes.truncate(cut);
            let _ = decode(&bytes);
        }
    }
}
