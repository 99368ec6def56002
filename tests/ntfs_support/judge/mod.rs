//! A judge of whole NTFS volumes that shares no code with the program: what Windows' `chkdsk` looks at, and the checkers of Linux do
//! not. Each rule that is broken is a sentence that begins with the rule's name.

mod index;

use std::collections::{BTreeMap, BTreeSet};

/// Gives bytes of the volume.
pub type Read<'a> = &'a dyn Fn(u64, usize) -> Vec<u8>;

fn le(bytes: &[u8], at: usize, len: usize) -> u64 {
    bytes.get(at..at + len).map_or(0, |b| b.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)))
}

fn units(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
}

/// An attribute, or a piece of one.
#[derive(Clone, Debug)]
struct Attr {
    /// The record that it stands in.
    home: u64,
    kind: u64,
    name: Vec<u16>,
    flags: u64,
    instance: u64,
    value: Option<Vec<u8>>,
    lowest: u64,
    highest: u64,
    unit: u64,
    /// Allocated, data, initialized, really there.
    sizes: [u64; 4],
    /// Clusters, none for a hole, and how many.
    runs: Vec<(Option<u64>, u64)>,
}

impl Attr {
    fn there(&self) -> u64 {
        self.runs.iter().filter(|r| r.0.is_some()).map(|r| r.1).sum()
    }
}

#[derive(Clone, Debug)]
struct Rec {
    sequence: u64,
    flags: u64,
    links: u64,
    base: u64,
    attrs: Vec<Attr>,
}

const STANDARD: u64 = 0x10;
const LIST: u64 = 0x20;
const NAME: u64 = 0x30;
const SECURITY: u64 = 0x50;
const DATA: u64 = 0x80;
const ROOT: u64 = 0x90;
const BLOCKS: u64 = 0xA0;
const BITMAP: u64 = 0xB0;
const REPARSE: u64 = 0xC0;
const EA_INFORMATION: u64 = 0xD0;
const EA: u64 = 0xE0;
const NUMBER: u64 = 0xFFFF_FFFF_FFFF;
/// Of records below, mkntfs and Windows have forms of their own.
const USER: u64 = 24;

struct Judge<'a> {
    read: Read<'a>,
    cluster: u64,
    record: usize,
    clusters: u64,
    up: Vec<u16>,
    recs: BTreeMap<u64, Rec>,
    said: BTreeSet<String>,
}

/// Everything that is wrong with a volume.
pub fn judge(read: Read<'_>) -> BTreeSet<String> {
    let boot = read(0, 512);
    let sector = le(&boot, 0x0B, 2);
    let per = le(&boot, 0x0D, 1);
    let cluster = sector * if per > 0x80 { 1 << (256 - per) } else { per };
    let size = le(&boot, 0x40, 1) as u8 as i8;
    let record = if size < 0 { 1usize << -size } else { size as usize * cluster as usize };
    let mut judge = Judge {
        read,
        cluster,
        record,
        clusters: le(&boot, 0x28, 8) * sector / cluster,
        up: Vec::new(),
        recs: BTreeMap::new(),
        said: BTreeSet::new(),
    };
    judge.rule("boot", &boot[3..11] == b"NTFS    ", || "the name of the file system".into());
    let backup = read(le(&boot, 0x28, 8) * sector, 512);
    judge.rule("boot", backup == boot, || "the backup is another".into());
    judge.volume(le(&boot, 0x30, 8));
    judge.said
}

impl Judge<'_> {
    fn rule(&mut self, rule: &str, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.said.insert(format!("{rule}: {}", what()));
        }
    }
    fn volume(&mut self, mft: u64) {
        let first = (self.read)(mft * self.cluster, self.record);
        let Some(zero) = self.parse(0, first) else { return };
        let Some(data) = zero.attrs.iter().find(|a| a.kind == DATA).cloned() else {
            return self.rule("$MFT", false, || "no data".into());
        };
        let [allocated, size, valid, _] = data.sizes;
        let record = self.record as u64;
        self.rule("$MFT", size == valid && size.is_multiple_of(record) && size <= allocated, || format!("{data:?}"));
        let whole = self.stream(&data, size);
        let tenth = whole.chunks_exact(self.record).nth(10).map(<[u8]>::to_vec);
        let upcase = tenth.and_then(|b| self.parse(10, b)).and_then(|r| r.attrs.into_iter().find(|a| a.kind == DATA));
        self.up = upcase.map(|a| units(&self.stream(&a, 1 << 17))).unwrap_or_default();
        let mut in_use = Vec::new();
        for (n, bytes) in (0u64..).zip(whole.chunks_exact(self.record)) {
            in_use.push(le(bytes, 0x16, 2) & 1 != 0 && bytes.starts_with(b"FILE"));
            let empty = bytes.iter().all(|b| *b == 0);
            if !empty
                && let Some(rec) = self.parse(n, bytes.to_vec())
                && in_use[n as usize]
            {
                self.recs.insert(n, rec);
            }
        }
        let bits = self.value(0, BITMAP, "");
        let marked = |n: usize| bits.get(n / 8).is_some_and(|b| b >> (n % 8) & 1 != 0);
        for n in USER as usize..bits.len() * 8 {
            let is = in_use.get(n).copied().unwrap_or(false);
            self.rule("bitmap of $MFT", is == marked(n), || format!("record {n} in use: {is}"));
        }
        let mirror = self.value(1, DATA, "");
        let len = mirror.len().min(whole.len());
        self.rule("$MFTMirr", len >= 4 * self.record && mirror[..len] == whole[..len], || "another".into());
        self.log();
        self.rule("$UpCase", self.value(10, DATA, "").len() == 1 << 17, || "not of 65,536 units".into());
        self.files();
        self.clusters();
        self.directories();
    }
    /// Bytes of a value in clusters.
    fn stream(&self, attr: &Attr, size: u64) -> Vec<u8> {
        let mut out = Vec::new();
        for (at, len) in &attr.runs {
            let bytes = (len * self.cluster) as usize;
            match at {
                Some(at) => out.extend((self.read)(at * self.cluster, bytes)),
                None => out.resize(out.len() + bytes, 0),
            }
        }
        out.resize(size as usize, 0);
        let valid = attr.sizes[2].min(size) as usize;
        out[valid..].fill(0);
        out
    }
    /// A whole value of a file, also one in several pieces.
    fn value(&self, n: u64, kind: u64, name: &str) -> Vec<u8> {
        let name: Vec<u16> = name.encode_utf16().collect();
        let mut all: Vec<&Attr> = self.attrs(n).into_iter().filter(|a| a.kind == kind && a.name == name).collect();
        all.sort_by_key(|a| a.lowest);
        let Some(first) = all.first() else { return Vec::new() };
        if let Some(value) = &first.value {
            return value.clone();
        }
        let mut whole = (*first).clone();
        whole.runs = all.iter().flat_map(|a| a.runs.clone()).collect();
        self.stream(&whole, whole.sizes[1].min(1 << 28))
    }
    /// All attributes of a file, those in extension records too.
    fn attrs(&self, n: u64) -> Vec<&Attr> {
        let Some(rec) = self.recs.get(&n) else { return Vec::new() };
        let mut all: Vec<&Attr> = rec.attrs.iter().collect();
        for other in self.listed(rec) {
            all.extend(self.recs.get(&other).iter().flat_map(|r| &r.attrs));
        }
        all
    }
    fn list(&self, rec: &Rec) -> Vec<u8> {
        match rec.attrs.iter().find(|a| a.kind == LIST) {
            Some(Attr { value: Some(value), .. }) => value.clone(),
            Some(a) => self.stream(a, a.sizes[1].min(1 << 18)),
            None => Vec::new(),
        }
    }
    /// Extension records that a list names.
    fn listed(&self, rec: &Rec) -> BTreeSet<u64> {
        let (list, mut at, mut all) = (self.list(rec), 0, BTreeSet::new());
        let own = rec.attrs.first().map(|a| a.home);
        while at + 0x1A <= list.len() && le(&list, at + 4, 2) >= 0x1A {
            all.insert(le(&list, at + 0x10, 8) & NUMBER);
            at += le(&list, at + 4, 2) as usize;
        }
        all.retain(|n| Some(*n) != own);
        all
    }
    /// Undoes fix-ups.
    fn fixed(&mut self, what: &str, mut bytes: Vec<u8>) -> Option<Vec<u8>> {
        let (at, count) = (le(&bytes, 4, 2) as usize, le(&bytes, 6, 2) as usize);
        let fits = count == bytes.len() / 512 + 1 && at + 2 * count <= 510;
        self.rule("fix-ups", fits, || format!("{what}: {count} at {at:#x}"));
        let number = bytes.get(at..at + 2)?.to_vec();
        for i in 1..count.min(bytes.len() / 512 + 1) {
            let end = i * 512 - 2;
            self.rule("fix-ups", bytes[end..end + 2] == number, || format!("{what}: stride {i}"));
            let old = [bytes[at + 2 * i], bytes[at + 2 * i + 1]];
            bytes[end..end + 2].copy_from_slice(&old);
        }
        self.rule("fix-ups", number != [0, 0] && number != [0xFF, 0xFF], || format!("{what}: {number:?}"));
        fits.then_some(bytes)
    }
    /// The form of a record, in use or not.
    fn parse(&mut self, n: u64, bytes: Vec<u8>) -> Option<Rec> {
        let what = format!("record {n}");
        self.rule("record", bytes.starts_with(b"FILE"), || format!("{what}: signature"));
        let b = self.fixed(&what, bytes)?;
        let (first, used, next) = (le(&b, 0x14, 2) as usize, le(&b, 0x18, 4) as usize, le(&b, 0x28, 2));
        // mkntfs leaves it out of records that are not in use.
        let rule = if le(&b, 0x16, 2) & 1 != 0 { "record" } else { "free record" };
        self.rule(rule, le(&b, 0x2C, 4) == n, || format!("{what}: its own number"));
        self.rule("record", le(&b, 0x1C, 4) as usize == b.len(), || format!("{what}: bytes allocated"));
        self.rule("record", used.is_multiple_of(8) && used <= b.len(), || format!("{what}: {used} bytes in use"));
        let head = (0x30 + 2 * (b.len() / 512 + 1)).next_multiple_of(8);
        self.rule("record", first == head, || format!("{what}: attributes at {first:#x}"));
        self.rule("record", le(&b, 0x10, 2) != 0, || format!("{what}: sequence number 0"));
        let (mut at, mut attrs, mut instances) = (first, Vec::<Attr>::new(), BTreeSet::new());
        while at + 8 <= used.min(b.len()) && le(&b, at, 4) != 0xFFFF_FFFF {
            let len = le(&b, at + 4, 4) as usize;
            let fits = len >= 0x18 && len.is_multiple_of(8) && at + len + 8 <= used;
            self.rule("attribute", fits, || format!("{what}: {len} bytes at {at:#x}"));
            if !fits {
                return None;
            }
            let a = self.attribute(n, &b[at..at + len])?;
            self.rule("instances", instances.insert(a.instance) && a.instance < next, || {
                format!("{what}: {} where the next is {next}", a.instance)
            });
            if let Some(before) = attrs.last() {
                let order = (before.kind, self.folded(&before.name)) <= (a.kind, self.folded(&a.name));
                self.rule("order of attributes", order, || format!("{what}: {:#x}", a.kind));
            }
            attrs.push(a);
            at += len;
        }
        self.rule("record", le(&b, at, 4) == 0xFFFF_FFFF && at + 8 == used, || {
            format!("{what}: the end of attributes")
        });
        let links = le(&b, 0x12, 2);
        Some(Rec { sequence: le(&b, 0x10, 2), flags: le(&b, 0x16, 2), links, base: le(&b, 0x20, 8), attrs })
    }
    fn folded(&self, name: &[u16]) -> Vec<u16> {
        name.iter().map(|u| self.up.get(usize::from(*u)).copied().unwrap_or(*u)).collect()
    }
    fn attribute(&mut self, n: u64, b: &[u8]) -> Option<Attr> {
        let (kind, away, name_len, name_at) = (le(b, 0, 4), le(b, 8, 1), le(b, 9, 1) as usize, le(b, 10, 2) as usize);
        let what = format!("record {n}, attribute {kind:#x}");
        let mut a = Attr {
            home: n,
            kind,
            name: units(b.get(name_at..name_at + 2 * name_len)?),
            flags: le(b, 12, 2),
            instance: le(b, 14, 2),
            value: None,
            lowest: 0,
            highest: 0,
            unit: 0,
            sizes: [0; 4],
            runs: Vec::new(),
        };
        self.rule("attribute", away <= 1, || format!("{what}: neither resident nor not"));
        if away == 0 {
            let (len, at) = (le(b, 0x10, 4) as usize, le(b, 0x14, 2) as usize);
            let name_end = if name_len > 0 { name_at + 2 * name_len } else { 0x18 };
            let fits = at.is_multiple_of(8) && at >= name_end && (at + len).next_multiple_of(8) == b.len();
            self.rule("attribute", fits, || format!("{what}: {len} bytes at {at:#x} of {}", b.len()));
            self.rule("indexed", le(b, 0x16, 1) == u64::from(kind == NAME), || what.clone());
            a.value = Some(b.get(at..at + len)?.to_vec());
            return Some(a);
        }
        (a.lowest, a.highest, a.unit) = (le(b, 0x10, 8), le(b, 0x18, 8), le(b, 0x22, 2));
        let packed = a.flags & 0x8001 != 0 && a.lowest == 0;
        let head = if packed { 0x48 } else { 0x40 };
        a.sizes = [le(b, 0x28, 8), le(b, 0x30, 8), le(b, 0x38, 8), if packed { le(b, 0x40, 8) } else { 0 }];
        let mut at = le(b, 0x20, 2) as usize;
        let fits = at.is_multiple_of(8) && at >= head + 2 * name_len && (name_len == 0 || name_at >= head);
        self.rule("attribute", fits, || format!("{what}: runs at {at:#x}"));
        let mut lcn = 0i64;
        let signed = |at: usize, len: usize| -> i64 {
            let bits = 64 - 8 * len as u32;
            if len == 0 { 0 } else { ((le(b, at, len) << bits) as i64) >> bits }
        };
        while let Some(head) = b.get(at).copied().filter(|h| *h != 0) {
            let (count, delta) = (usize::from(head & 15), usize::from(head >> 4));
            let len = signed(at + 1, count);
            let fits = (1..=8).contains(&count) && delta <= 8 && at + 1 + count + delta < b.len() && len > 0;
            self.rule("runs", fits, || format!("{what}: {head:#x}, {len}"));
            if !fits {
                return None;
            }
            lcn = lcn.wrapping_add(signed(at + 1 + count, delta));
            a.runs.push(((delta > 0).then_some(lcn as u64), len as u64));
            at += 1 + count + delta;
        }
        self.rule("runs", b.get(at) == Some(&0), || format!("{what}: no end"));
        let all: u64 = a.runs.iter().map(|r| r.1).sum();
        self.rule("VCNs", a.highest.wrapping_add(1).wrapping_sub(a.lowest) == all, || format!("{what}: {a:?}"));
        let holes = all != a.there();
        // $BadClus is one hole, without the flag.
        self.rule("holes", !holes || a.flags & 0x8001 != 0 || n < USER, || what.clone());
        Some(a)
    }
    /// Restart pages: fix-ups, offsets, clean.
    fn log(&mut self) {
        let log = self.value(2, DATA, "");
        for at in [0, 4096] {
            let Some(page) = log.get(at..at + 4096) else { return };
            if page.iter().all(|b| *b == 0xFF) {
                continue;
            }
            let what = format!("restart page at {at}");
            self.rule("$LogFile", page.starts_with(b"RSTR"), || what.clone());
            let Some(page) = self.fixed(&what, page.to_vec()) else { continue };
            let area = le(&page, 0x18, 2) as usize;
            let clean = le(&page, area + 0x0C, 2) == 0xFFFF || le(&page, area + 0x0E, 2) & 2 != 0;
            self.rule("$LogFile", clean, || format!("{what}: not clean"));
        }
    }
    fn files(&mut self) {
        let ids = self.security_ids();
        let recs = std::mem::take(&mut self.recs);
        let mut extensions = BTreeSet::new();
        for (n, rec) in recs.iter().filter(|r| r.1.base == 0) {
            let own = n | rec.sequence << 48;
            let mut all: Vec<&Attr> = rec.attrs.iter().collect();
            let listed = self.listed(rec);
            for other in &listed {
                extensions.insert(*other);
                let found = recs.get(other).filter(|r| r.base == own && r.links == 0);
                self.rule("extensions", found.is_some(), || format!("record {other} of {n}"));
                all.extend(found.iter().flat_map(|r| &r.attrs));
            }
            self.attribute_list(*n, rec, &all, &recs);
            self.file(*n, rec, &all, &ids);
        }
        for (n, rec) in recs.iter().filter(|r| r.1.base != 0) {
            self.rule("extensions", extensions.contains(n), || format!("record {n} of {:#x} is in no list", rec.base));
        }
        self.recs = recs;
    }
    /// Sorted, and naming every attribute of the file but itself.
    fn attribute_list(&mut self, n: u64, rec: &Rec, all: &[&Attr], recs: &BTreeMap<u64, Rec>) {
        let list = self.list(rec);
        if list.is_empty() {
            return self.rule("attribute list", all.iter().all(|a| a.kind != LIST), || format!("record {n}: empty"));
        }
        let (mut at, mut last, mut named) = (0, None, BTreeSet::new());
        while at < list.len() {
            let (kind, len, count, name_at) = (
                le(&list, at, 4),
                le(&list, at + 4, 2) as usize,
                le(&list, at + 6, 1) as usize,
                le(&list, at + 7, 1) as usize,
            );
            let name = list.get(at + name_at..at + name_at + 2 * count).map(units);
            let fits = len >= 0x1A + 2 * count && len.is_multiple_of(8) && at + len <= list.len();
            let Some(name) = name.filter(|_| fits) else {
                return self
                    .rule("attribute list", false, || format!("record {n}: an entry of {len} bytes at {at:#x}"));
            };
            let (lowest, home, instance) = (le(&list, at + 8, 8), le(&list, at + 0x10, 8), le(&list, at + 0x18, 2));
            let here = (kind, self.folded(&name), lowest);
            self.rule("attribute list", last.is_none_or(|l| l <= here), || format!("record {n}: order at {at:#x}"));
            last = Some(here);
            let sequence = recs.get(&(home & NUMBER)).map(|r| r.sequence);
            self.rule("attribute list", sequence == Some(home >> 48), || format!("record {n}: reference {home:#x}"));
            named.insert((kind, name, lowest, home & NUMBER, instance));
            at += len;
        }
        let there: BTreeSet<_> = all
            .iter()
            .filter(|a| a.kind != LIST)
            .map(|a| (a.kind, a.name.clone(), a.lowest, a.home, a.instance))
            .collect();
        self.rule("attribute list", named == there, || {
            format!("record {n}: {:?}", named.symmetric_difference(&there).next())
        });
    }
    fn file(&mut self, n: u64, rec: &Rec, all: &[&Attr], ids: &BTreeSet<u64>) {
        let one = |kind: u64| all.iter().find(|a| a.kind == kind && a.name.is_empty()).copied();
        let names = all.iter().filter(|a| a.kind == NAME).count() as u64;
        self.rule("link count", rec.links == names && names > 0 || n < USER, || {
            format!("record {n}: {} of {names}", rec.links)
        });
        let mut seen = BTreeSet::new();
        for a in all.iter().filter(|a| a.kind != NAME) {
            self.rule("each once", seen.insert((a.kind, a.name.clone(), a.lowest)), || {
                format!("record {n}: {:#x}", a.kind)
            });
        }
        let Some(info) = one(STANDARD).and_then(|a| a.value.clone()) else {
            return self.rule("$STANDARD_INFORMATION", n < USER, || format!("record {n} has none"));
        };
        let own = one(SECURITY).is_some();
        let (id, bits) = (le(&info, 0x34, 4), le(&info, 0x20, 4));
        let known = info.len() == 72 && ids.contains(&id);
        self.rule("$STANDARD_INFORMATION", [48, 72].contains(&info.len()), || {
            format!("record {n}: {} bytes", info.len())
        });
        self.rule("security", own != known || n < USER, || format!("record {n}: own {own}, identity {id}"));
        let dir = rec.flags & 2 != 0;
        let index = all.iter().any(|a| a.kind == ROOT && a.name == units(b"$\0I\x003\x000\0"));
        self.rule("directory", dir == index || n < USER, || format!("record {n}: flag {dir}, index {index}"));
        let other = all.iter().any(|a| a.kind == ROOT);
        self.rule("data", dir || other || one(DATA).is_some() || n < USER, || format!("record {n} has none"));
        self.rule("reparse", (bits & 0x400 != 0) == one(REPARSE).is_some(), || format!("record {n}: {bits:#x}"));
        self.rule("$EA", one(EA).is_some() == one(EA_INFORMATION).is_some(), || format!("record {n}"));
        let values: BTreeSet<_> = all.iter().map(|a| (a.kind, a.name.clone())).collect();
        for (kind, name) in values {
            let mut pieces: Vec<&Attr> =
                all.iter().filter(|a| a.kind == kind && a.name == name && a.value.is_none()).copied().collect();
            pieces.sort_by_key(|a| a.lowest);
            if !pieces.is_empty() {
                self.sizes(n, bits, &pieces);
            }
        }
    }
    /// Sizes of a value in clusters, against its runs.
    fn sizes(&mut self, n: u64, bits: u64, pieces: &[&Attr]) {
        let first = pieces[0];
        let what = || format!("record {n}, attribute {:#x}", first.kind);
        let ends = pieces.windows(2).all(|p| p[0].highest.wrapping_add(1) == p[1].lowest);
        self.rule("VCNs", first.lowest == 0 && ends, what);
        let all: u64 = pieces.iter().flat_map(|p| &p.runs).map(|r| r.1).sum();
        let there: u64 = pieces.iter().map(|p| p.there()).sum();
        let [allocated, size, valid, real] = first.sizes;
        let packed = first.flags & 0x8001 != 0;
        self.rule("sizes", valid <= size && size <= allocated, || format!("{}: {:?}", what(), first.sizes));
        self.rule("sizes", allocated == all * self.cluster, || format!("{}: allocated {allocated}", what()));
        self.rule("sizes", !packed || real == there * self.cluster, || format!("{}: real {real}", what()));
        let rest = pieces[1..].iter().all(|p| p.sizes == [0; 4] && p.flags == first.flags);
        self.rule("sizes", rest, || format!("{}: later pieces", what()));
        // Of units of 16 clusters, or, in what ntfs3 writes, none.
        let unit = if packed { first.unit == 4 || first.unit == 0 && first.flags & 1 == 0 } else { first.unit == 0 };
        self.rule("unit", unit, || format!("{}: {}", what(), first.unit));
        if first.kind == DATA && first.name.is_empty() && n >= USER {
            let same =
                (first.flags & 0x8000 != 0) == (bits & 0x200 != 0) && (first.flags & 1 != 0) == (bits & 0x800 != 0);
            self.rule("flags", same, || format!("{}: {:#x} and {bits:#x}", what(), first.flags));
        }
    }
    /// Identities in `$Secure`.
    fn security_ids(&self) -> BTreeSet<u64> {
        let (all, mut ids, mut at) = (self.value(9, DATA, "$SDS"), BTreeSet::new(), 0);
        while at + 20 <= all.len() {
            let (id, offset, len) = (le(&all, at + 4, 4), le(&all, at + 8, 8), le(&all, at + 16, 4) as usize);
            if len < 20 || offset as usize != at {
                at = (at / 0x80000 + 1) * 0x80000;
                continue;
            }
            ids.insert(id);
            at = (at + len).next_multiple_of(16);
        }
        ids
    }
    /// Each cluster has as many owners as its bit says.
    fn clusters(&mut self) {
        let mut owned = vec![0u8; self.clusters as usize];
        let mut odd = Vec::new();
        for (n, rec) in &self.recs {
            for (at, len) in rec.attrs.iter().flat_map(|a| &a.runs) {
                for c in at.iter().flat_map(|at| *at..at + len) {
                    match owned.get_mut(c as usize) {
                        Some(count @ 0) => *count = 1,
                        Some(_) => odd.push(format!("cluster {c} has two owners, one is record {n}")),
                        None => odd.push(format!("cluster {c} of record {n} is beyond the end")),
                    }
                }
            }
        }
        let bits = self.value(6, DATA, "");
        for n in 0..bits.len() * 8 {
            let marked = bits[n / 8] >> (n % 8) & 1;
            let meant = owned.get(n).copied().unwrap_or(1);
            if marked != meant {
                odd.push(format!("cluster {n} is marked {marked}"));
            }
        }
        self.rule("$Bitmap", bits.len() * 8 >= owned.len(), || format!("{} bytes", bits.len()));
        self.said.extend(odd.into_iter().take(50).map(|what| format!("$Bitmap: {what}")));
    }
}
