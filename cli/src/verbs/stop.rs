//! `uzram stop`.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::args::{StopArgs, Target};
use crate::base::failure::Usage;
use crate::base::undo::Interrupt;
use crate::runtime::release;
use crate::runtime::rundir::{RunDir, RunRoot, Turn};
use crate::runtime::server;
use crate::runtime::target;
use crate::verbs::save;

/// How long a client that has just gone may be counted as one, on a machine that is busy.
const LEAVING: Duration = Duration::from_secs(2);

/// `uzram stop`.
pub(crate) fn stop(args: &StopArgs, root: &RunRoot) -> Result<()> {
    let names = match args.all {
        true => root
            .dirs()?
            .iter()
            .map(|dir| Target::Name(dir.name().clone()))
            .collect(),
        false => args.names.clone(),
    };
    if names.len() > 1 && args.save.is_some() {
        return Err(Usage::error(
            "--save: an image is of one device: stop them one by one",
        ));
    }
    target::each(&names, root, |dir| stop_one(args, dir))
}

fn stop_one(args: &StopArgs, dir: &RunDir) -> Result<()> {
    dir.require_there()?;
    let _turn = match args.force {
        true => Turn::by_force(dir)?,
        false => Turn::to_change(dir)?,
    };
    match args.force {
        true => release::refuse_if_swapped_to(dir)?,
        false => refuse_to_stop(dir, args.save.as_deref())?,
    }
    save::save_and(dir, args.save.as_deref(), || server::stop(dir))
}

/// Stops the server of `dir`, its device saved to `save` first, unless anything or anybody uses that. The
/// caller has the name's turn.
pub(crate) fn stop_unused(dir: &RunDir, save: Option<&Path>) -> Result<()> {
    refuse_to_stop(dir, save)?;
    save::save_and(dir, save, || {
        // A save has its own, and ends with it.
        let interrupt = Interrupt::install()?;
        // Who came to use it since then is not to lose it.
        refuse_to_stop(dir, None)?;
        server::stop(dir)?;
        interrupt.check_down(dir.name())
    })
}

/// Fails while anything or anybody uses the device. What is on a dead one is no reason to keep it, but what is
/// swapped to it must be known.
fn refuse_to_stop(dir: &RunDir, save: Option<&Path>) -> Result<()> {
    match dir.owner()? {
        Some(_) => {
            refuse_if_used(dir, save)?;
            let name = dir.name();
            let way_out = format!("disconnect it first, or: uzram stop --force {name}");
            release::refuse_if_connected(dir, |_| true, LEAVING, &way_out)
        }
        None => release::refuse_if_swapped_to(dir),
    }
}

pub(crate) fn refuse_if_used(dir: &RunDir, save: Option<&Path>) -> Result<()> {
    match release::describe_users(dir, save)? {
        Some(users) => bail!("{} is {users}", dir.name()),
        None => Ok(()),
    }
}
