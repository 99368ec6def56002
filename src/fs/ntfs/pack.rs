//! The attributes of one file over as many records as they need.

use std::borrow::Cow;

use crate::fs::ntfs::encode::{
    COMPRESSED, Mapped, SPARSE, list_entry, list_entry_len, mapped, mapped_head, resident, resident_len,
};
use crate::fs::ntfs::layout::kind;
use crate::fs::ntfs::runs::{self, HOLE, Run};

/// The most bytes that an `$ATTRIBUTE_LIST` may have.
const MAX_LIST: usize = 256 << 10;
/// Bytes of mapping pairs that are worth a piece of their own.
const FEW: usize = 32;

/// A value of a file.
#[derive(Clone, Debug)]
pub struct Value<'a> {
    /// Type of the attribute.
    pub kind: u32,
    /// Its name.
    pub name: Cow<'a, [u16]>,
    /// What it is.
    pub body: Body<'a>,
}

/// What a value is.
#[derive(Clone, Debug)]
pub enum Body<'a> {
    /// In the record; whether an index has it.
    Resident(Cow<'a, [u8]>, bool),
    /// In clusters.
    Runs {
        /// Where.
        runs: Cow<'a, [Run]>,
        /// Bytes.
        size: u64,
        /// Bytes that are initialized.
        valid: u64,
        /// Whether they are compressed, in units of 16 clusters.
        packed: bool,
    },
}

impl Value<'_> {
    /// The same, borrowed.
    pub fn borrowed(&self) -> Value<'_> {
        let body = match &self.body {
            Body::Resident(value, indexed) => Body::Resident(Cow::Borrowed(value), *indexed),
            Body::Runs { runs, size, valid, packed } => {
                Body::Runs { runs: Cow::Borrowed(runs), size: *size, valid: *valid, packed: *packed }
            }
        };
        Value { kind: self.kind, name: Cow::Borrowed(&self.name), body }
    }
    /// Bytes of its attribute, in one piece.
    pub fn len(&self) -> usize {
        match &self.body {
            Body::Resident(v, _) => resident_len(self.name.len(), v.len()),
            Body::Runs { runs, .. } => {
                let pairs = runs::encoded_len(runs).saturating_add(1);
                mapped_head(&self.name, self.form().0, 0).saturating_add(pairs).next_multiple_of(8)
            }
        }
    }
    /// Flags, and the compression unit.
    fn form(&self) -> (u16, u8) {
        match (self.packed(), self.sparse()) {
            (true, _) => (COMPRESSED, 4),
            (_, true) => (SPARSE, 4),
            _ => (0, 0),
        }
    }
    /// Whether it has holes.
    pub fn sparse(&self) -> bool {
        matches!(&self.body, Body::Runs { runs, packed: false, .. } if runs.iter().any(|r| r.lcn == HOLE))
    }
    /// Whether it is compressed.
    pub fn packed(&self) -> bool {
        matches!(&self.body, Body::Runs { packed: true, .. })
    }
    /// Bytes of its clusters with and without holes, and of data; of a resident value its length up to 8, as ntfs-3g has it.
    pub fn sizes(&self, cluster: u64) -> [u64; 3] {
        match &self.body {
            Body::Resident(value, _) => {
                let len = value.len() as u64;
                let allocated = len.next_multiple_of(8);
                [allocated, allocated, len]
            }
            Body::Runs { runs, size, .. } => {
                let all: u64 = runs.iter().map(|r| r.len).sum();
                let there: u64 = runs.iter().filter(|r| r.lcn != HOLE).map(|r| r.len).sum();
                [all.saturating_mul(cluster), there.saturating_mul(cluster), *size]
            }
        }
    }
    fn mapped(&self, cluster: u64) -> Mapped {
        let [allocated, there, size] = self.sizes(cluster);
        let valid = if let Body::Runs { valid, .. } = &self.body { *valid } else { size };
        let (flags, unit) = self.form();
        Mapped { flags, unit, sizes: [allocated, size, valid, there] }
    }
}

/// An attribute, or a piece of one.
#[derive(Clone, Debug)]
pub struct Piece {
    /// Type.
    pub kind: u32,
    /// Name.
    pub name: Vec<u16>,
    /// First VCN.
    pub lowest: u64,
    /// The attribute, but for its instance.
    pub bytes: Vec<u8>,
}

/// A file's records, the base first.
#[derive(Debug, Default)]
pub struct Packed {
    /// Attributes of each record, in order.
    pub records: Vec<Vec<Piece>>,
    /// Bytes of the attribute list, 0 where there is none.
    pub list: usize,
}

/// Packs values, ordered by type and name (`$STANDARD_INFORMATION` first), into records with `capacity` bytes for
/// attributes. None where they can't be: one does not fit into a record, or the list is too long.
pub fn pack(values: &[Value<'_>], capacity: usize, cluster: u64) -> Option<Packed> {
    if let Some(pieces) = values.iter().map(|v| piece(v, cluster, capacity)).collect::<Option<Vec<_>>>()
        && sum(&pieces) <= capacity
    {
        return Some(Packed { records: vec![pieces], ..Packed::default() });
    }
    let mut base = Vec::new();
    let mut extensions: Vec<Vec<Piece>> = vec![Vec::new()];
    let mut room = capacity;
    for value in values {
        let first_name = value.kind == kind::FILE_NAME && !base.iter().any(|p: &Piece| p.kind == kind::FILE_NAME);
        if value.kind == kind::STANDARD_INFORMATION || first_name {
            base.push(piece(value, cluster, capacity)?);
            continue;
        }
        match &value.body {
            Body::Resident(..) => {
                let piece = piece(value, cluster, capacity)?;
                if piece.bytes.len() > room {
                    extensions.push(Vec::new());
                    room = capacity;
                }
                room = room.saturating_sub(piece.bytes.len());
                extensions.last_mut()?.push(piece);
            }
            Body::Runs { runs, .. } => {
                let m = value.mapped(cluster);
                let mut rest: &[Run] = runs;
                let mut lowest = 0u64;
                while !rest.is_empty() {
                    if room < mapped_head(&value.name, m.flags, lowest).saturating_add(FEW) {
                        extensions.push(Vec::new());
                        room = capacity;
                    }
                    let (bytes, used) = mapped(value.kind, &value.name, &m, lowest, rest, room)?;
                    let (now, later) = rest.split_at_checked(used)?;
                    room = room.saturating_sub(bytes.len());
                    extensions.last_mut()?.push(Piece { kind: value.kind, name: value.name.to_vec(), lowest, bytes });
                    lowest = now.iter().fold(lowest, |n, r| n.saturating_add(r.len));
                    rest = later;
                }
            }
        }
    }
    let all = || base.iter().chain(extensions.iter().flatten());
    let list = all().map(|p| list_entry_len(&p.name)).fold(0, usize::saturating_add);
    if list > MAX_LIST {
        return None;
    }
    // At least a list that has clusters of its own must fit beside the rest.
    if capacity.saturating_sub(sum(&base)) < 0x60 {
        return None;
    }
    let records = std::iter::once(base).chain(extensions).collect();
    Some(Packed { records, list })
}

/// Bytes that a value takes in a record at least.
pub fn least(value: &Value<'_>) -> usize {
    match &value.body {
        Body::Resident(v, _) => resident_len(value.name.len(), v.len()),
        Body::Runs { .. } => mapped_head(&value.name, value.form().0, 0).saturating_add(8),
    }
}

fn sum(pieces: &[Piece]) -> usize {
    pieces.iter().map(|p| p.bytes.len()).fold(0, usize::saturating_add)
}

/// The attribute of a value in one piece of at most `room` bytes.
pub fn whole(value: &Value<'_>, cluster: u64, room: usize) -> Option<Vec<u8>> {
    let bytes = match &value.body {
        Body::Resident(v, indexed) => resident(value.kind, &value.name, v, *indexed),
        Body::Runs { runs, .. } => {
            let (bytes, used) = mapped(value.kind, &value.name, &value.mapped(cluster), 0, runs, room)?;
            if used < runs.len() {
                return None;
            }
            bytes
        }
    };
    (bytes.len() <= room).then_some(bytes)
}

fn piece(value: &Value<'_>, cluster: u64, room: usize) -> Option<Piece> {
    let bytes = whole(value, cluster, room)?;
    Some(Piece { kind: value.kind, name: value.name.to_vec(), lowest: 0, bytes })
}

impl Packed {
    /// The attribute list, for records with these references.
    pub fn list(&self, references: &[u64]) -> Vec<u8> {
        let mut entries: Vec<(u32, &[u16], u64, Vec<u8>)> = Vec::new();
        for (r, (record, reference)) in self.records.iter().zip(references).enumerate() {
            for (i, piece) in (0u16..).zip(record) {
                // In the base the list itself stands behind the first attribute.
                let instance = if r == 0 && i > 0 { i.saturating_add(1) } else { i };
                let bytes = list_entry(piece.kind, &piece.name, piece.lowest, *reference, instance);
                entries.push((piece.kind, &piece.name, piece.lowest, bytes));
            }
        }
        // Records hold the pieces in order, so that names of one type stay in theirs.
        entries.sort_by_key(|e| e.0);
        entries.into_iter().flat_map(|e| e.3).collect()
    }
    /// Puts the list into the base: its bytes, or where they are.
    pub fn with_list(&mut self, list: &[u8], runs: Option<(&[Run], u64)>, cluster: u64) -> Option<()> {
        let body = match runs {
            None => Body::Resident(list.into(), false),
            Some((runs, size)) => Body::Runs { runs: runs.into(), size, valid: size, packed: false },
        };
        let piece =
            piece(&Value { kind: kind::ATTRIBUTE_LIST, name: Cow::default(), body }, cluster, usize::from(u16::MAX))?;
        self.records.first_mut()?.insert(1, piece);
        Some(())
    }
}
