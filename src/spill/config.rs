//! How a backing is configured.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::handed_file::HandedFile;

/// What becomes of a backing, and of what was spilled to it, when the device is done with it. No
/// device ever reads what another left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum BackingKeep {
    /// It stays as it is: of no use to anyone but those who want to see what was on the device.
    Keep,
    /// A file that the device made is removed, one that was there is emptied, a block device is
    /// left alone.
    #[default]
    Remove,
    /// As [`BackingKeep::Remove`], after all that was written is overwritten with zeroes; so is
    /// what is freed while the device is in use.
    Wipe,
}

impl FromStr for BackingKeep {
    type Err = Error;

    /// Reads `keep`, `remove` or `wipe`.
    fn from_str(text: &str) -> Result<Self> {
        let all = [Self::Keep, Self::Remove, Self::Wipe];
        let named = all.into_iter().find(|keep| keep.to_string() == text);
        named.ok_or_else(|| Error::InvalidConfig {
            option: "backing_keep",
            reason: format!("{text:?} is not keep, remove or wipe"),
        })
    }
}

impl fmt::Display for BackingKeep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keep => "keep",
            Self::Remove => "remove",
            Self::Wipe => "wipe",
        })
    }
}

/// Where and how much a device spills.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BackingConfig {
    /// A plain file, made if missing, or a block device.
    pub path: PathBuf,
    /// Most bytes to use of it; all a block device has, or no bound for a file, if `None`.
    pub size: Option<u64>,
    /// Whether what is spilled is encrypted, under a key that ends with the process.
    pub encrypt: bool,
    /// What becomes of it at the end.
    pub keep: BackingKeep,
    /// Whether what it holds is of no worth: without this, only what is empty or an old spill is used.
    pub force: bool,
    /// What is at the path, if somebody else has opened it ([`BackingConfig::hand`]). The device then leaves the
    /// path alone: it empties the file at the end and removes none.
    #[serde(skip)]
    pub handed: Option<HandedFile>,
}

impl BackingConfig {
    /// The backing at `path` with every other setting at its default.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            size: None,
            encrypt: false,
            keep: BackingKeep::default(),
            force: false,
            handed: None,
        }
    }

    /// Sets whether what is spilled is encrypted.
    #[must_use]
    pub fn encrypt(mut self, encrypt: bool) -> Self {
        self.encrypt = encrypt;
        self
    }
}
