//! A host for tests that writes nothing: rules, names, free space.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::extent::{ReadAt, Volume};
use crate::fs::host::{Content, Estimate, Host, HostImage, HostName, Job, NameRules, NewKind, Rules};
use crate::txn::Staging;

/// Rules, and what is there.
#[derive(Clone, Debug)]
pub struct Mock {
    pub unit: u64,
    pub units_at: u64,
    pub max_file: u64,
    pub rich: bool,
    pub streams: bool,
    /// What only NTFS has: compressed units, reparse points, security, a length of valid data.
    pub ntfs: bool,
    pub inline: u64,
    pub names: NameRules,
    pub there: Vec<HostName>,
    pub free: u64,
}

impl Mock {
    /// As a FAT volume: no holes, one name, no links.
    pub fn fat(unit: u64) -> Self {
        Self {
            unit,
            units_at: 512,
            max_file: u32::MAX.into(),
            rich: false,
            streams: false,
            ntfs: false,
            inline: 0,
            names: NameRules::Win32,
            there: Vec::new(),
            free: 1 << 20,
        }
    }
    /// As an ext4 volume: holes, hard and symbolic links.
    pub fn posix(unit: u64) -> Self {
        Self { units_at: 0, max_file: 1 << 44, rich: true, names: NameRules::Posix, ..Self::fat(unit) }
    }
}

impl Host for Mock {
    fn rules(&self) -> Rules {
        Rules {
            unit: self.unit,
            units_at: self.units_at,
            max_file: self.max_file,
            holes: self.rich,
            streams: self.streams,
            hard_links: self.rich,
            symlinks: self.rich,
            special: self.rich,
            xattrs: self.rich,
            inline: self.inline,
            valid: self.ntfs,
            packed: if self.ntfs { 65536 } else { 0 },
            reparse: self.ntfs,
            security: self.ntfs,
            slack_shows: true,
            names: self.names,
        }
    }
    fn refusals(&self, _: &HostImage) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
    fn fold(&self, name: &[u8]) -> Vec<u8> {
        match self.names {
            NameRules::Win32 => String::from_utf8_lossy(name).to_uppercase().into_bytes(),
            NameRules::Posix => name.to_vec(),
        }
    }
    fn names_in(&self, _: &[HostName]) -> Result<Option<Vec<HostName>>> {
        Ok(Some(self.there.clone()))
    }
    fn free_units(&self) -> u64 {
        self.free
    }
    fn needs(&self, job: &Job<'_>, _: Option<&Staging>) -> Estimate {
        let copied = |kind: &NewKind| match kind {
            NewKind::File { size, content: Content::Copied } => size.div_ceil(self.unit),
            _ => 0,
        };
        Estimate { copy_units: job.tree.entries.iter().map(|e| copied(&e.kind)).sum(), ..Estimate::default() }
    }
    fn new_state(&self, _: &Job<'_>) -> Result<Staging> {
        Err(Error::Unsupported("a host for tests".into()))
    }
    fn audit(&self, _: Arc<dyn ReadAt<Volume>>, _: &Job<'_>, _: &Staging) -> Result<()> {
        Ok(())
    }
}
