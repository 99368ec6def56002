//! Indexes: their form, their order, and that they have the names that the records have.

use std::collections::{BTreeSet, HashMap};

use super::{BITMAP, BLOCKS, DATA, EA_INFORMATION, Judge, NAME, NUMBER, REPARSE, ROOT, Rec, STANDARD, USER, le, units};

/// An entry of an index: what it leads to, and its key.
type Entry = (u64, Vec<u8>);

/// Whether one key stands before another.
type Before<'a> = &'a dyn Fn(&Judge<'_>, &[u8], &[u8]) -> bool;

impl Judge<'_> {
    /// The entries of an index in order, each before the next.
    fn index(&mut self, n: u64, name: &str, before: Before<'_>) -> Vec<Entry> {
        let what = format!("record {n}, index {name}");
        let (root, blocks, bits) =
            (self.value(n, ROOT, name), self.value(n, BLOCKS, name), self.value(n, BITMAP, name));
        let block = le(&root, 8, 4) as usize;
        let fits = block.is_power_of_two() && (512..=65536).contains(&block);
        self.rule("index", fits, || format!("{what}: blocks of {block}"));
        if !fits {
            return Vec::new();
        }
        let unit = if block as u64 >= self.cluster { self.cluster } else { 512 };
        self.rule("index", le(&root, 12, 1) == block as u64 / unit, || format!("{what}: clusters of a block"));
        self.rule("index", blocks.len().is_multiple_of(block), || format!("{what}: {} bytes of blocks", blocks.len()));
        let mut walk = Walk {
            what,
            block,
            unit,
            blocks: &blocks,
            seen: BTreeSet::new(),
            depths: BTreeSet::new(),
            out: Vec::new(),
        };
        self.node(&mut walk, root.get(16..).unwrap_or_default(), 0, true);
        let Walk { what, seen, depths, out, .. } = walk;
        self.rule("index", depths.len() <= 1, || format!("{what}: leaves at {depths:?}"));
        for i in 0..(bits.len() * 8) as u64 {
            let marked = bits[i as usize / 8] >> (i % 8) & 1 != 0;
            self.rule("bitmap of an index", marked == seen.contains(&i), || {
                format!("{what}: block {i} marked {marked}")
            });
        }
        self.rule("bitmap of an index", seen.is_empty() || !bits.is_empty(), || what.clone());
        for pair in out.windows(2) {
            let right = before(self, &pair[0].1, &pair[1].1);
            self.rule("order of an index", right, || {
                format!("{what}: {:?}", String::from_utf16_lossy(&units(pair[1].1.get(0x42..).unwrap_or_default())))
            });
        }
        out
    }
    fn node(&mut self, walk: &mut Walk<'_>, b: &[u8], depth: usize, root: bool) {
        let (first, used, allocated, flags) =
            (le(b, 0, 4) as usize, le(b, 4, 4) as usize, le(b, 8, 4) as usize, le(b, 12, 1));
        let head = if root { 16 } else { (0x28 + 2 * (walk.block / 512 + 1)).next_multiple_of(8) - 0x18 };
        let fits = first == head && used <= allocated && allocated == b.len() && used.is_multiple_of(8);
        self.rule("index", fits, || {
            format!("{}: a node of {first:#x}, {used:#x}, {allocated:#x} in {:#x}", walk.what, b.len())
        });
        let (mut at, mut count) = (first, 0);
        loop {
            let (reference, len, key, entry) =
                (le(b, at, 8), le(b, at + 8, 2) as usize, le(b, at + 10, 2) as usize, le(b, at + 12, 2));
            let (child, end) = (entry & 1 != 0, entry & 2 != 0);
            let meant = (16 + if end { 0 } else { key }).next_multiple_of(8) + if child { 8 } else { 0 };
            let fits =
                len == meant && at + len <= used && at + len <= b.len() && entry < 4 && child == (flags & 1 != 0);
            self.rule("index", fits, || format!("{}: an entry of {len} bytes, {entry} in {flags}", walk.what));
            if !fits {
                return;
            }
            if child {
                self.block(walk, le(b, at + len - 8, 8), depth + 1);
            }
            if end {
                self.rule("index", at + len == used, || format!("{}: bytes in use", walk.what));
                break;
            }
            count += 1;
            walk.out.push((reference, b[at + 16..at + 16 + key].to_vec()));
            at += len;
        }
        if flags & 1 == 0 {
            walk.depths.insert(depth);
            self.rule("index", root || count > 0, || format!("{}: an empty leaf", walk.what));
        }
    }
    fn block(&mut self, walk: &mut Walk<'_>, vcn: u64, depth: usize) {
        let at = vcn * walk.unit;
        let (number, what) = (at / walk.block as u64, format!("{}: block {vcn}", walk.what));
        let fits = at.is_multiple_of(walk.block as u64) && at + walk.block as u64 <= walk.blocks.len() as u64;
        self.rule("index", fits && walk.seen.insert(number), || what.clone());
        if !fits || depth > 20 {
            return;
        }
        let bytes = walk.blocks[at as usize..][..walk.block].to_vec();
        self.rule("index", bytes.starts_with(b"INDX") && le(&bytes, 4, 2) == 0x28, || format!("{what}: head"));
        let Some(bytes) = self.fixed(&what, bytes) else { return };
        self.rule("index", le(&bytes, 16, 8) == vcn, || format!("{what}: its own place"));
        self.node(walk, &bytes[0x18..], depth, false);
    }
    /// Every name of every file has its entry, and no entry is without one; copies in both are what the file says.
    pub(super) fn directories(&mut self) {
        let dirs: Vec<u64> = self.recs.iter().filter(|r| r.1.base == 0 && r.1.flags & 2 != 0).map(|r| *r.0).collect();
        let mut entries: HashMap<(u64, Vec<u8>), Entry> = HashMap::new();
        for n in &dirs {
            let sequence = self.recs[n].sequence;
            let all = self.index(*n, "$I30", &|judge, a, b| {
                let (a, b) = (units(a.get(0x42..).unwrap_or_default()), units(b.get(0x42..).unwrap_or_default()));
                (judge.folded(&a), a) < (judge.folded(&b), b)
            });
            for (reference, key) in all {
                let short = key.len() < 0x44 || key.len() != 0x42 + 2 * usize::from(key[0x40]);
                self.rule("entries", !short && le(&key, 0, 8) == n | sequence << 48, || format!("record {n}: a key"));
                if !short {
                    entries.insert((*n, key[0x40..].to_vec()), (reference, key));
                }
            }
        }
        let mut points = BTreeSet::new();
        let numbers: Vec<u64> = self.recs.iter().filter(|r| r.1.base == 0).map(|r| *r.0).collect();
        for n in numbers {
            let rec = &self.recs[&n];
            let own = n | rec.sequence << 48;
            let names: Vec<Vec<u8>> =
                self.attrs(n).iter().filter(|a| a.kind == NAME).filter_map(|a| a.value.clone()).collect();
            let meant = self.copies(n);
            let point = self.attrs(n).iter().any(|a| a.kind == REPARSE);
            if point {
                points.insert((le(&self.value(n, REPARSE, ""), 0, 4), own));
            }
            for name in names {
                let text = units(name.get(0x42..).unwrap_or_default());
                let shown = String::from_utf16_lossy(&text);
                let dir = le(&name, 0, 8) & NUMBER;
                let found = entries.remove(&(dir, name.get(0x40..).unwrap_or_default().to_vec()));
                self.rule("names", found.as_ref().is_some_and(|f| f.0 == own), || {
                    format!("record {n}: {shown} in {dir}")
                });
                self.rule("Win32", legal(&text) || n < USER, || format!("record {n}: {shown:?}"));
                let Some((_, key)) = found else { continue };
                if n >= USER {
                    self.rule("copies in the index", Some(&key[8..0x40]) == meant.as_deref(), || {
                        format!("record {n}: {shown}")
                    });
                    self.rule("copies in the record", name == key, || format!("record {n}: {shown}"));
                }
            }
        }
        for ((dir, _), (reference, key)) in entries {
            let name = String::from_utf16_lossy(&units(&key[0x42..]));
            self.rule("entries", false, || {
                format!("record {dir}: {name} leads to {reference:#x}, which has no such name")
            });
        }
        self.points(&points);
    }
    /// What each name of a file has to say of it: times, sizes, attributes, and the tag of a reparse point or the length of attributes.
    fn copies(&self, n: u64) -> Option<Vec<u8>> {
        let rec = self.recs.get(&n)?;
        let info = self.value(n, STANDARD, "");
        let mut out = info.get(..0x20)?.to_vec();
        let mut bits = le(&info, 0x20, 4);
        let data = self.attrs(n).into_iter().find(|a| a.kind == DATA && a.name.is_empty() && a.lowest == 0);
        let (mut allocated, mut size) = (0, 0);
        if rec.flags & 2 != 0 {
            bits |= 0x1000_0000;
        } else if let Some(data) = data {
            (allocated, size) = match &data.value {
                Some(value) => (value.len().next_multiple_of(8) as u64, value.len() as u64),
                None => (data.sizes[if data.flags & 0x8001 != 0 { 3 } else { 0 }], data.sizes[1]),
            };
        }
        let tag = self.value(n, REPARSE, "");
        let word = if tag.is_empty() { le(&self.value(n, EA_INFORMATION, ""), 0, 2) } else { le(&tag, 0, 4) };
        out.extend(allocated.to_le_bytes());
        out.extend(size.to_le_bytes());
        out.extend((bits as u32).to_le_bytes());
        out.extend((word as u32).to_le_bytes());
        Some(out)
    }
    /// The index of reparse points.
    fn points(&mut self, points: &BTreeSet<(u64, u64)>) {
        let named = |rec: &Rec| rec.attrs.iter().any(|a| a.kind == ROOT && a.name == [0x24, 0x52]);
        let Some(n) = self.recs.iter().find(|r| named(r.1)).map(|r| *r.0) else { return };
        let words = |key: &[u8]| [le(key, 0, 4), le(key, 4, 4), le(key, 8, 4)];
        let all = self.index(n, "$R", &|_, a, b| words(a) < words(b));
        let found: BTreeSet<(u64, u64)> = all.iter().map(|(_, key)| (le(key, 0, 4), le(key, 4, 8))).collect();
        self.rule("index of reparse points", &found == points, || {
            format!("{:x?}", found.symmetric_difference(points).next())
        });
    }
}

struct Walk<'b> {
    what: String,
    block: usize,
    unit: u64,
    blocks: &'b [u8],
    seen: BTreeSet<u64>,
    depths: BTreeSet<usize>,
    out: Vec<Entry>,
}

/// Whether Win32 can open a file of this name.
fn legal(name: &[u16]) -> bool {
    let text = String::from_utf16_lossy(name);
    let stem = text.split('.').next().unwrap_or_default().trim_end().to_uppercase();
    let numbered = |word: &str| stem.strip_prefix(word).is_some_and(|n| matches!(n.as_bytes(), [b'1'..=b'9']));
    let device = ["CON", "PRN", "AUX", "NUL"].contains(&&*stem) || numbered("COM") || numbered("LPT");
    let odd = |c: char| c < ' ' || "\"*/:<>?\\|".contains(c);
    !device && !text.contains(odd) && !text.ends_with(['.', ' ']) && !text.is_empty()
}
