//! Any bytes as a volume of FAT.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| unimage_fuzz::fat(data));
