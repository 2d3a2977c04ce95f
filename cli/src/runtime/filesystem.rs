//! What the file systems need to know: the device is new, so it reads as zeroes everywhere and
//! holds nothing that a discard would free; and it is memory, so nothing is to be kept for later.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::args::FsType;
use crate::base::program;
use crate::runtime::rundir::Turn;
use crate::runtime::signature::Signature;
use crate::runtime::xfs;

impl FsType {
    fn package(self) -> &'static str {
        match self {
            Self::Ext4 => "e2fsprogs",
            Self::Btrfs => "btrfs-progs",
            Self::Xfs => "xfsprogs",
        }
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
                "-Enodiscard,assume_storage_prezeroed=1,root_owner",
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
        Ok(Mkfs {
            fs: self,
            tool,
            more: &[],
        })
    }
}

/// An installed mkfs.
#[derive(Debug)]
pub(crate) struct Mkfs {
    fs: FsType,
    tool: PathBuf,
    /// Options beside the usual ones.
    more: &'static [&'static str],
}

impl Mkfs {
    /// For fuse2fs, which writes no journal.
    pub(crate) fn without_journal(self) -> Self {
        Self {
            more: &["-O^has_journal"],
            ..self
        }
    }

    pub(crate) fn run(&self, turn: &Turn, device: &Path) -> Result<()> {
        let options = self.fs.mkfs_options().iter().chain(self.more);
        let options = options.map(OsString::from);
        program::run_in(turn.stdin()?, &self.tool, options.chain([device.into()]))?;
        Ok(())
    }
}

/// Why what is on `disk` is not to be mounted, if that is why.
pub(crate) fn not_mountable(disk: &Path) -> Option<&'static str> {
    match Signature::of(disk) {
        Signature::Ambivalent => Some(
            "there are marks of several file systems on it: uzram serve and attach it, clear the stale \
             ones with wipefs(8), or mount -t TYPE",
        ),
        Signature::Nothing => Some(NO_FILE_SYSTEM),
        Signature::Unknown => None,
        known if known.value("TYPE").is_some() => None,
        known if known.value("PTTYPE").is_some() => {
            Some("it has a partition table, and mount wants a bare file system")
        }
        Signature::Known(_) => Some(NO_FILE_SYSTEM),
    }
}

const NO_FILE_SYSTEM: &str = "there is no file system on it, and mount makes none there";

/// File systems that can discard, so that deleted files give their memory back (mount(8); in the
/// kernel, `fs/*/super.c`). One that does not know the option refuses to be mounted with it.
const DISCARDING: [&str; 11] = [
    "bcachefs", "btrfs", "exfat", "ext3", "ext4", "f2fs", "gfs2", "jfs", "nilfs2", "vfat", "xfs",
];

/// How a file system is mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountOptions {
    discard: bool,
    read_only: bool,
    /// XFS refuses a second file system of one UUID, such as a copy of one that is mounted.
    pub(crate) nouuid: bool,
}

impl MountOptions {
    /// Those that fit the file system on `device`: the one that was made there, or the one that is.
    pub(crate) fn for_device(device: &Path, made: Option<FsType>, read_only: bool) -> Self {
        let found = match made {
            Some(_) => Signature::Nothing,
            None => Signature::of(device),
        };
        let fs = made.map(FsType::name).or_else(|| found.value("TYPE"));
        Self {
            discard: !read_only && fs.is_some_and(|fs| DISCARDING.contains(&fs)),
            read_only,
            nouuid: made.is_none() && fs == Some("xfs") && xfs::has_mounted_twin(device),
        }
    }

    /// Those of a program, which frees nothing of the device that a deleted file had.
    pub(crate) fn rootless(read_only: bool) -> Self {
        Self {
            read_only,
            ..Self::default()
        }
    }

    /// As `-o` takes them, with those that the user asked for, which may undo the others.
    pub(crate) fn text(self, asked: Option<&str>) -> String {
        let options = [
            (self.discard, "discard"),
            (self.read_only, "ro"),
            (self.nouuid, "nouuid"),
        ];
        let set = options.into_iter().filter(|(is_set, _)| *is_set);
        let asked = asked.filter(|options| !options.is_empty());
        let words: Vec<_> = set.map(|(_, word)| word).chain(asked).collect();
        words.join(",")
    }
}

/// Mounts the file system that was made, or the one that is there.
pub(crate) fn mount(
    turn: &Turn,
    device: &Path,
    made: Option<FsType>,
    options: &str,
    mountpoint: &Path,
) -> Result<()> {
    let tool = program::find("mount", "mount")?;
    let mut args: Vec<OsString> = Vec::new();
    if let Some(fs) = made {
        args.extend(["-t", fs.name()].map(OsString::from));
    }
    if !options.is_empty() {
        args.extend(["-o", options].map(OsString::from));
    }
    args.extend([device.into(), mountpoint.into()]);
    program::run_in(turn.stdin()?, &tool, args)?;
    Ok(())
}
