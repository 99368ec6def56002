//! Everything below the file systems, end to end: containers, partition tables, and how a stack of them is opened.

mod containers;
mod damage;
mod nest;
mod support;
mod volumes;
