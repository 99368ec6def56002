//! A real relink on a small host, on a simulated machine: the power is cut at every write and every sync of the commit, of the
//! recovery and of the undo, unsynced writes are lost, torn and reordered. Each state that is then reached is exactly as before
//! (outside of units that were free) or as after, and the checker is silent about it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::machine::{Bytes, Fault, Machine, SURVIVING, Surviving};
use unimage::error::Result;
use unimage::relink::{self, Options, Prepared};
use unimage::stack::{self, Address, OpenOptions};
use unimage::txn::{HostVolume, Journal, Recovered, recover};

/// What a checker says too much about a host in a file.
pub type Check = Box<dyn Fn(&Path) -> Vec<String>>;

/// A host with an image.
pub struct Bench {
    /// Its file.
    pub file: PathBuf,
    /// The image's address.
    pub image: String,
    /// Where the volume begins in the file, and its length.
    pub base: u64,
    pub len: u64,
    /// Ranges of the file that are in use: what must come back bit for bit.
    pub in_use: Vec<(u64, u64)>,
    /// A file for the checker, and what it says too much about it.
    pub probe: PathBuf,
    pub check: Check,
    /// Whether it is so full that units of the image are filled: there is no way back once that has begun, and no undo.
    pub reuse: bool,
}

struct Scene {
    host: Bench,
    prepared: Prepared,
    before: Bytes,
    after: Bytes,
    /// Of each byte, whether it must come back.
    kept: Vec<bool>,
    /// Digests of states of the machine whose recovery was judged, and how many times over it was cut.
    judged: HashMap<[u8; 32], u32>,
    /// Digests of hosts that the checker has been asked about.
    asked: HashSet<[u8; 32]>,
    /// How many times over recoveries are cut.
    deep: u32,
}

/// A commit or an undo, which the power or an error may end.
type Act<'a> = &'a dyn Fn(&Scene, &Machine);

/// How often recoveries ended where.
type Ends = BTreeMap<&'static str, u64>;

fn quiet(_: &'static str, _: u64, _: u64) {}

impl Scene {
    fn new(host: Bench) -> Self {
        let reuse = host.reuse;
        let address = Address::parse(OsStr::new(&host.image)).unwrap();
        let mut stack = stack::open(&address, OpenOptions::default()).unwrap();
        stack.descend(OpenOptions::default()).unwrap();
        let options = Options { into: vec![b"new".to_vec(), b"out".to_vec()], reuse, ..Options::default() };
        let prepared = relink::prepare(&stack, &options).unwrap();
        assert_eq!(prepared.refusals, Vec::<String>::new());
        let reusing = prepared.plan.totals.space.reusing();
        assert_eq!(reusing.is_some(), reuse);
        if let Some(reused) = reusing {
            assert!(reused.batches > 2, "{reused:?}");
            let refused = relink::prepare(&stack, &Options { reuse: false, ..options }).unwrap().refusals;
            assert!(matches!(&refused[..], [why] if why.contains("with --reuse it would fit")), "{refused:?}");
        }
        let before = Bytes::from(fs::read(&host.file).unwrap());
        let mut kept = vec![true; before.len()];
        kept[host.base as usize..(host.base + host.len) as usize].fill(false);
        host.in_use.iter().for_each(|(at, len)| kept[*at as usize..(*at + *len) as usize].fill(true));
        let (after, asked, judged) = (before.clone(), HashSet::new(), HashMap::new());
        let mut scene = Self { after, asked, judged, deep: 0, host, prepared, before, kept };
        let machine = Machine::new(scene.before.clone(), 1);
        scene.commit(&machine).unwrap();
        machine.restart(Surviving::Nothing);
        scene.after = machine.host_disk();
        scene.silent(&scene.after.clone(), "after");
        scene
    }
    fn volume(&self, machine: &Machine) -> Result<HostVolume> {
        HostVolume::new(machine.host(), self.host.base, self.host.len)
    }
    fn commit(&self, machine: &Machine) -> Result<()> {
        self.prepared.commit_on(&self.volume(machine)?, machine.journal(), &quiet).map(drop)
    }
    fn undo(&self, machine: &Machine) -> Result<()> {
        let volume = self.volume(machine)?;
        relink::undo_on(&mut Journal::open(machine.journal())?, &volume, &OpenOptions::default(), &quiet).map(drop)
    }
    fn recover(machine: &Machine) -> Result<Recovered> {
        let mut journal = Journal::open(machine.journal())?;
        let host = HostVolume::find(&machine.host(), &journal)?;
        recover(&mut journal, &host, &|_| ())
    }
    /// The checker finds nothing; asked once for each state.
    fn silent(&mut self, disk: &Bytes, what: &str) {
        if self.asked.insert(disk.digest()) {
            fs::write(&self.host.probe, disk.to_vec()).unwrap();
            assert_eq!((self.host.check)(&self.host.probe), Vec::<String>::new(), "{what}");
        }
    }
    fn is_before(&self, disk: &Bytes) -> bool {
        disk.differing(&self.before).iter().all(|at| !self.kept[*at])
    }
    /// Recovers, and judges where the host then is; once more, and nothing is written.
    fn settle(&mut self, machine: &Machine, what: &str) -> &'static str {
        if Journal::open(machine.journal()).is_err() {
            let touched = machine.host_disk().differing(&self.before);
            assert_eq!(touched.first(), None, "{what}: no journal, and the host was touched");
            return "untouched";
        }
        let outcome = Self::recover(machine).unwrap_or_else(|e| panic!("{what}: {e}"));
        let disk = machine.host_disk();
        let end = match outcome {
            Recovered::Forward | Recovered::AlreadyDone => {
                let wrong = disk.differing(&self.after);
                assert_eq!(wrong.first(), None, "{what}: {outcome:?}, and not exactly as after");
                "after"
            }
            _ => {
                assert!(self.is_before(&disk), "{what}: {outcome:?}, and not exactly as before");
                "before"
            }
        };
        self.silent(&disk, what);
        machine.arm(None);
        Self::recover(machine).unwrap_or_else(|e| panic!("{what}, again: {e}"));
        assert_eq!(machine.ticks(), 0, "{what}: a second recovery writes");
        end
    }
    /// Judges the recovery of a state, unless it was; then cuts the power everywhere in it, and judges these states in their turn, so
    /// many times over.
    fn recoveries(&mut self, machine: &Machine, deep: u32, when: &str) -> Option<&'static str> {
        let state = machine.digest();
        let known = self.judged.get(&state).copied();
        let end = if known.is_none() { Some(self.settle(&machine.fork(2), when)) } else { None };
        if known.is_none_or(|known| known < deep) {
            self.judged.insert(state, deep);
        }
        if deep > known.unwrap_or(0) {
            let whole = machine.fork(3);
            whole.arm(None);
            let _ = Self::recover(&whole);
            self.cuts(machine, whole.ticks(), "recovery", when, deep - 1, &|_, m| drop(Self::recover(m)));
        }
        end
    }
    /// Cuts the power at each tick of `act`, and judges what survives.
    fn cuts(&mut self, start: &Machine, ticks: u64, what: &str, when: &str, deep: u32, act: Act<'_>) -> Ends {
        let mut ends = Ends::new();
        for tick in 0..ticks {
            let cut = start.fork(tick + 4);
            cut.arm(Some((tick, Fault::PowerCut)));
            act(self, &cut);
            for surviving in SURVIVING {
                let machine = cut.fork(0);
                machine.restart(surviving);
                let when = format!("{when}{what} cut at {tick}, {surviving:?}; ");
                if let Some(end) = self.recoveries(&machine, deep, &when) {
                    *ends.entry(end).or_default() += 1;
                }
            }
        }
        ends
    }
    /// Cuts the power everywhere in `act`, and in the recovery of each state that this gives; then lets each write and sync fail.
    fn everywhere(&mut self, start: &Machine, what: &str, act: Act<'_>) -> Ends {
        let whole = start.fork(0);
        whole.arm(None);
        act(self, &whole);
        let ticks = whole.ticks();
        assert!(ticks > 6, "{what}: {ticks} writes and syncs");
        let ends = self.cuts(start, ticks, what, "", self.deep, act);
        // Every write and sync fails once; the machine goes on, or is restarted.
        for tick in 0..ticks {
            for (number, restart) in
                [(5, None), (28, None), (5, Some(Surviving::Nothing)), (28, Some(Surviving::AnySectors))]
            {
                let machine = start.fork(tick);
                machine.arm(Some((tick, Fault::Error(number))));
                act(self, &machine);
                if let Some(surviving) = restart {
                    machine.restart(surviving);
                }
                machine.arm(None);
                self.settle(&machine, &format!("{what}: error {number} at {tick}, {restart:?}"));
            }
        }
        ends
    }
}

/// Cuts the power everywhere; with `twice` also in every recovery, and in long campaigns in the recoveries after these too, or as often
/// as `UNIMAGE_DEEP` says.
pub fn run(host: Bench, twice: bool) {
    let mut scene = Scene::new(host);
    let deepest = std::env::var("UNIMAGE_DEEP").ok().map_or(2, |n| n.parse().expect("how many times over"));
    scene.deep = match (twice, crate::common::long()) {
        (false, _) => 0,
        (true, false) => 1,
        (true, true) => deepest,
    };
    let start = Machine::new(scene.before.clone(), 7);
    let ends = scene.everywhere(&start, "commit", &|s, m| drop(s.commit(m)));
    assert!(ends.contains_key("before") && ends.contains_key("after"), "{ends:?}");
    let done = start.fork(0);
    done.arm(None);
    scene.commit(&done).unwrap();
    done.restart(Surviving::Nothing);
    if scene.host.reuse {
        done.arm(None);
        let error = scene.undo(&done).unwrap_err();
        assert!(error.exit_code() == 4 && error.to_string().contains("undo is off"), "{error}");
        assert_eq!(done.ticks(), 0, "an undo that is refused writes");
        assert_eq!(done.host_disk().differing(&scene.after), [0; 0]);
        return;
    }
    let ends = scene.everywhere(&done, "undo", &|s, m| drop(s.undo(m)));
    assert!(ends.contains_key("before"), "{ends:?}");
    // The whole undo.
    scene.undo(&done).unwrap();
    done.restart(Surviving::Nothing);
    assert!(scene.is_before(&done.host_disk()));
    println!("{} states of the machine were recovered, and {} hosts checked", scene.judged.len(), scene.asked.len());
}
