//! Loop devices over a FUSE directory's `disk`, found through sysfs and made with losetup(8).

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use uzram::SectorSize;

use crate::base::program;
use crate::runtime::rundir::Turn;

/// How long a detached device may linger: udev may be probing it.
const LINGER: Duration = Duration::from_secs(10);

/// How long losetup may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A bound loop device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LoopDevice {
    /// For example `/dev/loop0`.
    pub(crate) path: PathBuf,
    /// The file behind it, as the kernel names it now.
    pub(crate) backing_file: PathBuf,
}

/// Every bound loop device.
pub(crate) fn all() -> Vec<LoopDevice> {
    let Ok(entries) = fs::read_dir("/sys/block") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| at(&Path::new("/dev").join(entry.ok()?.file_name())))
        .collect()
}

/// The loop device at `path`, if it is one and bound.
pub(crate) fn at(path: &Path) -> Option<LoopDevice> {
    let file = sysfs(path)?.join("loop/backing_file");
    let backing_file = fs::read_to_string(file).ok()?;
    Some(LoopDevice {
        path: path.to_owned(),
        backing_file: PathBuf::from(backing_file.trim_end_matches('\n')),
    })
}

/// The loop devices over `fuse_dir`'s `disk`.
pub(crate) fn over(fuse_dir: &Path) -> Vec<LoopDevice> {
    let disk = fuse_dir.join("disk");
    let mut devices = all();
    devices.retain(|device| device.backing_file == disk);
    devices
}

fn sysfs(path: &Path) -> Option<PathBuf> {
    let name = path.file_name()?.to_str()?;
    name.starts_with("loop")
        .then(|| Path::new("/sys/block").join(name))
}

/// Binds a free loop device to `disk`, with direct I/O.
pub(crate) fn attach(
    turn: &Turn,
    disk: &Path,
    sectors: SectorSize,
    read_only: bool,
) -> Result<LoopDevice> {
    let losetup = program::find("losetup", "mount")?;
    let mut args = ["--find", "--show", "--direct-io=on"]
        .map(Into::into)
        .to_vec();
    args.push(format!("--sector-size={sectors}").into());
    if read_only {
        args.push("--read-only".into());
    }
    args.push(disk.as_os_str().to_owned());
    let path =
        program::run_in(turn.stdin()?, &losetup, args).context("cannot attach a loop device")?;
    let path = PathBuf::from(path);
    // The device below has no seek order to gain from; a scheduler only costs time.
    if let Some(sysfs) = sysfs(&path) {
        let scheduler = sysfs.join("queue/scheduler");
        if let Err(error) = fs::write(&scheduler, "none") {
            tracing::warn!(%error, "cannot set {} to none", scheduler.display());
        }
    }
    match at(&path) {
        Some(device) => Ok(device),
        None => bail!("losetup attached {}, which is gone again", path.display()),
    }
}

/// Has a device be as large as the file behind it has become.
pub(crate) fn follow_size(device: &LoopDevice) -> Result<()> {
    let losetup = program::find("losetup", "mount")?;
    // FUSE asks its server how large the file is only when somebody asks FUSE.
    let looked = fs::metadata(&device.backing_file)
        .map(drop)
        .map_err(Into::into);
    let args = ["--set-capacity".as_ref(), device.path.as_os_str()];
    looked
        .and_then(|()| program::run(&losetup, args).map(drop))
        .with_context(|| format!("{} stays as large as it was", device.path.display()))
}

/// Unbinds `device` and waits until it is gone. Fails if something still holds it; the kernel
/// then unbinds it when the last holder lets go.
pub(crate) fn detach(device: &LoopDevice) -> Result<()> {
    request_detach(device, TIMEOUT)?;
    let deadline = Instant::now() + LINGER;
    while at(&device.path).as_ref() == Some(device) {
        if Instant::now() >= deadline {
            bail!(
                "{0} is still in use (fuser -v {0} may tell by what); it is detached when that ends",
                device.path.display()
            );
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Unbinds `device` now, or when its last holder lets go.
pub(crate) fn request_detach(device: &LoopDevice, timeout: Duration) -> Result<()> {
    let losetup = program::find("losetup", "mount")?;
    let args = ["--detach".as_ref(), device.path.as_os_str()];
    match program::run_within(&losetup, args, timeout) {
        // Gone meanwhile is what we wanted.
        Err(_) if at(&device.path).as_ref() != Some(device) => Ok(()),
        result => result
            .map(drop)
            .with_context(|| format!("cannot detach {}", device.path.display())),
    }
}
