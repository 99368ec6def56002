//! `.vmx`: lines of `key = "value"`, by VMware.
//!
//! ```text
//! .encoding = "UTF-8"
//! config.version = "8"
//! scsi0:0.present = "TRUE"
//! scsi0:0.fileName = "win-000002.vmdk"
//! ```

use std::collections::BTreeMap;

use super::super::Format;
use super::{MAX_DISKS, Machine, Named, file};

/// Whether these are the first bytes of such a file.
pub(super) fn recognised(head: &[u8]) -> bool {
    let head = head.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(head).trim_ascii_start();
    [&b".encoding"[..], b"config.version", b"#!/usr/bin/vmware"]
        .iter()
        .any(|word| head.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word)))
}

/// The machine; none for a text without the key that every one has.
pub(super) fn decode(bytes: &[u8]) -> Option<Machine> {
    let text = String::from_utf8_lossy(bytes);
    let mut keys = BTreeMap::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once('=') else { continue };
        keys.insert(key.trim().to_ascii_lowercase(), value.trim().trim_matches('"').to_owned());
    }
    keys.get("config.version")?;
    let mut machine = Machine::default();
    for (key, value) in &keys {
        let Some(slot) = key.strip_suffix(".filename").filter(|s| s.contains(':')) else { continue };
        let of = |what: &str| keys.get(&format!("{slot}.{what}")).map_or("", String::as_str).to_ascii_lowercase();
        let disk = value.to_ascii_lowercase().ends_with(".vmdk") && !of("devicetype").contains("cdrom");
        if disk && of("present") != "false" && machine.disks.len() < MAX_DISKS {
            let format = Format::Kind("vmdk");
            machine.disks.push(Named { slot: slot.to_owned(), file: file(value), format, never: None });
        }
    }
    Some(machine)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_of_a_machine() {
        let text = b".encoding = \"UTF-8\"\r\nconfig.version = \"8\"\r\nscsi0:0.fileName = \"a b-000001.vmdk\"\r\n\
            scsi0:0.present = \"TRUE\"\r\nscsi0:1.present = \"FALSE\"\r\nscsi0:1.filename = \"gone.vmdk\"\r\n\
            ide1:0.fileName = \"auto detect\"\r\nide1:0.deviceType = \"cdrom-raw\"\r\n\
            SATA0:1.fileName = \"C:\\vms\\d.vmdk\"\r\nfloppy0.fileName = \"x.vmdk\"\r\n";
        assert!(recognised(text));
        let machine = decode(text).unwrap();
        let seen: Vec<_> = machine.disks.iter().map(|d| (d.slot.as_str(), d.file.as_slice())).collect();
        assert_eq!(seen, [("sata0:1", &b"/vms/d.vmdk"[..]), ("scsi0:0", b"a b-000001.vmdk")]);
        assert_eq!(decode(b".encoding = \"UTF-8\"\n"), None);
        assert!(!recognised(b"encoding") && !recognised(b""));
    }
}
