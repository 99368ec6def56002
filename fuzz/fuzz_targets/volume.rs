//! Any bytes as a disk: each volume lies on it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use unimage::extent::Offset;

fuzz_target!(|data: &[u8]| {
    let table = unimage::volume::probe(unimage_fuzz::layer(data)).expect("memory can be read");
    for slot in &table.slots {
        let len = slot.layer.len();
        assert!(len <= data.len() as u64);
        slot.layer.read_vec(Offset::new(len.saturating_sub(1)), len.min(1) as usize).expect("bytes that are there");
    }
});
