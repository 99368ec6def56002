//! The walk against other readers, with their output on.

use crate::common::guest::Guest;
use crate::common::{self, UNIMAGE, ok};
use crate::measure::{drop_caches, in_turns, words};

/// A program that lists every file of an image.
pub struct Reader {
    /// The row's name.
    pub what: &'static str,
    /// The command.
    pub command: Vec<String>,
}

/// The readers of an NTFS guest in the first partition of an image.
pub fn ntfs(title: &str, guest: &Guest) {
    let image = guest.image.to_str().unwrap();
    // 7z does not look into partitions of an image: it is given the volume alone.
    let dir = common::scratch();
    let volume = dir.path().join("volume.ntfs").display().to_string();
    ok("dd", ["bs=1M", "skip=1", "conv=sparse", "status=none", &format!("if={image}"), &format!("of={volume}")]);
    let mut readers = own(&format!("{image}//p1"));
    readers.push(Reader { what: "fls -r -p", command: words(&["fls", "-r", "-p", "-o", "2048", image]) });
    readers.push(Reader { what: "7z l", command: words(&["7z", "l", &volume]) });
    run(title, guest.files.len(), &readers, "fls -r -p");
}

/// Our own rows. `fls -r -p` prints type, number and path: `ls -R` is what compares with it, `ls -lR` and `--json`
/// print more.
pub fn own(address: &str) -> Vec<Reader> {
    let row = |what, options: &[&str]| {
        let mut command = words(&[UNIMAGE, "ls"]);
        command.extend(words(options));
        command.push(address.to_owned());
        Reader { what, command }
    };
    vec![row("unimage ls -R", &["-R"]), row("unimage ls -lR", &["-lR"]), row("unimage ls -R --json", &["-R", "--json"])]
}

/// Prints a row for each reader: warm, cold, and how many times faster than the row `peer`.
pub fn run(title: &str, files: usize, readers: &[Reader], peer: &str) {
    println!("\n## {title}: {files} files and streams");
    let commands: Vec<_> = readers.iter().map(|r| r.command.clone()).collect();
    let _ = in_turns(1, &commands, || ());
    let warm = in_turns(7, &commands, || ());
    let cold = in_turns(4, &commands, drop_caches);
    let at = readers.iter().position(|r| r.what == peer).unwrap();
    println!(
        "{:<22} {:>9} {:>12} {:>8}   {:>9} {:>12} {:>8}   {:>9} {:>8}",
        "", "warm", "files/s", "of peer", "cold", "files/s", "of peer", "processor", "memory"
    );
    for ((reader, warm_), cold_) in readers.iter().zip(&warm).zip(&cold) {
        let rate = |s: f64| files as f64 / s;
        let mut times = [warm[at].seconds / warm_.seconds, cold[at].seconds / cold_.seconds]
            .map(|t| format!("{t:.1}x"))
            .into_iter();
        println!(
            "{:<22} {:>7.3} s {:>12.0} {:>8}   {:>7.3} s {:>12.0} {:>8}   {:>7.3} s {:>4} MiB",
            reader.what,
            warm_.seconds,
            rate(warm_.seconds),
            times.next().unwrap(),
            cold_.seconds,
            rate(cold_.seconds),
            times.next().unwrap(),
            warm_.cpu,
            warm_.memory / 1024
        );
    }
    println!("of peer: times as fast as `{peer}`; processor: mean of the warm runs");
}
