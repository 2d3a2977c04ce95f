//! A device of a configuration file that this machine swaps to: a server in the background, a loop
//! device over its FUSE directory, a swap area on that, in use; and all of it taken down again.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use uzram::nbd::InheritedSocket;

use crate::args::ServeArgs;
use crate::base::failure::Usage;
use crate::base::output;
use crate::base::table::bytes;
use crate::base::undo::{Interrupt, Steps, Undo};
use crate::runtime::attachments::{self, Attachment};
use crate::runtime::program;
use crate::runtime::rundir::{RunDir, RunRoot, Turn};
use crate::runtime::server::Launch;
use crate::settings::Settings;
use crate::settings::shortage;
use crate::verbs::manage;
use crate::verbs::mount::{require_root, serve_and_attach};

/// How long it may take to bring back what was swapped.
const LONG: Duration = Duration::from_secs(600);

/// Which of several swap areas is filled first: the one of the highest (swapon(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SwapPriority(i16);

impl SwapPriority {
    /// Reads a number from -1 to 32767.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let number: i16 = text.parse().ok()?;
        (number >= -1).then_some(Self(number))
    }
}

/// Starts the device, whose name's turn the caller has, and swaps to it; its server serves `sockets` as well.
/// `down_command` is what takes it down.
pub(crate) fn up(
    mut args: ServeArgs,
    priority: SwapPriority,
    sockets: Vec<InheritedSocket>,
    turn: &Turn,
    down_command: &str,
    root: &RunRoot,
) -> Result<()> {
    require_root("swap-priority")?;
    let fuse = args.device.fuse.take();
    args.device.fuse = Some(fuse.unwrap_or_else(|| root.dir(&args.name).fuse_dir()));
    let settings = Settings::resolve(args.name, args.device, root)?;
    if settings.holds_data() {
        return Err(Usage::error(
            "swap-priority: mkswap would overwrite what is on the device: do without --origin and --restore",
        ));
    }
    shortage::refuse(&settings)?;
    let dir = root.dir(&settings.name);
    // The kernel would go on swapping to one whose server was killed, beside the new one.
    if is_swapped_to(&dir)? {
        down(&dir)?;
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
    let path = match make(launch, priority, &mut undo) {
        Ok(path) => path,
        Err(error) => {
            let undone = undo.unwind();
            return Err(interrupt.explain(error, undone));
        }
    };
    undo.disarm();
    output::report(format_args!(
        "{} ({}) is swapped to, as {}, priority {}; to take it down: {down_command}",
        settings.name,
        bytes(settings.device.size),
        path.display(),
        priority.0,
    ))
}

/// Makes it all; how to unmake what it has made by then is in `undo`.
fn make<'a>(launch: Launch<'a>, priority: SwapPriority, undo: &mut Undo<'a>) -> Result<PathBuf> {
    let (interrupt, turn) = (launch.interrupt, launch.turn);
    let mkswap = program::find("mkswap", "util-linux")?;
    let swapon = program::find("swapon", "mount")?;
    let steps = Steps::new(4);
    let device = serve_and_attach(launch, &steps, undo)?;

    let path = device.path;
    steps.next(format!("making a swap area on {}", path.display()));
    interrupt.check()?;
    program::run_in(turn, &mkswap, [&path])?;

    steps.next(format!("swapping to {}", path.display()));
    interrupt.check()?;
    let number = priority.0.to_string();
    let args = ["--discard", "--priority", &number].map(AsRef::as_ref);
    program::run_in(turn, &swapon, args.into_iter().chain([path.as_os_str()]))?;
    let area = path.clone();
    undo.push(move || swap_off(&area, LONG));

    interrupt.check()?;
    Ok(path)
}

/// Takes a device down, what is swapped to it brought back first. The caller has the name's turn.
pub(crate) fn down(dir: &RunDir) -> Result<()> {
    require_root("swap-priority")?;
    let attached = attachments::of_dir(dir)?;
    for area in attached.iter().filter_map(Attachment::swap_area) {
        bring_back(&area)?;
    }
    if dir.owner()?.is_some() {
        attached.iter().try_for_each(Attachment::detach)?;
    }
    manage::stop_unused(dir, None)
}

/// Whether this machine swaps to a device that is attached.
pub(crate) fn is_swapped_to(dir: &RunDir) -> Result<bool> {
    let attached = attachments::of_dir(dir)?;
    Ok(attached.iter().any(|device| device.swap_area().is_some()))
}

/// Brings back what is swapped to `area`, unless that takes longer.
pub(crate) fn swap_off(area: &Path, patience: Duration) -> Result<()> {
    let swapoff = program::find("swapoff", "mount")?;
    program::run_within(&swapoff, [area], patience)
        .map(drop)
        .with_context(|| format!("{} is still swapped to", area.display()))
}

/// Brings back what is swapped to `area`, however long that takes, unless it is interrupted.
fn bring_back(area: &Path) -> Result<()> {
    let swapoff = program::find("swapoff", "mount")?;
    let interrupt = Interrupt::install()?;
    match program::run_unless(&swapoff, [area], &interrupt) {
        Err(error) if is_swap(area) => {
            let shown = area.display();
            Err(error.context(format!("{shown} is still swapped to")))
        }
        ended => ended.map(drop),
    }
}

/// Whether `device` is in `/proc/swaps` (proc_swaps(5)).
pub(crate) fn is_swap(device: &Path) -> bool {
    let table = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut lines = table.lines().skip(1);
    lines.any(|line| line.split_whitespace().next().map(Path::new) == Some(device))
}
