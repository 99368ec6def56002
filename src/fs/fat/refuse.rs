//! Why a FAT volume, or the image on it, must not be written (host-writers, 2.2).

use crate::error::Result;
use crate::extent::{Map, Offset, Stream};
use crate::fs::Kind;
use crate::fs::fat::dirent::{READ_ONLY, SYSTEM};
use crate::fs::fat::layout::Width;
use crate::fs::fat::read::Fat;
use crate::fs::fat::table::Next;
use crate::fs::host::{HostFile, HostImage};

/// Bytes that are compared at once.
const CHUNK: u64 = 1 << 20;

/// Every reason, one sentence each.
pub(super) fn refusals(fat: &Fat, image: &HostImage) -> Result<Vec<String>> {
    let mut out = of_the_volume(fat)?;
    // A volume that can't be trusted says nothing of the image on it.
    if out.is_empty() {
        for (file, what) in image.called(&fat.scanned()?.tree) {
            of_the_image(fat, file, &what, &mut out)?;
        }
    }
    Ok(out)
}

fn of_the_volume(fat: &Fat) -> Result<Vec<String>> {
    let boot = &fat.boot;
    let mut out = Vec::new();
    let mut no = |is: bool, why: String| {
        if is {
            out.push(why);
        }
    };
    no(!fat.primary, "the host's boot sector is damaged, or a relink was not finished: see `recover`".into());
    no(boot.version != 0, format!("the host is of FAT32 version {:#x}, which is unknown", boot.version));
    no(!boot.mirrored(), "the host does not mirror its tables (flags 0x80): only one of them is in use".into());
    no(boot.short_table, "the host's table is too small for its clusters".into());
    let few = boot.width == Width::Fat32 && Width::of(boot.clusters.into()) != Width::Fat32;
    no(few, format!("the host has the form of FAT32 but {} clusters only: Windows takes it for FAT16", boot.clusters));
    let cut = boot.end() > fat.volume.len();
    no(cut, format!("the host's file system ends at byte {}, the volume at {}", boot.end(), fat.volume.len()));
    let (clean, whole) = fat.state();
    no(!clean, "the host is marked dirty: it was not unmounted; check it with `fsck.fat` first".into());
    no(!whole, "the host is marked as having had read or write errors: check it with `fsck.fat` first".into());
    no(!fat.table_faults.is_empty(), format!("the host's table can't be read: {}", fat.table_faults.join(", ")));
    if !cut && let Some(why) = tables_differ(fat)? {
        out.push(why);
    }
    let scan = fat.scanned()?;
    if let [first, ..] = scan.tree.problems() {
        let places = if scan.tree.problems().len() == 1 { "place" } else { "places" };
        out.push(format!("the host is damaged in {} {places}, the first: {}", scan.tree.problems().len(), first.what));
    }
    let table = &fat.table;
    let lost = table.entries().filter(|(n, value)| !table.is_unused(*value) && !scan.claims.owned.has(*n));
    match lost.count() {
        0 => {}
        lost => out.push(format!(
            "{lost} clusters of the host are in use but belong to no file: check it with `fsck.fat` first"
        )),
    }
    Ok(out)
}

fn tables_differ(fat: &Fat) -> Result<Option<String>> {
    let mut from = 0u64;
    let mut bytes = Vec::new();
    for chunk in fat.table.bytes().chunks(usize::try_from(CHUNK).unwrap_or(usize::MAX)) {
        for other in 0..fat.boot.fats {
            let at = fat.boot.fat_at(other).saturating_add(from);
            bytes.resize(chunk.len(), 0);
            fat.volume.read_at(Offset::new(at), &mut bytes)?;
            if bytes != chunk {
                let i = bytes.iter().zip(chunk).take_while(|(a, b)| a == b).count();
                let byte = from.saturating_add(i as u64);
                let active = fat.boot.active_fat();
                // Where that one can't be read, or makes no sense, the walk has taken another.
                let tables = if other == active {
                    format!("FAT {} is not the one that could be read", active.saturating_add(1))
                } else {
                    format!("FAT {} and FAT {} differ", active.saturating_add(1), other.saturating_add(1))
                };
                return Ok(Some(format!(
                    "the host's tables differ: {tables} at byte {byte:#x}; check it with `fsck.fat` first"
                )));
            }
        }
        from = from.saturating_add(chunk.len() as u64);
    }
    Ok(None)
}

fn of_the_image(fat: &Fat, image: &HostFile, what: &str, out: &mut Vec<String>) -> Result<()> {
    let scan = fat.scanned()?;
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
    let info = scan.tree.stream(stream);
    let need = info.size.div_ceil(fat.boot.cluster_bytes().max(1));
    let mut have = 0u64;
    let mut next = fat.table.next(u32::try_from(info.locator).unwrap_or(0));
    if info.locator != 0 {
        have = 1;
        // Ends: the walk has followed this chain to its end mark.
        while let Next::Cluster(n) = next
            && have <= u64::from(fat.boot.clusters)
        {
            have = have.saturating_add(1);
            next = fat.table.next(n);
        }
    }
    if have != need {
        out.push(format!("{what}'s chain has {have} clusters, its {} bytes need {need}", info.size));
    }
    let now: Map<Stream> = scan.tree.map(stream);
    if now != image.map {
        out.push(format!("{what} is not where it was planned from: plan again"));
    }
    Ok(())
}
