//! `cargo bench --bench relink`: relinking against copying, and the walk against other readers, on the same images in
//! one run. Prints tables; `docs/benchmarks.md` says how to read them. No timed test: nothing here fails for being slow.
//!
//! A word after `--` chooses the parts whose title contains it: `cargo bench --bench relink -- walk`.

#[path = "../../tests/common/mod.rs"]
mod common;

#[path = "../../tests/exfat_support/mod.rs"]
mod exfat_support;

mod exfat;
mod ext;
mod extract;
mod fat;
mod guests;
mod limit;
mod measure;
mod ntfs;
mod relink;
mod walk;

use common::guest;

fn main() {
    // Cargo itself passes `--bench`.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let part = |title: &str, run: &dyn Fn(&str)| {
        if wanted.is_empty() || wanted.iter().any(|w| title.contains(w.as_str())) {
            run(title);
        }
    };
    part("walk: NTFS, 200,000 small files", &|title| walk::ntfs(title, &guest::many_files()));
    part("walk: NTFS, 20,000 mixed files", &|title| walk::ntfs(title, &guest::windows()));
    part("relink: FAT32, large files of an NTFS guest", &|title| {
        let guest = guest::large_files();
        relink::run(title, &guest, &fat::Fat32::new(&guest.image), relink::ntfs_source);
    });
    part("relink: FAT32, 20,000 mixed files of an NTFS guest", &|title| {
        let guest = guests::plain_names(&guest::windows());
        relink::run(title, &guest, &fat::Fat32::new(&guest.image), relink::ntfs_source);
    });
    part("walk: ext4, 200,000 small files", &|title| ext::walk(title, &ext::many_files()));
    part("relink: ext4, large files of an ext4 guest", &|title| {
        let guest = ext::large_files();
        relink::run(title, &guest, &ext::host(&guest.image), ext::source);
    });
    part("relink: ext4, 20,000 mixed files of an ext4 guest", &|title| {
        let guest = ext::mixed_files();
        relink::run(title, &guest, &ext::host(&guest.image), ext::source);
    });
    part("relink: ext4, 20,000 mixed files of an NTFS guest", &|title| {
        let guest = guest::windows();
        relink::run(title, &guest, &ext::host(&guest.image), relink::ntfs_source);
    });
    for (title, guest) in [
        ("relink: NTFS, large files of an NTFS guest", &guest::large_files as &dyn Fn() -> guest::Guest),
        ("relink: NTFS, 20,000 mixed files of an NTFS guest", &guest::windows),
        ("relink: NTFS, 20,000 small files of an NTFS guest", &ntfs::few_files),
        ("relink: NTFS, 200,000 small files of an NTFS guest", &guest::many_files),
    ] {
        part(title, &|title| {
            let guest = guest();
            let host = ntfs::host(&guest.image);
            relink::run(title, &guest, &host, relink::ntfs_source);
            if title.contains("200,000") {
                relink::held_back(&host);
            }
        });
    }
    for (unit, large, mixed) in [
        ("4K", "relink: exFAT, clusters of 4 KiB, large files", "relink: exFAT, clusters of 4 KiB, 20,000 mixed files"),
        (
            "128K",
            "relink: exFAT, clusters of 128 KiB, large files",
            "relink: exFAT, clusters of 128 KiB, 20,000 mixed files",
        ),
    ] {
        part(large, &|title| {
            let guest = guest::large_files();
            relink::run(title, &guest, &exfat::ExFat::new(unit, &guest.image), relink::ntfs_source);
        });
        part(mixed, &|title| {
            let guest = guests::plain_names(&guest::windows());
            relink::run(title, &guest, &exfat::ExFat::new(unit, &guest.image), relink::ntfs_source);
        });
    }
    part("relink: full exFAT, clusters of 4 KiB, 20,000 mixed files from sector 63 on", &|title| {
        let guest = exfat::old_partition(&guests::plain_names(&guest::windows()));
        relink::run(title, &guest, &exfat::ExFat::full("4K", &guest.image), exfat::old_source);
    });
    part("relink: full exFAT, clusters of 128 KiB, large files", &|title| {
        let guest = guest::large_files();
        relink::run(title, &guest, &exfat::ExFat::full("128K", &guest.image), relink::ntfs_source);
    });
    part("extract: large files of an ext4 guest", &|title| {
        extract::extract(title, &ext::large_files(), "ext4", ext::source)
    });
    part("extract: 40,000 small files of an ext4 guest", &|title| {
        extract::extract(title, &ext::small_files(), "ext4", ext::source);
    });
    part("extract: 20,000 mixed files of an ext4 guest", &|title| {
        extract::extract(title, &ext::mixed_files(), "ext4", ext::source);
    });
    part("extract: 20,000 mixed files of an NTFS guest", &|title| {
        extract::extract(title, &guest::windows(), "ntfs", relink::ntfs_source);
    });
}
