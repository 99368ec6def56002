//! Any bytes as a journal with a host, to be recovered and undone.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| unimage_fuzz::journal(data));
