//! What the end-to-end tests share: running programs, mounts and loop devices that go away by themselves, trees of
//! checksums, and the judgement of foreign checkers.
#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

pub mod exfat;
pub mod fat;
pub mod fsck;
pub mod guest;
pub mod hash;
pub mod host;
pub mod mounts;
pub mod mutate;
pub mod noise;
pub mod run;
pub mod seen;
pub mod vhdx;

pub use fsck::{fsck_exfat, fsck_fat};
pub use hash::sha256;
pub use mounts::{Loop, Mount, mounted};
pub use noise::{Noise, noise};
pub use run::{Out, UNIMAGE, long, ok, ok_bytes, output, run, scratch, unimage};
pub use seen::{Seen, Seens, differences, same_tree, sha256_file, tree};

/// The arguments of a command, of several string-like types.
#[macro_export]
macro_rules! args {
    ($($a:expr),* $(,)?) => { [$(std::ffi::OsString::from(&$a)),*] };
}
