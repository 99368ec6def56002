//! JSON lines and the manifest.

pub mod path;
