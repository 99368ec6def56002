use proptest::prelude::*;

use super::*;

const UNIT: u64 = 4;
const AT: u64 = 3;

/// What a stream is made of, before it is known where: length, and a seed for the place.
type Draft = Vec<(u64, u8, u64)>;

fn volume() -> impl Strategy<Value = (Vec<u8>, Vec<Draft>, u64)> {
    let piece = (1u64..20, 0u8..8, any::<u64>());
    let draft = proptest::collection::vec(piece, 0..5);
    // Each unit is free, the image's, or somebody else's.
    let units = proptest::collection::vec(prop_oneof![1 => Just(0u8), 6 => Just(1), 2 => Just(2)], 1..60);
    (units, proptest::collection::vec(draft, 0..12), any::<u64>())
}

fn runs(units: &[u8], like: u8) -> Vec<Range> {
    let mut out: Vec<Range> = Vec::new();
    for (i, _) in units.iter().enumerate().filter(|(_, u)| **u == like) {
        let at = AT + i as u64 * UNIT;
        match out.last_mut() {
            Some((start, len)) if *start + *len == at => *len += UNIT,
            _ => out.push((at, UNIT)),
        }
    }
    out
}

fn noise(len: u64, seed: u64) -> Vec<u8> {
    let mut out = vec![0; len as usize];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

/// A volume, and what its streams read as.
struct Case {
    disk: Vec<u8>,
    free: Vec<Range>,
    reuse: Reuse,
    streams: Vec<Vec<u8>>,
}

fn case(units: &[u8], drafts: &[Draft], seed: u64) -> Case {
    let len = AT + units.len() as u64 * UNIT;
    let disk = noise(len, seed);
    let (mut wants, mut streams) = (Vec::new(), Vec::new());
    // Bytes that are not in free units.
    let usable = runs(units, 1).into_iter().chain(runs(units, 2)).collect::<Vec<_>>();
    for (i, draft) in drafts.iter().enumerate() {
        let (mut from, mut bytes) = (Vec::new(), Vec::new());
        for (len, kind, place) in draft {
            let (at, room) = match usable.get((*place % usable.len().max(1) as u64) as usize) {
                Some((at, room)) => (at + place / 7 % room, room - place / 7 % room),
                None => (0, 0),
            };
            let len = *len;
            match kind {
                0 => {
                    from.push((len, Place::Zeros));
                    bytes.extend(vec![0; len as usize]);
                }
                1 => {
                    from.push((len, Place::Decoded));
                    bytes.extend(noise(len, *place));
                }
                _ if room > 0 => {
                    let len = len.min(room);
                    from.push((len, Place::At(at)));
                    bytes.extend_from_slice(&disk[at as usize..(at + len) as usize]);
                }
                _ => {}
            }
        }
        // What is behind the pieces is to be decoded.
        let more = noise(seed.rotate_left(i as u32) % 3, seed);
        bytes.extend_from_slice(&more);
        wants.push(Want { entry: i * 10, size: bytes.len() as u64, from });
        streams.push(bytes);
    }
    let reuse = Reuse { unit: UNIT, units_at: AT, left: runs(units, 1), wants };
    Case { disk, free: runs(units, 0), reuse, streams }
}

/// Carries a layout out on bytes: what goes to free units, then each batch, backwards where `turned`.
fn carry_out(case: &Case, layout: &Layout, turned: bool) {
    let Case { disk, reuse, streams, .. } = case;
    let mut disk = disk.clone();
    // What each place will hold, by the copies.
    let mut after: BTreeMap<u64, u8> = BTreeMap::new();
    for ((entry, to), (want, bytes)) in layout.copies.iter().zip(reuse.wants.iter().zip(streams)) {
        assert_eq!(*entry, want.entry);
        let mut bytes = bytes.iter().copied();
        for (at, len) in to {
            (*at..at + len).for_each(|p| assert_eq!(after.insert(p, bytes.next().unwrap_or(0)), None, "filled twice"));
        }
        assert_eq!(bytes.next(), None, "all of it has a place");
    }
    let in_image = |p: &u64| layout.moves.iter().any(|m| (m.to.get()..m.to.get() + m.len).contains(p));
    let of_image = |p: &u64| reuse.left.iter().any(|(at, len)| (*at..at + len).contains(p));
    let free = |p: &u64| case.free.iter().any(|(at, len)| (*at..at + len).contains(p));
    for (p, byte) in &after {
        assert_eq!((in_image(p), free(p)), (of_image(p), !of_image(p)), "moves fill the image's units, and no others");
        if free(p) {
            disk[*p as usize] = *byte;
        }
    }
    assert_eq!(sound(layout.moves.iter()), Ok(()));
    let mut moves: Vec<&Move> = layout.moves.iter().collect();
    if turned {
        moves.reverse();
        moves.sort_by_key(|m| m.batch);
    }
    for m in moves {
        let bytes: Vec<u8> = match &m.from {
            None => (m.to.get()..m.to.get() + m.len).map(|p| after[&p]).collect(),
            Some(from) => from
                .iter()
                .flat_map(|(len, at)| match at {
                    Some(at) => disk[*at as usize..(at + len) as usize].to_vec(),
                    None => vec![0; *len as usize],
                })
                .collect(),
        };
        assert_eq!(bytes.len() as u64, m.len);
        disk[m.to.get() as usize..(m.to.get() + m.len) as usize].copy_from_slice(&bytes);
    }
    for (p, byte) in &after {
        assert_eq!(disk[*p as usize], *byte, "byte {p}");
    }
    for (at, len) in &layout.rest {
        assert!((*at..at + len).all(|p| of_image(&p) && !after.contains_key(&p)), "the rest is nobody's");
    }
    for (p, byte) in case.disk.iter().enumerate() {
        let p = p as u64;
        assert!(after.contains_key(&p) || disk[p as usize] == *byte, "nothing else is written");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]
    #[test]
    fn whatever_is_laid_out_gives_every_byte((units, drafts, seed) in volume()) {
        let case = case(&units, &drafts, seed);
        let free: u64 = case.free.iter().map(|(_, len)| len / UNIT).sum();
        match case.reuse.lay_out(&case.free) {
            Some(layout) => {
                carry_out(&case, &layout, false);
                carry_out(&case, &layout, true);
                let rest: u64 = layout.rest.iter().map(|(_, len)| len / UNIT).sum();
                let moved: u64 = layout.moves.iter().map(|m| m.len / UNIT).sum();
                prop_assert_eq!(rest + moved, case.reuse.units());
            }
            None => prop_assert!(case.reuse.needed() > free + case.reuse.units()),
        }
    }
    #[test]
    fn an_order_that_overwrites_what_is_read_is_found(
        moves in proptest::collection::vec((0u32..3, 0u64..40, 1u64..6, 0u64..40), 1..6),
    ) {
        let mut moves: Vec<Move> = moves
            .into_iter()
            .map(|(batch, to, len, at)| Move { batch, to: Offset::new(to), len, from: Some(vec![(len, Some(at))]) })
            .collect();
        moves.sort_by_key(|m| m.batch);
        let range = |m: &Move| m.to.get()..m.to.get() + m.len;
        let meet = |a: &std::ops::Range<u64>, b: &std::ops::Range<u64>| a.start < b.end && b.start < a.end;
        let gaps = moves.first().is_some_and(|m| m.batch > 1) || moves.windows(2).any(|w| w[1].batch > w[0].batch + 1);
        let twice = (0..moves.len()).any(|i| (0..i).any(|j| meet(&range(&moves[i]), &range(&moves[j]))));
        let read = |m: &Move| m.from.as_ref().map(|f| f[0].1.unwrap()..f[0].1.unwrap() + m.len).unwrap();
        let wrong = moves.iter().any(|r| moves.iter().any(|w| w.batch <= r.batch && meet(&range(w), &read(r))));
        prop_assert_eq!(sound(moves.iter()).is_err(), gaps || twice || wrong);
    }
    #[test]
    fn ranges_without_others(units in proptest::collection::vec(0u8..4, 0..80)) {
        let of = |like: &dyn Fn(u8) -> bool| {
            let marked: Vec<u8> = units.iter().map(|u| u8::from(like(*u))).collect();
            runs(&marked, 1)
        };
        let left = subtract(&of(&|u| u & 1 != 0), &of(&|u| u & 2 != 0));
        prop_assert_eq!(left, of(&|u| u == 1));
    }
}

/// All of a large image shifted against the units, and hardly anything free: the journal gets a small part of it, and the batches
/// are few.
#[test]
fn a_shifted_image_needs_little_of_the_journal() {
    let (unit, units) = (4096u64, 100_000u64);
    let (file, count) = (30 * unit, units / 30 - 1);
    let want = |i: u64| Want { entry: i as usize, size: file, from: vec![(file, Place::At(i * file + 1536))] };
    let reuse = Reuse { unit, units_at: 0, left: vec![(0, units * unit)], wants: (0..count).map(want).collect() };
    let layout = reuse.lay_out(&[]).unwrap();
    assert_eq!(sound(layout.moves.iter()), Ok(()));
    let kept: u64 = layout.moves.iter().filter(|m| m.from.is_none()).map(|m| m.len).sum();
    assert!(kept <= units * unit / 60, "{kept} bytes kept");
    assert!(layout.moves.last().unwrap().batch <= 70, "{} batches", layout.moves.last().unwrap().batch);
}

/// One file as large as nearly all of the image.
#[test]
fn a_file_that_overlaps_itself_is_moved_in_parts() {
    let size = 64 << 20;
    let want = Want { entry: 0, size, from: vec![(size, Place::At(700))] };
    let reuse = Reuse { unit: 4096, units_at: 0, left: vec![(0, size + 4096)], wants: vec![want] };
    let layout = reuse.lay_out(&[]).unwrap();
    assert_eq!(sound(layout.moves.iter()), Ok(()));
    let kept: u64 = layout.moves.iter().filter(|m| m.from.is_none()).map(|m| m.len).sum();
    assert!(kept < size / 30, "{kept} bytes kept");
}
