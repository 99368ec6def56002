//! The index against a model that goes down the chain byte by byte.

use proptest::prelude::*;

use super::*;
use crate::extent::{Encoding, What};

/// Bytes that tell their place and their file.
struct Bytes(LayerId, Vec<u8>);

impl ReadAt<Device> for Bytes {
    fn id(&self) -> LayerId {
        self.0
    }
    fn len(&self) -> u64 {
        self.1.len() as u64
    }
    fn read_at(&self, at: Offset<Device>, buf: &mut [u8]) -> Result<()> {
        let at = at.get() as usize;
        let from = self.1.get(at..at + buf.len()).ok_or_else(|| Error::past_end(Offset::<Device>::new(0), 0, 0))?;
        buf.copy_from_slice(from);
        Ok(())
    }
}

/// One file of a chain in blocks of so many bytes: what each says.
struct Blocks {
    block: u64,
    span: u64,
    len: u64,
    says: Vec<Says>,
    files: Vec<Arc<dyn ReadAt<Device>>>,
    asked: Mutex<Vec<Range<u64>>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Says {
    At(u16),
    Zero,
    Packed(u8),
    Parent,
    Encrypted,
    Bad,
}

impl Blocks {
    fn at(&self, at: u64) -> Says {
        self.says.get((at / self.block) as usize).copied().unwrap_or(Says::Parent)
    }
}

impl Table for Blocks {
    fn len(&self) -> u64 {
        self.len
    }
    fn span(&self) -> u64 {
        self.span
    }
    fn pieces(&self, range: Range<u64>, out: &mut Pieces) -> Result<()> {
        assert!(range.start < range.end && range.end <= self.len && out.at() == range.start);
        self.asked.lock().unwrap().push(range.clone());
        let mut at = range.start;
        while at < range.end {
            let into = at % self.block;
            let len = (self.block - into).min(range.end - at);
            match self.at(at) {
                Says::At(place) => out.stored(len, self.files[0].id(), u64::from(place) + into),
                Says::Zero => out.zero(len),
                Says::Packed(unit) => out.packed(len, u64::from(unit), into as u32),
                Says::Parent => out.parent(len),
                Says::Encrypted => out.push(len, Piece::Encrypted),
                Says::Bad => out.unreadable(len, Fault::new("entry", at, "one that is right")),
            }
            at += len;
        }
        Ok(())
    }
    fn unpack(&self, unit: u64, out: &mut Vec<u8>) -> Result<()> {
        out.extend((0..self.block).map(|i| (unit * 31 + i * 3) as u8));
        Ok(())
    }
    fn files(&self) -> &[Arc<dyn ReadAt<Device>>] {
        &self.files
    }
}

impl std::fmt::Debug for Blocks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes in {}, {} at once: {:?}", self.len, self.block, self.span, self.says)
    }
}

/// What a byte is by the model: its value, or why there is none.
fn model(tables: &[Arc<Blocks>], at: u64) -> Result<u8, Encoding> {
    for table in tables {
        if at >= table.len {
            return Ok(0);
        }
        let into = at % table.block;
        return match table.at(at) {
            Says::Parent => continue,
            Says::Zero => Ok(0),
            Says::At(place) => {
                let mut byte = [0];
                let read = table.files[0].read_at(Offset::new(u64::from(place) + into), &mut byte);
                read.map(|()| byte[0]).map_err(|_| Encoding::Unreadable)
            }
            Says::Packed(unit) => Ok((u64::from(unit) * 31 + into * 3) as u8),
            Says::Encrypted => Err(Encoding::ContainerEncrypted),
            Says::Bad => Err(Encoding::Unreadable),
        };
    }
    Ok(0)
}

fn says() -> impl Strategy<Value = Says> {
    prop_oneof![
        4 => (0u16..3000).prop_map(Says::At),
        1 => Just(Says::Zero),
        1 => (0u8..4).prop_map(Says::Packed),
        6 => Just(Says::Parent),
        1 => Just(Says::Encrypted),
        1 => Just(Says::Bad),
    ]
}

fn table() -> impl Strategy<Value = Arc<Blocks>> {
    (prop_oneof![Just(16u64), Just(24), Just(64)], 1u64..2000, 1u64..400, any::<u8>()).prop_flat_map(
        |(block, len, span, seed)| {
            proptest::collection::vec(says(), (len / block) as usize + 1).prop_map(move |says| {
                let bytes = (0..2900u32).map(|i| (i as u8).wrapping_mul(7) ^ seed).collect();
                let files: Vec<Arc<dyn ReadAt<Device>>> = vec![Arc::new(Bytes(LayerId::fresh(), bytes))];
                Arc::new(Blocks { block, span, len, says, files, asked: Mutex::default() })
            })
        },
    )
}

/// A chain whose spans are as small as its tables say.
fn chain(tables: &[Arc<Blocks>]) -> Chain {
    let mut chain = Chain::new(tables.iter().map(|t| Arc::clone(t) as Arc<dyn Table>).collect()).unwrap();
    chain.span = tables.iter().map(|t| t.span).max().unwrap();
    chain.spans = (0..chain.len.div_ceil(chain.span)).map(|_| OnceLock::new()).collect();
    chain
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn every_byte_is_what_the_first_table_that_knows_it_says(
        tables in proptest::collection::vec(table(), 1..6),
        cuts in proptest::collection::vec((0u64..2100, 0u64..300), 8),
    ) {
        let chain = chain(&tables);
        let len = chain.len();
        prop_assert_eq!(len, tables[0].len);
        let want: Vec<_> = (0..len).map(|at| model(&tables, at)).collect();
        let mut ranges: Vec<_> = cuts.iter().map(|(at, n)| ((*at).min(len), (at + n).min(len))).collect();
        ranges.push((0, len));
        for (start, end) in ranges {
            let want = &want[start as usize..end as usize];
            // Bytes.
            let mut buf = vec![0xEE; want.len()];
            let read = chain.read_at(Offset::new(start), &mut buf);
            match want.iter().copied().collect::<Result<Vec<u8>, _>>() {
                Ok(bytes) => {
                    read.unwrap();
                    prop_assert_eq!(&buf, &bytes);
                }
                Err(_) => prop_assert!(read.is_err()),
            }
            // Extents: gapless, and each byte's own.
            let mut at = start;
            for e in chain.extents(Offset::new(start)..Offset::new(end)).unwrap() {
                prop_assert_eq!(e.start.get(), at);
                prop_assert!(e.len > 0);
                for i in 0..e.len {
                    let is = want[(at + i - start) as usize];
                    match e.what {
                        What::Zero => prop_assert_eq!(is, Ok(0)),
                        What::Encoded(Encoding::ContainerCompressed) => prop_assert!(is.is_ok()),
                        What::Encoded(how) => prop_assert_eq!(is, Err(how)),
                        What::Stored(p) => {
                            let mut byte = [0];
                            chain.file(p.layer).unwrap().read_at(Offset::new(p.offset.get() + i), &mut byte).unwrap();
                            prop_assert_eq!(is, Ok(byte[0]));
                        }
                    }
                }
                at += e.len;
            }
            prop_assert_eq!(at, end);
        }
        // Merged over the edges of spans, too; and no table was asked twice for a span.
        let map = chain.map().unwrap();
        prop_assert!(map.extents().windows(2).all(|w| !w[0].what.continued_by(w[0].len, &w[1].what)));
        for table in &tables {
            let mut asked = table.asked.lock().unwrap().clone();
            asked.sort_by_key(|r| r.start);
            prop_assert!(asked.windows(2).all(|w| w[0].end <= w[1].start), "{:?}", asked);
        }
        prop_assert!(chain.read_at(Offset::new(len), &mut [0]).is_err());
    }
}

#[test]
fn an_error_names_the_structure_and_its_place() {
    let file: Arc<dyn ReadAt<Device>> = Arc::new(Bytes(LayerId::fresh(), vec![1; 100]));
    let says = vec![Says::At(0), Says::Bad, Says::Bad, Says::At(90)];
    let table = Blocks { block: 16, span: 64, len: 64, says, files: vec![file], asked: Mutex::default() };
    let chain = chain(&[Arc::new(table)]);
    let error = |at| chain.read_vec(Offset::new(at), 8).unwrap_err().to_string();
    assert_eq!(error(20), "entry at device offset 0x10: expected one that is right");
    assert_eq!(chain.read_vec(Offset::new(48), 10).unwrap(), [1; 10]);
    assert_eq!(error(56), "extent at device offset 0x64: expected bytes before the end of the file");
}

#[test]
fn a_table_that_is_silent_is_not_taken_for_zeros() {
    struct Silent;
    impl Table for Silent {
        fn len(&self) -> u64 {
            100
        }
        fn span(&self) -> u64 {
            100
        }
        fn pieces(&self, _: Range<u64>, out: &mut Pieces) -> Result<()> {
            out.zero(40);
            Ok(())
        }
        fn files(&self) -> &[Arc<dyn ReadAt<Device>>] {
            &[]
        }
    }
    let chain = Chain::new(vec![Arc::new(Silent)]).unwrap();
    assert_eq!(chain.read_vec(Offset::new(0), 40).unwrap(), [0; 40]);
    assert!(chain.read_vec(Offset::new(40), 1).is_err());
    assert_eq!(chain.map().unwrap().extents().len(), 2);
}
