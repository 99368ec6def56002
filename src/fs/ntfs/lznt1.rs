//! LZNT1, the compression of NTFS (\[MS-XCA\] 2.5): chunks of 4 KiB, each literals and copies within itself.

/// Bytes that a chunk decodes to.
const CHUNK: usize = 4096;

/// Decodes one compression unit into `out`, whose length is that of the unit; what the input does not reach is zeros.
///
/// # Errors
/// What was expected, for input that is no LZNT1.
pub fn decode(mut input: &[u8], out: &mut [u8]) -> Result<(), &'static str> {
    for chunk in out.chunks_mut(CHUNK) {
        let Some((head, rest)) = input.split_first_chunk::<2>() else {
            chunk.fill(0);
            continue;
        };
        let head = u16::from_le_bytes(*head);
        if head == 0 {
            // The end; nothing after it counts.
            input = &[];
            chunk.fill(0);
            continue;
        }
        let len = usize::from(head & 0x0FFF).saturating_add(1);
        let (data, rest) = rest.split_at_checked(len).ok_or("an LZNT1 chunk that ends within its unit")?;
        input = rest;
        let done = if head & 0x8000 == 0 {
            let done = len.min(chunk.len());
            let (to, from) = (chunk.get_mut(..done), data.get(..done));
            if let Some((to, from)) = to.zip(from) {
                to.copy_from_slice(from);
            }
            done
        } else {
            tokens(data, chunk)?
        };
        if let Some(rest) = chunk.get_mut(done..) {
            rest.fill(0);
        }
    }
    Ok(())
}

/// Decodes a compressed chunk; gives the bytes that it had.
fn tokens(mut data: &[u8], out: &mut [u8]) -> Result<usize, &'static str> {
    let mut at = 0usize;
    while let Some((&flags, rest)) = data.split_first() {
        data = rest;
        for bit in 0..8 {
            if data.is_empty() {
                return Ok(at);
            }
            if flags >> bit & 1 == 0 {
                let (&byte, rest) = data.split_first().ok_or("a literal")?;
                data = rest;
                *out.get_mut(at).ok_or("LZNT1 chunks of at most 4096 bytes")? = byte;
                at = at.saturating_add(1);
                continue;
            }
            let (token, rest) = data.split_first_chunk::<2>().ok_or("an LZNT1 copy of two bytes")?;
            data = rest;
            let token = usize::from(u16::from_le_bytes(*token));
            // The further in, the more bits the distance has: from 4 at the first 16 bytes to 12 at the last 2048.
            let last = at.checked_sub(1).ok_or("an LZNT1 copy of bytes before it")?;
            let bits = 12u32.saturating_sub((last >> 4).checked_ilog2().map_or(0, |n| n.saturating_add(1)));
            let len = (token & (1usize << bits).saturating_sub(1)).saturating_add(3);
            let back = (token >> bits).saturating_add(1);
            let from = at.checked_sub(back).ok_or("an LZNT1 copy of bytes before it")?;
            let end = at.saturating_add(len);
            let window = out.get_mut(from..end).ok_or("LZNT1 chunks of at most 4096 bytes")?;
            // A copy may reach into what it makes; then it repeats.
            let mut have = back;
            while have < window.len() {
                let (head, tail) = window.split_at_mut(have);
                let now = head.len().min(tail.len());
                if let (Some(to), Some(from)) = (tail.get_mut(..now), head.get(..now)) {
                    to.copy_from_slice(from);
                }
                have = have.saturating_add(now);
            }
            at = end;
        }
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Compressed by the crate `lznt1`, which somebody else wrote.
    fn compressed(data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        ::lznt1::compress(data, &mut out);
        out
    }

    proptest! {
        #[test]
        fn what_a_foreign_encoder_made_comes_back(
            words in proptest::collection::vec((any::<u8>(), 1usize..300), 0..300), noise in any::<bool>(),
        ) {
            let mut data: Vec<u8> = words.iter().flat_map(|&(b, n)| {
                (0..n).map(move |i| if noise { ((i * usize::from(b)) >> 3) as u8 } else { b })
            }).collect();
            data.truncate(65536);
            let mut out = vec![0xEE; 65536];
            decode(&compressed(&data), &mut out).unwrap();
            prop_assert_eq!(&out[..data.len()], &data[..]);
            prop_assert!(out[data.len()..].iter().all(|b| *b == 0));
        }
        #[test]
        fn any_input_ends(input in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let mut out = vec![0; 65536];
            let _ = decode(&input, &mut out);
        }
    }

    #[test]
    fn a_copy_before_the_start_is_an_error() {
        let mut out = vec![0; 4096];
        assert!(decode(&[0x02, 0xB0, 0x01, 0x00, 0x00], &mut out).is_err());
        assert!(decode(&[0x03, 0xB0, 0x02, 0x41, 0x00, 0x10], &mut out).is_err());
    }
}
