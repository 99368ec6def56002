//! JSON lines and the manifest.
