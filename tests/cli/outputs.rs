//! Standard output and standard error that fail, are closed or have nobody who reads.

use std::io::Read;
use std::process::{Command, Stdio};

use crate::support::*;

#[test]
fn a_full_disk_under_the_output_is_said_and_is_an_error() {
    let image = ntfs().image.to_str().unwrap();
    let big = format!("{image}//folder/deep/er/big");
    for args in [
        &["ls", "-R", image][..],
        &["ls", "--json", image],
        &["info", image],
        &["map", image],
        &["cat", &big],
        &["--help"],
    ] {
        let out = shell("exec \"$0\" \"$@\" > /dev/full", args).exits(3);
        assert!(out.stderr.starts_with("unimage: standard output: "), "{out}");
    }
    // Standard error that fails changes nothing.
    let want = unimage(["ls", image]).exits(0).stdout;
    assert_eq!(shell("exec \"$0\" \"$@\" 2> /dev/full", &["ls", image]).exits(0).stdout, want);
    shell("exec \"$0\" \"$@\" 2> /dev/full", &["ls", &format!("{image}//gone")]).exits(3);
    shell("exec \"$0\" \"$@\" 2> /dev/full", &["nonsense"]).exits(2);
    shell("exec \"$0\" \"$@\" > /dev/full 2> /dev/full", &["ls", image]).exits(3);
}

#[test]
fn closed_outputs_do_no_harm() {
    let image = ntfs().image.to_str().unwrap();
    shell("exec \"$0\" \"$@\" >&-", &["ls", "-R", image]).exits(0);
    shell("exec \"$0\" \"$@\" 2>&-", &["ls", image]).exits(0);
    shell("exec \"$0\" \"$@\" >&- 2>&- <&-", &["ls", &format!("{image}//gone")]).exits(3);
    shell("exec \"$0\" \"$@\" >&- 2>&-", &["--help"]).exits(0);
}

#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let image = ntfs().image.to_str().unwrap();
    for args in [vec!["cat", image], vec!["ls", "-R", image]] {
        let mut child =
            Command::new(UNIMAGE).args(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn a_full_disk_under_the_output_never_stops_a_commit() {
    let host = Host::new();
    let journal = host.journal();
    let args = ["relink", &host.image(), "--into", "/out", "--journal", journal.to_str().unwrap(), "--commit"]
        .map(str::to_owned);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let out = shell("exec \"$0\" \"$@\" > /dev/full", &args).exits(1);
    assert!(out.stderr.contains("unimage: standard output: "), "{out}");
    unimage(["recover", journal.to_str().unwrap()]).exits(0);
    let list = unimage(["ls", "-R", host.file.to_str().unwrap()]).exits(0).stdout;
    assert!(list.lines().any(|l| l == "out/top.bin"), "{list}");
    shell("exec \"$0\" \"$@\" > /dev/full", &["undo", journal.to_str().unwrap()]).exits(1);
    assert!(host.is_as_before());
}
