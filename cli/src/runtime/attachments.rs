//! What of this machine leads to a server: loop devices over its FUSE directory, a file system that
//! fuse2fs serves from there, and a device of the kernel's NBD driver.
//!
//! They are found in the kernel's tables and in what the server recorded, never by a look into
//! the mount, so that a dead or frozen server is no obstacle. Invariant: what stands on a path is
//! not enough. A mount counts as a server's only if its device number is the recorded one, because
//! another server may have come to use the same directory since. The kernel uses such numbers
//! again, so a living server goes before a dead one, and what is to be cleared must be dead.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use rustix::io::Errno;

use crate::runtime::fuse2fs::FuseFs;
use crate::runtime::loopdev::{self, LoopDevice};
use crate::runtime::nbddev::NbdDevice;
use crate::runtime::rundir::{Record, RunDir, RunRoot};
use crate::runtime::swap_area::is_swap;
use uzram::mounts::{self, MountEntry};

/// What the kernel calls the file behind a loop device once the mount it is on was detached.
const DETACHED_DISK: &str = "/disk";

/// How long fuse2fs may take to write what it holds: all of it may have to be compressed and spilled.
const LAST_WRITES: Duration = Duration::from_secs(600);

/// How long nbd-client may take to disconnect from a server that does not answer.
const NBD_TIMEOUT: Duration = Duration::from_secs(20);

/// What leads to a server: a block device, or a program that reads and writes its `disk`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Attachment {
    Loop(LoopDevice),
    Fuse2fs(FuseFs),
    Nbd(NbdDevice),
}

/// Everything attached to the server of `dir`, alive or dead, which recorded `record`.
pub(crate) fn of(dir: &RunDir, record: &Record) -> Result<Vec<Attachment>> {
    let mut loops = match &record.fuse {
        Some(fuse) if fuse_mount(record)? == FuseMount::Ours => loopdev::over(fuse),
        _ => Vec::new(),
    };
    if let Some(device) = below_mountpoint(record)?
        && !loops.contains(&device)
    {
        loops.push(device);
    }
    let over = record.fuse.as_deref().map(FuseFs::over).transpose()?;
    let nbd = NbdDevice::noted(&dir.nbd_device()).map(Attachment::Nbd);
    let loops = loops.into_iter().map(Attachment::Loop);
    Ok(loops
        .chain(over.flatten().map(Attachment::Fuse2fs))
        .chain(nbd)
        .collect())
}

/// [`of`] what the server of `dir` recorded, if it did.
pub(crate) fn of_dir(dir: &RunDir) -> Result<Vec<Attachment>> {
    let record = dir.record();
    record.map_or(Ok(Vec::new()), |record| of(dir, &record))
}

/// The loop device `uzram mount` made, if the FUSE mount below it was detached by force.
fn below_mountpoint(record: &Record) -> Result<Option<LoopDevice>> {
    let Some(mountpoint) = &record.mountpoint else {
        return Ok(None);
    };
    let device = mounts::at(mountpoint)?.and_then(|mount| loopdev::at(&mount.source));
    Ok(device.filter(|device| device.backing_file == Path::new(DETACHED_DISK)))
}

/// What stands on a server's FUSE directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FuseMount {
    /// The server's own mount, alive or dead.
    Ours,
    /// Another mount, or none.
    Other,
    /// The server did not live to record its mount: it may be there or not.
    Unrecorded,
}

/// What stands on the FUSE directory of the server that recorded `record`.
pub(crate) fn fuse_mount(record: &Record) -> Result<FuseMount> {
    let (Some(fuse), Some(device)) = (&record.fuse, &record.fuse_device) else {
        return Ok(FuseMount::Unrecorded);
    };
    Ok(match mounts::at(fuse)? {
        Some(mount) if mount.device == *device => FuseMount::Ours,
        _ => FuseMount::Other,
    })
}

/// A server, alive or dead, with what it recorded.
#[derive(Debug)]
pub(crate) struct Owner {
    pub(crate) dir: RunDir,
    pub(crate) record: Record,
}

/// Whether what stands on `fuse_dir` has no server any more. Waits for one that is alive and
/// frozen.
pub(crate) fn is_dead(fuse_dir: &Path) -> bool {
    // Cached attributes outlive the server, so only statfs tells.
    let answer = rustix::fs::statfs(fuse_dir);
    matches!(
        answer,
        Err(Errno::NOTCONN | Errno::CONNABORTED | Errno::CANCELED)
    )
}

/// The server to which `device` leads, a block device or what a program mounted.
pub(crate) fn owner(device: &Path, root: &RunRoot) -> Result<Option<Owner>> {
    let mut dead = None;
    for dir in root.dirs()? {
        let Some(record) = dir.record() else {
            continue;
        };
        if of(&dir, &record)?.iter().any(|a| a.path() == device) {
            let alive = dir.holder()?.is_some();
            let owner = Owner { dir, record };
            if alive {
                return Ok(Some(owner));
            }
            dead = Some(owner);
        }
    }
    Ok(dead)
}

impl Attachment {
    /// For example `/dev/loop0`, or the `disk` that is mounted by a program.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Loop(device) => &device.path,
            Self::Fuse2fs(fs) => &fs.disk,
            Self::Nbd(device) => &device.path,
        }
    }

    /// Whether it is a block device, which is root's.
    pub(crate) fn is_block_device(&self) -> bool {
        match self {
            Self::Loop(_) | Self::Nbd(_) => true,
            Self::Fuse2fs(_) => false,
        }
    }

    fn sysfs(&self) -> PathBuf {
        Path::new("/sys/block").join(self.path().file_name().unwrap_or_default())
    }

    /// The device and its partitions.
    fn nodes(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.sysfs()).into_iter().flatten().flatten();
        let partitions = entries
            .filter(|entry| entry.path().join("partition").exists())
            .map(|entry| Path::new("/dev").join(entry.file_name()));
        std::iter::once(self.path().to_owned())
            .chain(partitions)
            .collect()
    }

    /// Everything mounted from it, the latest first.
    pub(crate) fn mounts(&self) -> Result<Vec<MountEntry>> {
        let nodes = self.nodes();
        let mut mounts = mounts::all()?;
        mounts.retain(|mount| nodes.contains(&mount.source));
        mounts.reverse();
        Ok(mounts)
    }

    /// What uses it, and how to end that without losing what is to be saved to `save`; `None` if nothing
    /// does.
    pub(crate) fn user(&self, record: &Record, save: Option<&Path>) -> Result<Option<String>> {
        if let Some(mount) = self.mounts()?.first() {
            let at = mount.mountpoint.display();
            let made = record.mountpoint.as_ref() == Some(&mount.mountpoint);
            return Ok(Some(match (made, save) {
                (true, Some(file)) => {
                    let file = file.display();
                    format!("mounted on {at}: uzram umount --save {file} {at} saves and stops it")
                }
                (true, None) => format!("mounted on {at}: uzram umount {at} first"),
                (false, _) => format!("mounted on {at}: umount {at} first"),
            }));
        }
        if let Some(area) = self.swap_area() {
            return Ok(Some(format!(
                "swap space: swapoff {} first",
                area.display()
            )));
        }
        let holders = fs::read_dir(self.sysfs().join("holders"));
        let holder = holders.into_iter().flatten().flatten().next();
        Ok(holder.map(|holder| {
            let holder = holder.file_name();
            let holder = holder.display();
            format!("a part of {holder}: take {holder} down first")
        }))
    }

    /// What of it this machine swaps to.
    pub(crate) fn swap_area(&self) -> Option<PathBuf> {
        self.nodes().into_iter().find(|node| is_swap(node))
    }

    /// Has it be as large as its server's device has become. The kernel's NBD driver learns that
    /// only when it connects, fuse2fs when it mounts.
    pub(crate) fn follow_size(&self) -> Result<()> {
        match self {
            Self::Loop(device) => loopdev::follow_size(device),
            Self::Fuse2fs(_) | Self::Nbd(_) => Ok(()),
        }
    }

    /// Detaches a device that nothing uses, and waits until it is gone.
    pub(crate) fn detach(&self) -> Result<()> {
        match self {
            Self::Loop(device) => loopdev::detach(device),
            Self::Fuse2fs(fs) => fs.wait_until_closed(LAST_WRITES),
            Self::Nbd(device) => device.disconnect(NBD_TIMEOUT),
        }
    }

    /// Detaches it now, or when its last user lets go. A program's goes with its mount.
    pub(crate) fn request_detach(&self, timeout: Duration) -> Result<()> {
        match self {
            Self::Loop(device) => loopdev::request_detach(device, timeout),
            Self::Fuse2fs(_) => Ok(()),
            Self::Nbd(device) => device.disconnect(timeout),
        }
    }
}
