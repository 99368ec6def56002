//! NTFS 3.x. The walk sweeps `$MFT` in order and in parallel (`scan`), then joins what it found (`merge`): directories
//! come from the parent references in `$FILE_NAME`, no index is read.

pub mod layout;
mod lznt1;
mod merge;
mod pieces;
mod read;
mod reader;
mod reparse;
mod runs;
mod scan;
mod stream;

pub use read::{Ntfs, open, open_by_backup};
