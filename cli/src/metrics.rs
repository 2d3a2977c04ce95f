//! `uzram metrics`: the statistics of all devices as text for Prometheus, which node_exporter's
//! textfile collector takes as it is (format: <https://prometheus.io/docs/instrumenting/exposition_formats/>).

use std::fmt::{Display, Write};
use std::time::Duration;

use anyhow::Result;
use uzram::Stats;
use uzram::control::Client;

use crate::output;
use crate::rundir::RunRoot;

/// How long each server may take to answer: one that is stuck must not hide the others.
const PATIENCE: Duration = Duration::from_secs(1);

/// Whether a figure only ever grows while a server lives and is not reset.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Gauge,
    Counter,
}

/// A statistic; for the tests with its name in [`Stats`].
struct Metric {
    #[cfg(test)]
    statistic: &'static str,
    name: &'static str,
    kind: Kind,
    help: &'static str,
    figure: fn(&Stats) -> u64,
}

macro_rules! metrics {
    ($($statistic:ident $kind:ident $name:literal $help:literal;)*) => {
        [$(Metric {
            #[cfg(test)]
            statistic: stringify!($statistic),
            name: concat!("uzram_", $name),
            kind: Kind::$kind,
            help: $help,
            figure: |stats| stats.$statistic,
        }),*]
    };
}

static METRICS: &[Metric] = &metrics! {
    disksize Gauge "disk_bytes" "Size of the device.";
    orig_data_size Gauge "stored_bytes" "Pages that hold data, uncompressed.";
    compr_data_size Gauge "compressed_bytes" "Compressed bytes of pages in memory.";
    mem_used_total Gauge "memory_bytes" "Memory that the pool takes.";
    mem_limit Gauge "memory_limit_bytes" "Most memory the pool may take; 0 for no limit.";
    mem_used_max Gauge "memory_max_bytes" "Most memory the pool has taken.";
    same_pages Gauge "same_filled_pages" "Pages that repeat one pattern.";
    pages_compacted Counter "compacted_frames_total" "Page frames that compaction has freed.";
    huge_pages Gauge "huge_pages" "Pages in memory that do not compress.";
    huge_pages_since Counter "huge_pages_total" "Pages ever stored that did not compress.";
    recompressed_pages Counter "recompressed_pages_total" "Pages that recompression has made smaller.";
    resident_pages Gauge "resident_pages" "Pages compressed in memory.";
    written_back_pages Gauge "written_back_pages" "Pages in the backing.";
    backing_bytes_used Gauge "backing_used_bytes" "Space that the spill takes.";
    backing_bytes_live Gauge "backing_live_bytes" "The part of it that is still of use.";
    backing_bytes_written Counter "backing_written_bytes_total" "Bytes written to the backing.";
    backing_bytes_day Gauge "backing_written_day_bytes" "Bytes written to the backing in the last day.";
    bd_reads Counter "backing_read_pages_total" "Pages read back for a client.";
    bd_writes Counter "backing_written_pages_total" "Pages written to the backing.";
    damaged_records Counter "damaged_records_total" "Spilled pages found to be damaged.";
    failed_reads Counter "failed_reads_total" "Requests to read that failed.";
    failed_writes Counter "failed_writes_total" "Requests to write that failed.";
    notify_free Counter "discarded_pages_total" "Pages freed by discards.";
    rss_bytes Gauge "process_resident_bytes" "Resident set of the server.";
};

/// `uzram metrics`.
pub(crate) fn metrics(root: &RunRoot) -> Result<()> {
    let mut devices = Vec::new();
    for dir in root.dirs()? {
        if dir.record().is_none() {
            // It is being made or removed at this moment.
            continue;
        }
        let asked = Client::connect(&dir.control_socket(), PATIENCE);
        let stats = asked.and_then(|mut client| client.stat());
        let stats = stats.inspect_err(|error| {
            tracing::warn!("{} does not answer: {error}", dir.name());
        });
        devices.push((dir.name().to_string(), stats.ok()));
    }
    output::text(&exposition(&devices))
}

/// The text for devices and, if they answer, their statistics.
fn exposition(devices: &[(String, Option<Stats>)]) -> String {
    let mut text = String::new();
    let up = devices
        .iter()
        .map(|(name, stats)| (name.as_str(), u64::from(stats.is_some())));
    append(
        &mut text,
        "uzram_up",
        Kind::Gauge,
        "Whether the server answers.",
        up,
    );
    for metric in METRICS {
        let figures = devices
            .iter()
            .filter_map(|(name, stats)| Some((name.as_str(), (metric.figure)(stats.as_ref()?))));
        append(&mut text, metric.name, metric.kind, metric.help, figures);
    }
    text
}

/// Adds a metric with its figures by device. A device's name needs no escapes.
fn append(
    text: &mut String,
    name: &str,
    kind: Kind,
    help: &str,
    figures: impl Iterator<Item = (impl Display, u64)>,
) {
    let kind = match kind {
        Kind::Gauge => "gauge",
        Kind::Counter => "counter",
    };
    // A String takes all that is written to it.
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    for (device, figure) in figures {
        let _ = writeln!(text, "{name}{{device=\"{device}\"}} {figure}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_statistic_is_there_once() {
        let stats = serde_json::to_value(Stats::default()).unwrap();
        let mut known: Vec<_> = stats.as_object().unwrap().keys().cloned().collect();
        let mut shown: Vec<_> = METRICS.iter().map(|metric| metric.statistic).collect();
        known.sort_unstable();
        shown.sort_unstable();
        assert_eq!(shown, known);
        for metric in METRICS {
            let counter = metric.kind == Kind::Counter;
            assert_eq!(metric.name.ends_with("_total"), counter, "{}", metric.name);
        }
    }

    #[test]
    fn the_text_is_prometheus_own() {
        let stats = Stats {
            mem_used_total: 4096,
            ..Stats::default()
        };
        let devices = [("a".to_owned(), Some(stats)), ("b".to_owned(), None)];
        let text = exposition(&devices);
        for line in [
            "# TYPE uzram_up gauge",
            "uzram_up{device=\"a\"} 1",
            "uzram_up{device=\"b\"} 0",
            "# HELP uzram_memory_bytes Memory that the pool takes.",
            "uzram_memory_bytes{device=\"a\"} 4096",
            "# TYPE uzram_failed_reads_total counter",
        ] {
            assert!(text.lines().any(|there| there == line), "{line} in\n{text}");
        }
        assert!(!text.contains("uzram_memory_bytes{device=\"b\"}"));
    }
}
