//! What holds for every map, and for every way of joining maps.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;

/// Bytes in memory. Reading any of `bad` fails.
struct Memory {
    id: LayerId,
    bytes: Vec<u8>,
    bad: Range<u64>,
}

impl<S: Space> ReadAt<S> for Memory {
    fn id(&self) -> LayerId {
        self.id
    }
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }
    fn read_at(&self, at: Offset<S>, buf: &mut [u8]) -> Result<()> {
        let end = at.get() + buf.len() as u64;
        if at.get() < self.bad.end && self.bad.start < end {
            return Err(Error::io(
                format!("reading {} bytes at {at}", buf.len()),
                std::io::Error::from_raw_os_error(5),
            ));
        }
        buf.copy_from_slice(&self.bytes[at.get() as usize..end as usize]);
        Ok(())
    }
}

fn memory<S: Space>(bytes: Vec<u8>) -> Arc<dyn ReadAt<S>> {
    Arc::new(Memory { id: LayerId::fresh(), bytes, bad: 0..0 })
}

/// A piece of a map before it is fitted to the layer below: length, and what (0 to 99 zero, 100 to 129 encoded, else stored
/// at a fraction of the layer's length).
type Piece = (u16, u16);

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    proptest::collection::vec((0u16..40, 0u16..1000), 0..20)
}

fn map_of<S: Space, B: Space>(pieces: &[Piece], below: LayerId, have: u64) -> Map<S, B> {
    pieces
        .iter()
        .map(|&(len, what)| match what {
            0..100 => (u64::from(len), What::Zero),
            100..130 => (u64::from(len), What::Encoded(Encoding::FsCompressed)),
            _ => {
                let len = u64::from(len).min(have);
                let at = (have - len) * u64::from(what - 130) / 870;
                (len, What::Stored(Place { layer: below, offset: Offset::new(at) }))
            }
        })
        .collect()
}

/// What each byte is, one by one: the model that the algebra is held against.
fn bytes_of<S: Space, B: Space>(extents: impl IntoIterator<Item = Extent<S, B>>) -> Vec<What<B>> {
    extents.into_iter().flat_map(|e| (0..e.len).map(move |i| e.what.skip(i))).collect()
}

fn is_proper<S: Space, B: Space>(extents: &[Extent<S, B>], range: Range<u64>) -> bool {
    let mut at = range.start;
    for (i, e) in extents.iter().enumerate() {
        let merged = i == 0 || !extents[i - 1].what.continued_by(extents[i - 1].len, &e.what);
        if e.start.get() != at || e.len == 0 || !merged {
            return false;
        }
        at += e.len;
    }
    at == range.end
}

proptest! {
    #[test]
    fn a_map_is_ordered_gapless_and_merged(pieces in pieces()) {
        let below = LayerId::fresh();
        let map: Map<Stream> = map_of(&pieces, below, 100);
        prop_assert!(is_proper(map.extents(), 0..map.len()));
        let model: Vec<_> = pieces.iter().flat_map(|p| bytes_of(map_of::<Stream, Volume>(&[*p], below, 100).extents().iter().copied())).collect();
        prop_assert_eq!(bytes_of(map.extents().iter().copied()), model);
    }

    #[test]
    fn a_slice_is_the_part_of_the_map_in_the_range(pieces in pieces(), a in 0u64..900, b in 0u64..900) {
        let map: Map<Stream> = map_of(&pieces, LayerId::fresh(), 100);
        let all = bytes_of(map.extents().iter().copied());
        let slice: Vec<_> = map.slice(Offset::new(a)..Offset::new(b)).collect();
        let (start, end) = (a.min(map.len()), b.min(map.len()));
        if start < end {
            prop_assert!(is_proper(&slice, start..end));
            prop_assert_eq!(bytes_of(slice), &all[start as usize..end as usize]);
        } else {
            prop_assert!(slice.is_empty());
        }
    }

    #[test]
    fn resizing_cuts_or_pads_with_zeros(pieces in pieces(), len in 0u64..900) {
        let map: Map<Stream> = map_of(&pieces, LayerId::fresh(), 100);
        let mut model = bytes_of(map.extents().iter().copied());
        model.resize(len as usize, What::Zero);
        let map = map.resized(len);
        prop_assert!(is_proper(map.extents(), 0..len));
        prop_assert_eq!(bytes_of(map.extents().iter().copied()), model);
    }

    #[test]
    fn composing_is_associative(a in pieces(), b in pieces(), c in pieces()) {
        let (volume, image, device) = (LayerId::fresh(), LayerId::fresh(), LayerId::fresh());
        let c: Map<Image> = map_of(&c, device, 300);
        let b: Map<Volume> = map_of(&b, image, c.len());
        let a: Map<Stream> = map_of(&a, volume, b.len());
        let over = |id: LayerId| move |l: LayerId| l == id;
        let ab = compose(a.extents().iter().copied(), |l| over(volume)(l).then_some(&b)).unwrap();
        let left: Map<Stream, Device> = compose(ab.extents().iter().copied(), |l| over(image)(l).then_some(&c)).unwrap();
        let bc: Map<Volume, Device> = compose(b.extents().iter().copied(), |l| over(image)(l).then_some(&c)).unwrap();
        let right = compose(a.extents().iter().copied(), |l| over(volume)(l).then_some(&bc)).unwrap();
        prop_assert_eq!(&left, &right);
        prop_assert!(is_proper(left.extents(), 0..a.len()));
    }

    #[test]
    fn composing_a_part_is_the_part_of_the_composed(a in pieces(), b in pieces(), from in 0u64..900, to in 0u64..900) {
        let (volume, image) = (LayerId::fresh(), LayerId::fresh());
        let b: Map<Volume> = map_of(&b, image, 300);
        let a: Map<Stream> = map_of(&a, volume, b.len());
        let range = Offset::new(from)..Offset::new(to);
        let part = compose(a.slice(range.clone()), |l| (l == volume).then_some(&b)).unwrap();
        let whole = compose(a.extents().iter().copied(), |l| (l == volume).then_some(&b)).unwrap();
        prop_assert_eq!(bytes_of(part.extents().iter().copied()), bytes_of(whole.slice(range)));
    }

    #[test]
    fn reading_through_the_extents_is_reading(
        ground in proptest::collection::vec(any::<u8>(), 1..300), a in pieces(), b in pieces(), at in 0u64..900, len in 0usize..300,
    ) {
        // Encoded stretches have no bytes below; the readers that decode them have tests of their own.
        let plain = |p: Vec<Piece>| p.into_iter().filter(|p| !(100..130).contains(&p.1)).collect::<Vec<_>>();
        let disk = memory::<Image>(ground.clone());
        let b: Map<Volume> = map_of(&plain(b), disk.id(), ground.len() as u64);
        let volume = Arc::new(MapLayer::new(b.clone(), vec![disk]).unwrap());
        let a: Map<Stream> = map_of(&plain(a), volume.id(), volume.len());
        let stream = MapLayer::new(a.clone(), vec![Arc::clone(&volume) as _]).unwrap();
        let down = compose(a.extents().iter().copied(), |l| (l == volume.id()).then_some(&b)).unwrap();
        let by_extents: Vec<u8> = bytes_of(down.extents().iter().copied()).iter().map(|w| match w {
            What::Stored(p) => ground[p.offset.get() as usize],
            _ => 0,
        }).collect();
        match stream.read_vec(Offset::new(at), len) {
            Ok(read) => prop_assert_eq!(&read, &by_extents[at as usize..at as usize + len]),
            Err(e) => {
                prop_assert!(at + len as u64 > stream.len(), "{}", e);
                let io = matches!(e, Error::Io { .. });
                prop_assert!(io, "{}", e);
            }
        }
        let map = Layer::map(&stream).unwrap();
        prop_assert_eq!(&map, &a);
        let extents = Layer::extents(&stream, Offset::new(at)..Offset::new(at + len as u64)).unwrap();
        prop_assert_eq!(extents, a.slice(Offset::new(at)..Offset::new(at + len as u64)).collect::<Vec<_>>());
    }
}

#[test]
fn composing_refuses_what_is_not_below() {
    let (one, other) = (LayerId::fresh(), LayerId::fresh());
    let lower: Map<Volume> = Map::run(100, LayerId::fresh(), 0);
    let upper: Map<Stream> = Map::run(10, one, 95);
    let past = compose(upper.extents().iter().copied(), |l| (l == one).then_some(&lower)).unwrap_err();
    assert!(matches!(past, Error::Corrupt { .. }), "{past}");
    let unknown = compose(upper.extents().iter().copied(), |l| (l == other).then_some(&lower)).unwrap_err();
    assert!(matches!(unknown, Error::Corrupt { .. }), "{unknown}");
    let top: Map<Stream> = Map::run(10, one, u64::MAX - 5);
    assert!(compose(top.extents().iter().copied(), |l| (l == one).then_some(&lower)).is_err());
}

#[test]
fn a_layer_is_not_made_over_what_is_not_there() {
    let below = memory::<Volume>(vec![0; 100]);
    for map in [Map::run(10, below.id(), 91), Map::run(10, LayerId::fresh(), 0), Map::run(10, below.id(), u64::MAX)] {
        assert!(MapLayer::<Stream>::new(map, vec![Arc::clone(&below)]).is_err());
    }
    assert!(MapLayer::<Stream>::window(below, 90, 10).is_ok());
}

#[test]
fn an_encoded_extent_is_not_read_as_it_is() {
    let mut map = Map::<Stream>::new();
    map.push(4, What::Zero);
    map.push(4, What::Encoded(Encoding::FsCompressed));
    let layer = MapLayer::new(map, Vec::new()).unwrap();
    assert_eq!(layer.read_vec(Offset::new(0), 4).unwrap(), [0; 4]);
    assert!(matches!(layer.read_vec(Offset::new(0), 5), Err(Error::Unsupported(_))));
}

#[test]
fn a_failing_medium_names_the_place_through_all_layers() {
    let id = LayerId::fresh();
    let ground: Arc<dyn ReadAt<Device>> = Arc::new(Memory { id, bytes: vec![1; 5000], bad: 3000..3001 });
    let image: Arc<dyn ReadAt<Image>> = Arc::new(MapLayer::whole(ground).unwrap());
    let volume: Arc<dyn ReadAt<Volume>> = Arc::new(MapLayer::window(image, 1000, 4000).unwrap());
    assert_eq!(volume.read_vec(Offset::new(0), 2000).unwrap(), [1; 2000]);
    assert_eq!(volume.read_vec(Offset::new(2001), 1999).unwrap(), [1; 1999]);
    let error = volume.read_vec(Offset::new(1990), 20).unwrap_err();
    assert!(matches!(error, Error::Io { .. }));
    assert!(error.to_string().contains(&Offset::<Device>::new(2990).to_string()), "{error}");
}
