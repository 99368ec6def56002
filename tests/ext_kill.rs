//! ext4 as host: a real process killed at every write of a commit, of an undo and of a recovery. After `recover` the host is
//! as before or as after; also where `e2fsck -fp`, as it runs when a machine starts, came first.

mod ext_support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use ext_support::{Mount, Random, Rows, kernel_rows, make, scratch};

const CALLS: &str = "write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,ftruncate,fallocate,sync_file_range";

struct Scene {
    dir: tempfile::TempDir,
    disk: tempfile::TempDir,
    before: PathBuf,
    after: PathBuf,
    done: PathBuf,
    before_rows: Rows,
    after_rows: Rows,
}

fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

impl Scene {
    fn new(args: &str, guest_args: &str) -> Self {
        let dir = scratch();
        // A journal must not lie in memory.
        let disk = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let guest = dir.path().join("guest");
        make(&guest, 4, guest_args);
        {
            let mount = Mount::new(&guest, "rw");
            let mut r = Random(3);
            for n in 0..60 {
                fs::create_dir_all(mount.path().join(format!("d{}", n % 7))).unwrap();
                fs::write(mount.path().join(format!("d{}/{n}", n % 7)), r.bytes(n * 97)).unwrap();
            }
        }
        let host = dir.path().join("host.img");
        make(&host, 16, args);
        {
            let mount = Mount::new(&host, "rw");
            fs::create_dir(mount.path().join("vm")).unwrap();
            fs::write(mount.path().join("vm/older"), vec![7; 20_000]).unwrap();
            fs::copy(&guest, mount.path().join("vm/disk.img")).unwrap();
        }
        let before = dir.path().join("before.img");
        fs::copy(&host, &before).unwrap();
        let mut scene = Self {
            before_rows: kernel_rows(Mount::new(&before, "ro").path()),
            after: dir.path().join("after.img"),
            done: dir.path().join("journal.done"),
            after_rows: Rows::new(),
            before,
            dir,
            disk,
        };
        scene.reset();
        let out = scene.command("relink").output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        fs::copy(scene.host(), &scene.after).unwrap();
        fs::copy(scene.journal(), &scene.done).unwrap();
        scene.after_rows = kernel_rows(Mount::new(&scene.after, "ro").path());
        assert!(scene.after_rows.len() > scene.before_rows.len() + 60);
        scene
    }
    fn host(&self) -> PathBuf {
        self.dir.path().join("host.img")
    }
    fn journal(&self) -> PathBuf {
        self.disk.path().join("journal")
    }
    fn reset(&self) {
        fs::copy(&self.before, self.host()).unwrap();
        fs::remove_file(self.journal()).ok();
    }
    fn to_after(&self) {
        fs::copy(&self.after, self.host()).unwrap();
        fs::copy(&self.done, self.journal()).unwrap();
    }
    fn arguments(&self, verb: &str) -> Vec<String> {
        let journal = self.journal().display().to_string();
        match verb {
            "relink" => {
                let image = format!("{}//vm/disk.img", self.host().display());
                ["relink", &image, "--into", "/out", "--journal", &journal, "--commit"].map(str::to_owned).to_vec()
            }
            verb => vec![verb.to_owned(), journal],
        }
    }
    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_unimage"));
        command.args(self.arguments(verb));
        command
    }
    fn traced(&self, verb: &str, inject: Option<&str>) -> (Output, String) {
        let log = self.dir.path().join("strace.log");
        let mut command = Command::new("strace");
        command.args(["-f", "-qq", "-o"]).arg(&log).args(["-e", &format!("trace={CALLS}")]);
        command.args(inject.iter().flat_map(|i| ["-e", *i]));
        command.arg(env!("CARGO_BIN_EXE_unimage")).args(self.arguments(verb));
        let out = command.output().unwrap();
        assert!(!text(&out).contains("panicked"), "{}", text(&out));
        (out, fs::read_to_string(&log).unwrap())
    }
    /// How often the busiest thread makes each call.
    fn calls(&self, verb: &str) -> BTreeMap<String, u64> {
        let (_, log) = self.traced(verb, None);
        let mut counts: BTreeMap<(String, String), u64> = BTreeMap::new();
        for line in log.lines() {
            let Some((pid, call)) = line.split_once(' ') else { continue };
            let name: String = call.trim_start().chars().take_while(|c| c.is_ascii_alphanumeric()).collect();
            if CALLS.split(',').any(|c| c == name) {
                *counts.entry((name, pid.to_owned())).or_default() += 1;
            }
        }
        let mut most: BTreeMap<String, u64> = BTreeMap::new();
        for ((name, _), n) in counts {
            let m = most.entry(name).or_default();
            *m = (*m).max(n);
        }
        most
    }
    /// Where the host is: sound, and as before or as after.
    #[track_caller]
    fn place(&self, when: &str) -> &'static str {
        let out = Command::new("e2fsck").arg("-fn").arg(self.host()).output().unwrap();
        let said = text(&out);
        let name = self.host().display().to_string();
        let mine = |l: &&str| !(l.starts_with("Pass ") || l.starts_with("e2fsck 1.") || l.starts_with(&name));
        let said: Vec<&str> = said.lines().filter(mine).collect();
        assert!(said.is_empty() && out.status.success(), "{when}: {said:?}");
        let rows = kernel_rows(Mount::new(&self.host(), "ro").path());
        match () {
            () if rows == self.before_rows => "before",
            () if rows == self.after_rows => "after",
            () => panic!("{when}: neither before nor after"),
        }
    }
    #[track_caller]
    fn recover(&self, when: &str) -> &'static str {
        if self.journal().exists() {
            let out = self.command("recover").output().unwrap();
            let said = text(&out);
            match out.status.code() {
                Some(0) => {
                    let again = self.command("recover").output().unwrap();
                    assert!(
                        again.status.success() && text(&again).contains("nothing was written"),
                        "{when}: {}",
                        text(&again)
                    );
                }
                // A journal whose header did not become whole: nothing was written.
                Some(3) => assert_eq!(self.place(when), "before", "{when}: {said}"),
                code => panic!("{when}: {code:?} {said}"),
            }
        }
        self.place(when)
    }
    /// What a start of the machine does first. Whether it was kept out.
    #[track_caller]
    fn checked_at_boot(&self, when: &str) -> bool {
        let bytes = fs::read(self.host()).unwrap();
        let out = Command::new("e2fsck").arg("-fp").arg(self.host()).output().unwrap();
        match out.status.code() {
            Some(8) => {
                assert!(fs::read(self.host()).unwrap() == bytes, "{when}: e2fsck was kept out, and wrote");
                true
            }
            Some(0) => false,
            code => panic!("{when}: e2fsck ends with {code:?}: {}", text(&out)),
        }
    }
}

fn kill_everywhere(scene: &Scene, verb: &str, start: &dyn Fn(&Scene)) -> BTreeMap<&'static str, u64> {
    start(scene);
    let calls = scene.calls(verb);
    assert!(calls.values().sum::<u64>() > 0, "{verb}: {calls:?}");
    let mut ends = BTreeMap::new();
    let copy = scene.dir.path().join("killed.img");
    let journal = scene.dir.path().join("killed.journal");
    for (call, count) in &calls {
        for n in 1..=*count {
            let when = format!("{verb} killed at {call} number {n}");
            start(scene);
            scene.traced(verb, Some(&format!("inject={call}:signal=SIGKILL:when={n}")));
            fs::copy(scene.host(), &copy).unwrap();
            let begun = scene.journal().exists();
            if begun {
                fs::copy(scene.journal(), &journal).unwrap();
            }
            *ends.entry(scene.recover(&when)).or_default() += 1;
            // The same with a check at boot in between.
            fs::copy(&copy, scene.host()).unwrap();
            if begun {
                fs::copy(&journal, scene.journal()).unwrap();
            }
            let when = format!("{when}, then checked at boot");
            if scene.checked_at_boot(&when) {
                *ends.entry("kept out").or_default() += 1;
                scene.recover(&when);
            } else {
                // The volume was whole, and is: nothing is left to be recovered. It may be said that somebody wrote.
                if begun {
                    let out = scene.command("recover").output().unwrap();
                    assert!(matches!(out.status.code(), Some(0 | 3 | 4)), "{when}: {}", text(&out));
                }
                scene.place(&when);
            }
        }
    }
    ends
}

const HOSTS: [(&str, &str); 2] = [
    ("-t ext4 -b 1024 -J size=1", "-t ext4 -b 1024 -O ^has_journal"),
    ("-t ext4 -b 4096 -O ^metadata_csum,^has_journal", "-t ext4 -b 4096 -O ^has_journal"),
];

#[test]
fn killed_at_every_call_of_a_commit() {
    for (host, guest) in HOSTS {
        let scene = Scene::new(host, guest);
        let ends = kill_everywhere(&scene, "relink", &Scene::reset);
        println!("{host}: {ends:?}");
        assert!(["before", "after", "kept out"].iter().all(|e| ends.contains_key(e)), "{ends:?}");
    }
}

/// The second host is taken apart in the same way in the long campaign.
fn hosts() -> &'static [(&'static str, &'static str)] {
    &HOSTS[..if ext_support::long() { 2 } else { 1 }]
}

#[test]
fn killed_at_every_call_of_an_undo() {
    for (host, guest) in hosts() {
        let scene = Scene::new(host, guest);
        let ends = kill_everywhere(&scene, "undo", &Scene::to_after);
        println!("{host}: {ends:?}");
        assert!(["before", "kept out"].iter().all(|e| ends.contains_key(e)), "{ends:?}");
    }
}

/// A recovery of a commit that was stopped at its last writes to blocks in use (at any of the last twelve in the long
/// campaign, every second one), and of an undo that was.
#[test]
fn killed_at_every_call_of_a_recovery() {
    for (host, guest) in hosts() {
        let scene = Scene::new(host, guest);
        let (stopped, journal) = (scene.dir.path().join("stopped"), scene.dir.path().join("stopped.journal"));
        for (verb, end) in [("relink", "after"), ("undo", "before")] {
            let start = if verb == "relink" { Scene::reset } else { Scene::to_after };
            start(&scene);
            let writes = scene.calls(verb)["pwrite64"];
            let stops: Vec<u64> = if ext_support::long() { (1..=12).rev().step_by(2).collect() } else { vec![4, 2] };
            let mut all: BTreeMap<&str, u64> = BTreeMap::new();
            for n in stops.into_iter().filter(|n| *n < writes) {
                start(&scene);
                scene.traced(verb, Some(&format!("inject=pwrite64:signal=SIGKILL:when={}", writes - n)));
                fs::copy(scene.host(), &stopped).unwrap();
                fs::copy(scene.journal(), &journal).unwrap();
                let ends = kill_everywhere(&scene, "recover", &|s: &Scene| {
                    fs::copy(&stopped, s.host()).unwrap();
                    fs::copy(&journal, s.journal()).unwrap();
                });
                ends.into_iter().for_each(|(e, n)| *all.entry(e).or_default() += n);
            }
            println!("{host}, a recovery of {verb}: {all:?}");
            assert!(all.contains_key(end), "{all:?}");
        }
    }
}

/// Undo gives back every byte outside of units that were free.
#[test]
fn undo_gives_back_every_byte() {
    for (host, guest) in HOSTS {
        let scene = Scene::new(host, guest);
        scene.to_after();
        let out = scene.command("undo").output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        assert_eq!(scene.place("undone"), "before");
        let (old, new) = (fs::read(&scene.before).unwrap(), fs::read(scene.host()).unwrap());
        let free = free_blocks(&scene.before);
        let block = if host.contains("1024") { 1024 } else { 4096 };
        for (n, (a, b)) in old.chunks(block).zip(new.chunks(block)).enumerate() {
            assert!(a == b || free.contains(&(n as u64)), "block {n} is not as before");
        }
        // A host that was mounted and written since is refused.
        scene.to_after();
        fs::write(Mount::new(&scene.host(), "rw").path().join("new"), b"new").unwrap();
        let out = scene.command("undo").output().unwrap();
        assert_eq!(out.status.code(), Some(4), "{}", text(&out));
    }
}

fn free_blocks(image: &Path) -> std::collections::HashSet<u64> {
    let said = ext_support::run("dumpe2fs", &[image]);
    let lists = said.lines().filter_map(|l| l.trim().strip_prefix("Free blocks: "));
    let mut out = std::collections::HashSet::new();
    for range in lists.flat_map(|l| l.split(", ")).filter(|r| !r.is_empty()) {
        let (a, b) = range.split_once('-').unwrap_or((range, range));
        out.extend(a.trim().parse::<u64>().unwrap()..=b.trim().parse::<u64>().unwrap());
    }
    out
}
