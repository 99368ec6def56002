//! What is printed: JSON lines (`docs/schemas.md`), tables for people, bodyfiles and manifests, as functions that append
//! to a buffer. Writing it out is the command line's.

pub mod bodyfile;
pub mod extracted;
pub mod foreseen;
pub mod html;
pub mod json;
pub mod levels;
pub mod listing;
pub mod manifest;
pub mod path;
pub mod text;
pub mod time;
