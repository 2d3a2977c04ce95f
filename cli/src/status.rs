//! `uzram list` and `uzram stat`.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use uzram::Stats;
use uzram::control::Client;

use crate::args::{ListArgs, StatArgs};
use crate::loopdev::{self, LoopDevice};
use crate::mounts;
use crate::output;
use crate::rundir::{RunDir, RunRoot};
use crate::table::{Align, bytes, columns, count, ratio};

/// How long a server may take to answer; it answers at once unless it is stuck.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// How long `list` waits for each server: one that is stuck must not hide the others.
const LIST_PATIENCE: Duration = Duration::from_secs(1);

/// One line of `uzram list`.
#[derive(Debug, Serialize)]
struct Entry {
    name: String,
    /// The server; `None` if it is dead.
    pid: Option<i32>,
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
    let loops = loopdev::all();
    let mut entries = Vec::new();
    for dir in root.dirs()? {
        // One without a record is being made or removed at this moment.
        entries.extend(entry(&dir, &loops)?);
    }
    if args.json {
        return output::json(&entries);
    }
    if entries.is_empty() {
        return output::line(format_args!("no devices are being served"));
    }
    output::text(&list_table(&entries))
}

fn entry(dir: &RunDir, loops: &[LoopDevice]) -> Result<Option<Entry>> {
    let Some(record) = dir.record() else {
        return Ok(None);
    };
    let pid = dir.owner()?.map(rustix::process::Pid::as_raw_pid);
    let disk = record.fuse.as_ref().map(|fuse| fuse.join("disk"));
    let over = loops
        .iter()
        .filter(|device| Some(&device.backing_file) == disk.as_ref());
    let devices: Vec<_> = over.map(|device| device.path.clone()).collect();
    let mut mountpoints = Vec::new();
    for device in &devices {
        mountpoints.extend(mounts::of(device)?.into_iter().map(|m| m.mountpoint));
    }
    let stats = pid.and_then(|_| {
        let mut client = Client::connect(&dir.control_socket(), LIST_PATIENCE).ok()?;
        client.stat().ok()
    });
    Ok(Some(Entry {
        name: dir.name().to_string(),
        pid,
        size: record.size,
        nbd: record.nbd,
        fuse: record.fuse,
        devices,
        mountpoints,
        stats,
    }))
}

fn list_table(entries: &[Entry]) -> String {
    let head = [
        "NAME", "SIZE", "STORED", "MEMORY", "LIMIT", "SPILLED", "PID", "WHERE",
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
        entry
            .pid
            .map_or_else(|| "dead".to_owned(), |p| p.to_string()),
        whereabouts(entry),
    ]
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

/// `uzram stat`.
pub(crate) fn stat(args: &StatArgs, root: &RunRoot) -> Result<()> {
    let dir = root.dir(&args.name);
    dir.require_owner()?;
    let mut client = Client::connect(&dir.control_socket(), PATIENCE)?;
    let in_place = args.watch && !args.json && std::io::stdout().is_terminal();
    loop {
        let stats = client.stat()?;
        if args.json {
            output::json(&stats)?;
        } else {
            // Home, the table, and nothing of a longer one below it.
            let (before, after) = if in_place {
                ("\x1b[H\x1b[2J", "")
            } else {
                ("", "")
            };
            output::text(&format!(
                "{before}{}{after}",
                stat_table(&args.name.to_string(), &stats)
            ))?;
        }
        if !args.watch {
            return Ok(());
        }
        thread::sleep(Duration::from_secs(1));
    }
}

fn stat_table(name: &str, s: &Stats) -> String {
    let pages = |n| format!("{} pages", count(n));
    let limit = match s.mem_limit {
        0 => "no limit".to_owned(),
        limit => format!("limit {}", bytes(limit)),
    };
    let resident = s.resident_pages * uzram::PAGE_SIZE as u64;
    let mut rows: Vec<(&str, u64, String)> = vec![
        ("size", s.disksize, String::new()),
        (
            "stored",
            s.orig_data_size,
            pages(s.orig_data_size / uzram::PAGE_SIZE as u64),
        ),
        (
            "  in memory",
            resident,
            format!(
                "{}, {} stored raw",
                pages(s.resident_pages),
                count(s.huge_pages)
            ),
        ),
        (
            "  same-filled",
            s.same_pages * uzram::PAGE_SIZE as u64,
            pages(s.same_pages),
        ),
        (
            "  spilled",
            s.written_back_pages * uzram::PAGE_SIZE as u64,
            pages(s.written_back_pages),
        ),
        (
            "compressed",
            s.compr_data_size,
            format!("ratio {}", ratio(resident, s.compr_data_size)),
        ),
        (
            "memory",
            s.mem_used_total,
            format!(
                "{limit}, most {}, ratio {}",
                bytes(s.mem_used_max),
                ratio(resident, s.mem_used_total)
            ),
        ),
        (
            "backing",
            s.backing_bytes_used,
            format!(
                "{} live, {} ever written",
                bytes(s.backing_bytes_live),
                bytes(s.backing_bytes_written)
            ),
        ),
        (
            "  traffic",
            (s.bd_reads + s.bd_writes) * uzram::PAGE_SIZE as u64,
            format!("{} out, {} back", pages(s.bd_writes), pages(s.bd_reads)),
        ),
    ];
    rows.push(("process", s.rss_bytes, "resident set".to_owned()));
    let mut cells = vec![[name.to_owned(), String::new(), String::new()]];
    for (label, figure, remark) in rows {
        cells.push([label.to_owned(), bytes(figure), remark]);
    }
    if s.failed_reads + s.failed_writes > 0 {
        let remark = format!(
            "{} reads, {} writes",
            count(s.failed_reads),
            count(s.failed_writes)
        );
        let failed = count(s.failed_reads + s.failed_writes);
        cells.push(["failed".to_owned(), failed, remark]);
    }
    columns([Align::Left, Align::Right, Align::Left], &cells)
}
