//! Any bytes as a volume of ext2, ext3 or ext4.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| unimage_fuzz::ext(data));
