//! Names of guests as names that a host can hold.
//!
//! A name that is legal on the host stays as it is. In any other, each byte that can't stay becomes `%XX`, and a `%`
//! that two hexadecimal digits follow becomes `%25`, so that the raw name can be had back from a changed one. What is
//! then too long is cut, and what is the same to the host as another name of its directory gets a number; for these
//! only the manifest knows the raw name.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use crate::fs::host::{HostName, NameRules};

/// Longest name: UTF-16 units or bytes, by the rules.
const LONGEST: usize = 255;
/// Units that a number behind a name may take.
const NUMBER: usize = 16;
/// What is longer behind the last dot is no extension.
const EXTENSION: usize = 32;

/// Whether the host can hold this name.
pub fn legal(rules: NameRules, name: &[u8]) -> bool {
    !name.is_empty()
        && length(rules, name) <= LONGEST
        && match rules {
            NameRules::Posix => name != b"." && name != b".." && !name.iter().any(|b| matches!(b, 0 | b'/')),
            NameRules::Win32 => {
                std::str::from_utf8(name).is_ok_and(|s| !s.chars().any(forbidden) && !s.ends_with(['.', ' ']))
                    && !reserved(name)
            }
        }
}

/// The name as the host can hold it but for its length: as it is, or escaped.
pub fn escaped(rules: NameRules, raw: &[u8]) -> Cow<'_, [u8]> {
    if legal(rules, raw) {
        return Cow::Borrowed(raw);
    }
    let mut out = escape_bytes(rules, raw);
    match rules {
        NameRules::Posix if out == b"." || out == b".." => escape_last(&mut out),
        NameRules::Posix => {}
        NameRules::Win32 => {
            if matches!(out.last(), Some(b'.' | b' ')) {
                escape_last(&mut out);
            }
            if reserved(&out)
                && let Some((first, rest)) = out.split_first()
            {
                out = [percent(*first).as_bytes(), rest].concat();
            }
        }
    }
    if out.is_empty() {
        out.extend_from_slice(b"%");
    }
    Cow::Owned(out)
}

/// The name of the file that a named stream becomes: `FILE.stream.NAME`. `file` is the file's own name on the host.
pub fn of_stream(rules: NameRules, file: &[u8], stream: &[u8]) -> HostName {
    let mut out = file.to_vec();
    out.extend_from_slice(b".stream.");
    out.extend(escape_bytes(rules, stream));
    if rules == NameRules::Win32 && matches!(out.last(), Some(b'.' | b' ')) {
        escape_last(&mut out);
    }
    out
}

/// Gives out the names of one directory: each is legal, and no two are the same to the host.
pub struct Namer<'h> {
    fold: &'h dyn Fn(&[u8]) -> Vec<u8>,
    rules: NameRules,
    taken: HashSet<Vec<u8>>,
    /// The next number for names with this stem, so that many that are the same cost no search each.
    next: HashMap<Vec<u8>, u32>,
}

impl<'h> Namer<'h> {
    /// For a directory that has these names already. `fold` gives a name as the host compares it.
    pub fn new(rules: NameRules, fold: &'h dyn Fn(&[u8]) -> Vec<u8>, there: &[HostName]) -> Self {
        Self { fold, rules, taken: there.iter().map(|n| fold(n)).collect(), next: HashMap::new() }
    }
    /// For an empty directory, keeping the room that the last one took.
    pub fn clear(&mut self) {
        self.taken.clear();
        self.next.clear();
    }
    /// Takes `wanted`, an [`escaped`] name, or one made from it where it is too long or not free. A file's number goes
    /// before its extension.
    pub fn take(&mut self, wanted: &[u8], dir: bool) -> HostName {
        let dot = wanted
            .iter()
            .rposition(|b| *b == b'.')
            .filter(|at| !dir && *at > 0 && (2..=EXTENSION).contains(&wanted.len().saturating_sub(*at)));
        let (stem, extension) = wanted.split_at(dot.unwrap_or(wanted.len()));
        let room = LONGEST.saturating_sub(length(self.rules, extension));
        let name = if length(self.rules, wanted) <= LONGEST {
            wanted.to_vec()
        } else {
            // The tilde also keeps a dot or a space from being the last character.
            [cut(self.rules, stem, room.saturating_sub(1)), b"~", extension].concat()
        };
        if self.taken.insert((self.fold)(&name)) {
            return name;
        }
        let stem = cut(self.rules, stem, room.saturating_sub(NUMBER));
        let key = (self.fold)(&[stem, extension].concat());
        let next = self.next.entry(key).or_insert(2);
        loop {
            let number = format!(" ({next})");
            *next = next.saturating_add(1);
            let name = [stem, number.as_bytes(), extension].concat();
            // At the last of four thousand million numbers two names would be the same: the host's audit refuses that.
            if self.taken.insert((self.fold)(&name)) || *next == u32::MAX {
                return name;
            }
        }
    }
}

/// Length by the rules: UTF-16 units of what is text, bytes of what is not.
fn length(rules: NameRules, name: &[u8]) -> usize {
    match (rules, std::str::from_utf8(name)) {
        (NameRules::Win32, Ok(text)) if name.len() > LONGEST => text.encode_utf16().count(),
        _ => name.len(),
    }
}

/// The longest beginning of `name` of at most `most` units that ends between characters.
fn cut(rules: NameRules, name: &[u8], most: usize) -> &[u8] {
    let mut used = 0usize;
    let mut end = 0usize;
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            used = used.saturating_add(if rules == NameRules::Win32 { c.len_utf16() } else { c.len_utf8() });
            if used > most {
                return name.get(..end).unwrap_or(name);
            }
            end = end.saturating_add(c.len_utf8());
        }
        for _ in chunk.invalid() {
            used = used.saturating_add(1);
            if used > most {
                return name.get(..end).unwrap_or(name);
            }
            end = end.saturating_add(1);
        }
    }
    name
}

/// What Win32 has in no name. U+FFFF too: it is what fills up the long names of FAT.
fn forbidden(c: char) -> bool {
    matches!(c, '\0'..='\x1f' | '"' | '*' | '/' | ':' | '<' | '>' | '?' | '\\' | '|' | '\u{ffff}')
}

/// Whether Win32 takes the name for a device, with whatever extension.
fn reserved(name: &[u8]) -> bool {
    let base = name.split(|b| *b == b'.').next().unwrap_or_default().trim_ascii_end();
    let starts = |word: &[u8]| base.get(..word.len()).is_some_and(|start| start.eq_ignore_ascii_case(word));
    let is = |word: &[u8]| base.eq_ignore_ascii_case(word);
    if starts(b"COM") || starts(b"LPT") {
        return match base.get(3..).unwrap_or_default() {
            [digit] => matches!(digit, b'1'..=b'9'),
            port => ["¹", "²", "³"].iter().any(|p| p.as_bytes() == port),
        };
    }
    [b"CON".as_slice(), b"PRN", b"AUX", b"NUL", b"CONIN$", b"CONOUT$"].into_iter().any(is)
}

fn percent(byte: u8) -> String {
    let mut out = String::with_capacity(3);
    // Writing to a string can't fail.
    let _ = write!(out, "%{byte:02X}");
    out
}

/// Every byte that the host can't hold as `%XX`, and `%` where it would be taken for that.
fn escape_bytes(rules: NameRules, raw: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(raw.len().saturating_add(8));
    let mut at = 0usize;
    let escape = |out: &mut Vec<u8>, bytes: &[u8]| {
        for b in bytes {
            out.extend_from_slice(percent(*b).as_bytes());
        }
    };
    for chunk in raw.utf8_chunks() {
        for c in chunk.valid().chars() {
            let end = at.saturating_add(c.len_utf8());
            let bytes = raw.get(at..end).unwrap_or_default();
            let looks_escaped =
                || raw.get(end..end.saturating_add(2)).is_some_and(|next| next.iter().all(u8::is_ascii_hexdigit));
            let bad = match rules {
                NameRules::Win32 => forbidden(c),
                NameRules::Posix => matches!(c, '\0' | '/'),
            };
            if bad || c == '%' && looks_escaped() {
                escape(&mut out, bytes);
            } else {
                out.extend_from_slice(bytes);
            }
            at = end;
        }
        match rules {
            NameRules::Win32 => escape(&mut out, chunk.invalid()),
            NameRules::Posix => out.extend_from_slice(chunk.invalid()),
        }
        at = at.saturating_add(chunk.invalid().len());
    }
    out
}

/// The last byte, an ASCII one, as `%XX`.
fn escape_last(name: &mut Vec<u8>) {
    if let Some(last) = name.pop() {
        name.extend_from_slice(percent(last).as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fs::host::Host;
    use crate::plan::mock::Mock;
    use proptest::prelude::*;

    fn unescape(name: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut at = 0;
        while at < name.len() {
            let hex = name.get(at + 1..at + 3).and_then(|h| std::str::from_utf8(h).ok());
            match hex.filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit())) {
                Some(h) if name[at] == b'%' => {
                    out.push(u8::from_str_radix(h, 16).unwrap());
                    at += 3;
                }
                _ => {
                    out.push(name[at]);
                    at += 1;
                }
            }
        }
        out
    }
    fn win(raw: &[u8]) -> String {
        String::from_utf8(escaped(NameRules::Win32, raw).into_owned()).unwrap()
    }

    #[test]
    fn names_by_hand() {
        for (raw, written) in [
            ("plain.txt", "plain.txt"),
            ("100%20 legal.txt", "100%20 legal.txt"),
            ("a:b", "a%3Ab"),
            ("a:b%41", "a%3Ab%2541"),
            ("a:50%", "a%3A50%"),
            ("ends.", "ends%2E"),
            ("ends..", "ends.%2E"),
            ("ends ", "ends%20"),
            (".", "%2E"),
            ("..", ".%2E"),
            ("CON", "%43ON"),
            ("con.tar.gz", "%63on.tar.gz"),
            ("nul .txt", "%6Eul .txt"),
            ("COM1", "%43OM1"),
            ("com0", "com0"),
            ("LPT³.log", "%4CPT³.log"),
            ("CONIN$", "%43ONIN$"),
            ("console", "console"),
            ("COM10", "COM10"),
            ("", "%"),
            ("a\u{ffff}", "a%EF%BF%BF"),
            ("😀.txt", "😀.txt"),
            ("tab\there", "tab%09here"),
        ] {
            assert_eq!(win(raw.as_bytes()), written, "{raw:?}");
        }
        // A lone surrogate as WTF-8, and a byte of no encoding.
        assert_eq!(win(b"x\xed\xa0\x80y"), "x%ED%A0%80y");
        assert_eq!(win(b"caf\xe9"), "caf%E9");
        assert_eq!(&*escaped(NameRules::Posix, b"caf\xe9:."), b"caf\xe9:.");
        assert_eq!(&*escaped(NameRules::Posix, b".."), b".%2E");
        assert_eq!(of_stream(NameRules::Win32, b"a%3Ab", b"Zone.Identifier"), b"a%3Ab.stream.Zone.Identifier");
        assert_eq!(of_stream(NameRules::Win32, b"a", b"x?."), b"a.stream.x%3F%2E");
    }

    #[test]
    fn collisions_get_numbers_before_the_extension() {
        let host = Mock::fat(4096);
        let fold = |n: &[u8]| host.fold(n);
        let mut namer = Namer::new(NameRules::Win32, &fold, &[b"There.txt".to_vec()]);
        assert_eq!(namer.take(b"there.TXT", false), b"there (2).TXT");
        assert_eq!(namer.take(b"THERE.txt", false), b"THERE (3).txt");
        assert_eq!(namer.take(b"There (2).txt", false), b"There (2) (2).txt");
        assert_eq!(namer.take(b"v1.5", true), b"v1.5");
        assert_eq!(namer.take(b"V1.5", true), b"V1.5 (2)");
        let long = [b'x'; 400];
        let first = namer.take(&long, false);
        let second = namer.take(&long, false);
        assert_eq!((first.len(), first.last()), (255, Some(&b'~')));
        assert_ne!(first, second);
        assert!(legal(NameRules::Win32, &first) && legal(NameRules::Win32, &second));
    }

    #[test]
    fn a_hundred_thousand_names_that_are_one_to_the_host_take_no_time() {
        let host = Mock::fat(4096);
        let fold = |n: &[u8]| host.fold(n);
        let mut namer = Namer::new(NameRules::Win32, &fold, &[]);
        let start = std::time::Instant::now();
        for i in 0..100_000u32 {
            let mut name = [b"a".repeat(239), b"bcdefghijklmnopq.dat".to_vec()].concat();
            for (bit, letter) in name.iter_mut().enumerate().take(17) {
                if i >> bit & 1 == 1 {
                    *letter = b'A';
                }
            }
            namer.take(&name, false);
        }
        assert!(start.elapsed().as_secs() < 20, "quadratic: {:?}", start.elapsed());
    }

    fn rules() -> impl Strategy<Value = NameRules> {
        prop_oneof![Just(NameRules::Win32), Just(NameRules::Posix)]
    }
    fn raw() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            4 => "[ab.A%:0-9 Ee*?é😀\\\\]{0,12}".prop_map(String::into_bytes),
            1 => "(?i)(con|nul|com[0-9¹]|lpt1|conin\\$)[ .]{0,2}[a-z]{0,3}".prop_map(String::into_bytes),
            1 => prop::collection::vec(any::<u8>(), 0..300),
            1 => "[xé😀. ]{200,300}".prop_map(String::into_bytes),
        ]
    }

    proptest! {
        #[test]
        fn a_changed_name_gives_its_raw_name_back(rules in rules(), raw in raw()) {
            let name = escaped(rules, &raw);
            if legal(rules, &raw) {
                prop_assert_eq!(&*name, &raw[..]);
            } else if !raw.is_empty() {
                prop_assert_eq!(unescape(&name), raw);
            }
        }
        #[test]
        fn names_of_a_directory_are_legal_and_distinct(
            rules in rules(),
            there in prop::collection::vec("[aA]{1,2}", 0..4),
            raws in prop::collection::vec((raw(), any::<bool>(), raw()), 0..40),
        ) {
            let host = Mock { names: rules, ..Mock::fat(4096) };
            let there: Vec<_> = there.into_iter().map(String::into_bytes).collect();
            let give = || {
                let fold = |n: &[u8]| host.fold(n);
                let mut namer = Namer::new(rules, &fold, &there);
                let mut out = Vec::new();
                for (raw, dir, stream) in &raws {
                    let name = namer.take(&escaped(rules, raw), *dir);
                    out.push(namer.take(&of_stream(rules, &name, stream), false));
                    out.push(name);
                }
                out
            };
            let names = give();
            let mut seen: HashSet<Vec<u8>> = there.iter().map(|n| host.fold(n)).collect();
            for name in &names {
                prop_assert!(legal(rules, name), "{:?}", String::from_utf8_lossy(name));
                prop_assert!(seen.insert(host.fold(name)), "{:?} twice", String::from_utf8_lossy(name));
            }
            prop_assert_eq!(&names, &give());
        }
    }
}
