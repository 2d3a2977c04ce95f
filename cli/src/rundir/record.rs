//! What a server serves, in the words of its record.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::aside::ImageId;
use crate::leftovers::FileId;

/// What a server serves, so that others can find it and clear up after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Bytes in the device.
    pub(crate) size: u64,
    /// NBD addresses, as `--nbd` takes them.
    pub(crate) nbd: Vec<String>,
    /// Those of them whose sockets somebody else has made, and keeps.
    #[serde(default)]
    pub(crate) inherited: Vec<String>,
    /// The FUSE directory, absolute.
    pub(crate) fuse: Option<PathBuf>,
    /// The device number of the mount there, `major:minor`; `None` until it is mounted.
    pub(crate) fuse_device: Option<String>,
    /// Where `uzram mount` mounts the file system it makes; `None` for every other server.
    pub(crate) mountpoint: Option<PathBuf>,
    /// The backing file, if the server made it and so is to remove it.
    pub(crate) spill: Option<FileId>,
    /// The Unix sockets that its metrics are served on, and the files that they are written to.
    #[serde(default)]
    pub(crate) metrics: Vec<PathBuf>,
    /// The image that what is written goes home to.
    #[serde(default)]
    pub(crate) home: Option<PathBuf>,
    /// The image that it begins as, whether what is written goes there or not.
    #[serde(default)]
    pub(crate) origin: Option<PathBuf>,
    /// The image that it was filled from, as that was then.
    #[serde(default)]
    pub(crate) began_with: Option<ImageId>,
    /// Whether nothing that is written to it is taken.
    #[serde(default)]
    pub(crate) read_only: bool,
    /// Whether the server has been asked to stop.
    #[serde(default)]
    pub(crate) stopping: bool,
}

impl Record {
    /// The Unix sockets that it listens on and has made.
    pub(crate) fn own_nbd_sockets(&self) -> impl Iterator<Item = &Path> {
        let own = |address: &&String| !self.inherited.contains(address);
        let paths = self.nbd.iter().filter(own);
        paths.filter_map(|address| Some(Path::new(address.strip_prefix("unix:")?)))
    }

    /// Where its clients find it.
    pub(crate) fn places(&self) -> Vec<String> {
        let fuse = self.fuse.iter().map(|dir| dir.display().to_string());
        self.nbd.iter().cloned().chain(fuse).collect()
    }
}
