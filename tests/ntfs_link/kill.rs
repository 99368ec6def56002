//! A commit to an NTFS host and its undo, killed at each write and sync.

use std::collections::BTreeSet;
use std::sync::Arc;

use unimage::error::{Error, Result};
use unimage::extent::{LayerId, Offset, ReadAt, Stream, Volume};
use unimage::txn::{About, Checked, HostVolume, Journal, Manifest, Recovered, Sources, Staging, commit, recover, undo};

use crate::host::*;
use crate::machine::{Fault, Machine, SURVIVING};

struct Bytes(Vec<u8>, LayerId);

impl ReadAt<Stream> for Bytes {
    fn id(&self) -> LayerId {
        self.1
    }
    fn len(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&self, at: Offset<Stream>, buf: &mut [u8]) -> Result<()> {
        buf.copy_from_slice(&self.0[at.get() as usize..][..buf.len()]);
        Ok(())
    }
}

struct Copies<'w, 'c>(&'w Wanted<'c>);

impl Sources for Copies<'_, '_> {
    fn open(&self, entry: usize) -> Result<Arc<dyn ReadAt<Stream>>> {
        let bytes = self.0.sources.get(&entry).ok_or_else(|| Error::NotFound("a stream".into()))?;
        Ok(Arc::new(Bytes(bytes.clone(), LayerId::fresh())))
    }
}

struct Killed<'w, 'c> {
    wanted: &'w Wanted<'c>,
    staging: Staging,
    after: Vec<u8>,
}

impl Killed<'_, '_> {
    fn commit(&self, machine: &Machine) -> Result<()> {
        let case = self.wanted.case;
        let volume: Arc<dyn ReadAt<Volume>> = Arc::new(case.volume.clone());
        let checked = Checked::new(self.staging.clone(), volume, |_, _| Ok(()))?;
        let host = HostVolume::new(machine.host(), 0, case.volume.len())?;
        let about = About {
            host: "/dev/simulated".into(),
            volume_len: case.volume.len(),
            kind: "ntfs".into(),
            ..About::default()
        };
        commit(checked, &host, machine.journal(), about, &|| Ok(Manifest::default()), &Copies(self.wanted), &|_| ())
            .map(|_| ())
    }
    fn recover(&self, machine: &Machine) -> Result<Recovered> {
        let mut journal = Journal::open(machine.journal())?;
        let host = HostVolume::find(&machine.host(), &journal)?;
        recover(&mut journal, &host, &|_| ())
    }
    fn undo(&self, machine: &Machine) -> Result<Recovered> {
        let mut journal = Journal::open(machine.journal())?;
        let host = HostVolume::find(&machine.host(), &journal)?;
        undo(&mut journal, &host, &|_| Ok([0; 32]), &|_| ())
    }
    fn outside_filled(&self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for (at, len) in &self.staging.filled {
            bytes[at.get() as usize..][..*len as usize].fill(0);
        }
        bytes
    }
    /// Recovers; whether the host then is as afterwards, and not as before.
    fn settle(&self, machine: &Machine, what: &str) -> bool {
        let Ok(outcome) = self.recover(machine) else {
            assert!(Journal::open(machine.journal()).is_err(), "{what}");
            assert!(
                machine.host_bytes() == *self.wanted.case.volume.bytes,
                "{what}: no journal, and the host was touched"
            );
            return false;
        };
        let bytes = machine.host_bytes();
        let forward = matches!(outcome, Recovered::Forward | Recovered::AlreadyDone);
        if forward {
            assert!(bytes == self.after, "{what}: {outcome:?}, but not as afterwards");
        } else {
            let before = self.outside_filled(&self.wanted.case.volume.bytes);
            assert!(self.outside_filled(&bytes) == before, "{what}: {outcome:?}, but not as before");
        }
        forward
    }
}

#[test]
fn killed_at_each_write_and_sync() {
    let case = HostCase::open(made(Shape { sector: 512, cluster: 4096, mib: 8 }, &noise(1, 400_000), 4, |_| {}));
    let mut wanted = Wanted::new(&case, &["out"], 5);
    wanted.fill(150);
    let staging = case.host().link(&case.job(&wanted.tree)).unwrap();
    let after = apply(&case.volume.bytes, &staging, &wanted.sources);
    assert!(!staging.interim.is_empty() && staging.groups.len() == 5);
    let killed = Killed { wanted: &wanted, staging, after };
    let start = Machine::new(case.volume.bytes.to_vec(), 1);
    let committed = start.fork(0);
    committed.arm(None);
    killed.commit(&committed).unwrap();
    assert!(committed.host_bytes() == killed.after);
    let ticks = committed.ticks();
    committed.restart(SURVIVING[1]);
    type Act<'a> = &'a dyn Fn(&Machine) -> bool;
    let undone = committed.fork(0);
    undone.arm(None);
    assert!(matches!(killed.undo(&undone), Ok(Recovered::Undone)));
    let acts: [(&str, &Machine, u64, Act<'_>); 2] = [
        ("commit", &start, ticks, &|m| killed.commit(m).is_ok()),
        ("undo", &committed, undone.ticks(), &|m| killed.undo(m).is_ok()),
    ];
    for (name, from, ticks, act) in acts {
        let mut outcomes = BTreeSet::new();
        for tick in 0..ticks {
            for surviving in SURVIVING {
                let machine = from.fork(tick);
                machine.arm(Some((tick, Fault::PowerCut)));
                assert!(!act(&machine));
                machine.restart(surviving);
                outcomes.insert(killed.settle(&machine, &format!("{name}, tick {tick} of {ticks}, {surviving:?}")));
            }
        }
        println!("{name}: {ticks} ticks");
        assert_eq!(outcomes.len(), 2, "{name}: some go back, some forward");
    }
}
