//! Several hashes in one pass.

use sha2::Digest;

/// A hash that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// MD5.
    Md5,
    /// SHA-1.
    Sha1,
    /// BLAKE3.
    Blake3,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Sha256, Self::Md5, Self::Sha1, Self::Blake3];

    /// The word on the command line and in JSON lines.
    pub fn word(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Blake3 => "blake3",
        }
    }
    /// The algorithm of a word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|a| a.word() == word)
    }
    /// Bytes of a hash.
    pub fn bytes(self) -> usize {
        match self {
            Self::Sha256 | Self::Blake3 => 32,
            Self::Md5 => 16,
            Self::Sha1 => 20,
        }
    }
}

/// One hash at work.
enum One {
    Sha256(sha2::Sha256),
    Md5(md5::Md5),
    Sha1(sha1::Sha1),
    Blake3(Box<blake3::Hasher>),
}

/// All hashes of one file.
pub struct Hashes(Vec<One>);

impl Hashes {
    /// Begins.
    pub fn new(algorithms: &[Algorithm]) -> Self {
        let one = |a: &Algorithm| match a {
            Algorithm::Sha256 => One::Sha256(sha2::Sha256::new()),
            Algorithm::Md5 => One::Md5(md5::Md5::new()),
            Algorithm::Sha1 => One::Sha1(sha1::Sha1::new()),
            Algorithm::Blake3 => One::Blake3(Box::new(blake3::Hasher::new())),
        };
        Self(algorithms.iter().map(one).collect())
    }
    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        for one in &mut self.0 {
            match one {
                One::Sha256(h) => h.update(bytes),
                One::Md5(h) => h.update(bytes),
                One::Sha1(h) => h.update(bytes),
                One::Blake3(h) => drop(h.update(bytes)),
            }
        }
    }
    /// Takes `len` bytes of zeros.
    pub fn zeros(&mut self, mut len: u64) {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        while len > 0 {
            let some = ZEROS.get(..usize::try_from(len).unwrap_or(usize::MAX)).unwrap_or(&ZEROS);
            self.update(some);
            len = len.saturating_sub(some.len() as u64);
        }
    }
    /// The hashes behind each other, in the order in which they were asked for.
    pub fn end(self) -> Vec<u8> {
        let mut out = Vec::new();
        for one in self.0 {
            match one {
                One::Sha256(h) => out.extend_from_slice(&h.finalize()),
                One::Md5(h) => out.extend_from_slice(&h.finalize()),
                One::Sha1(h) => out.extend_from_slice(&h.finalize()),
                One::Blake3(h) => out.extend_from_slice(h.finalize().as_bytes()),
            }
        }
        out
    }
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    let digit = |n: u8| char::from_digit(n.into(), 16).unwrap_or('0');
    bytes.iter().flat_map(|b| [digit(b >> 4), digit(b & 15)]).collect()
}

/// The bytes of an even number of hexadecimal digits.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let (pairs, []) = text.as_bytes().as_chunks::<2>() else { return None };
    pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hashes_of_abc() {
        // RFC 1321, FIPS 180-4, and the BLAKE3 test vectors' tool for the same bytes.
        let want = [
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "900150983cd24fb0d6963f7d28e17f72",
            "a9993e364706816aba3e25717850c26c9cd0d89d",
            "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85",
        ];
        let mut hashes = Hashes::new(&Algorithm::ALL);
        hashes.update(b"a");
        hashes.update(b"bc");
        assert_eq!(hex(&hashes.end()), want.concat());
        assert_eq!(unhex(&want.concat()).map(|b| hex(&b)), Some(want.concat()));
        assert_eq!(unhex("0g"), None);
        let (mut a, mut b) = (Hashes::new(&Algorithm::ALL), Hashes::new(&Algorithm::ALL));
        a.zeros(200_001);
        b.update(&[0; 200_001]);
        assert_eq!(a.end(), b.end());
        let total: usize = Algorithm::ALL.iter().map(|a| a.bytes()).sum();
        assert_eq!(Hashes::new(&Algorithm::ALL).end().len(), total);
    }
}
