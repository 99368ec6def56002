//! A real process killed at every write of a commit, of a recovery and of an undo: after `recover` the host is exactly as before
//! (outside of units that were free) or exactly as after.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use crate::args;
use crate::common::guest::copy_sparse;
use crate::common::host::strace;
use crate::common::{self, Out, Seens, UNIMAGE, unimage};

/// System calls that change a file or say something.
pub const CALLS: &str = "write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,ftruncate,fallocate,sync_file_range";

/// A host in a file with an image, a copy of it from before, and what foreign programs say of it.
pub trait Bed {
    /// The file.
    fn file(&self) -> &Path;
    /// Where the journal goes.
    fn journal(&self) -> PathBuf;
    /// The image's address.
    fn image(&self) -> String;
    /// All files.
    fn tree(&self) -> Seens;
    /// What the checker says too much.
    fn fsck(&self) -> Vec<String>;
    /// The first byte in use before that is not as it was.
    fn changed(&self) -> Option<u64>;
    /// Whether every byte is as before.
    fn untouched(&self) -> bool;
    /// Takes the file back to what it was before, without a journal.
    fn reset(&self);
    /// Whether it is so full that units of the image are filled (`--reuse`).
    fn reuses(&self) -> bool {
        false
    }
    /// The allocation tables of a host in a file.
    fn tables(&self, file: &Path) -> Vec<u8>;
}

/// The host, and what it is after an undisturbed relink.
pub struct Scene<B> {
    pub host: B,
    after: PathBuf,
    after_tree: Seens,
    done: PathBuf,
    /// Where each host is that was judged, by the digest of its file.
    judged: RefCell<HashMap<blake3::Hash, &'static str>>,
}

impl<B: Bed> Scene<B> {
    /// With a host whose relink is done.
    pub fn of(host: B) -> Self {
        let beside = |name: &str| host.file().with_file_name(name);
        let (after, done) = (beside("after.img"), beside("journal.done"));
        copy_sparse(host.file(), &after);
        fs::copy(host.journal(), &done).unwrap();
        let after_tree = host.tree();
        host.reset();
        Self { host, after, after_tree, done, judged: RefCell::default() }
    }
    fn journal_verb(&self, verb: &str) -> Out {
        unimage(args![*verb, *self.host.journal().as_os_str()])
    }
    /// The host as it is when the relink is done.
    pub fn to_after(&self) {
        copy_sparse(&self.after, self.host.file());
        fs::copy(&self.done, self.host.journal()).unwrap();
    }
    pub fn arguments(&self, verb: &str) -> Vec<String> {
        let journal = self.host.journal().display().to_string();
        match verb {
            "relink" => {
                let image = self.host.image();
                let reuse = if self.host.reuses() { "--reuse" } else { "--slack=zero" };
                ["relink", &image, "--into", "/out", "--journal", &journal, "--commit", reuse]
                    .map(str::to_owned)
                    .to_vec()
            }
            verb => vec![verb.to_owned(), journal],
        }
    }
    /// The verb under `strace` with an injection; also what was logged.
    pub fn traced(&self, verb: &str, inject: Option<&str>) -> (Out, String) {
        let log = self.host.file().with_file_name("strace.log");
        let trace = format!("trace={CALLS}");
        let mut options = vec!["-e", &trace, "-y"];
        options.extend(inject.iter().flat_map(|i| ["-e", *i]));
        let out = strace(&options, &log, UNIMAGE, &self.arguments(verb));
        assert!(!out.stderr.contains("panicked"), "{out}");
        (out, fs::read_to_string(&log).unwrap())
    }
    /// How often each call is made, by thread: `strace` counts so.
    pub fn calls(&self, verb: &str) -> Vec<(String, u64)> {
        let (out, log) = self.traced(verb, None);
        assert_eq!(out.code, 0, "{out}");
        let mut counts: BTreeMap<(String, String), u64> = BTreeMap::new();
        for line in log.lines() {
            let Some((pid, call)) = line.split_once(' ') else { continue };
            let name: String =
                call.trim_start().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            if CALLS.split(',').any(|c| c == name) {
                *counts.entry((name, pid.to_owned())).or_default() += 1;
            }
        }
        // Of each call as often as the busiest thread makes it.
        let mut most: BTreeMap<String, u64> = BTreeMap::new();
        for ((name, _), n) in counts {
            let m = most.entry(name).or_default();
            *m = (*m).max(n);
        }
        most.into_iter().collect()
    }
    /// Before or after; anything else stops the test. Equal hosts are judged once.
    #[track_caller]
    pub fn settled(&self, when: &str) -> &'static str {
        let state = blake3::hash(&fs::read(self.host.file()).unwrap());
        let known = self.judged.borrow().get(&state).copied();
        known.unwrap_or_else(|| {
            let place = self.judge(when);
            self.judged.borrow_mut().insert(state, place);
            place
        })
    }
    #[track_caller]
    fn judge(&self, when: &str) -> &'static str {
        if self.host.changed().is_none() {
            assert_eq!(self.host.fsck(), Vec::<String>::new(), "{when}");
            return "before";
        }
        assert_eq!(self.host.fsck(), Vec::<String>::new(), "{when}");
        common::same_tree(&self.after_tree, &self.host.tree(), &format!("{when}: neither before nor after"));
        assert!(self.host.tables(self.host.file()) == self.host.tables(&self.after), "{when}");
        "after"
    }
    /// Recovers after a crash or failure; gives where the host then is. Where the journal was never begun the host must be untouched.
    #[track_caller]
    pub fn recover(&self, when: &str) -> &'static str {
        if !self.host.journal().exists() {
            assert!(self.host.untouched(), "{when}: no journal, and the host was touched");
            return "before";
        }
        let out = self.journal_verb("recover");
        if out.code != 0 {
            // A journal whose header did not become whole: nothing was written, and the words say so.
            assert_eq!(out.code, 3, "{when}: {out}");
            assert!(self.host.untouched(), "{when}: {out}");
            return "before";
        }
        let place = self.settled(when);
        let said = if place == "before" { ["Taken back", "as before"] } else { ["Finished", "complete already"] };
        assert!(said.iter().any(|s| out.stdout.contains(s)), "{when}: the host is {place}: {out}");
        let again = self.journal_verb("recover");
        assert_eq!(again.code, 0, "{when}: recover again: {again}");
        assert!(again.stdout.contains("nothing was written"), "{when}: {again}");
        place
    }
}

/// Kills `verb` at each of its calls, from the state that `start` makes.
pub fn kill_everywhere<B: Bed>(scene: &Scene<B>, verb: &str, start: &dyn Fn(&Scene<B>)) -> BTreeMap<&'static str, u64> {
    start(scene);
    let calls = scene.calls(verb);
    assert!(calls.iter().map(|c| c.1).sum::<u64>() > 2, "{verb}: {calls:?}");
    let (mut ends, mut killed) = (BTreeMap::new(), 0);
    for (call, count) in &calls {
        for n in 1..=*count {
            let when = format!("{verb} killed at {call} number {n}");
            start(scene);
            let (out, _) = scene.traced(verb, Some(&format!("inject={call}:signal=SIGKILL:when={n}")));
            assert!(out.code >= 128 || out.code == 0, "{when}: {out}");
            killed += u64::from(out.code >= 128);
            *ends.entry(scene.recover(&when)).or_default() += 1;
        }
    }
    // Of calls that several threads make, some are made once less in another run.
    let all: u64 = calls.iter().map(|c| c.1).sum();
    assert!(killed * 10 > all * 9, "{verb}: {killed} of {all} were killed");
    ends
}

/// Kills the recovery of commits that stopped somewhere, of those of which it has most to do.
pub fn kill_recoveries<B: Bed>(scene: &Scene<B>, most: usize) {
    // Commits that stopped somewhere between the first and the last write, of which the recoveries have most to do.
    scene.host.reset();
    let writes = scene.calls("relink").into_iter().find(|c| c.0 == "pwrite64").unwrap().1;
    let (stopped, mut states) = (scene.host.file().with_file_name("stopped"), Vec::new());
    for n in 2..=writes {
        scene.host.reset();
        scene.traced("relink", Some(&format!("inject=pwrite64:signal=SIGKILL:when={n}")));
        copy_sparse(scene.host.file(), &stopped);
        let journal = fs::read(scene.host.journal()).unwrap();
        // Before the journal was begun there is nothing to recover.
        if scene.recover(&format!("stopped at write {n}")) == "before" && scene.host.untouched() {
            continue;
        }
        copy_sparse(&stopped, scene.host.file());
        fs::write(scene.host.journal(), &journal).unwrap();
        let calls: u64 = scene.calls("recover").iter().map(|c| c.1).sum();
        states.push((calls, n, journal));
    }
    states.sort_unstable_by(|a, b| b.cmp(a));
    let mut ends = BTreeMap::new();
    for (_, n, journal) in states.into_iter().take(most) {
        scene.host.reset();
        scene.traced("relink", Some(&format!("inject=pwrite64:signal=SIGKILL:when={n}")));
        copy_sparse(scene.host.file(), &stopped);
        let again = kill_everywhere(scene, "recover", &|s| {
            copy_sparse(&stopped, s.host.file());
            fs::write(s.host.journal(), &journal).unwrap();
        });
        ends.extend(again);
    }
    assert!(ends.contains_key("after"), "{ends:?}");
}

/// Each call fails once with each error; the exit code is never 0 for a host or journal that failed, and `recover` brings it to an end.
pub fn fail_everywhere<B: Bed>(scene: &Scene<B>, verb: &str, start: &dyn Fn(&Scene<B>)) {
    start(scene);
    let calls = scene.calls(verb);
    let mut failed = 0;
    for (call, count) in &calls {
        for error in ["EIO", "ENOSPC"] {
            for n in 1..=*count {
                let when = format!("{verb} with {error} at {call} number {n}");
                start(scene);
                let (out, log) = scene.traced(verb, Some(&format!("inject={call}:error={error}:when={n}")));
                // Which file it struck: standard output and standard error may fail without harm.
                let struck = log.lines().find(|l| l.contains("(INJECTED)")).unwrap_or_default().to_owned();
                failed += u64::from(!struck.is_empty());
                let terminal = ["(1<", "(2<"].iter().any(|fd| struck.contains(&format!("{call}{fd}")));
                if struck.is_empty() || terminal {
                    assert!(matches!(out.code, 0 | 1 | 3), "{when}: {struck}: {out}");
                } else if struck.contains("host.img") || struck.contains("/journal") {
                    // A preallocation that the file system can't do is not an error.
                    let harmless = call == "fallocate" && (error == "EIO" || out.code == 0);
                    assert!(harmless || matches!(out.code, 3 | 4), "{when}: {struck}: {out}");
                    assert!(harmless || !out.stderr.trim().is_empty(), "{when}: {out}");
                    let text = &out.stderr;
                    assert!(
                        harmless
                            || text.contains("unimage recover")
                            || scene.host.changed().is_none()
                            || verb == "undo",
                        "{when}: no word of what to do: {out}"
                    );
                }
                if terminal && out.code == 0 {
                    // A failing terminal never changes what is committed.
                    let expected = if verb == "undo" { "before" } else { "after" };
                    assert_eq!(scene.settled(&when), expected, "{when}");
                }
                scene.recover(&when);
            }
        }
    }
    let all: u64 = calls.iter().map(|c| 2 * c.1).sum();
    assert!(failed * 10 > all * 9, "{verb}: {failed} of {all} failed");
}
