//! `uzram mount`: a server in the background, a loop device over its FUSE directory, a file system on that,
//! mounted; or without root, where fuse2fs does the work of the last three.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, anyhow, bail};

use crate::args::{FsType, MountArgs};
use crate::base::failure::Usage;
use crate::base::name::Name;
use crate::base::output;
use crate::base::table::bytes;
use crate::base::undo::{Interrupt, Undo};
use crate::runtime::attachments;
use crate::runtime::filesystem::{self, MountOptions};
use crate::runtime::fuse2fs::Fuse2fs;
use crate::runtime::loopdev::{self, LoopDevice};
use crate::runtime::progress::Steps;
use crate::runtime::release;
use crate::runtime::rundir::{RunDir, RunRoot, Turn};
use crate::runtime::sectors;
use crate::runtime::server::{self, Launch};
use crate::settings::Settings;
use crate::settings::shortage;
use uzram::mounts::{self, MountEntry};
use uzram::nbd::InheritedSocket;

/// Fails unless we are root, which `verb` needs.
pub(crate) fn require_root(verb: &str) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!(
            "{verb} needs root: run it with sudo (without root: uzram serve, over NBD, or uzram mount --rootless)"
        );
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
    let name = args.name.unwrap_or_else(|| free_name(&absolute, root));
    let mut device = args.device;
    if let Some(size) = device.size {
        args.fs.check_size(size)?;
    }
    if args.rootless && args.fs != FsType::Ext4 {
        return Err(Usage::error(
            "--rootless: fuse2fs mounts ext4 alone: leave out --fs",
        ));
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
    let fuse2fs = match args.rootless {
        true => Some(Fuse2fs::find()?),
        false => {
            require_root("mount")?;
            None
        }
    };
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
    let launch = Launch {
        settings: &settings,
        dir: &dir,
        interrupt: &interrupt,
        turn,
        sockets,
    };
    let wanted = Wanted {
        fs: args.fs,
        asked: args.options.as_deref(),
        mountpoint: &mountpoint,
    };
    let mounted = interrupt.or_undo(|undo| match &fuse2fs {
        Some(fuse2fs) => make_rootless(launch, &wanted, fuse2fs, undo),
        None => make(launch, &wanted, undo),
    })?;
    let down = up.and_then(|up| up.down);
    report(&settings, args.fs, &mountpoint, &mounted, down)
}

/// Says what is where, and how it is taken down.
fn report(
    settings: &Settings,
    fs: FsType,
    mountpoint: &Path,
    (device, options): &(PathBuf, MountOptions),
    down: Option<&str>,
) -> Result<()> {
    let fs = if !settings.holds_data() {
        fs.name()
    } else if options.nouuid {
        "as it was (nouuid, as an XFS of the same UUID is mounted already),"
    } else {
        "as it was,"
    };
    let at = mountpoint.display();
    output::report(format_args!(
        "{} ({}) is mounted on {at}, {fs} on {}; to take it down: {}",
        settings.name,
        bytes(settings.device.size),
        device.display(),
        down.unwrap_or(&format!("uzram umount {at}")),
    ))
}

/// The name that people read best of those that no device mounted elsewhere has.
fn free_name(mountpoint: &Path, root: &RunRoot) -> Name {
    let readable = Name::readable(mountpoint);
    let dir = root.dir(&readable);
    let is_free = match dir.record() {
        Some(record) => record.mountpoint.as_deref() == Some(mountpoint),
        None => matches!(dir.exists(), Ok(false)),
    };
    match is_free {
        true => readable,
        false => Name::distinct(mountpoint),
    }
}

/// What is to be mounted where.
struct Wanted<'a> {
    /// Made, unless there is one.
    fs: FsType,
    /// Options of the user's.
    asked: Option<&'a str>,
    mountpoint: &'a Path,
}

/// Makes it all; how to unmake what it has made by then is in `undo`.
fn make<'a>(
    launch: Launch<'a>,
    wanted: &Wanted<'_>,
    undo: &mut Undo<'a>,
) -> Result<(PathBuf, MountOptions)> {
    let (fs, asked, mountpoint) = (wanted.fs, wanted.asked, wanted.mountpoint);
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
    mounted.map_err(|error| explain(error, settings, &device.path))?;
    undo_mount(mountpoint, undo)?;

    interrupt.check()?;
    Ok((device.path, options))
}

/// [`make`] without root: a program makes the file system, and another serves it, on the server's `disk` itself.
fn make_rootless<'a>(
    mut launch: Launch<'a>,
    wanted: &Wanted<'_>,
    fuse2fs: &Fuse2fs,
    undo: &mut Undo<'a>,
) -> Result<(PathBuf, MountOptions)> {
    let (interrupt, settings, turn) = (launch.interrupt, launch.settings, launch.turn);
    let mkfs = match settings.holds_data() {
        true => None,
        false => Some(wanted.fs.mkfs()?.without_journal()),
    };
    let steps = Steps::new(3);
    let disk = start_server(&mut launch, &steps, undo)?;

    if let Some(mkfs) = mkfs {
        steps.next(format!("making {} on {}", wanted.fs.name(), disk.display()));
        interrupt.check()?;
        mkfs.run(turn, &disk)?;
    }

    steps.next(format!("mounting on {}", wanted.mountpoint.display()));
    interrupt.check()?;
    let options = MountOptions::rootless(settings.device.read_only);
    let mounted = fuse2fs.mount(turn, &disk, &options.text(wanted.asked), wanted.mountpoint);
    mounted.map_err(|error| explain(error, settings, &disk))?;
    undo_mount(wanted.mountpoint, undo)?;

    interrupt.check()?;
    Ok((disk, options))
}

/// What to say of what could not be mounted, where what it began with may be the reason.
fn explain(error: Error, settings: &Settings, device: &Path) -> Error {
    let origin = settings.device.origin.as_ref().map(|origin| &origin.path);
    let there = settings.restore.as_ref().or(origin);
    match (there, filesystem::not_mountable(device)) {
        (Some(image), Some(why)) => anyhow!("{}: {why}", image.display()),
        _ => error,
    }
}

fn undo_mount(mountpoint: &Path, undo: &mut Undo<'_>) -> Result<()> {
    let mounted = mounts::at(mountpoint)?;
    undo.push(move || mounted.as_ref().map_or(Ok(()), release::unmount));
    Ok(())
}

/// Two steps: starts the server and attaches its disk as a loop device; how to undo them is in `undo`.
pub(crate) fn serve_and_attach<'a>(
    mut launch: Launch<'a>,
    steps: &Steps,
    undo: &mut Undo<'a>,
) -> Result<LoopDevice> {
    let disk = start_server(&mut launch, steps, undo)?;
    let (settings, dir) = (launch.settings, launch.dir);
    steps.next("attaching a loop device");
    launch.interrupt.check()?;
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

/// Starts the server; its `disk`.
fn start_server<'a>(
    launch: &mut Launch<'a>,
    steps: &Steps,
    undo: &mut Undo<'a>,
) -> Result<PathBuf> {
    let (settings, dir) = (launch.settings, launch.dir);
    let Some(fuse_dir) = &settings.fuse else {
        bail!("a device of this machine needs a FUSE directory");
    };
    steps.next(format!("starting the server of {}", settings.name));
    launch.start()?;
    undo.push(|| server::stop(dir));
    Ok(fuse_dir.join("disk"))
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
