//! Descriptions of machines: each leads to its disk, through the gate; what several disks has says so.

use std::fs;
use std::path::Path;

use unimage::container::{OpenWith, probe};
use unimage::source::{self, SourceOptions};

use crate::common::{Noise, ok, scratch, unimage};
use crate::folder::{Folder, content, open};
use crate::{qemu, vdi};

const OVF: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Envelope xmlns=\"http://schemas.dmtf.org/ovf/envelope/1\" \
    xmlns:ovf=\"http://schemas.dmtf.org/ovf/envelope/1\"><References><File ovf:id=\"file1\" ovf:href=\"my%20disk.vmdk\"/></References>\
    <DiskSection><Disk ovf:capacity=\"4\" ovf:diskId=\"vmdisk1\" ovf:fileRef=\"file1\"/></DiskSection></Envelope>";

/// Opens what a description leads to, and compares it with these bytes.
#[track_caller]
fn leads(path: &Path, kind: &str, want: &[u8]) {
    let disk = open(path).unwrap();
    assert_eq!(disk.kind, kind);
    assert!(disk.remarks[0].starts_with("this is the disk "), "{:?}", disk.remarks);
    assert!(disk.only_read.is_some());
    assert!(content(&disk) == want);
}

#[test]
fn each_kind_leads_to_its_disk() {
    let dir = scratch();
    let dir = dir.path();
    let raw = qemu::raw(dir, 3 << 20, &mut Noise::new(81));
    let want = fs::read(&raw).unwrap();
    qemu::convert(&raw, "vmdk", "subformat=monolithicFlat", &dir.join("win.vmdk"));
    qemu::convert(&raw, "vmdk", "subformat=streamOptimized", &dir.join("my disk.vmdk"));
    let path = dir.join("win.vmx");
    fs::write(
        &path,
        ".encoding = \"UTF-8\"\nconfig.version = \"8\"\nscsi0:0.present = \"TRUE\"\nscsi0:0.fileName = \"win.vmdk\"\n",
    )
    .unwrap();
    leads(&path, "vmdk", &want);

    fs::write(dir.join("a.ovf"), OVF).unwrap();
    leads(&dir.join("a.ovf"), "vmdk", &want);
    // As VMware's and VirtualBox' exports are: a tar, the description first.
    for (format, name) in [("ustar", "a.ova"), ("gnu", "b.ova")] {
        let path = dir.join(name);
        let format = format!("--format={format}");
        ok("tar", ["-C", qemu::text(dir), &format, "-cf", qemu::text(&path), "a.ovf", "my disk.vmdk"]);
        leads(&path, "vmdk", &want);
    }

    let domain = "<domain type='kvm'><devices><disk device='disk'><driver name='qemu' type='raw'/>\
        <source file='/var/lib/libvirt/images/source.raw'/><target dev='vda'/></disk></devices></domain>";
    fs::write(dir.join("x.xml"), domain).unwrap();
    leads(&dir.join("x.xml"), "raw", &want);
}

#[test]
fn a_machine_of_virtualbox_with_a_snapshot() {
    let dir = scratch();
    let dir = dir.path();
    let mut want = vdi::base(dir);
    vdi::child(&dir.join("base.vdi"), &dir.join("{bb}.vdi"), 1, &[None, Some(Some(9)), None, None, None]);
    want[1 << 20..2 << 20].fill(9);
    let text = "<?xml version=\"1.0\"?><VirtualBox xmlns=\"http://www.virtualbox.org/\"><Machine><MediaRegistry><HardDisks>\
        <HardDisk uuid=\"{aa}\" location=\"base.vdi\" format=\"VDI\"><HardDisk uuid=\"{bb}\" location=\"Snapshots/{bb}.vdi\"/></HardDisk>\
        </HardDisks></MediaRegistry><StorageControllers><StorageController name=\"SATA\"><AttachedDevice type=\"HardDisk\" port=\"0\" \
        device=\"0\"><Image uuid=\"{bb}\"/></AttachedDevice></StorageController></StorageControllers></Machine></VirtualBox>";
    fs::write(dir.join("m.vbox"), text).unwrap();
    leads(&dir.join("m.vbox"), "vdi", &want);
}

#[test]
fn of_several_disks_one_must_be_named() {
    let dir = scratch();
    let dir = dir.path();
    let raw = qemu::raw(dir, 1 << 20, &mut Noise::new(82));
    for name in ["a.vmdk", "b.vmdk"] {
        qemu::convert(&raw, "vmdk", "", &dir.join(name));
    }
    let path = dir.join("m.vmx");
    let text = "config.version = \"8\"\nide0:0.fileName = \"a.vmdk\"\nide0:1.fileName = \"b.vmdk\"\n";
    fs::write(&path, text).unwrap();
    let error = open(&path).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.to_string().contains("ide0:0 (a.vmdk), ide0:1 (b.vmdk)"), "{error}");
    let gate = Folder(path.clone());
    let allow = Default::default();
    let named = |slot| {
        let device = source::open(&path, SourceOptions::default()).unwrap();
        probe(device, &OpenWith::new(&gate, &allow, Some(slot)))
    };
    for slot in ["ide0:1", "b.vmdk"] {
        assert!(named(slot).unwrap().remarks[0].contains("b.vmdk"));
    }
    assert!(named("ide0:7").is_err());
    // No disk, one that is not there, and one that leads back to the description.
    fs::write(&path, "config.version = \"8\"\n").unwrap();
    assert!(open(&path).unwrap_err().to_string().contains("has no disk"));
    for gone in ["gone.vmdk", "m.vmx"] {
        fs::write(&path, format!("config.version = \"8\"\nide0:0.fileName = \"{gone}\"\n")).unwrap();
        assert!(open(&path).is_err());
    }
}

/// XML of a depth that no description has.
#[test]
fn deep_xml() {
    let dir = scratch();
    let path = dir.path().join("deep.xml");
    fs::write(&path, format!("<domain>{}", "<a>".repeat(1 << 20))).unwrap();
    assert!(open(&path).is_err());
    fs::write(&path, format!("<domain>{}{}</domain>", "<a>".repeat(1 << 18), "</a>".repeat(1 << 18))).unwrap();
    assert!(open(&path).is_err());
}

/// A machine's folder is the machine that the one description in it describes.
#[test]
fn a_folder() {
    let dir = scratch();
    let dir = dir.path();
    let raw = qemu::raw(dir, 3 << 20, &mut Noise::new(83));
    qemu::convert(&raw, "vmdk", "subformat=monolithicFlat", &dir.join("win.vmdk"));
    fs::remove_file(raw).unwrap();
    let none = unimage(["info", qemu::text(dir)]).exits(3);
    assert!(none.stderr.contains("nothing describes"), "{none}");
    let text = "config.version = \"8\"\nide0:0.fileName = \"win.vmdk\"\n";
    fs::write(dir.join("win.vmx"), text).unwrap();
    let out = unimage(["info", "--json", qemu::text(dir)]).exits(0);
    assert!(out.stdout.contains("\"vmdk\"") && out.stdout.contains("ide0:0"), "{out}");
    fs::write(dir.join("other.vmx"), text).unwrap();
    let several = unimage(["info", qemu::text(dir)]).exits(3);
    assert!(several.stderr.contains("other.vmx, win.vmx"), "{several}");
}
