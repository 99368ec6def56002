//! The one place where anything is printed. Results go to standard output through a buffer of its own, everything else to
//! standard error; a reader that left, a full disk or a closed descriptor is noted here and never ends the process.

use std::fs::File;
use std::io::{self, Write};
use std::time::Duration;

/// Bytes that are gathered before they are written.
const FULL: usize = 256 << 10;

/// Standard output took no more, and a verb that only reads need not go on. Why is in [`Output::failure`].
#[derive(Debug)]
pub struct Stopped;

/// What became of standard output.
#[derive(Debug)]
enum State {
    Open,
    /// Its reader left (`unimage ls ... | head`): nothing more is wanted, and nothing is wrong.
    Left,
    Failed(io::Error),
}

/// A descriptor that the kernel moves bytes to.
#[derive(Debug)]
struct Kernel {
    out: File,
    /// Whether it is a file that the bytes of another one can be copied into, or shared with.
    copies: bool,
}

/// Bytes of a pipe, so that its two ends wait for each other less often.
const PIPE: usize = 1 << 20;

/// Standard output and standard error.
pub struct Output {
    buf: Vec<u8>,
    out: Option<Box<dyn Write + Send>>,
    /// The same standard output, while the kernel may move bytes to it by itself.
    kernel: Option<Kernel>,
    err: Option<Box<dyn Write + Send>>,
    state: State,
    go_on: bool,
}

impl Output {
    /// Those of this process.
    pub fn standard() -> Self {
        let out = rustix::io::dup(rustix::stdio::stdout());
        let err = rustix::io::dup(rustix::stdio::stderr());
        let mut this = Self::new(None, err.ok().map(|fd| Box::new(File::from(fd)) as Box<dyn Write + Send>));
        match out {
            Ok(fd) => {
                let out = File::from(fd);
                this.kernel = out.try_clone().ok().map(Kernel::new);
                this.out = Some(Box::new(out));
            }
            Err(cause) => this.state = State::Failed(cause.into()),
        }
        this
    }
    /// Any two.
    pub fn new(out: Option<Box<dyn Write + Send>>, err: Option<Box<dyn Write + Send>>) -> Self {
        Self { buf: Vec::with_capacity(FULL), out, kernel: None, err, state: State::Open, go_on: false }
    }
    /// From here on no failure of standard output stops anything: what a verb that writes to a host calls first.
    pub fn never_stop(&mut self) {
        self.go_on = true;
    }
    /// Whether a failure of standard output stops the verb.
    pub fn stops(&self) -> bool {
        !self.go_on
    }
    /// The buffer, for whole lines to be appended to.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        &mut self.buf
    }
    /// To be called after each row: writes the buffer when it is full.
    ///
    /// # Errors
    /// [`Stopped`] where nothing more can be written.
    pub fn row(&mut self) -> Result<(), Stopped> {
        if self.buf.len() < FULL { Ok(()) } else { self.flush() }
    }
    /// Appends a line.
    ///
    /// # Errors
    /// As [`row`](Self::row).
    pub fn line(&mut self, text: &str) -> Result<(), Stopped> {
        self.buf.extend_from_slice(text.as_bytes());
        self.buf.push(b'\n');
        self.row()
    }
    /// Writes what was gathered.
    ///
    /// # Errors
    /// As [`row`](Self::row).
    pub fn flush(&mut self) -> Result<(), Stopped> {
        let buf = std::mem::take(&mut self.buf);
        let done = self.bytes(&buf);
        self.buf = buf;
        self.buf.clear();
        done
    }
    /// Writes bytes that need no buffer, after what was gathered.
    ///
    /// # Errors
    /// As [`row`](Self::row).
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Stopped> {
        if !self.buf.is_empty() {
            self.flush()?;
        }
        self.bytes(bytes)
    }
    /// Lets the kernel move bytes of a file, at most `len` from `at` on, after what was gathered; gives how many there were. None where it
    /// can't, or something is wrong: then they are to be read and [written](Self::write), which tells what it is.
    ///
    /// # Errors
    /// As [`row`](Self::row).
    pub fn pass(&mut self, from: &File, at: u64, len: u64) -> Result<Option<u64>, Stopped> {
        self.flush()?;
        let Some(kernel) = &mut self.kernel else { return Ok(None) };
        let done = kernel.pass(from, at, usize::try_from(len).unwrap_or(usize::MAX));
        if done.is_none() {
            self.kernel = None;
        }
        Ok(done)
    }
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Stopped> {
        if let (State::Open, Some(out)) = (&self.state, &mut self.out)
            && let Err(cause) = write_all(out.as_mut(), bytes)
        {
            self.state = match cause.kind() {
                io::ErrorKind::BrokenPipe => State::Left,
                _ => State::Failed(cause),
            };
        }
        match self.state {
            State::Left | State::Failed(_) if !self.go_on => Err(Stopped),
            _ => Ok(()),
        }
    }
    /// Why standard output took no more; none where it took everything, or its reader left.
    pub fn failure(&self) -> Option<&io::Error> {
        match &self.state {
            State::Failed(cause) => Some(cause),
            _ => None,
        }
    }
    /// A line on standard error, with the program's name before it. Control characters (names come from images) are
    /// escaped, so that a line stays a line and a terminal does nothing but show it.
    pub fn complain(&mut self, what: &str) {
        let line = format!("unimage: {}\n", crate::report::text::clean(what));
        self.complain_raw(line.as_bytes());
    }
    /// Bytes on standard error as they are: clap's messages, which hold only what the user typed.
    pub fn complain_raw(&mut self, bytes: &[u8]) {
        if let Some(err) = &mut self.err
            && write_all(err.as_mut(), bytes).is_err()
        {
            self.err = None;
        }
    }
}

impl Kernel {
    fn new(out: File) -> Self {
        let stat = rustix::fs::fstat(&out);
        let kind = stat.map(|s| rustix::fs::FileType::from_raw_mode(s.st_mode));
        if kind == Ok(rustix::fs::FileType::Fifo) {
            // A user may have only so many large pipes: then it stays as it is.
            let _ = rustix::pipe::fcntl_setpipe_size(&out, PIPE);
        }
        Self { out, copies: kind == Ok(rustix::fs::FileType::RegularFile) }
    }
    /// Into a file as the file system copies best, which may be by sharing blocks; else out of the page cache, without a copy where
    /// that is a pipe.
    fn pass(&mut self, from: &File, at: u64, len: usize) -> Option<u64> {
        let mut at = at;
        if self.copies {
            match rustix::fs::copy_file_range(from, Some(&mut at), &self.out, None, len) {
                Ok(n) if n > 0 => return Some(n as u64),
                _ => self.copies = false,
            }
        }
        rustix::fs::sendfile(&self.out, from, Some(&mut at), len).ok().filter(|n| *n > 0).map(|n| n as u64)
    }
}

/// Writes all, also to a descriptor that somebody made non-blocking.
fn write_all(to: &mut dyn Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(1)),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    /// Takes so many bytes, then fails.
    struct Short(usize, io::ErrorKind, Taken);
    impl Write for Short {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let n = bytes.len().min(self.0);
            if n == 0 {
                return Err(self.1.into());
            }
            self.0 -= n;
            self.2.lock().unwrap().extend_from_slice(&bytes[..n]);
            Ok(n)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    type Taken = Arc<Mutex<Vec<u8>>>;

    fn short(takes: usize, kind: io::ErrorKind) -> (Output, Taken, Taken) {
        let (out, err) = (Arc::default(), Arc::default());
        let all = Short(usize::MAX, kind, Arc::clone(&err));
        (Output::new(Some(Box::new(Short(takes, kind, Arc::clone(&out)))), Some(Box::new(all))), out, err)
    }

    #[test]
    fn a_reader_that_leaves_is_no_failure_and_stops_a_verb_that_only_reads() {
        let (mut o, got, _) = short(3, io::ErrorKind::BrokenPipe);
        o.line("hello").unwrap();
        assert!(o.flush().is_err());
        assert!(o.failure().is_none());
        assert_eq!(*got.lock().unwrap(), b"hel");
        assert!(o.write(b"more").is_err());
    }

    #[test]
    fn a_full_disk_is_kept_for_the_end_and_stops_no_commit() {
        let (mut o, _, _) = short(0, io::ErrorKind::StorageFull);
        o.never_stop();
        o.line("x").unwrap();
        o.flush().unwrap();
        o.write(b"y").unwrap();
        assert_eq!(o.failure().unwrap().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn standard_error_takes_no_control_characters_from_a_name() {
        let (mut o, _, err) = short(0, io::ErrorKind::Other);
        o.complain("a\u{1b}[2J\nb");
        assert_eq!(*err.lock().unwrap(), b"unimage: a\\u{1b}[2J\\nb\n");
    }
}
