//! Any bytes as a volume of NTFS.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| unimage_fuzz::ntfs(data));
