//! Deflated units, one call for each (RFC 1950, RFC 1951). The decoder's state is kept for the next unit of the same thread:
//! making one costs as much as decoding some KiB.

use std::cell::RefCell;

use flate2::{Decompress, FlushDecompress, Status};

thread_local! {
    static STATE: RefCell<Decompress> = RefCell::new(Decompress::new(true));
}

/// Inflates the stream that `packed` begins with into `out`, which is empty, as far as `most` bytes. `wrapped`: it has the
/// header and the checksum of zlib. Whether it ended, which a wrapped one only does where its checksum is right.
///
/// # Errors
/// What is wrong with it, by the library. What was decoded before is in `out`.
pub(super) fn inflate(wrapped: bool, packed: &[u8], most: usize, out: &mut Vec<u8>) -> Result<bool, String> {
    out.reserve_exact(most);
    STATE.with_borrow_mut(|state| {
        state.reset(wrapped);
        let status = state.decompress_vec(packed, out, FlushDecompress::Finish);
        status.map(|status| status == Status::StreamEnd).map_err(|e| e.to_string())
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn packed(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn whole_cut_and_damaged_streams_by_turns() {
        let bytes: Vec<u8> = (0..40_000u32).map(|i| (i / 7 * 31) as u8).collect();
        let sound = packed(&bytes);
        for _ in 0..2 {
            let mut out = Vec::new();
            assert_eq!(inflate(true, &sound, bytes.len(), &mut out), Ok(true));
            assert_eq!(out, bytes);
            // The last bytes are the checksum.
            let mut bad = sound.clone();
            *bad.last_mut().unwrap() ^= 1;
            assert!(inflate(true, &bad, bytes.len(), &mut Vec::new()).is_err());
            assert_eq!(inflate(true, &sound[..sound.len() - 1], bytes.len(), &mut Vec::new()), Ok(false));
            assert_eq!(inflate(true, &sound, bytes.len() - 1, &mut Vec::new()), Ok(false));
            let mut out = Vec::new();
            assert_eq!(inflate(false, &sound[2..], bytes.len(), &mut out), Ok(true));
            assert_eq!(out, bytes);
        }
    }
}
