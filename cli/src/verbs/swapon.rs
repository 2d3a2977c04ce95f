//! A device of a configuration file that this machine swaps to: a server in the background, a loop
//! device over its FUSE directory, a swap area on that, in use; and all of it taken down again.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use uzram::nbd::InheritedSocket;

use crate::args::ServeArgs;
use crate::base::failure::Usage;
use crate::base::output;
use crate::base::program;
use crate::base::table::bytes;
use crate::base::undo::{Interrupt, Undo};
use crate::runtime::attachments::{self, Attachment};
use crate::runtime::progress::Steps;
use crate::runtime::rundir::{RunDir, RunRoot, Turn};
use crate::runtime::server::Launch;
use crate::runtime::swap_area;
use crate::settings::Settings;
use crate::settings::shortage;
use crate::settings::swap_priority::SwapPriority;
use crate::verbs::mount::{require_root, serve_and_attach};
use crate::verbs::stop;

/// How long it may take to bring back what was swapped.
const LONG: Duration = Duration::from_secs(600);

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
    let own = root.dir(&args.name).sockets();
    let settings = Settings::resolve(args.name, args.device, &own)?;
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
    let launch = Launch {
        settings: &settings,
        dir: &dir,
        interrupt: &interrupt,
        turn,
        sockets,
    };
    let path = interrupt.or_undo(|undo| make(launch, priority, undo))?;
    output::report(format_args!(
        "{} ({}) is swapped to, as {}, priority {}; to take it down: {down_command}",
        settings.name,
        bytes(settings.device.size),
        path.display(),
        priority,
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
    program::run_in(turn.stdin()?, &mkswap, [&path])?;

    steps.next(format!("swapping to {}", path.display()));
    interrupt.check()?;
    let number = priority.to_string();
    let args = ["--discard", "--priority", &number].map(AsRef::as_ref);
    program::run_in(
        turn.stdin()?,
        &swapon,
        args.into_iter().chain([path.as_os_str()]),
    )?;
    let area = path.clone();
    undo.push(move || swap_area::bring_back_within(&area, LONG));

    interrupt.check()?;
    Ok(path)
}

/// Takes a device down, what is swapped to it brought back first. The caller has the name's turn.
pub(crate) fn down(dir: &RunDir) -> Result<()> {
    require_root("swap-priority")?;
    let attached = attachments::of_dir(dir)?;
    for area in attached.iter().filter_map(Attachment::swap_area) {
        swap_area::bring_back(&area)?;
    }
    if dir.owner()?.is_some() {
        attached.iter().try_for_each(Attachment::detach)?;
    }
    stop::stop_unused(dir, None)
}

/// Whether this machine swaps to a device that is attached.
pub(crate) fn is_swapped_to(dir: &RunDir) -> Result<bool> {
    let attached = attachments::of_dir(dir)?;
    Ok(attached.iter().any(|device| device.swap_area().is_some()))
}
