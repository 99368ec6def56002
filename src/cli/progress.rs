//! A bar on standard error for whatever takes longer than a second, and only where that is a terminal.

use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;

use crate::report::text;

/// What is being done. It is gone from the screen when this is dropped.
pub struct Progress {
    bar: ProgressBar,
    timer: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// Begins; of `bytes` where it is known how many there are.
    pub fn new(what: &'static str, bytes: Option<u64>) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self { bar: ProgressBar::hidden(), timer: None };
        }
        let bar = ProgressBar::with_draw_target(bytes, ProgressDrawTarget::hidden()).with_message(what);
        let look = match bytes {
            Some(_) => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            None => "{msg} {spinner} {elapsed}",
        };
        if let Ok(style) = ProgressStyle::with_template(look) {
            bar.set_style(style);
        }
        let (stop, stopped) = channel();
        let late = bar.clone();
        // Shown only when a second has passed and nobody said stop.
        let thread = std::thread::Builder::new().spawn(move || {
            if stopped.recv_timeout(Duration::from_secs(1)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                late.set_draw_target(ProgressDrawTarget::stderr());
                late.enable_steady_tick(Duration::from_millis(200));
            }
        });
        Self { bar, timer: thread.ok().map(|thread| (stop, thread)) }
    }
    /// `bytes` more are done.
    pub fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.timer.take() {
            // Without a receiver the bar is shown already.
            let _ = stop.send(());
            let _ = thread.join();
        }
        self.bar.finish_and_clear();
    }
}

/// What a file costs beside its bytes, in bytes that could be copied meanwhile: so the time left is right for many small
/// files as for few large ones.
const FILE: u64 = 32 << 10;

/// A work on many files.
pub struct Files {
    progress: Progress,
}

impl Files {
    /// Begins.
    pub fn new() -> Self {
        let progress = Progress::new("", Some(0));
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {percent}% {eta}") {
            progress.bar.set_style(style);
        }
        Self { progress }
    }
    /// So many of so many files, and bytes, are done.
    pub fn at(&self, files: u64, of_files: u64, bytes: u64, of_bytes: u64) {
        if self.progress.timer.is_none() {
            return;
        }
        let work = |files: u64, bytes: u64| bytes.saturating_add(files.saturating_mul(FILE));
        let bar = &self.progress.bar;
        bar.set_message(format!(
            "{} of {} files, {} of {}",
            text::count(files),
            text::count(of_files),
            text::size(bytes),
            text::size(of_bytes)
        ));
        bar.set_length(work(of_files, of_bytes));
        bar.set_position(work(files, bytes));
    }
}

/// A work of several steps, each of them of so many bytes.
pub struct Steps {
    progress: Progress,
}

impl Steps {
    /// Begins.
    pub fn new() -> Self {
        Self { progress: Progress::new("", Some(0)) }
    }
    /// Step `what` has done `at` bytes of `of`.
    pub fn at(&self, what: &'static str, at: u64, of: u64) {
        self.progress.bar.set_message(what);
        self.progress.bar.set_length(of);
        self.progress.bar.set_position(at);
    }
}
