//! `uzram set`: changing attributes of a server that runs.

use anyhow::{Context, Result};
use uzram::control::Client;
use uzram::{Attribute, Stats};

use crate::args::SetArgs;
use crate::args::parse::Assignment;
use crate::base::failure;
use crate::base::table::{bytes, count};
use crate::runtime::attachments::{self, Attachment};
use crate::runtime::client::{LONG, connect_to_server};
use crate::runtime::progress::watched;
use crate::runtime::rundir::{Record, RunDir, RunRoot};
use crate::runtime::sandbox;
use crate::runtime::target;

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

/// Has the block devices that lead to a server be as large as its device has become.
fn follow_size(dir: &RunDir) -> Result<()> {
    let Some(record) = dir.record() else {
        return Ok(());
    };
    let attached = attachments::of(dir, &record)?;
    attached.iter().try_for_each(Attachment::follow_size)
}
