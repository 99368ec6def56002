//! Any bytes as a container.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| unimage_fuzz::container(data));
