//! How well the device spills: speed of a fill, bytes written, reads, and which pages are missed.
//!
//! `cargo bench --bench writeback [-- fill|churn|reads|misses]`
//!
//! Each line of the output is JSON: a case, its unit, and the figure of each contender.

mod misses;
mod spilled;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use spilled::{Aligned, direct};
use support::Random;
use support::corpus::pages_under;
use uzram::{BackingConfig, BlockDevice, Device, DeviceConfig, PAGE_SIZE, Page, Stats};

const PAGE: u64 = PAGE_SIZE as u64;

fn main() {
    let dir = tempfile::Builder::new()
        .prefix("uzram-bench")
        .tempdir_in("/var/tmp");
    let dir = dir.expect("a directory in /var/tmp");
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let runs = |name: &str| wanted.is_empty() || wanted.iter().any(|arg| arg == name);
    if runs("fill") {
        fill(dir.path());
    }
    if runs("churn") {
        churn(dir.path());
    }
    if runs("reads") {
        spilled::reads(dir.path());
    }
    if runs("misses") {
        misses::misses(dir.path());
    }
}

/// Pages of programs, which compress to between a tenth and all of a page.
fn real_pages(count: usize) -> Vec<Page> {
    pages_under(
        &[Path::new("/usr/lib"), Path::new("/usr/bin")],
        count,
        |_| true,
    )
}

fn device(dir: &Path, pages: u64, limit: Option<u64>) -> Device {
    let mut config = DeviceConfig::new(pages * PAGE);
    config.mem_limit = limit;
    config.backing = limit.map(|_| BackingConfig::new(dir.join("spill")));
    Device::new(&config).expect("a device")
}

fn seconds(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// Writes pages from the page `first` on.
fn write_all(device: &Device, first: u64, pages: &[Page]) {
    for (at, chunk) in pages.chunks(256).enumerate() {
        device
            .write((first + at as u64 * 256) * PAGE, chunk.as_flattened())
            .expect("room");
    }
}

/// Prints a case.
fn line(case: &str, unit: &str, figures: &[(&str, f64)]) {
    let figures: Vec<String> = figures
        .iter()
        .map(|(contender, figure)| format!("\"{contender}\": {figure}"))
        .collect();
    println!(
        "{{\"case\": \"{case}\", \"unit\": \"{unit}\", \"figures\": {{{}}}}}",
        figures.join(", ")
    );
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A sequential fill to four times the limit, beside one without a limit and beside writing the
/// compressed bytes to a file: through the page cache, with and without waiting for the disk, and
/// past it.
fn fill(dir: &Path) {
    let pages = real_pages(131_072);
    let size = (pages.len() * PAGE_SIZE) as u64;
    let free = device(dir, pages.len() as u64, None);
    write_all(&free, 0, &pages);
    let unlimited = seconds(|| write_all(&free, 0, &pages));
    let stats = free.stats();
    drop(free);
    let plain = PlainWrites::measure(&dir.join("plain"), stats.compr_data_size);
    let limit = stats.mem_used_total / 4;
    let resident = stats_of_process();
    let limited = device(dir, pages.len() as u64, Some(limit));
    let mut watch = Watch::new(limit, size, resident);
    let spilling = seconds(|| {
        for (at, chunk) in pages.chunks(256).enumerate() {
            let offset = at as u64 * 256 * PAGE;
            limited.write(offset, chunk.as_flattened()).expect("room");
            watch.sample(&limited);
        }
    });
    line(
        "fill to 4x the limit",
        "MiB/s",
        &[
            ("uzram", mib(size) / spilling),
            ("no limit", mib(size) / unlimited),
            ("file, page cache", mib(size) / plain.cached),
            ("file, fdatasync", mib(size) / plain.synced),
            ("file, direct", mib(size) / plain.direct),
        ],
    );
    watch.report("fill");
    let after = limited.stats();
    let evicted = stats.compr_data_size.saturating_sub(after.compr_data_size);
    line(
        "written on a fill",
        "MiB",
        &[
            ("uzram", mib(after.backing_bytes_written)),
            ("evicted", mib(evicted)),
        ],
    );
}

/// Seconds that a file takes to be written in order, a MiB at a time.
struct PlainWrites {
    /// Until the page cache has it.
    cached: f64,
    /// Until the disk has it.
    synced: f64,
    /// Past the page cache, until the disk has it.
    direct: f64,
}

impl PlainWrites {
    fn measure(path: &Path, bytes: u64) -> Self {
        // Nothing that the disk could compress.
        let (mut data, mut random) = (Box::new(Aligned([0; 1 << 20])), Random(5));
        for chunk in data.0.as_chunks_mut::<8>().0 {
            *chunk = random.next().to_le_bytes();
        }
        let write = |mut file: &File| {
            for _ in 0..bytes >> 20 {
                file.write_all(&data.0).expect("space");
            }
        };
        let file = File::create(path).expect("a file");
        let start = Instant::now();
        write(&file);
        let cached = start.elapsed().as_secs_f64();
        file.sync_data().expect("a disk");
        let synced = start.elapsed().as_secs_f64();
        std::fs::remove_file(path).expect("a file");
        let file = direct(OpenOptions::new().write(true).create_new(true), path);
        let direct = seconds(|| {
            write(&file);
            file.sync_data().expect("a disk");
        });
        std::fs::remove_file(path).expect("a file");
        Self {
            cached,
            synced,
            direct,
        }
    }
}

fn stats_of_process() -> u64 {
    Device::new(&DeviceConfig::new(PAGE))
        .expect("a device")
        .stats()
        .rss_bytes
}

/// The most memory seen, beside what is allowed.
struct Watch {
    limit: u64,
    /// What the process held before there was a device: the data to write.
    before: u64,
    slots: u64,
    used: u64,
    rss: u64,
}

impl Watch {
    fn new(limit: u64, size: u64, before: u64) -> Self {
        Self {
            limit,
            before,
            slots: size / PAGE * 8,
            used: 0,
            rss: 0,
        }
    }

    fn sample(&mut self, device: &Device) {
        let stats = device.stats();
        self.used = self.used.max(stats.mem_used_total);
        self.rss = self.rss.max(stats.rss_bytes);
    }

    fn report(&self, work: &str) {
        let figures = [("uzram", mib(self.used)), ("limit", mib(self.limit))];
        line(&format!("most mem_used_total, {work}"), "MiB", &figures);
        let allowed = self.limit + self.slots + (64 << 20);
        let grown = self.rss.saturating_sub(self.before);
        let figures = [("uzram", mib(grown)), ("allowed", mib(allowed))];
        line(&format!("most RSS, {work}"), "MiB", &figures);
    }
}

/// Random overwrites of a device that is four times its limit.
fn churn(dir: &Path) {
    let pages = real_pages(65_536);
    let count = pages.len() as u64;
    let (limit, resident) = (count * PAGE / 8, stats_of_process());
    let device = device(dir, count, Some(limit));
    write_all(&device, 0, &pages);
    let (before, mut random) = (device.stats(), Random(1));
    let mean = |stats: &Stats| stats.backing_bytes_live as f64 / stats.written_back_pages as f64;
    let mut watch = Watch::new(limit, count * PAGE, resident);
    let mut worst = (1, 1);
    for step in 0..count * 4 {
        let page = random.below(count);
        let data = &pages[random.below(count) as usize];
        device.write(page * PAGE, data).expect("room");
        if step % 4096 == 0 {
            watch.sample(&device);
            let stats = device.stats();
            let now = (stats.backing_bytes_live, stats.backing_bytes_used);
            if now.0 * worst.1 < worst.0 * now.1 {
                worst = now;
            }
        }
    }
    let after = device.stats();
    let written = after.backing_bytes_written - before.backing_bytes_written;
    let evicted = (after.bd_writes - before.bd_writes) as f64 * mean(&after);
    line(
        "written under overwrites",
        "MiB",
        &[
            ("uzram", mib(written)),
            ("evicted", evicted / f64::from(1 << 20)),
        ],
    );
    line(
        "least live under overwrites",
        "MiB",
        &[("uzram", mib(worst.0)), ("used", mib(worst.1))],
    );
    watch.report("overwrites");
}
