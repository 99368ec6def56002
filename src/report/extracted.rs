//! The rows of an extraction: what became of every file, as JSON lines, CSV, DFXML or lines of checksums.

use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

use rayon::prelude::*;

use super::json::{Row, number};
use super::{listing, path, text, time};
use crate::extract::{Algorithm, Extracted, Item, Method, Options, Outcome, Shape, Source, Why, hex};
use crate::fs::{Object, Timestamp};
use crate::stack::Stack;

/// Items that one thread goes over at a time, and how many threads' worth of them are held.
const BLOCK: usize = 1024;
const BLOCKS: usize = 8;

/// The name of the rows.
pub const SCHEMA: &str = "unimage/extract/1";

/// How a manifest is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// JSON lines.
    Json,
    /// Comma-separated values (RFC 4180).
    Csv,
    /// Digital Forensics XML.
    Dfxml,
    /// Lines of this checksum and a path, as `sha256sum` and its like have them.
    Sums(Algorithm),
}

impl Format {
    /// By the end of a file's name; JSON lines where it says nothing else.
    pub fn of(file: &Path) -> Self {
        let name = file.file_name().map(|n| n.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        let ends = |all: &[&str]| all.iter().any(|end| name.ends_with(end));
        if ends(&[".csv"]) {
            return Self::Csv;
        }
        if ends(&[".dfxml", ".xml"]) {
            return Self::Dfxml;
        }
        for algorithm in Algorithm::ALL {
            let word = algorithm.word();
            if ends(&[&format!(".{word}"), &format!(".{word}sum"), &format!(".{word}sums"), &format!("{word}sums")]) {
                return Self::Sums(algorithm);
            }
        }
        if ends(&[".b3", ".b3sum", ".b3sums"]) { Self::Sums(Algorithm::Blake3) } else { Self::Json }
    }
}

/// An extraction, to be reported.
#[derive(Clone, Copy)]
pub struct Report<'a> {
    /// The image.
    pub stack: &'a Stack,
    /// What was asked for.
    pub options: &'a Options,
    /// What became of it.
    pub done: &'a Extracted,
}

impl Report<'_> {
    /// What stands before the rows.
    pub fn begin(&self, out: &mut Vec<u8>, format: Format, command: &[std::ffi::OsString]) {
        match format {
            Format::Json => self.header(out, command),
            Format::Csv => {
                out.extend_from_slice(
                    b"path,kind,size,mtime,atime,ctime,btime,number,mode,uid,gid,method,reason,written,shared,copied,extents",
                );
                for algorithm in &self.options.hashes {
                    out.push(b',');
                    out.extend_from_slice(algorithm.word().as_bytes());
                }
                out.extend_from_slice(b"\r\n");
            }
            Format::Dfxml => self.dfxml_header(out, command),
            Format::Sums(_) => {}
        }
    }
    /// What stands behind the rows.
    pub fn end(&self, out: &mut Vec<u8>, format: Format) {
        match format {
            Format::Json => self.summary(out),
            Format::Dfxml => out.extend_from_slice(b"</dfxml>\n"),
            Format::Csv | Format::Sums(_) => {}
        }
    }
    /// All rows, in the order of the walk, a stretch at a time to `take`, which has to empty it.
    ///
    /// # Errors
    /// The first that `take` gives.
    pub fn rows<E>(&self, format: Format, mut take: impl FnMut(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
        let all = self.done.selection.items.len();
        let mut blocks: Vec<Vec<u8>> = Vec::new();
        let mut at = 0usize;
        while at < all {
            blocks.resize_with(all.saturating_sub(at).div_ceil(BLOCK).min(BLOCKS), Vec::new);
            let end = at.saturating_add(blocks.len().saturating_mul(BLOCK)).min(all);
            blocks.par_iter_mut().zip((at..end).into_par_iter().step_by(BLOCK)).for_each(|(block, from)| {
                self.block(block, format, from..from.saturating_add(BLOCK).min(end));
            });
            blocks.iter_mut().try_for_each(&mut take)?;
            at = end;
        }
        if format == Format::Json {
            let mut out = Vec::new();
            for problem in &self.done.selection.problems {
                Row::new(&mut out, "problem").value("what", problem).end();
            }
            take(&mut out)?;
        }
        Ok(())
    }
    fn block(&self, out: &mut Vec<u8>, format: Format, range: Range<usize>) {
        for at in range {
            let Ok(at) = u32::try_from(at) else { return };
            let Some(line) = self.line(at) else { continue };
            match format {
                Format::Json => line.json(out),
                Format::Csv => line.csv(out),
                Format::Dfxml => line.dfxml(out),
                Format::Sums(algorithm) => line.sum(out, algorithm),
            }
        }
    }
    fn line(&self, at: u32) -> Option<Line<'_>> {
        let selection = &self.done.selection;
        let item = selection.items.get(at as usize)?;
        let outcome = *self.done.results.outcomes.get(at as usize)?;
        let source = selection.source(item)?;
        Some(Line { report: self, at, item, source, outcome, path: selection.path(item) })
    }
    /// What is said of everything that was not written, or not all of it, on standard error.
    pub fn complaints(&self, mut say: impl FnMut(&str)) {
        let done = self.done;
        for (at, outcome) in (0u32..).zip(&done.results.outcomes) {
            let left = matches!(outcome.method, Method::Failed | Method::Partial)
                || outcome.method == Method::Skipped && outcome.why != Some(Why::FileMissing);
            let Some(line) = self.line(at).filter(|_| left) else { continue };
            let why = outcome.why.map_or("", Why::word);
            let detail = done.results.details.get(&at);
            let message = detail.map(|d| d.message.as_str()).filter(|m| !m.is_empty());
            let bad = detail.map_or(0, |d| d.bad.iter().fold(0u64, |n, (_, len)| n.saturating_add(*len)));
            let mut what = format!("{}: {}: {why}", path::escape(&line.path), outcome.method.word());
            if bad > 0 {
                what.push_str(&format!(", {bad} bytes are zeros"));
            }
            if let Some(message) = message {
                what.push_str(&format!(" ({message})"));
            }
            say(&what);
        }
        done.selection.problems.iter().for_each(|p| say(p));
    }

    fn header(&self, out: &mut Vec<u8>, command: &[std::ffi::OsString]) {
        use std::os::unix::ffi::OsStrExt;
        let command: Vec<_> = command.iter().map(|a| path::escape(a.as_bytes())).collect();
        let hashes: Vec<_> = self.options.hashes.iter().map(|a| a.word()).collect();
        let mut row = Row::new(out, "header");
        row.word("schema", SCHEMA)
            .word("version", env!("CARGO_PKG_VERSION"))
            .value("command", &command)
            .value("address", &self.stack.address.to_string())
            .word("link", self.options.link.word())
            .value("hashes", &hashes);
        if let Some(level) = self.stack.levels.last() {
            row.word("container", level.disk.kind).number("image_size", level.disk.image.len());
            let volumes: Vec<_> = self
                .done
                .selection
                .volumes
                .iter()
                .map(|v| {
                    let facts = v.fs.facts();
                    let slot = level.table.slots.get(v.slot);
                    serde_json::json!({
                        "volume": slot.map_or("", |s| s.name.as_str()),
                        "fs": facts.kind,
                        "label": facts.label,
                        "serial": facts.serial,
                        "size": slot.map_or(0, |s| crate::extent::ReadAt::len(s.layer.as_ref())),
                    })
                })
                .collect();
            row.value("volumes", &volumes);
        }
        row.end();
    }
    fn summary(&self, out: &mut Vec<u8>) {
        let totals = self.done.totals();
        let mut row = Row::new(out, "summary");
        row.number("files", totals.files)
            .number("directories", totals.directories)
            .number("links", totals.links)
            .number("reflinked", totals.reflinked)
            .number("shared", totals.shared)
            .number("copied", totals.copied)
            .number("partial", totals.partial)
            .number("failed", totals.failed)
            .number("skipped", totals.skipped)
            .number("lossy", totals.lossy)
            .number("problems", self.done.selection.problems.len() as u64)
            .some("not_shared", self.done.not_shared.as_ref());
        if self.done.interrupted {
            row.value("interrupted", &true);
        }
        row.end();
    }
    fn dfxml_header(&self, out: &mut Vec<u8>, command: &[std::ffi::OsString]) {
        let command: Vec<_> = command.iter().map(|a| a.to_string_lossy()).collect();
        out.extend_from_slice(
            b"<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<dfxml xmlns=\"http://www.forensicswiki.org/wiki/Category:Digital_Forensics_XML\" \
              xmlns:dc=\"http://purl.org/dc/elements/1.1/\" version=\"1.2.0\">\n<metadata><dc:type>Extraction</dc:type></metadata>\n",
        );
        let creator = format!(
            "<creator><program>unimage</program><version>{}</version><execution_environment><command_line>{}</command_line>\
             </execution_environment></creator>\n<source><image_filename>{}</image_filename></source>\n",
            env!("CARGO_PKG_VERSION"),
            xml(&command.join(" ")),
            xml(&self.stack.address.to_string())
        );
        out.extend_from_slice(creator.as_bytes());
    }
    /// The sums for people.
    pub fn human(&self, out: &mut Vec<u8>) {
        let totals = self.done.totals();
        let mut line = |head: &str, rest: &str| {
            text::left(out, 9, |out| out.extend_from_slice(head.as_bytes()));
            out.extend_from_slice(rest.as_bytes());
            out.push(b'\n');
        };
        let files = |n: u64| text::counted(n, "file", "files");
        line(
            "written",
            &format!(
                "{}, {}, {}",
                files(totals.files),
                text::counted(totals.directories, "directory", "directories"),
                text::counted(totals.links, "link", "links")
            ),
        );
        line("shared", &format!("{} of {}", text::size(totals.shared), files(totals.reflinked)));
        if let Some(why) = &self.done.not_shared {
            line("", &format!("nothing is shared: {}", text::clean(why)));
        }
        line("copied", &text::size(totals.copied));
        for (head, n) in [("partial", totals.partial), ("failed", totals.failed), ("skipped", totals.skipped)] {
            if n > 0 {
                line(head, &files(n));
            }
        }
        if totals.lossy > 0 {
            line("lossy", &format!("{}: the manifest says what could not be kept", files(totals.lossy)));
        }
        if self.done.interrupted {
            line("stopped", "before the end: --resume goes on from the manifest");
        }
    }
}

/// One item, and everything that is said of it.
struct Line<'a> {
    report: &'a Report<'a>,
    at: u32,
    item: &'a Item,
    source: &'a Source,
    outcome: Outcome,
    path: Vec<u8>,
}

impl Line<'_> {
    fn object(&self) -> &Object {
        self.source.tree.object(self.item.object)
    }
    fn stream_name(&self) -> Option<&[u8]> {
        self.source.tree.stream_name(self.item.stream?)
    }
    fn kind(&self) -> &'static str {
        if self.stream_name().is_some() { "stream" } else { self.object().kind.word() }
    }
    fn size(&self) -> u64 {
        let stream = match self.item.shape {
            Shape::Dir(_) => None,
            _ => self.item.stream.or_else(|| self.source.tree.data(self.item.object)),
        };
        stream.map_or(0, |s| self.source.tree.stream(s).size)
    }
    fn written(&self) -> Option<Vec<u8>> {
        let there = self.outcome.method.is_whole() || self.outcome.method == Method::Partial;
        there.then(|| self.report.done.selection.written(self.at)).flatten()
    }
    /// The hashes of its bytes. A further name has those of the first.
    fn hashes(&self) -> Vec<(Algorithm, &[u8])> {
        let results = &self.report.done.results;
        let at = match self.item.shape {
            Shape::HardLink(first) => first,
            _ => self.at,
        } as usize;
        if results.hashed.get(at) != Some(&true) || self.written().is_none() {
            return Vec::new();
        }
        let algorithms = &self.report.options.hashes;
        let width: usize = algorithms.iter().map(|a| a.bytes()).sum();
        let mut from = at.saturating_mul(width);
        let mut out = Vec::new();
        for algorithm in algorithms {
            let end = from.saturating_add(algorithm.bytes());
            if let Some(hash) = results.hashes.get(from..end) {
                out.push((*algorithm, hash));
            }
            from = end;
        }
        out
    }

    fn json(&self, out: &mut Vec<u8>) {
        let Outcome { method, why, lost, shared, copied, extents } = self.outcome;
        let selection = &self.report.done.selection;
        let mut row = Row::new(out, "entry");
        row.path("path", "path_raw", &self.path).word("kind", self.kind()).number("size", self.size());
        listing::object_fields(&mut row, &self.source.tree, self.item.object);
        if let Some(name) = self.stream_name() {
            row.path("stream", "stream_raw", name);
        }
        row.word("method", method.word());
        if let Some(why) = why {
            row.word("reason", why.word());
        }
        if let Some(written) = self.written() {
            row.path("written", "written_raw", &written);
            if selection.renamed(self.at) {
                row.value("renamed", &true);
            }
            if let (Shape::Xattr(_), Some(name)) = (self.item.shape, self.stream_name()) {
                row.path("xattr", "xattr_raw", &[b"user.", name].concat());
            }
            if let Shape::HardLink(first) = self.item.shape
                && let Some(first) = selection.written(first)
            {
                row.path("link_of", "link_of_raw", &first);
            }
        }
        if shared > 0 || copied > 0 {
            row.number("shared", shared).number("copied", copied).number("extents", extents.into());
        }
        if let Some(detail) = self.report.done.results.details.get(&self.at) {
            if !detail.message.is_empty() {
                row.value("message", &detail.message);
            }
            if !detail.bad.is_empty() {
                row.value("unreadable", &detail.bad);
            }
        }
        if !lost.is_empty() {
            row.value("lost", &lost.words().collect::<Vec<_>>());
        }
        for (algorithm, hash) in self.hashes() {
            row.value(algorithm.word(), &hex(hash));
        }
        row.end();
    }

    fn csv(&self, out: &mut Vec<u8>) {
        let object = self.object();
        let field = |out: &mut Vec<u8>, value: &str| {
            if value.contains(['"', ',', '\r', '\n']) {
                out.push(b'"');
                out.extend_from_slice(value.replace('"', "\"\"").as_bytes());
                out.push(b'"');
            } else {
                out.extend_from_slice(value.as_bytes());
            }
        };
        field(out, &path::escape(&self.path));
        out.push(b',');
        field(out, self.kind());
        out.push(b',');
        number(out, self.size());
        let times = object.times;
        for time in [times.modified, times.accessed, times.changed, times.created] {
            out.push(b',');
            field(out, &rfc3339(time));
        }
        out.push(b',');
        number(out, object.number);
        out.push(b',');
        field(out, &object.mode.map(|m| format!("{m:04o}")).unwrap_or_default());
        let (uid, gid) = object.owner.unzip();
        for id in [uid, gid] {
            out.push(b',');
            field(out, &id.map(|n| n.to_string()).unwrap_or_default());
        }
        let written = self.written().map(|w| path::escape(&w).into_owned()).unwrap_or_default();
        for value in [self.outcome.method.word(), self.outcome.why.map_or("", Why::word), &written] {
            out.push(b',');
            field(out, value);
        }
        for n in [self.outcome.shared, self.outcome.copied, self.outcome.extents.into()] {
            out.push(b',');
            number(out, n);
        }
        let hashes = self.hashes();
        for algorithm in &self.report.options.hashes {
            out.push(b',');
            if let Some((_, hash)) = hashes.iter().find(|(a, _)| a == algorithm) {
                out.extend_from_slice(hex(hash).as_bytes());
            }
        }
        out.extend_from_slice(b"\r\n");
    }

    fn dfxml(&self, out: &mut Vec<u8>) {
        let object = self.object();
        out.extend_from_slice(b"<fileobject>");
        let mut put = |tag: &str, value: &str| {
            out.extend_from_slice(format!("<{tag}>{}</{tag}>", xml(value)).as_bytes());
        };
        put("filename", &path::escape(&self.path));
        let kind = match self.kind() {
            "dir" => "d",
            "symlink" | "junction" => "l",
            "fifo" => "p",
            "socket" => "s",
            "device" => "b",
            _ => "r",
        };
        put("name_type", kind);
        put("filesize", &self.size().to_string());
        put("inode", &object.number.to_string());
        if let Some(mode) = object.mode {
            put("mode", &format!("{mode:o}"));
        }
        if let Some((uid, gid)) = object.owner {
            put("uid", &uid.to_string());
            put("gid", &gid.to_string());
        }
        let times = object.times;
        for (tag, time) in
            [("mtime", times.modified), ("atime", times.accessed), ("ctime", times.changed), ("crtime", times.created)]
        {
            if time.is_some() {
                put(tag, &rfc3339(time));
            }
        }
        if let Some(target) = self.source.tree.target(self.item.object) {
            put("link_target", &path::escape(target));
        }
        for (algorithm, hash) in self.hashes() {
            let tag = format!("<hashdigest type=\"{}\">{}</hashdigest>", algorithm.word(), hex(hash));
            out.extend_from_slice(tag.as_bytes());
        }
        out.extend_from_slice(b"</fileobject>\n");
    }

    fn sum(&self, out: &mut Vec<u8>, algorithm: Algorithm) {
        let (Some(written), hashes) = (self.written(), self.hashes()) else { return };
        if matches!(self.item.shape, Shape::Xattr(_) | Shape::Dir(_)) {
            return;
        }
        let Some((_, hash)) = hashes.into_iter().find(|(a, _)| *a == algorithm) else { return };
        // As GNU coreutils do it: a name with such a byte has a backslash before the line.
        let awkward = written.iter().any(|b| matches!(b, b'\\' | b'\n' | b'\r'));
        if awkward {
            out.push(b'\\');
        }
        out.extend_from_slice(hex(hash).as_bytes());
        out.extend_from_slice(b"  ");
        for b in written {
            match b {
                b'\\' => out.extend_from_slice(b"\\\\"),
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                other => out.push(other),
            }
        }
        out.push(b'\n');
    }
}

fn rfc3339(time: Option<Timestamp>) -> String {
    let mut out = Vec::new();
    if let Some(time) = time {
        time::rfc3339(&mut out, time);
    }
    String::from_utf8(out).unwrap_or_default()
}

/// Text as the contents of an XML element. What XML has no form for is escaped already by [`path::escape`], or replaced here.
fn xml(text: &str) -> Cow<'_, str> {
    let bad = |c: char| matches!(c, '&' | '<' | '>' | '"' | '\u{FFFE}' | '\u{FFFF}') || c.is_control();
    if !text.contains(bad) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len().saturating_add(16));
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if bad(c) => out.push('\u{FFFD}'),
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_manifest_says_what_it_is() {
        for (name, want) in [
            ("m.jsonl", Format::Json),
            ("m", Format::Json),
            ("a/m.CSV", Format::Csv),
            ("m.dfxml", Format::Dfxml),
            ("m.sha256", Format::Sums(Algorithm::Sha256)),
            ("SHA256SUMS", Format::Sums(Algorithm::Sha256)),
            ("m.md5sums", Format::Sums(Algorithm::Md5)),
            ("m.b3", Format::Sums(Algorithm::Blake3)),
            ("m.sha1", Format::Sums(Algorithm::Sha1)),
        ] {
            assert_eq!(Format::of(Path::new(name)), want, "{name}");
        }
    }

    #[test]
    fn xml_has_no_byte_that_is_none() {
        assert_eq!(xml("a<b>&\"\u{1}\u{FFFF}é"), "a&lt;b&gt;&amp;&quot;\u{FFFD}\u{FFFD}é");
        assert!(matches!(xml("plain"), Cow::Borrowed(_)));
    }
}
