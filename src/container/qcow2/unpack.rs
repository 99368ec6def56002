//! Compressed clusters: the decoded bytes of a cluster out of some sectors, of which the last may hold more than belongs to it.

use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use super::layout::Codec;
use crate::container::inflate::inflate;

/// Decodes exactly `len` bytes out of `packed`, into `out`; says what is wrong where that is not possible.
pub fn unpack(codec: Codec, packed: &[u8], len: usize, out: &mut Vec<u8>) -> Result<(), String> {
    out.clear();
    match codec {
        Codec::Deflate => match inflate(false, packed, len, out) {
            Ok(_) if out.len() >= len => {
                out.truncate(len);
                Ok(())
            }
            Ok(_) => Err(format!("{len} bytes, there are {}", out.len())),
            Err(e) => Err(format!("deflate: {e}")),
        },
        Codec::Zstd => {
            out.resize(len, 0);
            let mut decoder = Decoder::new().map_err(|e| e.to_string())?;
            let mut from = InBuffer::around(packed);
            let mut to = OutBuffer::around(out.as_mut_slice());
            while to.pos() < len {
                let before = (from.pos(), to.pos());
                decoder.run(&mut from, &mut to).map_err(|e| format!("zstd: {e}"))?;
                if (from.pos(), to.pos()) == before {
                    return Err(format!("{len} bytes, there are {}", to.pos()));
                }
            }
            Ok(())
        }
    }
}
