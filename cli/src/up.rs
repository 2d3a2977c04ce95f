//! `uzram up` and `uzram down`: the devices of a configuration file.

use std::path::Path;

use anyhow::{Result, anyhow, bail};

use crate::args::{DownArgs, ServeArgs, UpArgs};
use crate::config::{Config, Entry, Wanted};
use crate::output;
use crate::rundir::RunRoot;
use crate::settings::Settings;
use crate::table::bytes;
use crate::undo::Interrupt;
use crate::{manage, mount, serve, server, swapon};

/// `uzram up`: in the order of the file; the first that fails ends it, and what is up stays up.
pub(crate) fn up(args: &UpArgs, root: &RunRoot) -> Result<()> {
    let config = Config::read(&args.config)?;
    let entries = config.select(&args.names)?;
    go_to(&args.config)?;
    if args.foreground {
        let [entry] = entries[..] else {
            bail!("--foreground: name one device");
        };
        return foreground(&config, entry, root);
    }
    for entry in entries {
        let dir = root.dir(&entry.name);
        if dir.owner()?.is_some() {
            if entry.swap_priority().is_some() && !swapon::is_swapped_to(&dir)? {
                let error = anyhow!("it is served, and not swapped to: uzram down it first");
                return Err(config.explain(entry, error));
            }
            output::line(format_args!("{} is up already", entry.name))?;
            continue;
        }
        let started = match config.wanted(entry)? {
            Wanted::Served(args) => background(args, root),
            Wanted::Mounted(args) => mount::mount(args, root),
            Wanted::SwappedTo(args, priority) => swapon::up(args, priority, root),
        };
        started.map_err(|error| config.explain(entry, error))?;
    }
    Ok(())
}

/// Relative paths in the file are relative to it.
fn go_to(config: &Path) -> Result<()> {
    match config.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => Ok(std::env::set_current_dir(dir)?),
        _ => Ok(()),
    }
}

fn foreground(config: &Config, entry: &Entry, root: &RunRoot) -> Result<()> {
    let served = match config.wanted(entry)? {
        Wanted::Served(args) => Settings::resolve(args.name, args.device, root)
            .and_then(|settings| serve::run(&settings, root, false)),
        Wanted::Mounted(_) => bail!("--foreground: {} has a mountpoint", entry.name),
        Wanted::SwappedTo(..) => bail!("--foreground: {} has a swap-priority", entry.name),
    };
    served.map_err(|error| config.explain(entry, error))
}

fn background(args: ServeArgs, root: &RunRoot) -> Result<()> {
    let settings = Settings::resolve(args.name, args.device, root)?;
    let interrupt = Interrupt::install()?;
    let dir = root.dir(&settings.name);
    server::start(&settings, &dir, &interrupt)?;
    output::line(format_args!(
        "{} ({}) is served on {}",
        settings.name,
        bytes(settings.device.size),
        settings.record().places().join(" and ")
    ))
}

/// `uzram down`: in the reverse order.
pub(crate) fn down(args: &DownArgs, root: &RunRoot) -> Result<()> {
    let config = Config::read(&args.config)?;
    let mut entries = config.select(&args.names)?;
    entries.reverse();
    for entry in entries {
        let dir = root.dir(&entry.name);
        if !dir.exists() {
            output::line(format_args!("{} is not up", entry.name))?;
            continue;
        }
        match dir.record().and_then(|record| record.mountpoint) {
            Some(mountpoint) => mount::unmount(&mountpoint, None, root)?,
            None if entry.swap_priority().is_some() => swapon::down(&dir)?,
            None => manage::stop_unused(&dir)?,
        }
    }
    Ok(())
}
