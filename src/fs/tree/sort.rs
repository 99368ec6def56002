//! Streams and entries of a tree in their order.

use super::{Entry, EntryId, NameId, StreamInfo, next};

/// Sorts streams by object, unnamed first; gives the first stream of each of `objects` and one more.
pub(super) fn sort_streams(streams: &mut [StreamInfo], names: &[u8], objects: usize) -> Vec<u32> {
    let text = |name: NameId| name.of(names);
    // Readers add them in order, nearly always: then this is one pass.
    streams.sort_by(|a, b| a.object.cmp(&b.object).then_with(|| a.name.map(text).cmp(&b.name.map(text))));
    let mut first = Vec::with_capacity(objects.saturating_add(1));
    let mut at = 0usize;
    for object in 0..=objects {
        while streams.get(at).is_some_and(|s| s.object.index() < object) {
            at = at.saturating_add(1);
        }
        first.push(next(at));
    }
    first
}

/// Entries by parent, then by name; and the range of them that each of `objects` has.
pub(super) fn sort_entries(entries: &[Entry], names: &[u8], objects: usize) -> (Vec<EntryId>, Vec<(u32, u32)>) {
    let name = |id: &EntryId| entries.get(id.index()).map(|e| e.name).unwrap_or_default().of(names);
    // By parent in two passes over the entries: count, then place. The root's entry for itself is no child of it.
    let children_of_others = || (0..).map(EntryId).zip(entries).filter(|(_, e)| e.parent != e.object);
    let mut children = vec![(0u32, 0u32); objects];
    for (_, e) in children_of_others() {
        if let Some((_, count)) = children.get_mut(e.parent.index()) {
            *count = count.saturating_add(1);
        }
    }
    let mut at = 0u32;
    for (start, end) in &mut children {
        *start = at;
        at = at.saturating_add(*end);
        *end = *start;
    }
    let mut ids = vec![EntryId(0); at as usize];
    for (id, e) in children_of_others() {
        if let Some((_, end)) = children.get_mut(e.parent.index())
            && let Some(slot) = ids.get_mut(*end as usize)
        {
            *slot = id;
            *end = end.saturating_add(1);
        }
    }
    // Then the names of each directory, which are often in order, or in a few stretches that are.
    sort_siblings(&mut ids, &children, &|siblings| siblings.sort_by(|a, b| name(a).cmp(name(b))));
    (ids, children)
}

/// Calls `sort` for the children of each of these objects, for many of them in parallel. `ids` begins with the first one's.
fn sort_siblings(ids: &mut [EntryId], children: &[(u32, u32)], sort: &(impl Fn(&mut [EntryId]) + Sync)) {
    const ALONE: usize = 16_384;
    let base = children.first().map_or(0, |(start, _)| *start);
    let (first, last) = children.split_at(children.len() / 2);
    if ids.len() > ALONE && !first.is_empty() {
        let here = last.first().map_or(0, |(start, _)| start.saturating_sub(base));
        let (a, b) = ids.split_at_mut((here as usize).min(ids.len()));
        rayon::join(|| sort_siblings(a, first, sort), || sort_siblings(b, last, sort));
        return;
    }
    for (start, end) in children {
        let range = start.saturating_sub(base) as usize..end.saturating_sub(base) as usize;
        match ids.get_mut(range) {
            Some(siblings) if siblings.len() > 1 => sort(siblings),
            _ => {}
        }
    }
}
