//! The command line: exit codes, help, what is printed and in which form, and that a terminal or disk that fails under
//! the output neither ends the program badly nor goes unsaid. Listings are held against The Sleuth Kit.

#[path = "../common/mod.rs"]
mod common;
mod listing;
mod outputs;
mod reading;
mod schemas;
mod support;
mod usage;
mod writing;
