//! Freeing a device from what sits on it: file systems, then loop devices.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::loopdev::{self, LoopDevice};
use crate::mounts::{self, MountEntry};
use crate::program;
use crate::rundir::{Record, RunDir};

/// How long a file system may take to be written out when its server is asked to stop.
const STOPPING: Duration = Duration::from_secs(2);

/// How long an unmount may take that nobody hurries: everything dirty is compressed on the way.
const UNHURRIED: Duration = Duration::from_secs(600);

/// How long an unmount may take on a dead device, where every request fails at once.
const DEAD: Duration = Duration::from_secs(10);

/// What sits on the device of `dir`, in words for an error; `None` if nothing does.
pub(crate) fn describe_users(dir: &RunDir) -> Result<Option<String>> {
    let Some(record) = dir.record() else {
        return Ok(None);
    };
    let devices: Vec<_> = record.fuse.iter().flat_map(|f| loopdev::over(f)).collect();
    for device in &devices {
        if let Some(mount) = mounts::of(&device.path)?.first() {
            return Ok(Some(describe_mount(mount, &record)));
        }
    }
    let attached = devices.first().map(|device| {
        let (name, path) = (dir.name(), device.path.display());
        format!("attached as {path}: uzram detach {name}")
    });
    Ok(attached)
}

/// Where a device is mounted, and how to undo that.
pub(crate) fn describe_mount(mount: &MountEntry, record: &Record) -> String {
    let at = mount.mountpoint.display();
    let tool = match &record.mountpoint {
        Some(made) if *made == mount.mountpoint => "uzram umount",
        _ => "umount",
    };
    format!("mounted on {at}: {tool} {at}")
}

/// Unmounts a file system on a living device; one in use stays as it is.
pub(crate) fn unmount(mount: &MountEntry) -> Result<()> {
    let at = mount.mountpoint.display();
    let busy = || format!("{at} is in use, nothing was changed: end what fuser -vm {at} lists");
    match umount(&mount.mountpoint, &[], UNHURRIED) {
        Err(error) if error.to_string().contains("busy") => bail!(busy()),
        result => result.with_context(|| format!("cannot unmount {at}")),
    }
}

/// Unmounts a file system whose device is dead, by force if it is in use.
pub(crate) fn unmount_dead(mountpoint: &Path) -> Result<()> {
    umount(mountpoint, &[], DEAD)
        .or_else(|_| umount(mountpoint, &["--lazy"], DEAD))
        .with_context(|| format!("cannot unmount {}", mountpoint.display()))
}

/// Frees a server that is stopping from everything on its FUSE directory, as far as there is
/// time: what is still in use is taken out of sight, and fails when the server is gone.
pub(crate) fn loops_of_stopping_server(fuse_dir: &Path) {
    for device in loopdev::over(fuse_dir) {
        let freed = free_in_a_hurry(&device);
        if let Err(error) = freed {
            tracing::warn!("{error:#}");
        }
    }
}

fn free_in_a_hurry(device: &LoopDevice) -> Result<()> {
    for mount in mounts::of(&device.path)? {
        if umount(&mount.mountpoint, &[], STOPPING).is_err() {
            tracing::warn!(
                "{} is in use while its device stops",
                mount.mountpoint.display()
            );
            umount(&mount.mountpoint, &["--lazy"], STOPPING)?;
        }
    }
    loopdev::request_detach(device)
}

/// umount(8), in a process of its own; see [`program`].
fn umount(mountpoint: &Path, options: &[&str], patience: Duration) -> Result<()> {
    let tool = program::find("umount", "mount")?;
    let args = options.iter().map(AsRef::as_ref);
    program::run_within(&tool, args.chain([mountpoint.as_os_str()]), patience)?;
    Ok(())
}
