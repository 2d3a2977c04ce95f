//! What the file systems need to know: the device is new, so it reads as zeroes everywhere and
//! holds nothing that a discard would free; and it is memory, so nothing is to be kept for later.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::failure::Usage;
use crate::program;

/// How long blkid may take.
const PATIENCE: Duration = Duration::from_secs(10);

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

    fn package(self) -> &'static str {
        match self {
            Self::Ext4 => "e2fsprogs",
            Self::Btrfs => "btrfs-progs",
            Self::Xfs => "xfsprogs",
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

    /// Options of its mkfs for a device that is new and in memory.
    fn mkfs_options(self) -> &'static [&'static str] {
        match self {
            // Without assume_storage_prezeroed ext4 fills its inode tables and its journal with
            // zeroes: now, or from a kernel thread behind the user's back.
            Self::Ext4 => &[
                "-q",
                "-F",
                "-b4096",
                "-m0",
                "-Enodiscard,assume_storage_prezeroed=1",
            ],
            // A second copy of the metadata in the same memory protects from nothing.
            Self::Btrfs => &["-q", "-f", "-K", "-msingle"],
            Self::Xfs => &["-q", "-f", "-K", "-ssize=4096"],
        }
    }

    /// Its mkfs, found before anything is made for it.
    pub(crate) fn mkfs(self) -> Result<Mkfs> {
        let tool = program::find(&format!("mkfs.{}", self.name()), self.package())
            .with_context(|| format!("--fs {}", self.name()))?;
        Ok(Mkfs { fs: self, tool })
    }
}

/// An installed mkfs.
#[derive(Debug)]
pub(crate) struct Mkfs {
    fs: FsType,
    tool: PathBuf,
}

impl Mkfs {
    pub(crate) fn run(&self, device: &Path) -> Result<()> {
        let options = self.fs.mkfs_options().iter().map(OsString::from);
        program::run(&self.tool, options.chain([device.into()]))?;
        Ok(())
    }
}

/// What blkid(8) exports of what is on `disk`: nothing if it knows nothing of it.
pub(crate) fn signature(disk: &Path) -> String {
    let args = ["--probe", "--output", "export"].map(AsRef::as_ref);
    let found = program::find("blkid", "util-linux").and_then(|blkid| {
        let args = args.into_iter().chain([disk.as_os_str()]);
        program::run_within(&blkid, args, PATIENCE)
    });
    found.unwrap_or_else(|error| {
        tracing::debug!("{error:#}");
        String::new()
    })
}

/// Why what is on `disk` is not to be mounted, if that is why.
pub(crate) fn not_mountable(disk: &Path) -> Option<&'static str> {
    // Without it nothing is found on any disk.
    program::find("blkid", "util-linux").ok()?;
    let found = signature(disk);
    let has = |key| found.lines().any(|line| line.starts_with(key));
    match (has("PTTYPE="), has("TYPE=")) {
        (_, true) => None,
        (true, false) => Some("it has a partition table, and mount wants a bare file system"),
        (false, false) => Some("there is no file system on it, and mount makes none there"),
    }
}

/// Mounts with discard, so that deleted files give their memory back: the file system that was
/// made, or the one that is there.
pub(crate) fn mount(device: &Path, fs: Option<FsType>, mountpoint: &Path) -> Result<()> {
    let tool = program::find("mount", "mount")?;
    let made = fs.map(|fs| ["-t", fs.name()]);
    let args = made.into_iter().flatten().chain(["-o", "discard"]);
    program::run(
        &tool,
        args.map(OsString::from)
            .chain([device.into(), mountpoint.into()]),
    )?;
    Ok(())
}
