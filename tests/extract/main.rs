//! `extract` and `verify` against what the kernel, ntfs-3g, fusefat and the file systems' own tools say.
#![expect(clippy::duplicate_mod, reason = "both fixtures bring the files that they share")]
#[path = "../common/mod.rs"]
mod common;
#[path = "../ext_support/mod.rs"]
mod ext_support;

mod cli;
mod containers;
mod foreseen;
mod full;
mod hostile;
mod keep;
mod media;
mod resume;
mod share;
mod support;
