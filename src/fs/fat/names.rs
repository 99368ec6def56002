//! Names: the OEM code page, 8.3 names shown and made, and which names are the same.

use std::collections::HashSet;

use crate::fs::fat::dirent::{LOWER_BASE, LOWER_EXT, MAX_UNITS, Short};
use crate::fs::utf16;

/// Code page 437 from 0x80 on; below it is ASCII. No two bytes are the same character, so a name leads back to its bytes.
const CP437: &str = "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{A0}";

/// Bytes of the code page as text.
pub fn from_oem(bytes: &[u8]) -> String {
    let high: Vec<char> = if bytes.is_ascii() { Vec::new() } else { CP437.chars().collect() };
    bytes
        .iter()
        .map(|b| match usize::from(*b).checked_sub(0x80) {
            Some(i) => high.get(i).copied().unwrap_or('\u{FFFD}'),
            None => char::from(*b),
        })
        .collect()
}

/// The 8.3 name of an entry as it is shown: lower case where the NT byte says so.
pub fn shown(short: &Short) -> String {
    let (mut base, mut ext) = short.parts();
    if short.nt & LOWER_BASE != 0 {
        base.make_ascii_lowercase();
    }
    if short.nt & LOWER_EXT != 0 {
        ext.make_ascii_lowercase();
    }
    if !ext.is_empty() {
        base.push(b'.');
        base.append(&mut ext);
    }
    from_oem(&base)
}

/// The name as FAT drivers compare it: each UTF-16 unit in its simple upper case, units beyond the basic plane as they
/// are. The same as given where it is no WTF-8.
pub fn fold(name: &[u8]) -> Vec<u8> {
    if name.is_ascii() {
        return name.to_ascii_uppercase();
    }
    let Some(units) = utf16::from_wtf8(name) else { return name.to_vec() };
    let upper: Vec<u8> = units.iter().flat_map(|unit| upper(*unit).to_le_bytes()).collect();
    utf16::to_wtf8(&upper)
}

/// The simple upper case of a unit: the character itself where its upper case is several or beyond the basic plane.
fn upper(unit: u16) -> u16 {
    let Some(c) = char::from_u32(unit.into()) else { return unit };
    let mut all = c.to_uppercase();
    match (all.next(), all.next()) {
        (Some(one), None) => u16::try_from(u32::from(one)).unwrap_or(unit),
        _ => unit,
    }
}

/// Characters besides letters and digits that an 8.3 name may have.
const SHORT_MARKS: &[u8] = b"!#$%&'()-@^_`{}~";

fn is_short(b: u8) -> bool {
    b.is_ascii_uppercase() || b.is_ascii_digit() || SHORT_MARKS.contains(&b)
}

/// Base and extension in their eleven bytes. Both fit.
fn padded(base: &[u8], ext: &[u8]) -> [u8; 11] {
    let mut out = [b' '; 11];
    let (left, right) = out.split_at_mut(8);
    for (room, b) in left.iter_mut().zip(base).chain(right.iter_mut().zip(ext)) {
        *room = *b;
    }
    out
}

/// The 8.3 name that is the same name in upper case; none where there is no such one.
fn plain(name: &[u8]) -> Option<[u8; 11]> {
    let upper = name.to_ascii_uppercase();
    let mut parts = upper.split(|b| *b == b'.');
    let base = parts.next()?;
    let ext = parts.next();
    let fits = (1..=8).contains(&base.len())
        && ext.is_none_or(|ext| (1..=3).contains(&ext.len()))
        && parts.next().is_none()
        && base.iter().chain(ext.unwrap_or_default()).all(|b| is_short(*b));
    fits.then(|| padded(base, ext.unwrap_or_default()))
}

/// What a name leaves for a base and an extension with a tail: no spaces, no leading dots, `_` for what 8.3 can't have.
fn basis(name: &[u8]) -> (Vec<u8>, Vec<u8>) {
    let text = String::from_utf8_lossy(name);
    let text = text.trim_start_matches(['.', ' ']);
    let (base, ext) = text.rsplit_once('.').unwrap_or((text, ""));
    let reduced = |part: &str, most: usize| -> Vec<u8> {
        let kept = part.chars().filter(|c| *c != ' ' && *c != '.');
        let byte = |c: char| u8::try_from(c.to_ascii_uppercase()).ok().filter(|b| is_short(*b)).unwrap_or(b'_');
        kept.take(most).map(byte).collect()
    };
    let mut base = reduced(base, 6);
    if base.is_empty() {
        base.push(b'_');
    }
    (base, reduced(ext, 3))
}

/// The names of one directory while entries are added to it: no two 8.3 names are the same, and none is another entry's
/// long name. Near linear, however alike the names are.
#[derive(Debug, Default)]
pub struct Taken {
    /// All long names, folded.
    long: HashSet<Vec<u8>>,
    short: HashSet<[u8; 11]>,
}

impl Taken {
    /// Adds a long name; whether no other name was the same.
    pub fn add_long(&mut self, name: &[u8]) -> bool {
        self.long.insert(fold(name))
    }
    /// Adds an 8.3 name that is there already.
    pub fn add_short(&mut self, short: [u8; 11]) {
        self.short.insert(short);
    }
    /// An 8.3 name for the entry with this long name, which was added; none where all are taken.
    pub fn make_short(&mut self, name: &[u8]) -> Option<[u8; 11]> {
        if let Some(same) = plain(name)
            && self.short.insert(same)
        {
            return Some(same);
        }
        let (base, ext) = basis(name);
        // As Windows does it: four tails, then two letters with a hash of the name.
        for n in 1u8..=4 {
            let tail = [&base, &b"~"[..], &[n.saturating_add(b'0')]].concat();
            if let Some(free) = self.try_short(&tail, &ext) {
                return Some(free);
            }
        }
        let hint = base.get(..2).unwrap_or(&base);
        for seed in 0u32..20_000 {
            let mut hasher = crc32fast::Hasher::new_with_initial(seed);
            hasher.update(name);
            let hash = hasher.finalize();
            let digit = u8::try_from(hash >> 16 & 7).unwrap_or(0).saturating_add(b'1');
            let hex = format!("{:04X}", hash & 0xFFFF);
            let tail = [hint, hex.as_bytes(), &b"~"[..], &[digit]].concat();
            if let Some(free) = self.try_short(&tail, &ext) {
                return Some(free);
            }
        }
        None
    }
    fn try_short(&mut self, base: &[u8], ext: &[u8]) -> Option<[u8; 11]> {
        let short = padded(base, ext);
        let shown = if ext.is_empty() { base.to_vec() } else { [base, b".", ext].concat() };
        (!self.long.contains(&shown) && self.short.insert(short)).then_some(short)
    }
}

/// Whether a FAT directory can have the name: 1 to 255 UTF-16 units, none of them a control character or one of
/// `" * / : < > ? \ |`, no dot or space at the end. Its units.
pub fn legal(name: &[u8]) -> Option<Vec<u16>> {
    let forbidden = |b: &u8| *b < 0x20 || b"\"*/:<>?\\|".contains(b);
    if name.iter().any(forbidden) || name.ends_with(b".") || name.ends_with(b" ") {
        return None;
    }
    utf16::from_wtf8(name).filter(|units| (1..=MAX_UNITS).contains(&units.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_code_page_is_a_bijection() {
        let all: Vec<u8> = (0..=255).collect();
        let text = from_oem(&all);
        assert_eq!(text.chars().collect::<HashSet<_>>().len(), 256);
        assert_eq!(from_oem(b"\x81\xE1\xFF"), "üß\u{A0}");
    }

    #[test]
    fn case_folds_unit_by_unit() {
        for (a, b) in [("Größe", "GRÖßE"), ("ÿ", "Ÿ"), ("日本", "日本"), ("i\u{10428}", "I\u{10428}")] {
            assert_eq!(fold(a.as_bytes()), fold(b.as_bytes()), "{a}");
        }
        assert_ne!(fold("ß".as_bytes()), fold(b"SS"));
        assert_ne!(fold("\u{10428}".as_bytes()), fold("\u{10400}".as_bytes()));
    }

    #[test]
    fn short_names_are_like_those_of_windows() {
        let mut taken = Taken::default();
        for (name, short) in [
            ("readme.txt", b"README  TXT"),
            ("README", b"README     "),
            ("Program Files", b"PROGRA~1   "),
            ("Program Files (x86)", b"PROGRA~2   "),
            (".profile", b"PROFIL~1   "),
            ("archive.tar.gz", b"ARCHIV~1GZ "),
            ("a+b.c", b"A_B~1   C  "),
            ("file.jpeg", b"FILE~1  JPE"),
            ("日本.txt", b"__~1    TXT"),
            ("...", b"_~1        "),
        ] {
            assert_eq!(taken.make_short(name.as_bytes()).as_ref(), Some(short), "{name}");
        }
    }

    #[test]
    fn a_tail_is_no_other_entrys_name() {
        let mut taken = Taken::default();
        assert!(taken.add_long(b"a long name") && taken.add_long(b"along~1"));
        assert_eq!(taken.make_short(b"a long name").as_ref(), Some(b"ALONGN~1   "));
        let mut taken = Taken::default();
        assert!(taken.add_long(b"alongn~1") && taken.add_long(b"a long name"));
        assert_eq!(taken.make_short(b"a long name").as_ref(), Some(b"ALONGN~2   "));
        assert_eq!(taken.make_short(b"alongn~1").as_ref(), Some(b"ALONGN~1   "));
    }

    #[test]
    fn twenty_thousand_names_that_begin_alike_take_no_time() {
        let start = std::time::Instant::now();
        let mut taken = Taken::default();
        let mut all = HashSet::new();
        for i in 0..20_000 {
            let name = format!("the same beginning {i}.dat");
            assert!(taken.add_long(name.as_bytes()));
            assert!(all.insert(taken.make_short(name.as_bytes()).unwrap()));
        }
        // Some 20 ms; a search from ~1 on each time would take minutes.
        assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    }

    #[test]
    fn names_that_fat_can_not_have() {
        for name in ["", "a/b", "a:b", "end.", "end ", "tab\t", "*"] {
            assert_eq!(legal(name.as_bytes()), None, "{name:?}");
        }
        assert!(legal("x".repeat(255).as_bytes()).is_some());
        assert!(legal("x".repeat(256).as_bytes()).is_none());
    }

    proptest! {
        #[test]
        fn short_names_are_legal_and_unique(names in proptest::collection::hash_set(".{1,12}", 1..60)) {
            let mut taken = Taken::default();
            let mut seen = HashSet::new();
            for name in &names {
                let short = taken.make_short(name.as_bytes()).unwrap();
                prop_assert!(seen.insert(short));
                prop_assert!(short[0] != b' ' && short.iter().all(|b| is_short(*b) || *b == b' '));
            }
        }
    }
}
