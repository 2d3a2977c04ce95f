//! Freeing a device from what sits on it: file systems, then block devices.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::base::program;
use crate::runtime::attachments::{self, Attachment};
use crate::runtime::rundir::{Record, RunDir};
use crate::runtime::swap_area;
use uzram::Who;
use uzram::control::Client;
use uzram::mounts::{self, MountEntry};

/// How long a file system may take to be written out when its server is asked to stop.
const STOPPING: Duration = Duration::from_secs(2);

/// How long a step may take that has nothing to write out.
const BRIEF: Duration = Duration::from_secs(1);

/// How long an unmount may take that nobody hurries: everything dirty is compressed on the way.
const UNHURRIED: Duration = Duration::from_secs(600);

/// How long an unmount may take on a dead device, where every request fails at once.
const DEAD: Duration = Duration::from_secs(10);

/// What sits on the device of `dir`, in words for an error, and how to end that without losing what is
/// to be saved to `save`; `None` if nothing does.
pub(crate) fn describe_users(dir: &RunDir, save: Option<&Path>) -> Result<Option<String>> {
    let Some(record) = dir.record() else {
        return Ok(None);
    };
    let attached = attachments::of(dir, &record)?;
    for device in &attached {
        if let Some(user) = device.user(&record, save)? {
            return Ok(Some(user));
        }
    }
    let attached = attached.first().map(|device| {
        let (name, path) = (dir.name(), device.path().display());
        format!("attached as {path}: uzram detach {name} first")
    });
    Ok(attached)
}

/// Fails while the device of `dir` has users that are `meant`: clients over NBD, and whoever has its file in
/// the FUSE directory open. `way_out` ends the error. Whoever has just gone may still be counted for as long
/// as `timeout`. A server that does not answer for long is asked in vain: one that is frozen, say, whose users
/// have nothing of it any more. One that is only busy is asked again.
pub(crate) fn refuse_if_connected(
    dir: &RunDir,
    meant: impl Fn(&Who) -> bool,
    timeout: Duration,
    way_out: &str,
) -> Result<()> {
    /// For a busy machine.
    const ANSWER: Duration = Duration::from_secs(5);
    let deadline = Instant::now() + timeout;
    loop {
        let asked = Client::connect(&dir.control_socket(), ANSWER);
        let mut users = match asked.and_then(|mut client| client.users()) {
            Ok(users) => users,
            // It lives, and its users with it.
            Err(error @ uzram::Error::Remote { .. }) => {
                bail!("who uses {} is not known: {error}; {way_out}", dir.name());
            }
            Err(error) => {
                tracing::debug!("who uses {} is not known: {error}", dir.name());
                return Ok(());
            }
        };
        users.retain(&meant);
        if users.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let users: Vec<_> = users.iter().map(Who::to_string).collect();
            bail!("{} is in use by {}: {way_out}", dir.name(), shown(&users));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The first of several users, and how many more there are.
fn shown(users: &[String]) -> String {
    const SHOWN: usize = 4;
    let first = users[..users.len().min(SHOWN)].join(", ");
    match users.len().saturating_sub(SHOWN) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// Fails while this machine swaps to the device of `dir`: with its server go the pages of who knows
/// what programs.
pub(crate) fn refuse_if_swapped_to(dir: &RunDir) -> Result<()> {
    let attached = attachments::of_dir(dir)?;
    if let Some(area) = attached.iter().find_map(Attachment::swap_area) {
        bail!(
            "{} is swap space: swapoff {} first",
            dir.name(),
            area.display()
        );
    }
    Ok(())
}

/// Unmounts a file system on a living device; one in use stays as it is.
pub(crate) fn unmount(mount: &MountEntry) -> Result<()> {
    let at = mount.mountpoint.display();
    match umount(&mount.mountpoint, Busy::Refuse, UNHURRIED) {
        Err(_) if mounts::at(&mount.mountpoint)?.as_ref() != Some(mount) => Ok(()),
        result => result
            .with_context(|| format!("{at} stays as it is (fuser -vm {at} shows what uses it)")),
    }
}

/// Takes away the mounts of a device whose server is dead, by force where they are in use, and
/// the device, which goes when its last user does.
pub(crate) fn clear_dead(device: &Attachment) -> Result<()> {
    // Before the unmounts: from then on the device goes whatever becomes of us.
    device.request_detach(DEAD)?;
    if let Some(area) = device.swap_area() {
        let area = area.display();
        tracing::error!(
            "the server of {area} was killed, and what was swapped to it is lost: swapoff {area}"
        );
    }
    for mount in device.mounts()? {
        umount(&mount.mountpoint, Busy::Refuse, DEAD)
            .or_else(|_| umount(&mount.mountpoint, Busy::Detach, DEAD))
            .with_context(|| format!("cannot unmount {}", mount.mountpoint.display()))?;
    }
    Ok(())
}

/// Frees a server that is stopping from what is attached to it, as far as there is time: what is
/// still in use is taken out of sight, and fails when the server is gone. Where the data `outlives`
/// the server, there is time for all of it to be written out. What was swapped is brought back.
pub(crate) fn free_stopping(attached: &[Attachment], outlives: bool) {
    let write_out = if outlives { UNHURRIED } else { STOPPING };
    for device in attached {
        free_in_a_hurry(device, write_out, BRIEF);
    }
}

/// [`free_stopping`] of everything, for a server whose time is up.
pub(crate) fn free_now(dir: &RunDir, record: &Record, timeout: Duration) {
    for device in attachments::of(dir, record).into_iter().flatten() {
        free_in_a_hurry(&device, Duration::ZERO, timeout);
    }
}

/// Each step is tried whatever became of those before it.
fn free_in_a_hurry(device: &Attachment, write_out: Duration, brief: Duration) {
    let warn = |result: Result<()>| {
        if let Err(error) = result {
            tracing::warn!("{error:#}");
        }
    };
    // A loop device that is told first goes with its last mount, even if we go before it; the
    // NBD driver would cut the file system off.
    if matches!(device, Attachment::Loop(_)) {
        warn(device.request_detach(brief));
    }
    if let Some(area) = device.swap_area()
        && let Err(error) = bring_back(&area, write_out)
    {
        let area = area.display();
        tracing::error!(
            "{error:#}: what is there is lost, and the programs that need it: swapoff {area}"
        );
    }
    for mount in device.mounts().unwrap_or_default() {
        let at = &mount.mountpoint;
        if write_out.is_zero() || umount(at, Busy::Refuse, write_out).is_err() {
            tracing::warn!("{} is in use while its device stops", at.display());
            warn(umount(at, Busy::Detach, brief));
        }
    }
    match device {
        Attachment::Loop(_) => {}
        Attachment::Fuse2fs(fs) => warn(fs.wait_until_closed(write_out.max(brief))),
        Attachment::Nbd(_) => warn(device.request_detach(brief)),
    }
}

fn bring_back(area: &Path, timeout: Duration) -> Result<()> {
    if timeout.is_zero() {
        bail!("{} is swapped to, and there is no time", area.display());
    }
    swap_area::bring_back_within(area, timeout)
}

/// What becomes of a mount that is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Busy {
    Refuse,
    /// It is out of sight at once, and goes with its last user.
    Detach,
}

/// umount(8), in a process of its own; see [`program`]. A user's mounts are FUSE's, for which there is fusermount3(1).
fn umount(mountpoint: &Path, busy: Busy, timeout: Duration) -> Result<()> {
    let is_root = rustix::process::geteuid().is_root();
    let (tool, args): (_, &[&str]) = match (is_root, busy) {
        (true, Busy::Refuse) => (program::find("umount", "mount")?, &[]),
        (true, Busy::Detach) => (program::find("umount", "mount")?, &["-l"]),
        (false, Busy::Refuse) => (program::find("fusermount3", "fuse3")?, &["-u"]),
        (false, Busy::Detach) => (program::find("fusermount3", "fuse3")?, &["-u", "-z"]),
    };
    let args = args.iter().map(AsRef::as_ref);
    program::run_within(&tool, args.chain([mountpoint.as_os_str()]), timeout)?;
    Ok(())
}
