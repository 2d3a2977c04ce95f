//! How a device over an image is configured.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::file::{self, FileImage};
use super::format::OriginFormat;
use crate::error::{Error, Result};
use crate::handed_file::HandedFile;

/// When what was written becomes durable in the image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SyncPolicy {
    /// A flush makes all that was acknowledged before it durable.
    #[default]
    Flush,
    /// [`crate::Device::sync`] and an orderly end do; a flush does nothing.
    Never,
    /// So does this, again and again; a flush does nothing.
    Every(Duration),
}

impl FromStr for SyncPolicy {
    type Err = Error;

    /// Reads `flush`, `never` or a number of seconds.
    fn from_str(text: &str) -> Result<Self> {
        match (text, text.parse()) {
            ("flush", _) => Ok(Self::Flush),
            ("never", _) => Ok(Self::Never),
            (_, Ok(seconds @ 1..=86400)) => Ok(Self::Every(Duration::from_secs(seconds))),
            _ => Err(Error::InvalidConfig {
                option: "sync",
                reason: format!("{text:?} is not flush, never or a number of seconds up to 86400"),
            }),
        }
    }
}

impl fmt::Display for SyncPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flush => f.write_str("flush"),
            Self::Never => f.write_str("never"),
            Self::Every(period) => write!(f, "{}", period.as_secs()),
        }
    }
}

/// What a device does with its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum OriginUse {
    /// Pages that were written are destaged to it.
    WriteBack(SyncPolicy),
    /// It is only read; what is written is the device's own, and is gone at its end.
    Snapshot,
}

/// The image that a device begins as.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct OriginConfig {
    /// A plain file or a block device.
    pub path: PathBuf,
    /// What is done with it.
    pub usage: OriginUse,
    /// What it is taken for.
    pub format: OriginFormat,
    /// The file at the path, if somebody else has opened it ([`OriginConfig::hand`]).
    #[serde(skip)]
    pub handed: Option<HandedFile>,
}

impl OriginConfig {
    /// The image at `path` with every other setting at its default.
    pub fn new(path: impl Into<PathBuf>, usage: OriginUse) -> Self {
        Self {
            path: path.into(),
            usage,
            format: OriginFormat::default(),
            handed: None,
        }
    }

    /// Opens the image for a process that has no right to.
    ///
    /// # Errors
    /// [`Error::Unusable`] if it is a directory or in use; [`Error::Io`] if the kernel refuses.
    pub fn hand(&self) -> Result<HandedFile> {
        let file = file::open(&self.path, !self.is_snapshot())?;
        Ok(HandedFile::new(file, false))
    }

    /// Bytes in the device: those of the image, and of one that is only read so many more that its
    /// last page is whole.
    ///
    /// # Errors
    /// [`Error::Unusable`] if it is neither a plain file nor a block device, in use, recognised as
    /// something else than a raw image, empty, or to be written to and not of whole pages;
    /// [`Error::Io`] if the kernel refuses.
    pub fn size(&self) -> Result<u64> {
        Ok(FileImage::open(self)?.size())
    }

    pub(crate) fn is_snapshot(&self) -> bool {
        self.usage == OriginUse::Snapshot
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_reads_as_it_is_shown() {
        for text in ["flush", "never", "1", "30", "86400"] {
            let policy: SyncPolicy = text.parse().expect("a policy");
            assert_eq!(policy.to_string(), text);
        }
        for bad in ["", "0", "-1", "86401", "1s", "always"] {
            assert!(bad.parse::<SyncPolicy>().is_err(), "{bad}");
        }
    }
}
