//! Why an ext4 volume, or the image on it, must not be written (host-writers 5.2).

use super::census::Census;
use super::file_system::ExtFs;
use super::inode::flags;
use super::journal::JournalSuper;
use super::link::{Gone, number};
use super::superblock::{compat, incompat, ro_compat};
use super::volume::Ext;
use crate::error::Result;
use crate::fs::Kind;
use crate::fs::host::{HostFile, HostImage};

/// What must be known to write, and is.
const INCOMPAT: u32 = incompat::FILETYPE
    | incompat::META_BG
    | incompat::EXTENTS
    | incompat::B64
    | incompat::MMP
    | incompat::FLEX_BG
    | incompat::EA_INODE
    | incompat::CSUM_SEED
    | incompat::LARGEDIR
    | incompat::INLINE_DATA;
const RO_COMPAT: u32 = ro_compat::SPARSE_SUPER
    | ro_compat::LARGE_FILE
    | ro_compat::BTREE_DIR
    | ro_compat::HUGE_FILE
    | ro_compat::GDT_CSUM
    | ro_compat::DIR_NLINK
    | ro_compat::EXTRA_ISIZE
    | ro_compat::BIGALLOC
    | ro_compat::METADATA_CSUM
    | ro_compat::VERITY;
/// What a multi-mount protection block says of a volume that nobody uses.
const MMP_CLEAN: u32 = 0xff4d_4d50;

/// Every reason, one sentence each.
pub(super) fn refusals(fs: &ExtFs, image: &HostImage) -> Result<Vec<String>> {
    let mut out = of_the_superblock(fs)?;
    // Features that are not known can mean that what follows makes no sense.
    if !out.is_empty() {
        return Ok(out);
    }
    let census = fs.census()?;
    out.extend(
        census.faults.iter().map(|f| format!("the host does not agree with itself (run `e2fsck -f` first): {f}")),
    );
    if out.is_empty() {
        for (file, what) in image.called(&census.tree) {
            of_the_image(&fs.ext, census, file, &what, &mut out);
        }
    }
    Ok(out)
}

fn of_the_superblock(fs: &ExtFs) -> Result<Vec<String>> {
    let ext = &fs.ext;
    let s = &ext.superblock;
    let mut out = Vec::new();
    let mut no = |is: bool, why: String| {
        if is {
            out.push(why);
        }
    };
    let cut = s.bytes() > ext.volume.len();
    no(cut, format!("the host's file system has {} bytes, the volume {}", s.bytes(), ext.volume.len()));
    no(
        s.has(incompat::RECOVER),
        "the host was not unmounted: its journal has to be replayed; mount it once, or run `e2fsck`".into(),
    );
    no(s.state != 1, "the host is marked as not clean or as having errors: check it with `e2fsck -f` first".into());
    no(
        s.last_orphan != 0,
        "the host has files that were removed while they were open: mount it once, or run `e2fsck`".into(),
    );
    no(
        s.has_ro(ro_compat::ORPHAN_PRESENT),
        "the host's orphan file lists files: mount it once, or run `e2fsck`".into(),
    );
    if let Some(e) = ext.problems.first() {
        no(true, format!("the host is damaged: {e}"));
    }
    let unknown = s.incompat & !INCOMPAT & !incompat::RECOVER;
    no(unknown != 0, format!("the host has features that can't be written (incompat {unknown:#x})"));
    let unknown = s.ro_compat & !RO_COMPAT & !ro_compat::ORPHAN_PRESENT;
    no(
        unknown & (ro_compat::QUOTA | ro_compat::PROJECT) != 0,
        "the host keeps quota files, which would be wrong afterwards".into(),
    );
    let unknown = unknown & !(ro_compat::QUOTA | ro_compat::PROJECT);
    no(unknown != 0, format!("the host has features that can't be written (ro_compat {unknown:#x})"));
    no(!s.has(incompat::EXTENTS), "the host has no extents (it is ext2 or ext3)".into());
    let whole = s.clusters_per_group.is_multiple_of(8) && s.inodes_per_group.is_multiple_of(8);
    no(!whole, "the host's groups are no whole bytes of a bitmap".into());
    let external = s.has_compat(compat::HAS_JOURNAL) && s.journal_inode == 0;
    no(external, "the host's journal is on another device".into());
    if !out.is_empty() {
        return Ok(out);
    }
    if s.has(incompat::MMP) {
        let block = ext.volume.read_vec(s.byte(s.mmp_block), 8)?;
        if block.get(4..8) != Some(&MMP_CLEAN.to_le_bytes()) {
            out.push("the host is in use by its multi-mount protection, or was not unmounted".into());
        }
    }
    if s.has_compat(compat::HAS_JOURNAL) {
        out.extend(journal(fs)?);
    }
    Ok(out)
}

/// A journal with something in it would be replayed over what is written.
fn journal(fs: &ExtFs) -> Result<Option<String>> {
    let s = &fs.ext.superblock;
    let census = fs.census()?;
    let first = census.node(s.journal_inode).and_then(|(_, map)| map.runs.first().filter(|r| r.logical == 0));
    let Some(first) = first else { return Ok(Some("the host's journal can't be found".into())) };
    let at = s.byte(first.physical);
    let bytes = fs.ext.volume.read_vec(at, s.block as usize)?;
    Ok(match JournalSuper::decode(at, &bytes) {
        Ok(head) if head.start == 0 => None,
        Ok(_) => Some("the host's journal has something in it: mount it once, or run `e2fsck`".into()),
        Err(e) => Some(format!("the host's journal: {e}")),
    })
}

/// What speaks against writing into a directory.
pub(super) fn of_a_directory(inode_flags: u32) -> Option<&'static str> {
    [
        (flags::INLINE_DATA, "its entries lie in its inode"),
        (flags::ENCRYPT, "its names are encrypted"),
        (flags::CASEFOLD, "it ignores case"),
        (flags::IMMUTABLE, "it is marked as immutable"),
        (flags::APPEND, "it is marked as append-only"),
    ]
    .into_iter()
    .find_map(|(flag, why)| (inode_flags & flag != 0).then_some(why))
}

fn of_the_image(fs: &Ext, census: &Census, image: &HostFile, what: &str, out: &mut Vec<String>) {
    let Ok(Gone { node, parent, .. }) = fs.gone_file(census, image) else {
        out.push(format!("{what} is not where it was planned from: plan again"));
        return;
    };
    if census.tree.object(image.object).kind != Kind::File {
        out.push(format!("{what} is no file of the host"));
        return;
    }
    let inode = &node.inode;
    if inode.links != 1 {
        out.push(format!("{what} has {} names: remove the others first", inode.links));
    }
    for (flag, why) in [
        (flags::IMMUTABLE, "marked as immutable: `chattr -i` if it may be removed"),
        (flags::APPEND, "marked as append-only: `chattr -a` if it may be removed"),
        (flags::ENCRYPT, "encrypted"),
        (flags::VERITY, "protected by verity"),
        (flags::INLINE_DATA, "kept in its inode"),
    ] {
        if inode.has(flag) {
            out.push(format!("{what} is {why}"));
        }
    }
    if !inode.has(flags::EXTENTS | flags::INLINE_DATA) {
        out.push(format!("{what} has no extents: it is from the time when the host was ext3"));
    }
    let stream = census.tree.data(image.object);
    if stream.is_none_or(|s| census.tree.map(s) != image.map) {
        out.push(format!("{what} is not where it was planned from: plan again"));
    }
    let dir = census.node(parent).map_or(0, |(n, _)| n.inode.flags);
    if let Some(why) = of_a_directory(dir) {
        out.push(format!("the directory of {what} can't be changed: {why}"));
    }
    debug_assert_eq!(number(census, image.object), node.number);
}
