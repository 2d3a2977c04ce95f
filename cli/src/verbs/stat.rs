//! `uzram stat`.

use std::io::IsTerminal;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use uzram::control::Client;
use uzram::{Attribute, OperationLatencies, PAGE_SIZE, Stats};

use crate::args::StatArgs;
use crate::args::parse::{self, AttributeOrDevice};
use crate::base::failure::Usage;
use crate::base::output;
use crate::base::table::{Align, bytes, columns, count, duration, ratio};
use crate::runtime::client;
use crate::runtime::rundir::{Holder, RunRoot};
use crate::runtime::target;

/// `uzram stat`.
pub(crate) fn stat(args: &StatArgs, root: &RunRoot) -> Result<()> {
    let mut targets = vec![args.name.clone()];
    let mut attributes = Vec::new();
    for other in &args.others {
        match other {
            AttributeOrDevice::Device(device) => {
                if target::find(device, root).and_then(|dir| dir.exists()).ok() != Some(true) {
                    return Err(Usage::error(format!(
                        "{device}: no such attribute, and no such device; {}",
                        parse::readable()
                    )));
                }
                targets.push(device.clone());
            }
            AttributeOrDevice::Attribute(attribute) => attributes.push(*attribute),
        }
    }
    if !attributes.is_empty() && (args.json || args.latency) {
        return Err(Usage::error(
            "an attribute is printed by itself: leave out --json and --latency",
        ));
    }
    let mut watched = Vec::new();
    let connected = target::each(&targets, root, |dir| {
        watched.push(Watched {
            name: dir.name().to_string(),
            pid: dir.holder()?.as_ref().and_then(Holder::pid),
            client: client::connect_to_server(dir)?,
            before: OperationLatencies::default(),
        });
        Ok(())
    });
    if watched.is_empty() {
        return connected;
    }
    show(args, &attributes, &mut watched).and(connected)
}

/// A server that is asked once, or again and again.
struct Watched {
    name: String,
    pid: Option<i32>,
    client: Client,
    /// What it said last.
    before: OperationLatencies,
}

fn show(args: &StatArgs, attributes: &[Attribute], watched: &mut [Watched]) -> Result<()> {
    let in_place = args.watch && !args.json && std::io::stdout().is_terminal();
    let are_several = !args.others.is_empty() && args.others.len() > attributes.len();
    loop {
        let mut text = String::new();
        for device in &mut *watched {
            if args.json {
                output::json(&device.as_json()?)?;
                continue;
            }
            if are_several && !text.is_empty() {
                text.push('\n');
            }
            if are_several && (args.latency || !attributes.is_empty()) {
                text.push_str(&format!("{}\n", device.name));
            }
            text.push_str(&device.text(args.latency, attributes)?);
        }
        if in_place {
            output::drawn("\x1b[H\x1b[2J")?;
        }
        output::text(&text)?;
        if !args.watch {
            return Ok(());
        }
        thread::sleep(Duration::from_secs(1));
    }
}

impl Watched {
    /// The statistics and what the device is as one object, and in it the latencies as another.
    fn as_json(&mut self) -> Result<Value> {
        let mut stats = serde_json::to_value(self.client.stat()?)?;
        stats["latency"] = serde_json::to_value(self.client.latencies()?)?;
        stats["name"] = self.name.as_str().into();
        stats["algorithm"] = client::algorithm(&mut self.client)?.into();
        stats["backing"] = client::backing(&mut self.client)?.into();
        stats["pid"] = self.pid.into();
        Ok(stats)
    }

    fn text(&mut self, latency: bool, attributes: &[Attribute]) -> Result<String> {
        if latency {
            let now = self.client.latencies()?;
            let before = std::mem::replace(&mut self.before, now.clone());
            return Ok(latency_table(&now, &before));
        }
        if attributes.is_empty() {
            let algorithm = client::algorithm(&mut self.client)?;
            let backing = client::backing(&mut self.client)?;
            return Ok(stat_table(
                &self.name,
                &algorithm,
                backing,
                &self.client.stat()?,
            ));
        }
        shown(attributes, &mut self.client)
    }
}

/// What operations took since `before`.
fn latency_table(now: &OperationLatencies, before: &OperationLatencies) -> String {
    const QUANTILES: [f64; 4] = [0.5, 0.9, 0.99, 0.999];
    let head = ["", "COUNT", "MEAN", "P50", "P90", "P99", "P99.9", "MOST"];
    let mut rows = vec![head.map(str::to_owned)];
    for ((name, now), (_, before)) in now.named().into_iter().zip(before.named()) {
        let latency = now.since(before);
        let shown = |ns: Option<u64>| ns.map_or_else(|| "-".to_owned(), duration);
        let [p50, p90, p99, p999] = QUANTILES.map(|quantile| shown(latency.quantile(quantile)));
        let (mean, most) = (shown(latency.mean_ns()), shown(latency.quantile(1.0)));
        let name = name.replace('_', " ");
        rows.push([name, count(latency.count), mean, p50, p90, p99, p999, most]);
    }
    let mut aligns = [Align::Right; 8];
    aligns[0] = Align::Left;
    columns(&aligns, &rows)
}

/// Attributes, each as its file in the FUSE directory has it.
fn shown(attributes: &[Attribute], client: &mut Client) -> Result<String> {
    let mut text = String::new();
    for attribute in attributes {
        if *attribute == Attribute::BlockState {
            let mut next = Some(0);
            while let Some(from) = next {
                let states = client.block_states(from)?;
                text.push_str(&states.text);
                next = states.next;
            }
            continue;
        }
        text.push_str(&client.get(attribute.name())?);
    }
    Ok(text)
}

/// A label, a figure and a remark.
type Row = [String; 3];

fn stat_table(name: &str, algorithm: &str, backing: Option<String>, s: &Stats) -> String {
    let mut rows = vec![[name.to_owned(), String::new(), String::new()]];
    rows.extend(data_rows(s));
    rows.extend(memory_rows(algorithm, backing, s));
    if s.restore_bytes_left > 0 {
        let remark = "still only in the image".to_owned();
        rows.push(row("to restore", s.restore_bytes_left, remark));
    }
    if s.dirty_pages + s.origin_reads + s.origin_writes + s.origin_discards > 0 {
        rows.extend(image_rows(s));
    }
    let failed = s.failed_reads + s.failed_writes;
    if failed > 0 {
        let (reads, writes) = (count(s.failed_reads), count(s.failed_writes));
        let remark = format!("{reads} reads, {writes} writes");
        rows.push(["failed".to_owned(), count(failed), remark]);
    }
    if s.damaged_records > 0 {
        let lost = count(s.damaged_records);
        rows.push(["damaged".to_owned(), lost, "records".to_owned()]);
    }
    columns(&[Align::Left, Align::Right, Align::Left], &rows)
}

fn row(label: &str, figure: u64, remark: String) -> Row {
    [label.to_owned(), bytes(figure), remark]
}

fn in_pages(pages: u64) -> String {
    format!("{} pages", count(pages))
}

fn page_bytes(pages: u64) -> u64 {
    pages * PAGE_SIZE as u64
}

/// What is on the device, and where.
fn data_rows(s: &Stats) -> [Row; 5] {
    let stored = s.orig_data_size / PAGE_SIZE as u64;
    let raw = format!(
        "{}, {} stored raw",
        in_pages(s.resident_pages),
        count(s.huge_pages)
    );
    let page_row = |label, pages| row(label, page_bytes(pages), in_pages(pages));
    [
        row("size", s.disksize, String::new()),
        page_row("stored", stored),
        row("  in memory", page_bytes(s.resident_pages), raw),
        page_row("  same-filled", s.same_pages),
        page_row("  spilled", s.written_back_pages),
    ]
}

/// What an image has to do with it.
fn image_rows(s: &Stats) -> [Row; 2] {
    let traffic = format!(
        "{} written, {} discarded, {} read, {} syncs",
        in_pages(s.origin_writes),
        count(s.origin_discards),
        count(s.origin_reads),
        count(s.origin_syncs)
    );
    [
        row("dirty", page_bytes(s.dirty_pages), in_pages(s.dirty_pages)),
        row("image", page_bytes(s.origin_writes), traffic),
    ]
}

/// What that costs.
fn memory_rows(algorithm: &str, backing: Option<String>, s: &Stats) -> [Row; 6] {
    let resident = page_bytes(s.resident_pages);
    let limit = match s.mem_limit {
        0 => "no limit".to_owned(),
        limit => format!("limit {}", bytes(limit)),
    };
    let (most, live) = (bytes(s.mem_used_max), bytes(s.backing_bytes_live));
    let packed = ratio(resident, s.mem_used_total);
    let written = bytes(s.backing_bytes_written);
    let traffic = format!(
        "{} out, {} back",
        in_pages(s.bd_writes),
        in_pages(s.bd_reads)
    );
    let compressed = format!("ratio {}, {algorithm}", ratio(resident, s.compr_data_size));
    let memory = format!("{limit}, most {most}, ratio {packed}");
    let tables = s.slot_table_bytes + s.dictionary_bytes;
    let of_tables = format!(
        "limit {}, {} of dictionaries",
        bytes(s.table_limit),
        bytes(s.dictionary_bytes)
    );
    let place = backing.map_or_else(String::new, |path| format!(", {path}"));
    let backing = format!("{live} live, {written} ever written{place}");
    [
        row("compressed", s.compr_data_size, compressed),
        row("memory", s.mem_used_total, memory),
        row("tables", tables, of_tables),
        row("backing", s.backing_bytes_used, backing),
        row("  traffic", page_bytes(s.bd_reads + s.bd_writes), traffic),
        row("process", s.rss_bytes, "resident set".to_owned()),
    ]
}
