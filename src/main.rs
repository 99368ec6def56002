//! Starts the command line.

/// Trees are a few large allocations made by one thread and grown by others.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    unimage::cli::run(std::env::args_os())
}
