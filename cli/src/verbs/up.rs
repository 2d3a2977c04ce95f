//! `uzram up`: the devices of a configuration file are started.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use uzram::nbd::InheritedSocket;

use crate::args::{ServeArgs, UpArgs};
use crate::base::failure::{self, Said, Usage};
use crate::base::inherited;
use crate::base::output::{self, StdoutGone};
use crate::base::undo::{Interrupt, Interrupted};
use crate::runtime::rundir::{RunRoot, Turn};
use crate::runtime::server;
use crate::settings::Settings;
use crate::settings::config::{Config, Entry, Files, Wanted};
use crate::settings::shortage;
use crate::verbs::background;
use crate::verbs::mount;
use crate::verbs::mount::Up;
use crate::verbs::serve;
use crate::verbs::swapon;

/// `uzram up`: in the order of the files.
pub(crate) fn up(args: &UpArgs, root: &RunRoot) -> Result<()> {
    let asked = args.which.config()?;
    let files = Files::read(asked)?;
    let entries = files.select(&args.which.names())?;
    files.warn();
    if entries.is_empty() {
        return output::report(format_args!("{} describes no devices", files.shown()));
    }
    if args.foreground {
        let [(config, entry)] = entries[..] else {
            return Err(Usage::error("--foreground: name one device"));
        };
        return foreground(config, entry, root);
    }
    if args.check {
        each(&entries, |config, entry| check(config, entry, root))?;
        let count = match entries.len() {
            1 => "1 device".to_owned(),
            count => format!("{count} devices"),
        };
        return output::report(format_args!("{}: {count}, no fault found", files.shown()));
    }
    let mut sockets = inherited::take()?;
    if !sockets.is_empty() && entries.len() != 1 {
        return Err(Usage::error(
            "sockets were inherited (LISTEN_FDS): name the one device that is to serve them",
        ));
    }
    each(&entries, |config, entry| {
        let down = down_command(entry, asked);
        let sockets = std::mem::take(&mut sockets);
        start(config, entry, sockets, &down, root)
    })
}

/// Looks whether a device's table makes sense, as far as that can be told without making the device.
fn check(config: &Config, entry: &Entry, root: &RunRoot) -> Result<()> {
    let (name, device) = match config.wanted(entry)? {
        Wanted::Served(args) | Wanted::SwappedTo(args, _) => (args.name, args.device),
        Wanted::Mounted(args) => {
            if let Some(size) = args.device.size {
                let checked = args.fs.check_size(size);
                checked.map_err(|error| config.explain(entry, error))?;
            }
            (entry.name.clone(), args.device)
        }
    };
    let own = root.dir(&name).sockets();
    let settings =
        Settings::resolve(name, device, &own).and_then(|settings| shortage::refuse(&settings));
    settings.map_err(|error| config.explain(entry, error))
}

/// What takes a device down, as one would type it.
pub(crate) fn down_command(entry: &Entry, asked: Option<&Path>) -> String {
    match asked {
        None => format!("uzram down {}", entry.name),
        Some(config) => format!("uzram down --config {} {}", config.display(), entry.name),
    }
}

/// Does `work` for each device, whatever becomes of the others. A failure is said when it happens; that
/// of an only device is the whole's.
pub(crate) fn each(
    entries: &[(&Config, &Entry)],
    mut work: impl FnMut(&Config, &Entry) -> Result<()>,
) -> Result<()> {
    let (mut failed, mut usage) = (false, true);
    for (i, (config, entry)) in entries.iter().enumerate() {
        let error = match work(config, entry) {
            Ok(()) => continue,
            // It is not for who reads about them that devices come and go.
            Err(error) if error.is::<StdoutGone>() => continue,
            Err(error) if entries.len() == 1 => return Err(error),
            Err(error) => error,
        };
        failure::complain(&error);
        failed = true;
        usage &= failure::exit_code(&error) == failure::USAGE;
        let others = &entries[i + 1..];
        if error.is::<Interrupted>() && !others.is_empty() {
            let others: Vec<_> = others
                .iter()
                .map(|(_, entry)| entry.name.to_string())
                .collect();
            bail!("interrupted: left as they were: {}", others.join(", "));
        }
    }
    match failed {
        true => Err(Said::all(usage).into()),
        false => Ok(()),
    }
}

/// Has a device be up, as far as it is not; `down` is what takes it down.
fn start(
    config: &Config,
    entry: &Entry,
    sockets: Vec<InheritedSocket>,
    down: &str,
    root: &RunRoot,
) -> Result<()> {
    let dir = root.dir(&entry.name);
    let turn = Turn::to_make(&dir)?;
    server::wait_for_stopping(&dir)?;
    if dir.owner()?.is_some() {
        let lacks = if entry.swap_priority().is_some() && !swapon::is_swapped_to(&dir)? {
            Some("swapped to")
        } else if entry.is_mounted() && !mount::is_mounted(&dir)? {
            Some("mounted")
        } else {
            None
        };
        if let Some(lacks) = lacks {
            let error = anyhow!("it is served, and not {lacks}: {down} first");
            return Err(config.explain(entry, error));
        }
        return output::report(format_args!("{} is up already", entry.name));
    }
    let started = match config.wanted(entry)? {
        Wanted::Served(args) => background(args, sockets, &turn, root),
        Wanted::Mounted(args) => {
            let down = entry.save().map(|_| down);
            let up = Up { turn: &turn, down };
            mount::mount(args, sockets, Some(up), root)
        }
        Wanted::SwappedTo(args, priority) => swapon::up(args, priority, sockets, &turn, down, root),
    };
    started.map_err(|error| config.explain(entry, error))?;
    say_what_is_kept(entry, down)
}

/// What becomes of what is written to a device that has to do with an image.
fn say_what_is_kept(entry: &Entry, down: &str) -> Result<()> {
    let name = &entry.name;
    if let Some(image) = entry.save() {
        return output::report(format_args!(
            "{name} is saved to {} by: {down}",
            image.display()
        ));
    }
    match entry.fixed_image() {
        Some(image) => output::report(format_args!(
            "{name} begins with {image} each time: what is written to it is not kept, for want of a save \
             in its table"
        )),
        None => Ok(()),
    }
}

fn foreground(config: &Config, entry: &Entry, root: &RunRoot) -> Result<()> {
    if entry.save().is_some() {
        let error = Usage::error(
            "save: a server in the foreground is not saved when it ends: do without --foreground, and \
             take it down with uzram down",
        );
        return Err(config.explain(entry, error));
    }
    let unfit = |what| Usage::error(format!("--foreground: {} has a {what}", entry.name));
    let served = match config.wanted(entry)? {
        Wanted::Served(args) => {
            let own = root.dir(&args.name).sockets();
            Settings::resolve(args.name, args.device, &own).and_then(|settings| {
                shortage::refuse(&settings).and_then(|()| serve::run(&settings, root, false))
            })
        }
        Wanted::Mounted(_) => Err(unfit("mountpoint")),
        Wanted::SwappedTo(..) => Err(unfit("swap-priority")),
    };
    served.map_err(|error| config.explain(entry, error))
}

fn background(
    args: ServeArgs,
    sockets: Vec<InheritedSocket>,
    turn: &Turn,
    root: &RunRoot,
) -> Result<()> {
    let own = root.dir(&args.name).sockets();
    let settings = Settings::resolve(args.name, args.device, &own)?;
    shortage::refuse(&settings)?;
    let interrupt = Interrupt::install()?;
    let dir = root.dir(&settings.name);
    let record = background::launch(&settings, &dir, sockets, turn, &interrupt)?;
    background::report(&settings, &record)
}
