//! The file systems that `uzram mount` makes.

use anyhow::Result;
use clap::ValueEnum;

use crate::base::failure::Usage;

/// A file system `uzram mount` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FsType {
    Ext4,
    Btrfs,
    Xfs,
}

impl FsType {
    /// Its name for mount(8).
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Btrfs => "btrfs",
            Self::Xfs => "xfs",
        }
    }

    /// Refuses a device of `size` bytes that its mkfs would refuse.
    pub(crate) fn check_size(self, size: u64) -> Result<()> {
        let least = match self {
            Self::Ext4 => "224K",
            Self::Btrfs => "45M",
            Self::Xfs => "300M",
        };
        if size < uzram::parse_size(least)? {
            let fs = self.name();
            return Err(Usage::error(format!("--size: {fs} needs at least {least}")));
        }
        Ok(())
    }
}
