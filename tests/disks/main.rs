//! VHD, VHDX, VDI and VMDK: bytes and extents as their own tools and qemu have them; parents and extents through the gate;
//! what is damaged or crafted is refused or read with errors.

#[path = "../common/mod.rs"]
mod common;
mod damage;
mod folder;
mod machine;
#[expect(dead_code, reason = "a part of it is used here")]
#[path = "../common/memory.rs"]
mod memory;
mod qcow2;
mod qemu;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;
mod written;
