//! What a server serves, in the words of its record.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use crate::args::SandboxMode;
use crate::base::old_image::ImageId;
use crate::base::user::User;
use crate::runtime::spill::SpillFile;
use crate::settings::Settings;

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
    /// The files that it spills to, unless they are to be kept. Older versions had at most one.
    #[serde(default, alias = "spill", deserialize_with = "one_or_more")]
    pub(crate) spills: Vec<SpillFile>,
    /// Where it is about to make such a file.
    #[serde(default)]
    pub(crate) making: Vec<PathBuf>,
    /// The Unix sockets that its metrics are served on, and the files that they are written to.
    #[serde(default)]
    pub(crate) metrics: Vec<PathBuf>,
    /// The image that what is written is destaged to.
    #[serde(default, alias = "home")]
    pub(crate) destages_to: Option<PathBuf>,
    /// The image that it begins as, whether what is written goes there or not.
    #[serde(default)]
    pub(crate) origin: Option<PathBuf>,
    /// The image that it was filled from, as that was then.
    #[serde(default)]
    pub(crate) began_with: Option<ImageId>,
    /// Whether nothing that is written to it is taken.
    #[serde(default)]
    pub(crate) read_only: bool,
    /// Whether it is kept to the files that its options name, in all that it does: one with a keeper is not.
    #[serde(default)]
    pub(crate) strict: bool,
    /// The process that serves, where it is not the one that has the name, which is then its keeper.
    #[serde(default)]
    pub(crate) server: Option<i32>,
    /// The user it runs as, if that is another than whose RUNDIR it is.
    #[serde(default)]
    pub(crate) user: Option<User>,
    /// Whether the server has been asked to stop.
    #[serde(default)]
    pub(crate) stopping: bool,
}

impl Record {
    /// What others need to know of a server that does this. To be asked for before the image is opened: one that
    /// takes its place meanwhile is then taken for another, which loses nothing.
    pub(crate) fn of(settings: &Settings) -> Self {
        Self {
            size: settings.device.size,
            nbd: settings
                .nbd
                .addresses
                .iter()
                .map(ToString::to_string)
                .collect(),
            inherited: Vec::new(),
            fuse: settings.fuse.clone(),
            fuse_device: None,
            mountpoint: settings.mountpoint.clone(),
            spills: Vec::new(),
            making: Vec::new(),
            metrics: settings.metrics_paths(),
            destages_to: settings.destages_to().map(Path::to_owned),
            origin: settings
                .device
                .origin
                .as_ref()
                .map(|origin| origin.path.clone()),
            began_with: settings.restore.as_deref().and_then(ImageId::of),
            read_only: settings.device.read_only,
            strict: settings.sandbox == SandboxMode::Strict && settings.user.is_none(),
            server: None,
            user: settings.user.clone(),
            stopping: false,
        }
    }

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

/// Several, one, or none.
fn one_or_more<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<SpillFile>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Spills {
        More(Vec<SpillFile>),
        One(SpillFile),
    }
    Ok(match Option::deserialize(from)? {
        None => Vec::new(),
        Some(Spills::One(file)) => vec![file],
        Some(Spills::More(files)) => files,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_records_of_older_versions_are_read() {
        let file = serde_json::json!({
            "path": "/b", "dev": 1, "ino": 2,
            "born": { "secs_since_epoch": 3, "nanos_since_epoch": 4 },
        });
        for (spill, spills) in [(serde_json::Value::Null, 0), (file, 1)] {
            let record = serde_json::json!({
                "size": 4096, "nbd": [], "fuse": null, "fuse_device": null,
                "mountpoint": null, "spill": spill,
            });
            let record: Record = serde_json::from_value(record).unwrap();
            assert_eq!(record.spills.len(), spills);
            let again = serde_json::to_value(&record).unwrap();
            assert_eq!(serde_json::from_value::<Record>(again).unwrap(), record);
        }
    }
}
