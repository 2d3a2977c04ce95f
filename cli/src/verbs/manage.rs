//! `uzram set`, `compact`, `idle`, `writeback`, `recompress`, `sync`, `reset` and `stop`: changing a server
//! that runs.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::json;
use uzram::control::Client;
use uzram::{Attribute, Stats};

use crate::args::parse::Assignment;
use crate::args::{
    CompactArgs, IdleArgs, NameArgs, RecompressArgs, SetArgs, StopArgs, Target, WritebackArgs,
};
use crate::base::failure::{self, Usage};
use crate::base::output;
use crate::base::table::{bytes, count};
use crate::base::undo::Interrupt;
use crate::runtime::attachments::{self, Attachment};
use crate::runtime::client::{LONG, connect_to_server};
use crate::runtime::progress::watched;
use crate::runtime::release;
use crate::runtime::rundir::{Record, RunDir, RunRoot, Turn};
use crate::runtime::sandbox;
use crate::runtime::server;
use crate::runtime::target;
use crate::verbs::save;

/// How long a client that has just gone may be counted as one, on a machine that is busy.
const LEAVING: Duration = Duration::from_secs(2);

/// `uzram set`: in the order given; the first failure ends it.
pub(crate) fn set(args: &SetArgs, root: &RunRoot) -> Result<()> {
    let dir = target::find(&args.name, root)?;
    let mut client = connect_to_server(&dir)?;
    if args.assignments.iter().any(Assignment::takes_long) {
        client = client.with_timeout(LONG);
    }
    for (i, assignment) in args.assignments.iter().enumerate() {
        let result = assignment
            .value_for_server(args.backing_force)
            .and_then(|value| set_one(&dir, &mut client, assignment, &value, args.discard_tail))
            .map_err(|error| sandbox::explain(error, &dir));
        result.with_context(|| match i {
            0 => "nothing was set".to_owned(),
            1 => "only the first was set".to_owned(),
            _ => format!("only the first {i} were set"),
        })?;
        if assignment.attribute == Attribute::Disksize {
            follow_size(&dir)?;
        }
    }
    let needs_room = |set: &Assignment| {
        let needs = [
            Attribute::MemLimit,
            Attribute::Disksize,
            Attribute::BackingDev,
        ];
        needs.contains(&set.attribute)
    };
    if args.assignments.iter().any(needs_room) {
        // It is set, whatever becomes of the questions.
        let _ = warn_of_limit(&dir, &mut client);
    }
    Ok(())
}

/// Warns of a limit that is below what is in memory, or may come to be, and cannot leave it. As in zram it
/// is set all the same, and holds for what comes.
fn warn_of_limit(dir: &RunDir, client: &mut Client) -> Result<()> {
    let stats = client.stat()?;
    let is_met = stats.mem_limit == 0 || stats.disksize <= stats.mem_limit;
    // What has an image as its home goes there.
    let needs_none = |record: Record| record.home.is_some() || record.read_only;
    if is_met
        || dir.record().is_some_and(needs_none)
        || client.get(Attribute::BackingDev.name())?.trim() != "none"
    {
        return Ok(());
    }
    let (name, limit) = (dir.name(), bytes(stats.mem_limit));
    if stats.mem_used_total <= stats.mem_limit {
        failure::warn(&format!(
            "mem_limit: {limit} is less than the {} that {name} can hold, and it has no backing: writes fail \
             once it is met; let it spill (uzram set {name} backing_dev=PATH) or raise the limit",
            bytes(stats.disksize)
        ));
        return Ok(());
    }
    failure::warn(&format!(
        "mem_limit: {name} has {} in memory, more than {limit}, and no backing: writes fail until it has \
         less; let it spill (uzram set {name} backing_dev=PATH), compact, recompress or discard",
        bytes(stats.mem_used_total)
    ));
    Ok(())
}

fn set_one(
    dir: &RunDir,
    client: &mut Client,
    assignment: &Assignment,
    value: &str,
    discard_tail: bool,
) -> Result<()> {
    if discard_tail && assignment.attribute == Attribute::Disksize {
        return Ok(client.resize_discarding(uzram::parse_size(value)?)?);
    }
    let name = assignment.attribute.name();
    if !assignment.takes_long() {
        return Ok(client.set(name, value)?);
    }
    let spilled = |_: &Stats, now: &Stats| {
        let (pages, memory) = (count(now.written_back_pages), bytes(now.mem_used_total));
        format!("{name}: {pages} pages spilled, memory {memory}")
    };
    Ok(watched(dir, spilled, || client.set(name, value))??)
}

/// `memory 12 MiB, from 40 MiB`.
fn memory_since(before: &Stats, now: &Stats) -> String {
    let (before, now) = (bytes(before.mem_used_total), bytes(now.mem_used_total));
    format!("memory {now}, from {before}")
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
pub(crate) fn compact(args: &CompactArgs, root: &RunRoot) -> Result<()> {
    target::each(&args.names, root, |dir| {
        let mut client = connect_to_server(dir)?.with_timeout(LONG);
        let pages = watched(dir, memory_since, || client.compact())??;
        let freed = bytes(pages * uzram::PAGE_SIZE as u64);
        let of = match args.names.len() {
            1 => String::new(),
            _ => format!("{}: ", dir.name()),
        };
        let text = format_args!("{of}{freed} freed, {} page frames", count(pages));
        let value = json!({ "name": dir.name().as_str(), "pages": pages });
        output::done(args.report.json, &value, text)
    })
}

/// `uzram idle`.
pub(crate) fn idle(args: &IdleArgs, root: &RunRoot) -> Result<()> {
    let pages = connect_to_server(&target::find(&args.name, root)?)?.mark_idle(&args.which)?;
    let text = format_args!("{} pages marked as idle", count(pages));
    output::done(args.report.json, &json!({ "pages": pages }), text)
}

/// `uzram writeback`.
pub(crate) fn writeback(args: &WritebackArgs, root: &RunRoot) -> Result<()> {
    let dir = target::find(&args.name, root)?;
    let mut client = connect_to_server(&dir)?.with_timeout(LONG);
    let which = args.which.join(" ");
    let written = |before: &Stats, now: &Stats| {
        let pages = now.bd_writes.saturating_sub(before.bd_writes);
        format!("{} pages written back", count(pages))
    };
    let pages = watched(&dir, written, || client.write_back(&which))??;
    let text = format_args!("{} pages written back", count(pages));
    output::done(args.report.json, &json!({ "pages": pages }), text)
}

/// `uzram recompress`.
pub(crate) fn recompress(args: &RecompressArgs, root: &RunRoot) -> Result<()> {
    let dir = target::find(&args.name, root)?;
    let mut client = connect_to_server(&dir)?.with_timeout(LONG);
    let before = client.stat()?.mem_used_total;
    let which = args.which.join(" ");
    let smaller = |before: &Stats, now: &Stats| {
        let pages = now
            .recompressed_pages
            .saturating_sub(before.recompressed_pages);
        format!(
            "{} pages made smaller, {}",
            count(pages),
            memory_since(before, now)
        )
    };
    let pages = watched(&dir, smaller, || client.recompress(&which))??;
    let after = client.stat()?.mem_used_total;
    let value = json!({
        "pages": pages,
        "mem_used_total": after,
        "mem_used_total_before": before,
    });
    let (pages, after, before) = (count(pages), bytes(after), bytes(before));
    let text = format_args!("{pages} pages made smaller: memory {after}, from {before}");
    output::done(args.report.json, &value, text)
}

/// `uzram sync`.
pub(crate) fn sync(args: &NameArgs, root: &RunRoot) -> Result<()> {
    let mut client = connect_to_server(&target::find(&args.name, root)?)?.with_timeout(LONG);
    Ok(client.sync()?)
}

/// `uzram reset`; the server refuses while its disk is open.
pub(crate) fn reset(args: &NameArgs, root: &RunRoot) -> Result<()> {
    let dir = target::find(&args.name, root)?;
    let mut client = connect_to_server(&dir)?;
    refuse_if_used(&dir, None)?;
    Ok(client.reset()?)
}

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

fn refuse_if_used(dir: &RunDir, save: Option<&Path>) -> Result<()> {
    match release::describe_users(dir, save)? {
        Some(users) => bail!("{} is {users}", dir.name()),
        None => Ok(()),
    }
}
