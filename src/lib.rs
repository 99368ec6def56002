//! Turns a disk image back into the files that are in it, in place.
//!
//! One idea carries all of it: everything is a map of extents ([`extent`]). The rooms and the way of the data are in
//! `docs/architecture.md`.

// An image is hostile input: no byte of it may reach a panic, and no sum of its numbers may wrap.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::unreachable,
        clippy::todo,
        clippy::unimplemented,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::get_unwrap,
        clippy::arithmetic_side_effects
    )
)]

pub mod bytes;
pub mod cli;
pub mod container;
pub mod diff;
pub mod error;
pub mod extent;
pub mod extract;
pub mod fs;
mod guid;
pub mod plan;
pub mod relink;
pub mod report;
pub mod source;
pub mod stack;
pub mod txn;
pub mod volume;
