//! The journal: what a host was, what it becomes, and how far that is. Its format is drawn in `docs/safety.md`.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::source::medium::JournalFile;
use crate::txn::body::Body;
use crate::txn::codec::{Decoder, Encoder};
use crate::txn::frames::{Frames, Manifest, Position, Tag, WRITTEN, damaged};

/// What a journal says of the commit that it belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// Where the host was: file or device, the first place to look.
    pub host: PathBuf,
    /// The byte of it at which the host volume begins.
    pub volume_at: u64,
    /// Bytes of the host volume.
    pub volume_len: u64,
    /// The host's file system, as [`crate::fs::Facts::kind`].
    pub kind: String,
    /// Its serial number or UUID, as [`crate::fs::Facts::serial`].
    pub serial: String,
    /// The address of the guest, as it was given.
    pub address: String,
    /// The image in the host volume: its path below the root, raw names with `/` between them.
    pub image: Vec<u8>,
    /// Digest of the walk of the image's volumes before the commit: what `undo` compares with.
    pub digest: [u8; 32],
}

/// How far a commit is. Each state but the first has a record of its own in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Free units are being filled; nothing in use was touched.
    Filling,
    /// Everything that is needed to go either way is in the journal.
    Sealed,
    /// The host is in the new state.
    Done,
    /// The host is as before: the commit was given up.
    TakenBack,
    /// `undo` has begun.
    Undoing,
    /// The host is as before: a finished commit was undone.
    Undone,
    /// Units of the image are being filled: there is no way back.
    Reusing,
}

impl State {
    const ALL: [Self; 7] =
        [Self::Filling, Self::Sealed, Self::Done, Self::TakenBack, Self::Undoing, Self::Undone, Self::Reusing];

    /// Its number in a state record.
    pub(super) fn number(self) -> u32 {
        (0..).zip(Self::ALL).find(|(_, s)| *s == self).map_or(0, |(n, _)| n)
    }
    /// The state of that number; none for Filling, which has no record.
    pub(super) fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied().filter(|s| *s != Self::Filling)
    }
    /// The words in JSON lines and messages.
    pub fn word(self) -> &'static str {
        match self {
            Self::Filling => "filling",
            Self::Sealed => "sealed",
            Self::Done => "done",
            Self::TakenBack => "taken-back",
            Self::Undoing => "undoing",
            Self::Undone => "undone",
            Self::Reusing => "reusing",
        }
    }
}

/// The sectors of the quarantine, which the journal's header holds so that it can be told at any time whether it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Switch {
    pub(super) at: u64,
    pub(super) old: Vec<u8>,
    pub(super) closed: Vec<u8>,
    pub(super) open: Vec<u8>,
    pub(super) also: Vec<Also>,
}

/// A sector from which repair tools would restore the switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Also {
    pub(super) at: u64,
    pub(super) old: Vec<u8>,
    pub(super) closed: Vec<u8>,
}

/// What is written before anything else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) about: About,
    pub(super) switch: Switch,
    /// Units that were free and get filled: place and bytes.
    pub(super) free: Vec<(u64, u64)>,
}

impl Header {
    fn encode(&self) -> [(Tag, Vec<u8>); 2] {
        let mut e = Encoder::default();
        let a = &self.about;
        e.text(a.host.as_os_str().as_bytes());
        e.num(a.volume_at);
        e.num(a.volume_len);
        for text in [a.kind.as_bytes(), a.serial.as_bytes(), a.address.as_bytes(), &a.image] {
            e.text(text);
        }
        e.raw(&a.digest);
        let s = &self.switch;
        e.num(s.at);
        for sector in [&s.old, &s.closed, &s.open] {
            e.text(sector);
        }
        e.num(s.also.len() as u64);
        for also in &s.also {
            e.num(also.at);
            e.text(&also.old);
            e.text(&also.closed);
        }
        let mut free = Encoder::default();
        free.num(self.free.len() as u64);
        for (at, len) in &self.free {
            free.num(*at);
            free.num(*len);
        }
        [(*b"HEAD", e.into_bytes()), (*b"FREE", free.into_bytes())]
    }

    fn decode(sections: &HashMap<Tag, Vec<u8>>) -> Option<Self> {
        let section = |tag: &[u8; 4]| sections.get(tag).map(Vec::as_slice);
        let mut d = Decoder::new(section(b"HEAD")?);
        let about = About {
            host: OsStr::from_bytes(d.text()?).into(),
            volume_at: d.num()?,
            volume_len: d.num()?,
            kind: String::from_utf8_lossy(d.text()?).into_owned(),
            serial: String::from_utf8_lossy(d.text()?).into_owned(),
            address: String::from_utf8_lossy(d.text()?).into_owned(),
            image: d.text()?.to_vec(),
            digest: d.array()?,
        };
        let within =
            |at: u64, len: usize| at.checked_add(len as u64).is_some_and(|end| end <= about.volume_len).then_some(());
        let at = d.num()?;
        let (old, closed, open) = (d.text()?.to_vec(), d.text()?.to_vec(), d.text()?.to_vec());
        within(at, old.len())?;
        (!old.is_empty() && old.len() == closed.len() && old.len() == open.len()).then_some(())?;
        let mut also = Vec::new();
        for _ in 0..d.num()? {
            let a = Also { at: d.num()?, old: d.text()?.to_vec(), closed: d.text()?.to_vec() };
            within(a.at, a.old.len())?;
            (a.old.len() == a.closed.len()).then_some(())?;
            also.push(a);
        }
        d.at_end()?;
        let mut d = Decoder::new(section(b"FREE")?);
        let mut free = Vec::new();
        for _ in 0..d.num()? {
            let (at, len) = (d.num()?, d.num()?);
            at.checked_add(len).filter(|end| *end <= about.volume_len)?;
            free.push((at, len));
        }
        d.at_end()?;
        Some(Self { about, switch: Switch { at, old, closed, open, also }, free })
    }
}

/// The sections of a part of a journal, unpacked, with the limits that keep a crafted one from filling the memory.
struct Sections {
    by_tag: HashMap<Tag, Vec<u8>>,
    limit: u64,
    /// Kept bytes, which are unpacked when they are asked for.
    kept: Vec<Kept>,
}

/// A frame of kept bytes: the first one's number, how many, and where the frame is.
#[derive(Clone, Copy)]
struct Kept {
    at: u64,
    len: u64,
    frame: Position,
}

/// A journal that was opened, or is being written.
pub struct Journal {
    frames: Frames,
    header: Header,
    header_end: Position,
    /// There where the frames of a sealed journal are complete and right, whether they were vouched for or not.
    body: Option<Body>,
    body_end: Position,
    state: State,
    /// The slot for the next state's record.
    slot: u64,
    /// Bytes that go to units of the image when nothing else has them any more.
    kept: Vec<Kept>,
    /// Where the next frame of the body goes while it is written.
    next: Position,
}

const END_OF_HEADER: Tag = *b"HEND";
const END: Tag = *b"END.";
const MANIFEST: Tag = *b"MANI";
const KEPT: Tag = *b"KEPT";
/// The most that a header's section may hold: the free ranges are the largest part of it.
const HEADER_LIMIT: u64 = 256 << 20;

impl Journal {
    /// Reads a journal and checks all of it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where it is cut off or damaged, [`Error::Unsupported`] for another version.
    pub fn open(file: JournalFile) -> Result<Self> {
        let path = file.path.clone();
        let (frames, start) = Frames::open(file)?;
        let wrong = |structure: &str, at: Position, expected: &str| damaged(&path, structure, at.at, expected);
        let mut sections = Sections { by_tag: HashMap::new(), limit: HEADER_LIMIT, kept: Vec::new() };
        let Some(header_end) = sections.gather(&frames, start, END_OF_HEADER)? else {
            return Err(wrong(
                "journal's header",
                start,
                "a header that matches its checksums (if the run was stopped while it made the journal, nothing was written to the host)",
            ));
        };
        let header = Header::decode(&sections.by_tag)
            .ok_or_else(|| wrong("journal's header", start, "fields that agree with each other"))?;

        let body_at = Frames::next_block(header_end);
        let limit = header.about.volume_len.saturating_mul(3).saturating_add(HEADER_LIMIT);
        let mut sections = Sections { by_tag: HashMap::new(), limit, kept: Vec::new() };
        let last = frames.last_state()?;
        let vouched_for = last.is_some_and(|(_, state, vouched)| state != State::TakenBack || vouched != header_end);
        // A body that nothing vouches for was being written: it may be cut off or torn in any way.
        let body_end = match sections.gather(&frames, body_at, END) {
            Err(_) if !vouched_for => None,
            gathered => gathered?,
        };
        let body = body_end.and_then(|_| Body::decode(&sections.by_tag, header.about.volume_len));
        let (slot, state) = match last {
            None => (0, State::Filling),
            Some((slot, state, vouched)) => {
                // A journal that was never sealed vouches for its header alone.
                let complete = body.is_some() && body_end == Some(vouched);
                if !complete && vouched_for {
                    return Err(wrong(
                        "journal's body",
                        body_at,
                        "sections that match their checksums: the journal was complete once, and is damaged now",
                    ));
                }
                (slot.saturating_add(1), state)
            }
        };
        let body_end = body_end.unwrap_or(header_end);
        let (kept, next) = (sections.kept, Frames::next_block(body_end));
        Ok(Self { frames, header, header_end, body, body_end, state, slot, kept, next })
    }

    /// Step a: a new journal, durable when this returns. `moves`: whether units of the image will be filled.
    pub(super) fn create(file: JournalFile, header: Header, moves: bool) -> io::Result<Self> {
        let [(tag, head), free] = header.encode();
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&now.as_nanos().to_le_bytes()).update(&std::process::id().to_le_bytes()).update(&head);
        let mut id = [0; 16];
        hasher.finalize_xof().fill(&mut id);
        let (mut frames, mut at) = Frames::create(file, id, moves)?;
        at = frames.append(at, tag, &head)?;
        at = frames.append(at, free.0, &free.1)?;
        at = frames.append(at, END_OF_HEADER, &[])?;
        frames.sync()?;
        let state = State::Filling;
        let next = Frames::next_block(at);
        Ok(Self { frames, header, header_end: at, body: None, body_end: at, state, slot: 0, kept: Vec::new(), next })
    }

    /// Keeps bytes for a move; the number of the first one.
    pub(super) fn keep(&mut self, bytes: &[u8]) -> io::Result<u64> {
        let first = self.kept.last().map_or(0, |k| k.at.saturating_add(k.len));
        let mut at = first;
        for chunk in bytes.chunks(WRITTEN) {
            let frame = self.next;
            self.next = self.frames.append(frame, KEPT, chunk)?;
            self.kept.push(Kept { at, len: chunk.len() as u64, frame });
            at = at.saturating_add(chunk.len() as u64);
        }
        Ok(first)
    }

    /// Bytes that were kept, from this one on.
    ///
    /// # Errors
    /// Where the journal can't be read any more, or does not have so many.
    pub(super) fn kept(&self, first: u64, len: u64) -> Result<Vec<u8>> {
        let none = || damaged(self.path(), "journal's kept bytes", first, "as many as its moves need");
        let end = first.checked_add(len).ok_or_else(none)?;
        let mut out = Vec::new();
        let mut at = first;
        while at < end {
            let i = self.kept.partition_point(|k| k.at.saturating_add(k.len) <= at);
            let kept = self.kept.get(i).filter(|k| k.at <= at).ok_or_else(none)?;
            let (_, frame, _) = self.frames.frame(kept.frame)?.ok_or_else(none)?;
            let mut bytes = Vec::new();
            frame.unpack(self.path(), &mut bytes)?;
            let within = |of: u64| usize::try_from(of.saturating_sub(kept.at)).unwrap_or(usize::MAX);
            let upto = kept.at.saturating_add(kept.len).min(end);
            out.extend_from_slice(bytes.get(within(at)..within(upto)).ok_or_else(none)?);
            at = upto;
        }
        Ok(out)
    }

    /// Step c: writes the body, makes it durable, then the record that says so.
    pub(super) fn seal(&mut self, body: Body, manifest: &Manifest) -> io::Result<()> {
        let mut at = self.next;
        for (tag, bytes) in body.encode() {
            at = self.frames.append(at, tag, &bytes)?;
        }
        at = self.frames.append_manifest(at, MANIFEST, manifest)?;
        at = self.frames.append(at, END, &[])?;
        if !body.moves.is_empty() {
            self.frames.reserve_progress(Frames::next_block(at).at)?;
        }
        self.frames.sync()?;
        self.body = Some(body);
        self.body_end = at;
        self.mark(State::Sealed)
    }

    /// Records a state, durable when this returns.
    pub(super) fn mark(&mut self, state: State) -> io::Result<()> {
        let never_sealed = self.state == State::Filling && state == State::TakenBack;
        let vouched = if never_sealed { self.header_end } else { self.body_end };
        self.frames.write_state(self.slot, state, vouched)?;
        self.frames.sync()?;
        self.slot = self.slot.saturating_add(1);
        self.state = state;
        Ok(())
    }

    /// How many batches of moves are durable on the host.
    pub(super) fn batches_done(&self) -> u32 {
        self.frames.progress(Frames::next_block(self.body_end).at)
    }

    /// Records that so many batches of moves are durable on the host; durable when this returns.
    pub(super) fn batches_are_done(&mut self, batches: u32) -> io::Result<()> {
        self.frames.write_progress(Frames::next_block(self.body_end).at, batches)?;
        self.frames.sync()
    }

    /// Whether the commit fills units of the image: then there is no way back once that has begun.
    pub fn reuses(&self) -> bool {
        self.body.as_ref().is_some_and(|body| !body.moves.is_empty())
    }

    /// Its path, for messages.
    pub fn path(&self) -> &Path {
        &self.frames.file.path
    }
    /// How far the commit is.
    pub fn state(&self) -> State {
        self.state
    }
    /// Which commit it belongs to.
    pub fn about(&self) -> &About {
        &self.header.about
    }
    /// The units of the host volume that were free and are filled by the commit: place and bytes. Taking back gives back every byte
    /// outside of them.
    pub fn filled(&self) -> &[(u64, u64)] {
        &self.header.free
    }
    /// Bytes that were written to it by this process.
    pub fn written(&self) -> u64 {
        self.frames.written
    }
    pub(super) fn switch(&self) -> &Switch {
        &self.header.switch
    }
    /// What a journal that was not sealed holds, where it is complete nonetheless.
    pub(super) fn unsealed_body(&self) -> Option<&Body> {
        self.body.as_ref()
    }
    /// What was sealed.
    pub(super) fn sealed(&self) -> Result<Sealed<'_>> {
        match &self.body {
            Some(body) if self.state != State::Filling => {
                Ok(Sealed { body, switch: &self.header.switch, path: self.path() })
            }
            _ => Err(Error::Refused(format!("the journal {} was not sealed", self.path().display()))),
        }
    }
    /// The manifest that was sealed with it; empty where it was not sealed.
    ///
    /// # Errors
    /// Where the journal can't be read any more.
    pub fn manifest(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        if self.body.is_none() {
            return Ok(out);
        }
        let mut at = Frames::next_block(self.header_end);
        while let Some((tag, frame, next)) = self.frames.frame(at)? {
            if tag == END {
                break;
            }
            if tag == MANIFEST {
                frame.unpack(self.path(), &mut out)?;
            }
            at = next;
        }
        Ok(out)
    }
}

impl Sections {
    /// Reads frames up to the one with the tag `end`; gives the position behind it, none where the chain breaks before.
    fn gather(&mut self, frames: &Frames, start: Position, end: Tag) -> Result<Option<Position>> {
        let mut at = start;
        while let Some((tag, frame, next)) = frames.frame(at)? {
            let here = at;
            at = next;
            if tag == end {
                return Ok(Some(at));
            }
            // The manifest is unpacked when it is asked for.
            if tag == MANIFEST {
                continue;
            }
            if tag == KEPT {
                let first = self.kept.last().map_or(0, |k| k.at.saturating_add(k.len));
                self.kept.push(Kept { at: first, len: frame.raw as u64, frame: here });
                continue;
            }
            let section = self.by_tag.entry(tag).or_default();
            if (section.len() as u64).saturating_add(frame.raw as u64) > self.limit {
                return Err(damaged(
                    &frames.file.path,
                    "journal's section",
                    at.at,
                    "no more bytes than the volume allows",
                ));
            }
            frame.unpack(&frames.file.path, section)?;
        }
        Ok(None)
    }
}

/// A journal that is on its medium in full: nothing in use is written without one. Only [`Journal::sealed`] makes it.
#[derive(Clone, Copy)]
pub(super) struct Sealed<'a> {
    pub(super) body: &'a Body,
    pub(super) switch: &'a Switch,
    pub(super) path: &'a Path,
}
