//! What one lock for the whole pool costs beside shards, and what a larger device does.
//!
//! `cargo bench --bench scale [-- threads|size|hold-write|hold-read]`
//!
//! `threads` and `size` print a line of JSON for each case: its unit, and the figure of each
//! contender. `hold-write` and `hold-read` only work for some seconds, on one thread, to be looked
//! at by a profiler: what part of that time is spent with a lock held?

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use support::Random;
use support::corpus::pages_under;
use uzram::{BlockDevice, Device, DeviceConfig, PAGE_SIZE, Page};

/// Pages that are written and read: 256 MiB.
const PAGES: u64 = 65536;

/// How long one figure is measured for.
const TIME: Duration = Duration::from_millis(1500);

/// Accesses between two looks at the time.
const BURST: u64 = 32;

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let named = |name: &str| wanted.iter().any(|arg| arg == name);
    let roots = [Path::new("/usr/lib"), Path::new("/usr/bin")];
    let pages = pages_under(&roots, PAGES as usize, |_| true);
    if wanted.is_empty() || named("threads") {
        threads(&pages);
    }
    if wanted.is_empty() || named("size") {
        sizes(&pages);
    }
    for (name, work) in [("hold-write", Work::Write), ("hold-read", Work::Read)] {
        if named(name) {
            let filled = Filled::new(PAGES * PAGE_SIZE as u64, Some(1), &pages);
            let Seen { cost, .. } = filled.rate(work, 1, 4 * TIME);
            println!("{cost:.0} {COST}");
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Work {
    Write,
    Read,
}

/// Random accesses by more and more threads, to a device with one lock, with the default number
/// of shards and with many.
fn threads(pages: &[Page]) {
    let contenders = [
        ("uzram", None),
        ("one lock", Some(1)),
        ("32 shards", Some(32)),
    ];
    let filled = contenders.map(|(name, shards)| (name, Filled::new(1 << 30, shards, pages)));
    for (name, work) in [("4k randwrite", Work::Write), ("4k randread", Work::Read)] {
        for threads in [1, 2, 8, 32] {
            let seen = filled
                .each_ref()
                .map(|(contender, filled)| (*contender, filled.rate(work, threads, TIME)));
            let case = format!("{name}, {threads} threads");
            line(&case, "IOPS", &seen.map(|(name, seen)| (name, seen.iops)));
            line(
                &format!("{case}, cost"),
                COST,
                &seen.map(|(name, seen)| (name, seen.cost)),
            );
        }
    }
}

/// As many pages, spread over devices of different sizes.
fn sizes(pages: &[Page]) {
    let small = Filled::new(1 << 30, Some(2), pages);
    let large = Filled::new(64 << 30, Some(2), pages);
    for (name, work) in [("4k randwrite", Work::Write), ("4k randread", Work::Read)] {
        let figures = [("uzram", &large), ("1 GiB", &small)]
            .map(|(size, filled)| (size, filled.rate(work, 1, TIME).cost));
        line(&format!("{name}, 64 GiB"), COST, &figures);
    }
}

/// What threads did.
#[derive(Clone, Copy)]
struct Seen {
    /// Accesses a second, waiting included.
    iops: f64,
    /// What an access takes of a core, whatever else the machine does: of this process in all, so
    /// what the device does in the background, and what waiting for a lock takes, are part of it.
    cost: f64,
}

/// The unit of [`Seen::cost`].
const COST: &str = "ns of a core";

/// A device with pages at equal distances.
struct Filled<'a> {
    device: Device,
    pages: &'a [Page],
    distance: u64,
}

impl<'a> Filled<'a> {
    fn new(size: u64, shards: Option<u32>, pages: &'a [Page]) -> Self {
        let mut config = DeviceConfig::new(size);
        config.shards = shards;
        let filled = Self {
            device: Device::new(&config).expect("a device"),
            pages,
            distance: size / pages.len() as u64,
        };
        for n in 0..pages.len() {
            filled.write(n, n);
        }
        filled
    }

    fn write(&self, n: usize, with: usize) {
        let at = n as u64 * self.distance / PAGE_SIZE as u64 * PAGE_SIZE as u64;
        self.device.write(at, &self.pages[with]).expect("no limit");
    }

    fn read(&self, n: usize, page: &mut Page) {
        let at = n as u64 * self.distance / PAGE_SIZE as u64 * PAGE_SIZE as u64;
        self.device.read(at, page).expect("readable");
    }

    /// Accesses random pages, so many times.
    fn burst(&self, work: Work, random: &mut Random, count: u64) {
        let mut page = [0; PAGE_SIZE];
        for _ in 0..count {
            let n = random.index(self.pages.len());
            match work {
                Work::Write => self.write(n, random.index(self.pages.len())),
                Work::Read => self.read(n, &mut page),
            }
        }
    }

    /// Has threads access random pages.
    fn rate(&self, work: Work, threads: u64, time: Duration) -> Seen {
        let (stop, total) = (AtomicBool::new(false), AtomicU64::new(0));
        let (start, used) = (Instant::now(), core_time());
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let (stop, total) = (&stop, &total);
                scope.spawn(move || {
                    let mut random = Random(thread);
                    let mut done = 0;
                    while !stop.load(Relaxed) {
                        self.burst(work, &mut random, BURST);
                        done += BURST;
                    }
                    total.fetch_add(done, Relaxed);
                });
            }
            std::thread::sleep(time);
            stop.store(true, Relaxed);
        });
        let total = total.into_inner() as f64;
        Seen {
            iops: total / start.elapsed().as_secs_f64(),
            cost: (core_time() - used).as_nanos() as f64 / total,
        }
    }
}

/// Time of cores that this process has used.
fn core_time() -> Duration {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec as u64, used.tv_nsec as u32)
}

fn line(case: &str, unit: &str, figures: &[(&str, f64)]) {
    let figures: serde_json::Map<_, _> = figures
        .iter()
        .map(|&(name, figure)| (name.to_owned(), figure.into()))
        .collect();
    let line = serde_json::json!({ "case": case, "unit": unit, "figures": figures });
    println!("{line}");
}
