//! `uzram list`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use uzram::Stats;
use uzram::control::Client;

use crate::args::{Column, ListArgs};
use crate::base::output;
use crate::base::table::{Align, bytes, columns};
use crate::runtime::attachments;
use crate::runtime::client;
use crate::runtime::rundir::{Holder, RunDir, RunRoot};

/// How long each server may take to answer: one that is stuck must not hide the others.
const TIMEOUT: Duration = Duration::from_secs(1);

/// One line of `uzram list`.
#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    /// The process that serves; `None` if it is dead, or of another PID namespace.
    pid: Option<i32>,
    /// The process that keeps rights for it, if it has none itself.
    keeper_pid: Option<i32>,
    /// Whether there is a server.
    alive: bool,
    size: u64,
    nbd: Vec<String>,
    fuse: Option<PathBuf>,
    devices: Vec<PathBuf>,
    mountpoints: Vec<PathBuf>,
    /// How pages are compressed that are written now; `None` as with `stats`.
    algorithm: Option<String>,
    /// `None` if the server is dead or does not answer.
    stats: Option<Stats>,
}

/// `uzram list`.
pub(crate) fn list(args: &ListArgs, root: &RunRoot) -> Result<()> {
    let mut entries = Vec::new();
    for dir in root.dirs()? {
        // One without a record is being made or removed at this moment.
        entries.extend(entry(&dir)?);
    }
    if args.json {
        return output::json(&entries);
    }
    if output::is_quiet() {
        let names = entries.iter().map(|entry| format!("{}\n", entry.name));
        return output::text(&names.collect::<String>());
    }
    if entries.is_empty() {
        return output::report(format_args!("no devices are being served"));
    }
    output::text(&list_table(&entries, args))
}

fn entry(dir: &RunDir) -> Result<Option<Entry>> {
    let Some(record) = dir.record() else {
        return Ok(None);
    };
    let holder = dir.holder()?;
    let holder_pid = holder.as_ref().and_then(Holder::pid);
    // Where the keeper is dead its server has the name.
    let server = record.server.filter(|server| holder_pid != Some(*server));
    let (pid, keeper_pid) = match (holder_pid, server) {
        (Some(keeper), Some(server)) => (Some(server), Some(keeper)),
        (holder, _) => (holder, None),
    };
    let attached = attachments::of(dir, &record)?;
    let mut mountpoints = Vec::new();
    for device in &attached {
        mountpoints.extend(device.mounts()?.into_iter().map(|m| m.mountpoint));
    }
    let mut client = holder.and_then(|_| Client::connect(&dir.control_socket(), TIMEOUT).ok());
    let stats = client.as_mut().and_then(|client| client.stat().ok());
    let algorithm = client
        .as_mut()
        .and_then(|client| client::algorithm(client).ok());
    Ok(Some(Entry {
        name: dir.name().to_string(),
        pid,
        keeper_pid,
        alive: holder.is_some(),
        size: stats.map_or(record.size, |stats| stats.disksize),
        nbd: record.nbd,
        fuse: record.fuse,
        devices: attached
            .iter()
            .filter(|device| device.is_block_device())
            .map(|device| device.path().to_owned())
            .collect(),
        mountpoints,
        algorithm,
        stats,
    }))
}

/// The columns that are shown if none are asked for.
const USUAL: [Column; 9] = [
    Column::Name,
    Column::Size,
    Column::Stored,
    Column::Memory,
    Column::Limit,
    Column::Backing,
    Column::Algorithm,
    Column::Pid,
    Column::Where,
];

fn list_table(entries: &[Entry], args: &ListArgs) -> String {
    let wanted = match args.output.is_empty() {
        true => USUAL.to_vec(),
        false => args.output.clone(),
    };
    let mut rows = Vec::new();
    if !args.noheadings {
        let heads = wanted.iter().map(|column| column.name().to_uppercase());
        rows.push(heads.collect::<Vec<_>>());
    }
    rows.extend(entries.iter().map(|entry| {
        let cells = wanted.iter().map(|column| cell(entry, *column, args.bytes));
        cells.collect()
    }));
    let align = |column: &Column| match column {
        Column::Name | Column::Algorithm | Column::Where => Align::Left,
        _ => Align::Right,
    };
    columns(&wanted.iter().map(align).collect::<Vec<_>>(), &rows)
}

fn cell(entry: &Entry, column: Column, in_bytes: bool) -> String {
    let size = |count: u64| match in_bytes {
        true => count.to_string(),
        false => bytes(count),
    };
    let figure = |f: fn(&Stats) -> u64| match &entry.stats {
        Some(stats) => size(f(stats)),
        None => "?".to_owned(),
    };
    match column {
        Column::Name => entry.name.clone(),
        Column::Size => size(entry.size),
        Column::Stored => figure(|s| s.orig_data_size),
        Column::Compr => figure(|s| s.compr_data_size),
        Column::Memory => figure(|s| s.mem_used_total),
        Column::Limit => match &entry.stats {
            Some(Stats { mem_limit: 0, .. }) if !in_bytes => "none".to_owned(),
            _ => figure(|s| s.mem_limit),
        },
        Column::Backing => figure(|s| s.backing_bytes_used),
        Column::Algorithm => entry.algorithm.clone().unwrap_or_else(|| "?".to_owned()),
        Column::Pid => match entry.pid {
            Some(pid) => pid.to_string(),
            None if entry.alive => "?".to_owned(),
            None => "dead".to_owned(),
        },
        Column::Where => whereabouts(entry) + &still_to_restore(entry),
    }
}

/// Said of a device that is being restored.
fn still_to_restore(entry: &Entry) -> String {
    match &entry.stats {
        Some(stats) if stats.restore_bytes_left > 0 => {
            format!(" ({} to restore)", bytes(stats.restore_bytes_left))
        }
        _ => String::new(),
    }
}

/// What a user looks for first: the mountpoint, else the block device, else the addresses.
fn whereabouts(entry: &Entry) -> String {
    let shown = |paths: &[PathBuf]| {
        let paths: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
        paths.join(" ")
    };
    if !entry.mountpoints.is_empty() {
        shown(&entry.mountpoints)
    } else if !entry.devices.is_empty() {
        shown(&entry.devices)
    } else {
        let fuse = entry.fuse.iter().map(|dir| dir.display().to_string());
        let places: Vec<_> = entry.nbd.iter().cloned().chain(fuse).collect();
        places.join(" ")
    }
}
