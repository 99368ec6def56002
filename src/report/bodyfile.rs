//! Bodyfiles, as `mactime` of The Sleuth Kit reads them.

use super::json::number;
use super::listing::Visit;
use super::path;
use crate::fs::{Kind, Object, StreamId};

/// One line of a bodyfile (The Sleuth Kit 3 and later: `MD5|name|inode|mode|UID|GID|size|atime|mtime|ctime|crtime`,
/// times in whole seconds since 1970, 0 where there is none) for an entry, and one for each of its named streams. A `|`
/// in a name, which would end the field, is written `%7C`.
pub fn lines(out: &mut Vec<u8>, visit: &Visit<'_>) {
    line(out, visit, None, visit.size());
    for (id, name) in visit.named() {
        stream(out, visit, id, name);
    }
}

/// One line for a named stream of an entry.
pub fn stream(out: &mut Vec<u8>, visit: &Visit<'_>, stream: StreamId, name: &[u8]) {
    line(out, visit, Some(name), visit.tree.stream(stream).size);
}

fn line(out: &mut Vec<u8>, visit: &Visit<'_>, stream: Option<&[u8]>, size: u64) {
    let object = visit.object();
    out.extend_from_slice(b"0|");
    name_field(out, visit.shown);
    if let Some(stream) = stream {
        out.push(b':');
        name_field(out, &path::escape_name(stream));
    } else if let Some(target) = visit.tree.target(visit.id) {
        out.extend_from_slice(b" -> ");
        name_field(out, &path::escape(target));
    }
    out.push(b'|');
    number(out, object.number);
    out.push(b'|');
    mode(out, object);
    let (uid, gid) = object.owner.unwrap_or_default();
    for field in [u64::from(uid), u64::from(gid), size] {
        out.push(b'|');
        number(out, field);
    }
    let times = &object.times;
    for time in [times.accessed, times.modified, times.changed, times.created] {
        out.push(b'|');
        let secs = time.map_or(0, |t| t.secs);
        if secs < 0 {
            out.push(b'-');
        }
        number(out, secs.unsigned_abs());
    }
    out.push(b'\n');
}

fn name_field(out: &mut Vec<u8>, shown: &str) {
    for (n, part) in shown.split('|').enumerate() {
        if n > 0 {
            out.extend_from_slice(b"%7C");
        }
        out.extend_from_slice(part.as_bytes());
    }
}

/// Kind and permissions as TSK writes them: `r/rrwxr-xr-x`. Where the file system has no permissions, all are given, but
/// for writing of what is read-only.
fn mode(out: &mut Vec<u8>, object: &Object) {
    let kind = match object.kind {
        Kind::File | Kind::Reparse(_) => b'r',
        Kind::Dir => b'd',
        Kind::Symlink | Kind::Junction => b'l',
        Kind::Fifo => b'p',
        Kind::Socket => b'h',
        Kind::CharDevice(..) => b'c',
        Kind::BlockDevice(..) => b'b',
    };
    out.extend_from_slice(&[kind, b'/', kind]);
    let bits = object.mode.unwrap_or(if object.attributes & 1 == 0 { 0o777 } else { 0o555 });
    let special = [(0o4000, b's', b'S'), (0o2000, b's', b'S'), (0o1000, b't', b'T')];
    for (shift, (bit, with, without)) in [6, 3, 0].into_iter().zip(special) {
        let triple = bits.wrapping_shr(shift);
        out.push(if triple & 4 != 0 { b'r' } else { b'-' });
        out.push(if triple & 2 != 0 { b'w' } else { b'-' });
        out.push(match (bits & bit != 0, triple & 1 != 0) {
            (true, true) => with,
            (true, false) => without,
            (false, true) => b'x',
            (false, false) => b'-',
        });
    }
}
