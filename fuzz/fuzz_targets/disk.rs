//! Records as the files of a disk of any format.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| unimage_fuzz::disk(data));
