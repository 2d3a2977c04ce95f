//! `uzram umount`: what `uzram mount` made is taken down.
//!
//! It follows the kernel's own tables from the mountpoint to the loop device, to the file
//! behind it, to the server; and it touches only what the server's record says `mount` made.

use std::path::Path;
use std::time::Duration;

use anyhow::{Error, Result, anyhow, bail};

use crate::args::UmountArgs;
use crate::base::failure;
use crate::base::name::Name;
use crate::base::undo::{Interrupt, Interrupted};
use crate::runtime::attachments::{self, Attachment, Owner};
use crate::runtime::release;
use crate::runtime::rundir::{Record, RunRoot, Turn};
use crate::runtime::server;
use crate::verbs::mount::require_root;
use crate::verbs::save::{self, Unserved};
use uzram::mounts::{self, MountEntry};
use uzram::{Frontend, Who};

/// How long the file of a loop device that is gone may take to be closed, on a machine that is busy.
const CLOSES: Duration = Duration::from_secs(10);

/// `uzram umount`.
pub(crate) fn umount(args: &UmountArgs, root: &RunRoot) -> Result<()> {
    let mountpoint = mounts::absolute(&args.mountpoint)?;
    // What is there to be seen may be half made, or half gone: the record tells whose turn to wait for.
    let is_meant = |owner: &Owner| owner.record.mountpoint.as_ref() == Some(&mountpoint);
    let mut meant = match recorded(root, is_meant)? {
        // A user's own can only be one without root.
        Some(owner) => owner,
        None => {
            require_root("umount")?;
            find(&mountpoint, None, root)?.1
        }
    };
    for _ in 0..10 {
        let _turn = Turn::to_change(&meant.dir)?;
        let (mount, owner) = find(&mountpoint, None, root)?;
        if owner.dir.name() == meant.dir.name() {
            return take_down(mount.as_ref(), &owner, args.save.as_deref(), None);
        }
        // Another was mounted there, over it or since.
        meant = owner;
    }
    bail!(
        "{} is mounted again and again: try again",
        mountpoint.display()
    )
}

/// `uzram down` of a device that `uzram up` mounted.
#[derive(Clone, Copy)]
pub(crate) struct Down<'a> {
    pub(crate) name: &'a Name,
    /// What one would type.
    pub(crate) command: &'a str,
}

impl Down<'_> {
    /// Fails if what is to be taken down is another device.
    fn check(self, owner: &Owner, at: &Path) -> Result<()> {
        let (name, other) = (self.name, owner.dir.name());
        if name == other {
            return Ok(());
        }
        let (at, command) = (at.display(), self.command);
        bail!(
            "{other} is mounted on {at} now, not {name}: uzram umount {at} first, then: {command}"
        )
    }
}

/// Takes down the device that is taken down `by` its name and was mounted on `mountpoint`, saved to `save`
/// first. The caller has the name's turn.
pub(crate) fn unmount(
    mountpoint: &Path,
    save: Option<&Path>,
    by: Down<'_>,
    root: &RunRoot,
) -> Result<()> {
    let (mount, owner) = find(mountpoint, Some(by), root)?;
    take_down(mount.as_ref(), &owner, save, Some(by))
}

/// What is mounted on `mountpoint`, if anything is, and the server to which that leads: whichever it is, or
/// the one that is taken down `by` its name.
fn find(
    mountpoint: &Path,
    by: Option<Down<'_>>,
    root: &RunRoot,
) -> Result<(Option<MountEntry>, Owner)> {
    let mountpoint = mounts::absolute(mountpoint)?;
    let shown = mountpoint.display();
    let Some(mount) = mounts::at(&mountpoint)? else {
        // Somebody may have unmounted what `mount` mounted there.
        let is_meant = |owner: &Owner| by.is_none_or(|down| down.name == owner.dir.name());
        let made = recorded(root, |owner| {
            owner.record.mountpoint.as_ref() == Some(&mountpoint) && is_meant(owner)
        })?;
        let Some(owner) = made else {
            bail!("nothing is mounted on {shown}: see uzram list");
        };
        return Ok((None, owner));
    };
    let source = mount.source.display();
    let Some(owner) = attachments::owner(&mount.source, root)? else {
        if let Some(owner) = recorded(root, |owner| {
            owner.record.fuse.as_ref() == Some(&mountpoint)
        })? {
            let name = owner.dir.name();
            bail!("{shown} is the FUSE directory of {name}: uzram stop {name}");
        }
        bail!("{shown} is {source}, not a uzram device: use umount(8)");
    };
    by.map_or(Ok(()), |down| down.check(&owner, &mountpoint))?;
    match &owner.record.mountpoint {
        Some(made) if *made == mountpoint => Ok((Some(mount), owner)),
        Some(made) => bail!(
            "{shown} is {source}, which uzram mount mounted on {0}: umount {shown}, then uzram \
             umount {0}",
            made.display()
        ),
        None => bail!(
            "{shown} was not made by uzram mount: umount {shown}, then uzram detach {}",
            owner.dir.name()
        ),
    }
}

/// The first server, alive or dead, that is `wanted`.
fn recorded(root: &RunRoot, wanted: impl Fn(&Owner) -> bool) -> Result<Option<Owner>> {
    let mut owners = root.dirs()?.into_iter().filter_map(|dir| {
        let record = dir.record()?;
        Some(Owner { dir, record })
    });
    Ok(owners.find(wanted))
}

/// From the top down, so that a failure leaves what is below it working.
fn take_down(
    mount: Option<&MountEntry>,
    owner: &Owner,
    save: Option<&Path>,
    by: Option<Down<'_>>,
) -> Result<()> {
    let Owner { dir, record } = owner;
    if dir.owner()?.is_none() {
        if let Some(file) = save {
            let (name, file) = (dir.name(), file.display());
            bail!("the server of {name} is dead: there is nothing to save to {file}");
        }
        // The dead keep nothing worth a careful unmount.
        return server::stop(dir);
    }
    let attached = attachments::of(dir, record)?;
    if attached.iter().any(Attachment::is_block_device) {
        require_root("umount")?;
    }
    for device in &attached {
        let mounts = device.mounts()?;
        if let Some(other) = mounts.iter().find(|other| Some(*other) != mount) {
            let (path, at) = (device.path().display(), other.mountpoint.display());
            bail!("{path} is mounted on {at} too: umount {at} first");
        }
    }
    if let Some(file) = save {
        save::check_target(owner, file)?;
    }
    let name = dir.name();
    let way_out = format!("disconnect it first, or: uzram stop --force {name}");
    // The loop device has the file open, too.
    let over_nbd = |who: &Who| who.frontend == Frontend::Nbd;
    // From here on Ctrl-C would leave half of it.
    let mut interrupt = Interrupt::install()?;
    release::refuse_if_connected(dir, over_nbd, Duration::ZERO, &way_out)?;
    let freed = free(mount, &attached, record, save)
        .and_then(|()| release::refuse_if_connected(dir, |_| true, CLOSES, &way_out));
    freed.map_err(|error| match interrupt.check() {
        Ok(()) => error,
        Err(_) => Interrupted::error(format!("interrupted: {}", failure::one_line(&error))),
    })?;
    let mut saved = None;
    if let Some(file) = save {
        let came = interrupt.check();
        // A save has its own.
        drop(interrupt);
        let last = came.and_then(|()| save::save_last(dir, file));
        saved = Some(last.map_err(|error| not_saved(error, owner, by))?);
        interrupt = Interrupt::install()?;
    }
    let stopped = server::stop(dir).and_then(|()| interrupt.check_down(dir.name()));
    match saved {
        Some(saved) => saved.say_after(stopped),
        None => stopped,
    }
}

/// Takes away all that is between `mount` and the server.
fn free(
    mount: Option<&MountEntry>,
    attached: &[Attachment],
    record: &Record,
    save: Option<&Path>,
) -> Result<()> {
    mount.map_or(Ok(()), release::unmount)?;
    for device in attached {
        // If it is still in use, in another mount namespace say, its data must stay.
        if let Some(user) = device.user(record, save)? {
            bail!("{} is {user}", device.path().display());
        }
        device.detach()?;
    }
    Ok(())
}

/// What to say of a device that is unmounted and could not be saved. What was interrupted stays so.
fn not_saved(error: Error, owner: &Owner, by: Option<Down<'_>>) -> Error {
    if error.is::<Unserved>() {
        return error;
    }
    let (said, name) = (failure::one_line(&error), owner.dir.name());
    let left = match &owner.record.mountpoint {
        None => format!("{said}; {name} is still served, with all its data"),
        Some(at) => {
            let at = at.display();
            let again = match by {
                Some(down) => down.command.to_owned(),
                None => format!("uzram umount --save OTHER {at}"),
            };
            format!(
                "{said}; {at} is unmounted, and {name} still served with all its data: {again} tries \
                 again, uzram umount {at} discards it"
            )
        }
    };
    match error.is::<Interrupted>() {
        true => Interrupted::error(left),
        false => anyhow!(left),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For `down` of several devices to leave the others as they are.
    #[test]
    fn a_save_that_was_interrupted_is_told_from_one_that_failed() {
        let root = RunRoot::locate().unwrap();
        for mountpoint in [None, Some("/mnt/m")] {
            let record = serde_json::json!({
                "size": 4096, "nbd": [], "fuse": null, "fuse_device": null,
                "mountpoint": mountpoint, "spill": null,
            });
            let owner = Owner {
                dir: root.dir(&"m".parse().unwrap()),
                record: serde_json::from_value(record).unwrap(),
            };
            let interrupted = not_saved(Interrupted::error("interrupted"), &owner, None);
            assert!(interrupted.is::<Interrupted>(), "{interrupted}");
            let failed = not_saved(anyhow!("no space"), &owner, None);
            assert!(!failed.is::<Interrupted>(), "{failed}");
            for error in [interrupted, failed] {
                assert!(error.to_string().contains("still served"), "{error}");
            }
        }
    }
}
