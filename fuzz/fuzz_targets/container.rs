//! Any bytes as a container: its disk is no longer than they are, and can be read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use unimage::extent::Offset;

fuzz_target!(|data: &[u8]| {
    let Ok(disk) = unimage::container::probe(unimage_fuzz::layer(data)) else { return };
    assert!(disk.image.len() <= data.len() as u64);
    disk.image.read_vec(Offset::new(0), disk.image.len() as usize).expect("bytes that are there");
    assert_eq!(disk.image.map().expect("a map").len(), disk.image.len());
});
