//! FAT32 as host: 8 GiB, clusters of 4 KiB, the image in four fragments.

use std::path::{Path, PathBuf};

use crate::common::Mount;
use crate::common::host::{Host, Place, Shape};
use crate::measure::words;
use crate::relink::{Copy, Target, cp, fresh_folder, fresh_medium};

const LEN: u64 = 8 << 30;

/// The host.
pub struct Fat32(Host);

impl Fat32 {
    /// A host with this image.
    pub fn new(image: &Path) -> Self {
        Self(Host::new(Shape { width: 32, cluster_sectors: 8, len: LEN, place: Place::Bare, fragments: 4 }, image))
    }
}

impl Target for Fat32 {
    fn what(&self) -> String {
        "clusters of 4 KiB, the image in 4 fragments".into()
    }
    fn image(&self) -> String {
        self.0.image()
    }
    fn journal(&self) -> PathBuf {
        self.0.journal()
    }
    fn dir(&self) -> &Path {
        self.0.dir.path()
    }
    fn reset(&self) {
        self.0.reset();
    }
    fn copies(&self) -> Vec<&'static str> {
        vec!["cp -r, mounted copies", "mcopy -s", "cp -r to the host's disk"]
    }
    fn copy(&self, what: &str, from: &[String]) -> Copy {
        let medium = || fresh_medium(self.dir(), LEN, &["mkfs.fat", "-F", "32", "-s", "8"]);
        match what {
            "mcopy -s" => {
                let mut command = words(&["mcopy", "-s", "-m", "-Q", "-i", medium().to_str().unwrap()]);
                command.extend(from.iter().cloned());
                command.push("::/".into());
                Copy { command, mount: None, medium: None }
            }
            "cp -r, mounted copies" => {
                let medium = medium();
                let mount = Mount::fat(&medium, "rw+");
                Copy {
                    command: cp(from, mount.dir.to_str().unwrap()),
                    mount: Some(Box::new(mount)),
                    medium: Some(medium),
                }
            }
            _ => Copy { command: cp(from, &fresh_folder(self.dir())), mount: None, medium: None },
        }
    }
}
