//! `uzram mount` and `uzram umount`: a server in the background, a loop device over its FUSE
//! directory, a file system on that, mounted; and all of it taken down again.
//!
//! `umount` follows the kernel's own tables from the mountpoint to the loop device, to the file
//! behind it, to the server; and it touches only what the server's record says `mount` made.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};

use crate::args::{FsType, MountArgs, UmountArgs};
use crate::base::failure;
use crate::base::failure::Usage;
use crate::base::name::Name;
use crate::base::output;
use crate::base::table::bytes;
use crate::base::undo::{Interrupt, Interrupted, Undo};
use crate::runtime::attachments::{self, Attachment, Owner};
use crate::runtime::filesystem::{self, MountOptions};
use crate::runtime::loopdev::{self, LoopDevice};
use crate::runtime::progress::Steps;
use crate::runtime::release;
use crate::runtime::rundir::{Record, RunDir, RunRoot, Turn};
use crate::runtime::sectors;
use crate::runtime::server::{self, Launch};
use crate::settings::Settings;
use crate::settings::shortage;
use crate::verbs::save::{self, Unserved};
use uzram::mounts::{self, MountEntry};
use uzram::nbd::InheritedSocket;
use uzram::{Frontend, Who};

/// How long the file of a loop device that is gone may take to be closed, on a machine that is busy.
const CLOSES: Duration = Duration::from_secs(10);

/// Fails unless we are root, which `verb` needs.
pub(crate) fn require_root(verb: &str) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("{verb} needs root: run it with sudo (without root: uzram serve, over NBD)");
    }
    Ok(())
}

/// What is different for `uzram up`.
#[derive(Clone, Copy)]
pub(crate) struct Up<'a> {
    /// The name's, which it has already.
    pub(crate) turn: &'a Turn,
    /// What takes the device down, if that is not `uzram umount`.
    pub(crate) down: Option<&'a str>,
}

/// `uzram mount`; its server serves `sockets` as well, and `up` says what `uzram up` does otherwise.
pub(crate) fn mount(
    args: MountArgs,
    sockets: Vec<InheritedSocket>,
    up: Option<Up<'_>>,
    root: &RunRoot,
) -> Result<()> {
    let absolute = mounts::absolute(&args.mountpoint)?;
    let name = args.name.unwrap_or_else(|| Name::for_mountpoint(&absolute));
    let mut device = args.device;
    if let Some(size) = device.size {
        args.fs.check_size(size)?;
    }
    device
        .fuse
        .get_or_insert_with(|| root.dir(&name).fuse_dir());
    let own = root.dir(&name).sockets();
    let mut settings = Settings::resolve(name, device, &own)?;
    if settings.device.read_only && !settings.holds_data() {
        return Err(Usage::error(
            "--read-only: a new file system has nothing to read: give it --origin or --restore",
        ));
    }
    shortage::refuse(&settings)?;
    require_root("mount")?;
    let dir = root.dir(&settings.name);
    let ours;
    let turn = match up {
        Some(up) => up.turn,
        None => {
            ours = Turn::to_make(&dir)?;
            &ours
        }
    };
    let _alone_there = Turn::to_mount(root, &absolute)?;
    let mountpoint = check_mountpoint(&args.mountpoint)?;
    settings.mountpoint = Some(mountpoint.clone());
    if dir.owner()?.is_some() {
        let name = &settings.name;
        bail!(
            "{name} is already being served: choose another name with --name, or: uzram stop {name}"
        );
    }
    let interrupt = Interrupt::install()?;
    let mut undo = Undo::default();
    let launch = Launch {
        settings: &settings,
        dir: &dir,
        interrupt: &interrupt,
        turn,
        sockets,
    };
    let (path, options) = match make(
        launch,
        args.fs,
        args.options.as_deref(),
        &mountpoint,
        &mut undo,
    ) {
        Ok(made) => made,
        Err(error) => {
            let undone = undo.unwind();
            return Err(interrupt.explain(error, undone));
        }
    };
    undo.disarm();
    let fs = if !settings.holds_data() {
        args.fs.name()
    } else if options.nouuid {
        "as it was (nouuid, as an XFS of the same UUID is mounted already),"
    } else {
        "as it was,"
    };
    output::report(format_args!(
        "{} ({}) is mounted on {}, {} on {}; to take it down: {}",
        settings.name,
        bytes(settings.device.size),
        mountpoint.display(),
        fs,
        path.display(),
        up.and_then(|up| up.down)
            .unwrap_or(&format!("uzram umount {}", mountpoint.display())),
    ))
}

/// Makes it all; how to unmake what it has made by then is in `undo`.
fn make<'a>(
    launch: Launch<'a>,
    fs: FsType,
    asked: Option<&str>,
    mountpoint: &Path,
    undo: &mut Undo<'a>,
) -> Result<(PathBuf, MountOptions)> {
    let (interrupt, settings, turn) = (launch.interrupt, launch.settings, launch.turn);
    let made = (!settings.holds_data()).then_some(fs);
    let mkfs = made.map(FsType::mkfs).transpose()?;
    let steps = Steps::new(4);
    let device = serve_and_attach(launch, &steps, undo)?;

    if let Some(mkfs) = mkfs {
        steps.next(format!("making {} on {}", fs.name(), device.path.display()));
        interrupt.check()?;
        mkfs.run(turn, &device.path)?;
    }

    steps.next(format!("mounting on {}", mountpoint.display()));
    interrupt.check()?;
    let read_only = settings.device.read_only;
    let options = MountOptions::for_device(&device.path, made, read_only);
    let mounted = filesystem::mount(turn, &device.path, made, &options.text(asked), mountpoint);
    mounted.map_err(|error| {
        let origin = settings.device.origin.as_ref().map(|origin| &origin.path);
        let there = settings.restore.as_ref().or(origin);
        match (there, filesystem::not_mountable(&device.path)) {
            (Some(image), Some(why)) => anyhow!("{}: {why}", image.display()),
            _ => error,
        }
    })?;
    let mounted = mounts::at(mountpoint)?;
    undo.push(move || mounted.as_ref().map_or(Ok(()), release::unmount));

    interrupt.check()?;
    Ok((device.path, options))
}

/// Two steps: starts the server and attaches its disk as a loop device; how to undo them is in `undo`.
pub(crate) fn serve_and_attach<'a>(
    mut launch: Launch<'a>,
    steps: &Steps,
    undo: &mut Undo<'a>,
) -> Result<LoopDevice> {
    let (settings, dir) = (launch.settings, launch.dir);
    let Some(fuse_dir) = &settings.fuse else {
        bail!("a device of this machine needs a FUSE directory");
    };
    steps.next(format!("starting the server of {}", settings.name));
    launch.start()?;
    undo.push(|| server::stop(dir));

    steps.next("attaching a loop device");
    launch.interrupt.check()?;
    let disk = fuse_dir.join("disk");
    let sectors = match settings.holds_data() {
        true => sectors::choose(&disk, dir)?,
        false => sectors::for_blank(dir)?,
    };
    sectors::remember(dir, sectors)?;
    let device = loopdev::attach(launch.turn, &disk, sectors, settings.device.read_only)?;
    let attached = device.clone();
    undo.push(move || loopdev::detach(&attached));
    Ok(device)
}

/// An empty directory on which nothing is mounted, in absolute form.
fn check_mountpoint(path: &Path) -> Result<PathBuf> {
    let shown = path.display();
    let mountpoint = path
        .canonicalize()
        .with_context(|| format!("cannot mount on {shown} (mkdir it first?)"))?;
    if !mountpoint.is_dir() {
        bail!("cannot mount on {shown}: it is not a directory");
    }
    if let Some(mount) = mounts::at(&mountpoint)? {
        let source = mount.source.display();
        bail!("cannot mount on {shown}: {source} is mounted there already");
    }
    let mut entries = fs::read_dir(&mountpoint).with_context(|| format!("cannot read {shown}"))?;
    if entries.next().is_some() {
        bail!("cannot mount on {shown}: it is not empty, and its files would be hidden");
    }
    Ok(mountpoint)
}

/// `uzram umount`.
pub(crate) fn umount(args: &UmountArgs, root: &RunRoot) -> Result<()> {
    require_root("umount")?;
    let mountpoint = mounts::absolute(&args.mountpoint)?;
    // What is there to be seen may be half made, or half gone: the record tells whose turn to wait for.
    let is_meant = |owner: &Owner| owner.record.mountpoint.as_ref() == Some(&mountpoint);
    let mut meant = match recorded(root, is_meant)? {
        Some(owner) => owner,
        None => find(&mountpoint, None, root)?.1,
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

/// Whether the file system of the device of `dir` is where `uzram mount` mounted it.
pub(crate) fn is_mounted(dir: &RunDir) -> Result<bool> {
    let Some(record) = dir.record() else {
        return Ok(false);
    };
    for device in attachments::of(dir, &record)? {
        let mounts = device.mounts()?;
        let is_there = |mount: &MountEntry| record.mountpoint.as_ref() == Some(&mount.mountpoint);
        if mounts.iter().any(is_there) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Takes down the device that is taken down `by` its name and was mounted on `mountpoint`, saved to `save`
/// first. The caller has the name's turn.
pub(crate) fn unmount(
    mountpoint: &Path,
    save: Option<&Path>,
    by: Down<'_>,
    root: &RunRoot,
) -> Result<()> {
    require_root("umount")?;
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
