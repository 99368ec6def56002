//! Starts the command line.

fn main() -> std::process::ExitCode {
    unimage::cli::run(std::env::args_os())
}
