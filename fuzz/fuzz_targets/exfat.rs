//! Any bytes as a volume of exFAT.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| unimage_fuzz::exfat(data));
