//! What is on a disk, as far as blkid(8) can tell.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use crate::base::program;

/// How long blkid may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// blkid's exit status where it finds nothing that it knows.
const NOTHING: i32 = 2;

/// That where it finds several things that exclude one another: a file system, and what was left of
/// another, say.
const AMBIVALENT: i32 = 8;

/// What blkid says of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Signature {
    /// What it knows, a `KEY=VALUE` a line.
    Known(String),
    /// Nothing that it knows.
    Nothing,
    /// Things that exclude one another.
    Ambivalent,
    /// It is not installed, or failed.
    Unknown,
}

impl Signature {
    /// Of `disk`, a file or a block device.
    pub(crate) fn of(disk: &Path) -> Self {
        Self::from(disk, 0)
    }

    /// Of what begins `offset` bytes into `disk`.
    pub(crate) fn from(disk: &Path, offset: u64) -> Self {
        let offset = format!("--offset={offset}");
        let args = ["--probe", "--output=export", &offset].map(OsString::from);
        let found = program::find("blkid", "util-linux").and_then(|blkid| {
            let args = args.into_iter().chain([disk.into()]);
            program::finish_within(&blkid, args, TIMEOUT)
        });
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!("{error:#}");
                return Self::Unknown;
            }
        };
        match found.status.code() {
            Some(0) => Self::Known(found.stdout),
            Some(NOTHING) => Self::Nothing,
            Some(AMBIVALENT) => Self::Ambivalent,
            _ => Self::Unknown,
        }
    }

    /// What it says of `key`.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        let Self::Known(lines) = self else {
            return None;
        };
        let mut pairs = lines.lines().filter_map(|line| line.split_once('='));
        pairs
            .find(|(found, _)| *found == key)
            .map(|(_, value)| value)
    }
}
