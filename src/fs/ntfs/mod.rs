//! NTFS 3.x. The walk sweeps `$MFT` in order and in parallel (`scan`), then joins what it found (`merge`): directories
//! come from the parent references in `$FILE_NAME`, no index is read.

mod audit;
mod audit_form;
mod audit_new;
mod audit_record;
mod bits;
mod census;
mod dirs;
mod encode;
mod extras;
mod finish;
mod host;
mod index;
pub mod layout;
mod link;
mod lznt1;
mod merge;
mod mft_grow;
mod old_dir;
mod pack;
mod pieces;
mod raw;
mod read;
mod reader;
mod refuse;
mod reparse;
mod runs;
mod scan;
mod secure;
mod space;
mod stream;
mod upcase;
mod wanted;

pub use read::{Ntfs, open, open_by_backup};
