//! Names: the OEM code page, 8.3 names shown and made, and which names are the same.

use crate::fs::fat::dirent::{LOWER_BASE, LOWER_EXT, Short};
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
