//! `uzram set`, `compact`, `idle`, `writeback`, `recompress`, `sync`, `reset` and `stop`: changing a server
//! that runs.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use uzram::Attribute;
use uzram::control::Client;

use crate::args::{IdleArgs, NameArgs, RecompressArgs, SetArgs, StopArgs, WritebackArgs};
use crate::attachments::{self, Attachment};
use crate::output;
use crate::parse::Assignment;
use crate::release;
use crate::rundir::{RunDir, RunRoot};
use crate::save;
use crate::server;
use crate::stat::PATIENCE;
use crate::table::{bytes, count};

/// How long what takes long may take.
pub(crate) const LONG: Duration = Duration::from_secs(24 * 60 * 60);

fn connect(dir: &RunDir) -> Result<Client> {
    dir.require_owner()?;
    Ok(Client::connect(&dir.control_socket(), PATIENCE)?)
}

/// `uzram set`: in the order given; the first failure ends it.
pub(crate) fn set(args: &SetArgs, root: &RunRoot) -> Result<()> {
    let dir = root.dir(&args.name);
    let mut client = connect(&dir)?;
    if args.assignments.iter().any(Assignment::takes_long) {
        client = client.with_timeout(LONG);
    }
    for (i, assignment) in args.assignments.iter().enumerate() {
        let result = assignment
            .value_for_server()
            .and_then(|value| Ok(client.set(assignment.attribute.name(), &value)?));
        result.with_context(|| match i {
            0 => "nothing was set".to_owned(),
            _ => format!("only the first {i} were set"),
        })?;
        if assignment.attribute == Attribute::Disksize {
            follow_size(&dir)?;
        }
    }
    Ok(())
}

/// Has the block devices that lead to a server be as large as its device has become.
fn follow_size(dir: &RunDir) -> Result<()> {
    let Some(record) = dir.record() else {
        return Ok(());
    };
    let attached = attachments::of(dir, &record)?;
    attached.iter().try_for_each(Attachment::follow_size)
}

/// `uzram compact`.
pub(crate) fn compact(args: &NameArgs, root: &RunRoot) -> Result<()> {
    let pages = connect(&root.dir(&args.name))?.compact()?;
    output::line(format_args!(
        "{} freed, {} page frames",
        bytes(pages * uzram::PAGE_SIZE as u64),
        count(pages)
    ))
}

/// `uzram idle`.
pub(crate) fn idle(args: &IdleArgs, root: &RunRoot) -> Result<()> {
    let pages = connect(&root.dir(&args.name))?.mark_idle(&args.which)?;
    output::line(format_args!("{} pages marked as idle", count(pages)))
}

/// `uzram writeback`.
pub(crate) fn writeback(args: &WritebackArgs, root: &RunRoot) -> Result<()> {
    let mut client = connect(&root.dir(&args.name))?.with_timeout(LONG);
    let pages = client.write_back(&args.which.join(" "))?;
    output::line(format_args!("{} pages written back", count(pages)))
}

/// `uzram recompress`.
pub(crate) fn recompress(args: &RecompressArgs, root: &RunRoot) -> Result<()> {
    let mut client = connect(&root.dir(&args.name))?.with_timeout(LONG);
    let before = client.stat()?.mem_used_total;
    let pages = client.recompress(&args.which.join(" "))?;
    let after = client.stat()?.mem_used_total;
    output::line(format_args!(
        "{} pages made smaller: memory {}, from {}",
        count(pages),
        bytes(after),
        bytes(before)
    ))
}

/// `uzram sync`.
pub(crate) fn sync(args: &NameArgs, root: &RunRoot) -> Result<()> {
    let mut client = connect(&root.dir(&args.name))?.with_timeout(LONG);
    Ok(client.sync()?)
}

/// `uzram reset`; the server refuses while its disk is open.
pub(crate) fn reset(args: &NameArgs, root: &RunRoot) -> Result<()> {
    let dir = root.dir(&args.name);
    let mut client = connect(&dir)?;
    refuse_if_used(&dir)?;
    Ok(client.reset()?)
}

/// `uzram stop`.
pub(crate) fn stop(args: &StopArgs, root: &RunRoot) -> Result<()> {
    let dir = root.dir(&args.name);
    if !dir.exists() {
        bail!("no device {} is being served: see uzram list", args.name);
    }
    if !args.force && dir.owner()?.is_some() {
        refuse_if_used(&dir)?;
    }
    if let Some(file) = &args.save {
        save::save_last(&dir, file)?;
    }
    server::stop(&dir)
}

fn refuse_if_used(dir: &RunDir) -> Result<()> {
    match release::describe_users(dir)? {
        Some(users) => bail!("{} is {users} first", dir.name()),
        None => Ok(()),
    }
}
