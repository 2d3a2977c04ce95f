//! `uzram set`: changing attributes of a server that runs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use uzram::control::Client;
use uzram::{Attribute, BackingConfig, HandedFile, Stats};

use crate::args::SetArgs;
use crate::args::parse::Assignment;
use crate::base::failure;
use crate::base::file_id::FileId;
use crate::base::table::{bytes, count};
use crate::runtime::attachments::{self, Attachment};
use crate::runtime::client::{LONG, connect_to_server};
use crate::runtime::layers;
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
    // What leaves memory goes to the image.
    let needs_none = |record: Record| record.destages_to.is_some() || record.read_only;
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
    let backing = assignment
        .backing(value)
        .map(|path| Backing::open(path, dir));
    let backing = backing.transpose()?;
    let spilled = |_: &Stats, now: &Stats| {
        let (pages, memory) = (count(now.written_back_pages), bytes(now.mem_used_total));
        format!("{name}: {pages} pages spilled, memory {memory}")
    };
    let set = watched(dir, spilled, || match &backing {
        Some(backing) => client.set_backing(value, &backing.file),
        None => client.set(name, value),
    })?;
    if let (Err(error), Some(backing)) = (&set, &backing) {
        let is_refused = matches!(error, uzram::Error::Remote { .. });
        if is_refused || matches!(dir.holder(), Ok(None)) {
            backing.give_up();
        }
    }
    Ok(set?)
}

/// A file to spill to, opened with our rights: the server need have none to its path.
struct Backing<'a> {
    path: &'a Path,
    file: HandedFile,
}

impl<'a> Backing<'a> {
    fn open(path: &'a Path, dir: &RunDir) -> Result<Self> {
        layers::check(path, dir.name(), dir.root())?;
        let file = BackingConfig::new(path).hand()?;
        let opened = Self { path, file };
        if opened.file.is_made()
            && let Some(user) = dir.record().and_then(|record| record.user)
        {
            let given = user.own(&opened.file);
            given.inspect_err(|_| opened.give_up())?;
        }
        Ok(opened)
    }

    /// Removes it if it was made, as the server has not come to use it.
    fn give_up(&self) {
        let is_ours = FileId::of(self.path).is_some_and(|file| file.is_open(&self.file));
        if self.file.is_made() && is_ours {
            // It is empty, and of no use but to whoever reads of it in the error.
            let _ = fs::remove_file(self.path);
        }
    }
}

/// Has the block devices that lead to a server be as large as its device has become.
fn follow_size(dir: &RunDir) -> Result<()> {
    let Some(record) = dir.record() else {
        return Ok(());
    };
    let attached = attachments::of(dir, &record)?;
    attached.iter().try_for_each(Attachment::follow_size)
}
