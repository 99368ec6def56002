//! VHD, VHDX, VDI and VMDK: bytes and extents as their own tools and qemu have them; parents and extents through the gate;
//! what is damaged or crafted is refused or read with errors.

#[path = "../common/mod.rs"]
mod common;
mod folder;
mod qemu;
mod vdi;
mod vhd;
mod vhdx;
mod vmdk;
mod written;
