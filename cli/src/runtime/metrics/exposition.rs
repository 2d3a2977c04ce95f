//! The text itself (format: <https://prometheus.io/docs/instrumenting/exposition_formats/> and
//! <https://github.com/prometheus/OpenMetrics/blob/main/specification/OpenMetrics.md>).
//!
//! The crate prometheus-client writes OpenMetrics only, which node_exporter does not read from a file, and the crate prometheus
//! the other form only. Both are about counters that a program registers; here all figures of a device come at once, from
//! another process.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use uzram::{Latency, OperationLatencies, Stats};

/// A device, and what it says if it answers.
pub(crate) struct Observed {
    pub(crate) name: String,
    pub(crate) seen: Option<Seen>,
}

/// What a device says.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) stats: Stats,
    pub(crate) latencies: OperationLatencies,
    /// How pages are compressed that are written now, as `--algorithm` has it.
    pub(crate) algorithm: String,
    /// Where it spills to, if anywhere.
    pub(crate) backing: Option<String>,
}

/// The two forms of the text, which differ in how counters are named and how it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Prometheus,
    OpenMetrics,
}

impl Format {
    /// What HTTP calls it.
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

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
    slot_table_bytes Gauge "slot_table_bytes" "Memory of the tables that say where pages are.";
    dictionary_bytes Gauge "dictionary_bytes" "Memory of dictionaries.";
    table_limit Gauge "table_limit_bytes" "Most memory that tables and dictionaries may take.";
    same_pages Gauge "same_filled_pages" "Pages that repeat one pattern.";
    pages_compacted Counter "compacted_frames_total" "Page frames that compaction has freed.";
    huge_pages Gauge "huge_pages" "Pages in memory that do not compress.";
    huge_pages_since Counter "huge_pages_total" "Pages ever stored that did not compress.";
    recompressed_pages Counter "recompressed_pages_total" "Pages that recompression has made smaller.";
    resident_pages Gauge "resident_pages" "Pages compressed in memory.";
    written_back_pages Gauge "written_back_pages" "Pages in the backing, or still in the image that is restored.";
    backing_bytes_used Gauge "backing_used_bytes" "Space that the spill takes.";
    backing_bytes_live Gauge "backing_live_bytes" "The part of it that is still of use.";
    backing_bytes_written Counter "backing_written_bytes_total" "Bytes written to the backing.";
    backing_bytes_day Gauge "backing_written_day_bytes" "Bytes written to the backing in the last day.";
    bd_reads Counter "backing_read_pages_total" "Pages read back for a client.";
    bd_writes Counter "backing_written_pages_total" "Pages written to the backing.";
    dirty_pages Gauge "dirty_pages" "Pages in memory that are not in the image as they are.";
    origin_reads Counter "image_read_pages_total" "Pages read from the image.";
    origin_writes Counter "image_written_pages_total" "Pages written to the image.";
    origin_discards Counter "image_discarded_pages_total" "Pages discarded in the image.";
    origin_syncs Counter "image_syncs_total" "Times that the image was made durable.";
    restore_bytes_left Gauge "restore_left_bytes" "Still only in the image that was restored.";
    damaged_records Counter "damaged_records_total" "Spilled pages found to be damaged.";
    failed_reads Counter "failed_reads_total" "Requests to read that failed.";
    failed_writes Counter "failed_writes_total" "Requests to write that failed.";
    write_stalls Counter "write_stalls_total" "Times that a writer waited for memory.";
    notify_free Counter "discarded_pages_total" "Pages freed by discards.";
    rss_bytes Gauge "process_resident_bytes" "Resident set of the server.";
};

/// It comes first.
const UP: &str = "uzram_up";

const OPERATIONS: &str = "uzram_operation_seconds";

/// The ends of the buckets that are shown, as powers of two nanoseconds: half a microsecond to 17 s.
const BUCKET_ENDS: std::ops::RangeInclusive<u32> = 9..=34;

/// The text for devices.
pub(crate) fn exposition(devices: &[Observed], format: Format) -> String {
    let mut text = String::new();
    let up = devices
        .iter()
        .map(|device| (device.name.as_str(), u64::from(device.seen.is_some())));
    let help = "Whether the server answers.";
    append(&mut text, format, UP, Kind::Gauge, help, up);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().as_secs();
    let answers = devices.iter().filter(|device| device.seen.is_some());
    append(
        &mut text,
        format,
        "uzram_observed_timestamp_seconds",
        Kind::Gauge,
        "When these figures were true, in seconds since 1970.",
        answers.map(|device| (device.name.as_str(), now)),
    );
    append_info(&mut text, format, devices);
    for metric in METRICS {
        let figures = devices.iter().filter_map(|device| {
            let stats = &device.seen.as_ref()?.stats;
            Some((device.name.as_str(), (metric.figure)(stats)))
        });
        append(
            &mut text,
            format,
            metric.name,
            metric.kind,
            metric.help,
            figures,
        );
    }
    append_latencies(&mut text, devices);
    if format == Format::OpenMetrics {
        text.push_str("# EOF\n");
    }
    text
}

/// The label that says which device a figure is of, with the escapes of the format.
fn device_label(name: &str) -> String {
    label("device", name)
}

fn label(key: &str, value: &str) -> String {
    let escaped = value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n");
    format!("{key}=\"{escaped}\"")
}

/// How the figure begins that says whether the server of `name` answers.
pub(super) fn up_of(name: &str) -> String {
    format!("{UP}{{{}}}", device_label(name))
}

/// Adds what is no figure, as the labels of one that is always 1.
fn append_info(text: &mut String, format: Format, devices: &[Observed]) {
    let (family, kind) = match format {
        Format::Prometheus => ("uzram_device_info", "gauge"),
        Format::OpenMetrics => ("uzram_device", "info"),
    };
    let _ = writeln!(
        text,
        "# HELP {family} How pages are compressed now, and where they are spilled to.\n# TYPE {family} {kind}"
    );
    for device in devices {
        let Some(seen) = &device.seen else {
            continue;
        };
        let _ = writeln!(
            text,
            "uzram_device_info{{{},{},{}}} 1",
            device_label(&device.name),
            label("algorithm", &seen.algorithm),
            label("backing", seen.backing.as_deref().unwrap_or_default())
        );
    }
}

/// Adds a metric with its figures by device.
fn append<'a>(
    text: &mut String,
    format: Format,
    name: &str,
    kind: Kind,
    help: &str,
    figures: impl Iterator<Item = (&'a str, u64)>,
) {
    let kind = match kind {
        Kind::Gauge => "gauge",
        Kind::Counter => "counter",
    };
    let family = match format {
        Format::Prometheus => name,
        Format::OpenMetrics => name.strip_suffix("_total").unwrap_or(name),
    };
    // A String takes all that is written to it.
    let _ = writeln!(text, "# HELP {family} {help}\n# TYPE {family} {kind}");
    for (device, figure) in figures {
        let _ = writeln!(text, "{name}{{{}}} {figure}", device_label(device));
    }
}

/// Adds the histograms.
fn append_latencies(text: &mut String, devices: &[Observed]) {
    let _ = writeln!(
        text,
        "# HELP {OPERATIONS} How long operations took. Of requests below 64 KiB a sample is timed.\n\
         # TYPE {OPERATIONS} histogram"
    );
    for device in devices {
        let Some(seen) = &device.seen else {
            continue;
        };
        for (operation, latency) in seen.latencies.named() {
            let labels = format!("{},op=\"{operation}\"", device_label(&device.name));
            append_histogram(text, &labels, latency);
        }
    }
}

fn append_histogram(text: &mut String, labels: &str, latency: &Latency) {
    for power in BUCKET_ENDS {
        let (below, end) = (latency.below(1 << power), (1_u64 << power) as f64 / 1e9);
        let _ = writeln!(text, "{OPERATIONS}_bucket{{{labels},le=\"{end}\"}} {below}");
    }
    let (count, sum) = (latency.count, latency.sum_ns as f64 / 1e9);
    let _ = writeln!(
        text,
        "{OPERATIONS}_bucket{{{labels},le=\"+Inf\"}} {count}\n\
         {OPERATIONS}_sum{{{labels}}} {sum}\n\
         {OPERATIONS}_count{{{labels}}} {count}"
    );
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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

    /// The value of the first label of a line, as the format has it: `\\`, `\"` and `\n` are escapes.
    fn first_label(line: &str) -> String {
        let (_, rest) = line.split_once("{device=\"").unwrap();
        let (mut value, mut chars) = (String::new(), rest.chars());
        loop {
            match chars.next().unwrap() {
                '"' => break,
                '\n' => panic!("a newline in {line}"),
                '\\' => value.push(match chars.next().unwrap() {
                    'n' => '\n',
                    escaped @ ('\\' | '"') => escaped,
                    other => panic!("\\{other} in {line}"),
                }),
                other => value.push(other),
            }
        }
        let rest = chars.as_str();
        assert!(
            ["} ", ",op=", ",algorithm="]
                .iter()
                .any(|next| rest.starts_with(next)),
            "{line}"
        );
        value
    }

    #[test]
    fn a_name_is_read_as_it_is() {
        for name in ["a\"b", "a\\b", "a\\", "\"} 1", "plain", "h\u{e9}\u{e9}"] {
            let device = Observed {
                name: name.to_owned(),
                seen: Some(Seen::default()),
            };
            for format in [Format::Prometheus, Format::OpenMetrics] {
                let text = exposition(std::slice::from_ref(&device), format);
                assert!(text.contains(&up_of(name)));
                for line in text.lines().filter(|line| !line.starts_with('#')) {
                    assert_eq!(first_label(line), name, "{line}");
                }
            }
        }
    }

    #[test]
    fn the_text_is_prometheus_own() {
        let mut stats = Stats::default();
        stats.mem_used_total = 4096;
        let latencies = OperationLatencies {
            read: Latency {
                count: 5,
                sum_ns: 4_500,
                buckets: vec![(512, 2), (1280, 3)],
            },
            ..OperationLatencies::default()
        };
        let named = |name: &str, seen| Observed {
            name: name.to_owned(),
            seen,
        };
        let seen = Seen {
            stats,
            latencies,
            algorithm: "zstd:3".to_owned(),
            backing: Some("/var/a\"b".to_owned()),
        };
        let devices = [named("a", Some(seen)), named("b", None)];
        let text = exposition(&devices, Format::Prometheus);
        for line in [
            "# TYPE uzram_up gauge",
            "uzram_up{device=\"a\"} 1",
            "uzram_up{device=\"b\"} 0",
            "uzram_device_info{device=\"a\",algorithm=\"zstd:3\",backing=\"/var/a\\\"b\"} 1",
            "# HELP uzram_memory_bytes Memory that the pool takes.",
            "uzram_memory_bytes{device=\"a\"} 4096",
            "# TYPE uzram_failed_reads_total counter",
            "# TYPE uzram_operation_seconds histogram",
            "uzram_operation_seconds_bucket{device=\"a\",op=\"read\",le=\"0.000000512\"} 2",
            "uzram_operation_seconds_bucket{device=\"a\",op=\"read\",le=\"0.000001024\"} 2",
            "uzram_operation_seconds_bucket{device=\"a\",op=\"read\",le=\"0.000002048\"} 5",
            "uzram_operation_seconds_bucket{device=\"a\",op=\"read\",le=\"+Inf\"} 5",
            "uzram_operation_seconds_sum{device=\"a\",op=\"read\"} 0.0000045",
            "uzram_operation_seconds_count{device=\"a\",op=\"flush\"} 0",
        ] {
            assert!(text.lines().any(|there| there == line), "{line} in\n{text}");
        }
        assert!(!text.contains("uzram_memory_bytes{device=\"b\"}"));
        let observed = "\nuzram_observed_timestamp_seconds{device=\"a\"} ";
        let (_, at) = text.split_once(observed).unwrap();
        let at: u64 = at.lines().next().unwrap().parse().unwrap();
        let age = SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_secs(at));
        assert!(age.unwrap() < Duration::from_secs(60));
        let text = exposition(&devices, Format::OpenMetrics);
        assert!(text.contains("# TYPE uzram_failed_reads counter\nuzram_failed_reads_total{"));
        assert!(text.ends_with("\n# EOF\n"));
    }
}
