//! Any bytes as a host whose files are images: plan, link, audit.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| unimage_fuzz::relink(data));
