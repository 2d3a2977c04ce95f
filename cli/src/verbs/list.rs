//! `uzram list`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use uzram::Stats;
use uzram::control::Client;

use crate::args::ListArgs;
use crate::base::output;
use crate::base::table::{Align, bytes, columns};
use crate::runtime::attachments;
use crate::runtime::rundir::{Holder, RunDir, RunRoot};

/// How long each server may take to answer: one that is stuck must not hide the others.
const PATIENCE: Duration = Duration::from_secs(1);

/// One line of `uzram list`.
#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    /// The server; `None` if it is dead, or of another PID namespace.
    pid: Option<i32>,
    /// Whether there is a server.
    alive: bool,
    size: u64,
    nbd: Vec<String>,
    fuse: Option<PathBuf>,
    devices: Vec<PathBuf>,
    mountpoints: Vec<PathBuf>,
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
    if entries.is_empty() {
        return output::report(format_args!("no devices are being served"));
    }
    output::text(&list_table(&entries))
}

fn entry(dir: &RunDir) -> Result<Option<Entry>> {
    let Some(record) = dir.record() else {
        return Ok(None);
    };
    let holder = dir.holder()?;
    let pid = match holder {
        Some(Holder::Process(pid)) => Some(pid.as_raw_pid()),
        Some(Holder::Elsewhere) | None => None,
    };
    let attached = attachments::of(dir, &record)?;
    let mut mountpoints = Vec::new();
    for device in &attached {
        mountpoints.extend(device.mounts()?.into_iter().map(|m| m.mountpoint));
    }
    let stats = holder.and_then(|_| {
        let mut client = Client::connect(&dir.control_socket(), PATIENCE).ok()?;
        client.stat().ok()
    });
    Ok(Some(Entry {
        name: dir.name().to_string(),
        pid,
        alive: holder.is_some(),
        size: stats.map_or(record.size, |stats| stats.disksize),
        nbd: record.nbd,
        fuse: record.fuse,
        devices: attached.iter().map(|d| d.path().to_owned()).collect(),
        mountpoints,
        stats,
    }))
}

fn list_table(entries: &[Entry]) -> String {
    let head = [
        "NAME", "SIZE", "STORED", "MEMORY", "LIMIT", "BACKING", "PID", "WHERE",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(entries.iter().map(list_row));
    let mut aligns = [Align::Right; 8];
    (aligns[0], aligns[7]) = (Align::Left, Align::Left);
    columns(aligns, &rows)
}

fn list_row(entry: &Entry) -> [String; 8] {
    let figure = |f: fn(&Stats) -> u64| match &entry.stats {
        Some(stats) => bytes(f(stats)),
        None => "?".to_owned(),
    };
    let limit = match &entry.stats {
        Some(Stats { mem_limit: 0, .. }) => "none".to_owned(),
        Some(stats) => bytes(stats.mem_limit),
        None => "?".to_owned(),
    };
    [
        entry.name.clone(),
        bytes(entry.size),
        figure(|s| s.orig_data_size),
        figure(|s| s.mem_used_total),
        limit,
        figure(|s| s.backing_bytes_used),
        match entry.pid {
            Some(pid) => pid.to_string(),
            None if entry.alive => "?".to_owned(),
            None => "dead".to_owned(),
        },
        whereabouts(entry) + &still_to_restore(entry),
    ]
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
