//! Any bytes as a disk with a partition table.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| unimage_fuzz::volume(data));
