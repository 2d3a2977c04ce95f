//! What lies on what: whether a path is, at any depth, on a device of ours, which would then wait for
//! itself to spill, to be read or to be saved.
//!
//! ```text
//! path ── mount ── btrfs, overlay, a file system in a program ── its sources ──┐
//!           └── block device ── partition, dm, md, loop, zram ── file or block device ── mount ...
//!                 └── loop over a server's FUSE `disk`, NBD ── that server's backing and origin ── ...
//! ```
//!
//! It is found in the kernel's tables, in what servers recorded, and by asking them. Invariant: nothing
//! is asked of the file system of a server itself, which may be waiting for us.
//!
//! What is not seen: servers of another RUNDIR, an image that another one is still restored from, NBD
//! devices that `uzram attach` did not make, the network, a loop device over a mount that was detached.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, StatxFlags};
use uzram::control::Client;
use uzram::mounts::{self, MountEntry};
use uzram::{Attribute, Error};

use crate::base::name::Name;
use crate::runtime::nbddev::NbdDevice;
use crate::runtime::rundir::{Record, RunDir, RunRoot};

/// How long a server may take to say where it spills to. It may be asking us the same.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A device number as the kernel writes it, `major:minor`.
type DeviceNumber = String;

/// Refuses a path that lies on the device `name`.
///
/// # Errors
/// [`Error::Unusable`] if it does; [`Error::Io`] if that cannot be found out.
pub(crate) fn check(path: &Path, name: &Name, root: &RunRoot) -> uzram::Result<()> {
    let unknown = |error| Error::Unusable {
        path: path.to_owned(),
        reason: format!("cannot find out what it lies on: {error:#}"),
    };
    let dirs = root.dirs().map_err(unknown)?;
    let mut walk = Walk {
        name,
        servers: dirs.into_iter().filter_map(Server::of).collect(),
        mounts: mounts::all()?,
        seen: HashSet::new(),
        by_way_of: Vec::new(),
    };
    if !walk.path(path) {
        return Ok(());
    }
    walk.by_way_of.reverse();
    let way = match &walk.by_way_of[..] {
        [] => String::new(),
        way => format!(" (by way of {})", way.join(", ")),
    };
    Err(Error::Unusable {
        path: path.to_owned(),
        reason: format!(
            "lies on {name} itself{way}, which would wait for itself; use another disk"
        ),
    })
}

/// A server that others may lie on.
struct Server {
    dir: RunDir,
    record: Record,
    /// The kernel's NBD device that is attached to it.
    nbd: Option<DeviceNumber>,
}

impl Server {
    fn of(dir: RunDir) -> Option<Self> {
        let nbd = NbdDevice::noted(&dir.nbd_device());
        Some(Self {
            record: dir.record()?,
            nbd: nbd.and_then(|device| block_device(&device.path)),
            dir,
        })
    }

    fn is_at(&self, device: &str) -> bool {
        [&self.record.fuse_device, &self.nbd]
            .into_iter()
            .any(|at| at.as_deref() == Some(device))
    }

    /// Where what is on it is.
    fn uses(&self) -> Vec<PathBuf> {
        let socket = self.dir.control_socket();
        let backing = Client::connect(&socket, TIMEOUT)
            .and_then(|mut client| client.get(Attribute::BackingDev.name()));
        let backing = backing
            .ok()
            .map(|shown| PathBuf::from(shown.trim_end_matches('\n')));
        let backing = backing.filter(|path| path.is_absolute());
        // Also where it does not answer.
        let spills = self.record.spills.iter();
        let spills = spills.map(|spill| spill.path().to_owned());
        let recorded = self.record.origin.iter().chain(&self.record.making);
        recorded.cloned().chain(spills).chain(backing).collect()
    }
}

/// The way down from a path.
struct Walk<'a> {
    /// The device that is not to be met.
    name: &'a Name,
    servers: Vec<Server>,
    mounts: Vec<MountEntry>,
    seen: HashSet<DeviceNumber>,
    /// What led to it, the last first.
    by_way_of: Vec<String>,
}

impl Walk<'_> {
    /// Whether what is at a path, or would be made there, lies on the device.
    fn path(&mut self, path: &Path) -> bool {
        // By its name first: to look at it may take the device itself.
        if let Some(device) = self.mounted_over(path) {
            if self.device(&device) {
                return true;
            }
            if self.servers.iter().any(|server| server.is_at(&device)) {
                return false;
            }
        }
        self.resolved(path)
            .is_some_and(|device| self.device(&device))
    }

    /// What the path is on as it is written.
    fn mounted_over(&self, path: &Path) -> Option<DeviceNumber> {
        let over = self
            .mounts
            .iter()
            .filter(|mount| path.starts_with(&mount.mountpoint));
        let depth = |mount: &&MountEntry| mount.mountpoint.components().count();
        over.max_by_key(depth).map(|mount| mount.device.clone())
    }

    /// The block device that is there, or the one that the file system is on; a file that is to be
    /// made is on that of its directory.
    fn resolved(&self, path: &Path) -> Option<DeviceNumber> {
        if let Some(device) = block_device(path) {
            return Some(device);
        }
        let mount =
            |path: &Path| rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID);
        let found = mount(path)
            .or_else(|_| mount(path.parent().unwrap_or(path)))
            .ok()?;
        let mount = self
            .mounts
            .iter()
            .find(|mount| mount.id == found.stx_mnt_id)?;
        Some(mount.device.clone())
    }

    /// Whether a block device, or a file system without one, lies on the device.
    fn device(&mut self, device: &str) -> bool {
        if !self.seen.insert(device.to_owned()) {
            return false;
        }
        let server = self.servers.iter().find(|server| server.is_at(device));
        let (shown, found) = match server {
            Some(server) if server.dir.name() == self.name => return true,
            Some(server) => {
                let (shown, uses) = (server.dir.name().to_string(), server.uses());
                (shown, uses.iter().any(|path| self.path(path)))
            }
            None if device.starts_with("0:") => return self.sources(device),
            None => (node(device), self.block_device(device)),
        };
        if found {
            self.by_way_of.push(shown);
        }
        found
    }

    /// Whether what a file system without a block device of its own is mounted from does: one of several
    /// devices, of other file systems, or in a program.
    fn sources(&mut self, device: &str) -> bool {
        let mounts = self.mounts.iter().filter(|mount| mount.device == device);
        let sources = mounts.flat_map(|mount| mount.layers.iter().chain([&mount.source]));
        let mut sources: Vec<_> = sources.cloned().collect();
        sources.retain(|source| source.is_absolute());
        sources.dedup();
        let members: Vec<_> = sources
            .iter()
            .flat_map(|source| btrfs_members(source))
            .collect();
        members.iter().any(|member| self.device(member))
            || sources.iter().any(|path| self.path(path))
    }

    /// Whether what is below a block device does.
    fn block_device(&mut self, device: &str) -> bool {
        let sysfs = Path::new("/sys/dev/block").join(device);
        let whole = sysfs
            .join("partition")
            .exists()
            .then(|| sysfs.canonicalize().ok());
        let whole = whole.flatten().and_then(|at| at.parent().and_then(number));
        let slaves = entries(&sysfs.join("slaves"));
        let below: Vec<_> = slaves
            .iter()
            .filter_map(|slave| number(slave))
            .chain(whole)
            .collect();
        let files = ["loop/backing_file", "backing_dev"].map(|name| read_path(&sysfs.join(name)));
        below.iter().any(|device| self.device(device))
            || files.iter().flatten().any(|path| self.path(path))
    }
}

/// The number of the block device at a path.
fn block_device(path: &Path) -> Option<DeviceNumber> {
    let metadata = fs::metadata(path).ok()?;
    let number = metadata.rdev();
    let shown = || {
        format!(
            "{}:{}",
            rustix::fs::major(number),
            rustix::fs::minor(number)
        )
    };
    metadata.file_type().is_block_device().then(shown)
}

/// All block devices of the btrfs that one of them is of.
fn btrfs_members(source: &Path) -> Vec<DeviceNumber> {
    let source = source.canonicalize().unwrap_or_else(|_| source.to_owned());
    let Some(name) = source.file_name() else {
        return Vec::new();
    };
    let pools = entries(Path::new("/sys/fs/btrfs"));
    let pool = pools
        .iter()
        .find(|pool| pool.join("devices").join(name).exists());
    let members = pool.map(|pool| entries(&pool.join("devices")));
    members
        .unwrap_or_default()
        .iter()
        .filter_map(|member| number(member))
        .collect()
}

/// The number of a block device of sysfs.
fn number(sysfs: &Path) -> Option<DeviceNumber> {
    let text = fs::read_to_string(sysfs.join("dev")).ok()?;
    Some(text.trim_end().to_owned())
}

/// What a block device is called.
fn node(device: &str) -> String {
    let sysfs = Path::new("/sys/dev/block").join(device).canonicalize();
    let name = sysfs
        .ok()
        .and_then(|at| Some(at.file_name()?.to_str()?.to_owned()));
    name.map_or_else(|| device.to_owned(), |name| format!("/dev/{name}"))
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// A path that sysfs shows, if there is one.
fn read_path(file: &Path) -> Option<PathBuf> {
    let text = fs::read_to_string(file).ok()?;
    let path = PathBuf::from(text.trim_end_matches('\n'));
    path.is_absolute().then_some(path)
}
