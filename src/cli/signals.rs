//! What an interrupt does to a verb that writes.
//!
//! While a host is being written: the first interrupt lets the commit finish, the second ends the program, and both say
//! what the journal is for. A terminal that is closed changes nothing.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

/// As long as it lives, signals are held back.
pub struct Guard {
    running: Option<(Handle, JoinHandle<()>)>,
}

/// Holds signals back while `journal` is at work. Where that can't be had, they do what they always do: the journal
/// covers it.
pub fn finish_first(journal: &Path) -> Guard {
    let running = Signals::new([SIGINT, SIGTERM, SIGHUP]).ok().and_then(|mut signals| {
        let handle = signals.handle();
        let journal = journal.to_path_buf();
        let thread = std::thread::Builder::new().spawn(move || {
            let mut before = false;
            for signal in signals.forever() {
                if signal == SIGHUP {
                    continue;
                }
                if before {
                    say(&journal, "stopped");
                    // It ends the program as the signal would.
                    let _ = signal_hook::low_level::emulate_default_handler(signal);
                }
                before = true;
                say(&journal, "finishing what was begun: once more to stop in the middle");
            }
        });
        thread.ok().map(|thread| (handle, thread))
    });
    Guard { running }
}

/// The first interrupt sets `stop`, after which the verb comes to its end; the second ends the program. A terminal that is closed
/// counts as an interrupt.
pub fn stop_soon(stop: &Arc<AtomicBool>) -> Guard {
    let running = Signals::new([SIGINT, SIGTERM, SIGHUP]).ok().and_then(|mut signals| {
        let handle = signals.handle();
        let stop = Arc::clone(stop);
        let thread = std::thread::Builder::new().spawn(move || {
            for signal in signals.forever() {
                if stop.swap(true, Ordering::SeqCst) && signal != SIGHUP {
                    // It ends the program as the signal would.
                    let _ = signal_hook::low_level::emulate_default_handler(signal);
                }
            }
        });
        thread.ok().map(|thread| (handle, thread))
    });
    Guard { running }
}

/// One line on standard error, whatever becomes of it.
fn say(journal: &Path, what: &str) {
    let line = format!(
        "unimage: {what}; an interrupted commit is brought to its end by `unimage recover {}`\n",
        journal.display()
    );
    let line = crate::report::text::clean(line.trim_end());
    let _ = rustix::io::write(rustix::stdio::stderr().as_fd(), format!("{line}\n").as_bytes());
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some((handle, thread)) = self.running.take() {
            handle.close();
            let _ = thread.join();
        }
    }
}
