//! Compares a disk with the hashes that its image has stored.

use md5::Md5;
use sha1::Sha1;
use sha1::digest::DynDigest;

use super::StoredHash;
use crate::error::{Error, Result};
use crate::extent::{Image, Offset, ReadAt};

/// Bytes read at a time.
const BLOCK: usize = 8 << 20;

/// One hash, stored and computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checked {
    /// What is stored.
    pub stored: StoredHash,
    /// What the disk has.
    pub computed: Vec<u8>,
}

impl Checked {
    /// Whether they are the same.
    pub fn is_right(&self) -> bool {
        self.stored.value == self.computed
    }
}

/// Reads all of `image`, once, and computes every one of `hashes`; `progress` is told of each
/// block's bytes.
///
/// # Errors
/// Whatever reading meets, at the first place where it does; [`Error::Unsupported`] for a hash of another kind.
pub fn check(image: &dyn ReadAt<Image>, hashes: &[StoredHash], progress: &mut dyn FnMut(u64)) -> Result<Vec<Checked>> {
    let mut running: Vec<Box<dyn DynDigest + Send>> = Vec::with_capacity(hashes.len());
    for hash in hashes {
        running.push(match hash.algorithm {
            "md5" => Box::new(Md5::default()),
            "sha1" => Box::new(Sha1::default()),
            other => return Err(Error::Unsupported(format!("a stored hash by {other}"))),
        });
    }
    let mut at = 0u64;
    let read = |at: u64, buf: &mut Vec<u8>| -> Result<()> {
        buf.resize(image.len().saturating_sub(at).min(BLOCK as u64) as usize, 0);
        image.read_at(Offset::new(at), buf)
    };
    let (mut now, mut next) = (Vec::new(), Vec::new());
    read(at, &mut now)?;
    while !now.is_empty() {
        let after = at.saturating_add(now.len() as u64);
        // The next block is read while this one is hashed.
        let (ahead, ()) = rayon::join(
            || read(after, &mut next),
            || rayon::scope(|s| running.iter_mut().for_each(|hash| s.spawn(|_| hash.update(&now)))),
        );
        ahead?;
        progress(now.len() as u64);
        std::mem::swap(&mut now, &mut next);
        at = after;
    }
    let done = running.into_iter().zip(hashes);
    Ok(done.map(|(hash, stored)| Checked { stored: stored.clone(), computed: hash.finalize().into_vec() }).collect())
}
