//! Why an exFAT volume, or the image on it, must not be written (host-writers, 3.2).

use crate::error::Result;
use crate::extent::{Map, Stream};
use crate::fs::Kind;
use crate::fs::exfat::dirent::{READ_ONLY, SYSTEM};
use crate::fs::exfat::layout::{DIRTY, MEDIA_FAILURE, SECOND};
use crate::fs::exfat::read::ExFat;
use crate::fs::host::{HostFile, HostImage};

/// Every reason, one sentence each.
pub(super) fn refusals(fs: &ExFat, image: &HostImage) -> Result<Vec<String>> {
    let mut out = of_the_volume(fs)?;
    // A volume that can't be trusted says nothing of the image on it.
    if out.is_empty() {
        for (file, what) in image.called(&fs.scanned()?.tree) {
            of_the_image(fs, file, &what, &mut out)?;
        }
    }
    Ok(out)
}

fn of_the_volume(fs: &ExFat) -> Result<Vec<String>> {
    let boot = &fs.boot;
    let mut out = Vec::new();
    let mut no = |is: bool, why: String| {
        if is {
            out.push(why);
        }
    };
    no(!fs.primary, "the host's boot sector is damaged, or a relink was not finished: see `recover`".into());
    no(!fs.sound, "the checksum of the host's boot region is wrong: check it with `fsck.exfat` first".into());
    let (major, minor) = (boot.revision >> 8, boot.revision & 0xFF);
    no(major != 1, format!("the host is of revision {major}.{minor:02}, which is unknown"));
    let texfat = boot.fats != 1 || boot.flags & SECOND != 0;
    no(texfat, "the host has two tables (TexFAT), or says that the second one is in use".into());
    no(
        boot.flags & DIRTY != 0,
        "the host is marked dirty: it was not unmounted; check it with `fsck.exfat` first".into(),
    );
    let errors = boot.flags & MEDIA_FAILURE != 0;
    no(errors, "the host is marked as having had read or write errors: check it with `fsck.exfat` first".into());
    let cut = boot.end() > fs.volume.len();
    no(cut, format!("the host's file system ends at byte {}, the volume at {}", boot.end(), fs.volume.len()));
    let scan = fs.scanned()?;
    if let [first, ..] = scan.tree.problems() {
        let places = if scan.tree.problems().len() == 1 { "place" } else { "places" };
        out.push(format!("the host is damaged in {} {places}, the first: {}", scan.tree.problems().len(), first.what));
    }
    if let [first, ..] = &scan.oddities[..] {
        let count = scan.oddities.len();
        out.push(format!("the host is not as it must be in {count} places: {first}; check it with `fsck.exfat` first"));
    }
    if let Some(bitmap) = &fs.root().bitmap {
        let (mut lost, mut taken) = (0u64, 0u64);
        for n in 2..boot.clusters.saturating_add(2) {
            match (ExFat::in_use(bitmap, n), scan.claims.owned.has(n)) {
                (true, false) => lost = lost.saturating_add(1),
                (false, true) => taken = taken.saturating_add(1),
                _ => {}
            }
        }
        if lost > 0 || taken > 0 {
            out.push(format!(
                "the host's bitmap has {lost} clusters in use that belong to no file, and {taken} free that do: check it with \
                 `fsck.exfat` first"
            ));
        }
    }
    Ok(out)
}

fn of_the_image(fs: &ExFat, image: &HostFile, what: &str, out: &mut Vec<String>) -> Result<()> {
    let scan = fs.scanned()?;
    let known = scan.tree.order().any(|(e, _)| e == image.entry && scan.tree.entry(e).object == image.object);
    let stream = known.then(|| scan.tree.data(image.object)).flatten();
    let Some(stream) = stream.filter(|_| scan.tree.object(image.object).kind == Kind::File) else {
        out.push(format!("{what} is no file of the host"));
        return Ok(());
    };
    let object = scan.tree.object(image.object);
    for (bit, name) in [(READ_ONLY, "read-only"), (SYSTEM, "a system file")] {
        if object.attributes & u32::from(bit) != 0 {
            out.push(format!("{what} is marked as {name}: clear that attribute if it may be removed"));
        }
    }
    let now: Map<Stream> = scan.tree.map(stream);
    if now != image.map {
        out.push(format!("{what} is not where it was planned from: plan again"));
    }
    Ok(())
}
