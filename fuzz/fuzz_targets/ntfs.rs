//! Any bytes as a volume of NTFS.
#![no_main]

use libfuzzer_sys::fuzz_target;
use unimage::fs::{ntfs, ReadOptions};

fuzz_target!(|data: &[u8]| {
    if let Ok(Some(fs)) = ntfs::open(unimage_fuzz::layer(data), ReadOptions::default()) {
        unimage_fuzz::walk(fs.as_ref());
    }
});
