//! Any bytes as a volume of FAT.
#![no_main]

use libfuzzer_sys::fuzz_target;
use unimage::fs::{fat, ReadOptions};

fuzz_target!(|data: &[u8]| {
    if let Ok(Some(fs)) = fat::open(unimage_fuzz::layer(data), ReadOptions::default()) {
        unimage_fuzz::walk(fs.as_ref());
    }
});
