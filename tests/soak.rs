//! Everything at once for a while: writers, readers, discards, evictions, limits that change and a
//! backing that fails now and then; no page is ever wrong, and in the end all adds up to nothing.
//!
//! Every page carries its number and a version. A writer raises a page's `begun` before a request
//! and its `acknowledged` after it, so whatever a reader sees must lie between the `acknowledged`
//! from before its request and the `begun` from after it. A version that is 7 modulo 8 is a
//! discard, and so is version 0: those pages, and no others, read as zeroes.
//!
//! `scripts/soak.sh device [MINUTES]` runs the long one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::Random;
use uzram::{BackingConfig, BlockDevice, Device, DeviceConfig, PAGE_SIZE, Page, Recompression};

const PAGE: u64 = PAGE_SIZE as u64;
const PAGES: u64 = 48 * 1024;
const WRITERS: u64 = 4;
const READERS: u64 = 6;
/// Pages that follow each other and belong to one writer; the most a request covers.
const RUN: u64 = 32;
const LIMIT: u64 = 24 << 20;
/// How long after a fault a write may still be refused for want of room.
const RECOVERY: Duration = Duration::from_secs(5);

#[test]
fn ten_seconds_of_everything() {
    soak(Duration::from_secs(10));
}

#[test]
#[ignore = "as long as UZRAM_SOAK_SECONDS says: scripts/soak.sh runs it"]
fn as_long_as_asked() {
    let seconds = std::env::var("UZRAM_SOAK_SECONDS").expect("UZRAM_SOAK_SECONDS");
    soak(Duration::from_secs(seconds.parse().expect("seconds")));
}

fn soak(duration: Duration) {
    // A handler, whatever it does: what would kill the process becomes EFBIG.
    let struck = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, struck).expect("a handler");
    let dir = tempfile::Builder::new()
        .prefix("uzram-soak-")
        .tempdir_in("/var/tmp")
        .expect("a directory on a disk");
    let mut config = DeviceConfig::new(PAGES * PAGE);
    config.mem_limit = Some(LIMIT);
    config.backing = Some(BackingConfig::new(dir.path().join("spill")));
    let soak = Soak {
        device: Device::new(&config).expect("a device"),
        pages: (0..PAGES).map(|_| Versions::default()).collect(),
        stop: AtomicBool::new(false),
        faults: Faults::new(),
        counts: Counts::default(),
    };
    std::thread::scope(|scope| {
        let soak = &soak;
        let mut threads: Vec<_> = (0..WRITERS)
            .map(|writer| scope.spawn(move || soak.guard(|| soak.write(writer))))
            .collect();
        threads
            .extend((0..READERS).map(|seed| scope.spawn(move || soak.guard(|| soak.read(seed)))));
        threads.push(scope.spawn(|| soak.guard(|| soak.squeeze())));
        threads.push(scope.spawn(|| soak.guard(|| soak.fail_now_and_then())));
        let began = Instant::now();
        while began.elapsed() < duration && !soak.stop.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
            let used = soak.device.stats().mem_used_total;
            assert!(used <= 2 * LIMIT, "{used} bytes in memory");
        }
        soak.stop.store(true, SeqCst);
    });
    soak.settle();
}

/// The versions of a page that a reader may see.
#[derive(Default)]
struct Versions {
    acknowledged: AtomicU32,
    begun: AtomicU32,
}

#[derive(Default)]
struct Counts {
    pages_read: AtomicU64,
    pages_written: AtomicU64,
    pages_discarded: AtomicU64,
    refused: AtomicU64,
    evictions: AtomicU64,
    limits: AtomicU64,
    faults: AtomicU64,
}

/// Whether the backing refuses to grow, by this process's limit on the size of files.
struct Faults {
    /// Odd while it does.
    changes: AtomicU64,
    last_end: std::sync::Mutex<Instant>,
    original: Rlimit,
}

impl Faults {
    fn new() -> Self {
        Self {
            changes: AtomicU64::new(0),
            last_end: std::sync::Mutex::new(Instant::now()),
            original: getrlimit(Resource::Fsize),
        }
    }

    fn set(&self, bytes: Option<u64>) {
        let limit = Rlimit {
            current: bytes.or(self.original.current),
            maximum: self.original.maximum,
        };
        if bytes.is_some() {
            self.changes.fetch_add(1, SeqCst);
        }
        setrlimit(Resource::Fsize, limit).expect("the soft limit is ours to move");
        if bytes.is_none() {
            *self.last_end.lock().expect("no panic") = Instant::now();
            self.changes.fetch_add(1, SeqCst);
        }
    }

    /// Whether one was on at some time since `began`, or had ended only just before.
    fn excuse(&self, began: Instant) -> bool {
        let ended = *self.last_end.lock().expect("no panic");
        let changes = self.changes.load(SeqCst);
        changes % 2 == 1 || (changes > 0 && ended + RECOVERY > began)
    }
}

struct Soak {
    device: Device,
    pages: Vec<Versions>,
    stop: AtomicBool,
    faults: Faults,
    counts: Counts,
}

impl Soak {
    /// Runs a thread's work; a panic in it stops the others.
    fn guard(&self, work: impl FnOnce()) {
        let stop = StopOnPanic(&self.stop);
        work();
        drop(stop);
    }

    fn running(&self) -> bool {
        !self.stop.load(SeqCst)
    }

    fn write(&self, writer: u64) {
        let mut random = Random(writer + 100);
        let mut data = vec![0; (RUN * PAGE) as usize];
        while self.running() {
            let (run, within) = (run(&mut random) * WRITERS + writer, random.below(RUN));
            let (first, count) = (run * RUN + within, 1 + random.below(RUN - within));
            self.write_run(first, count, &mut data, random.below(16) == 0);
        }
    }

    /// The next version of `count` pages, all of them discards or none.
    fn write_run(&self, first: u64, count: u64, data: &mut [u8], discard: bool) {
        let (began, mut next) = (Instant::now(), [0; RUN as usize]);
        for (i, page) in (first..first + count).enumerate() {
            let begun = &self.pages[page as usize].begun;
            let mut version = begun.load(SeqCst) + 1;
            while is_discard(version) != discard {
                version += 1;
            }
            next[i] = version;
            begun.store(version, SeqCst);
            fill(page, version, &mut data[i * PAGE_SIZE..][..PAGE_SIZE]);
        }
        let (offset, bytes) = (first * PAGE, count * PAGE);
        let done = if discard {
            self.device.discard(offset, bytes)
        } else {
            self.device.write(offset, &data[..bytes as usize])
        };
        match done {
            Ok(()) => {
                for (page, version) in (first..first + count).zip(next) {
                    self.pages[page as usize]
                        .acknowledged
                        .store(version, SeqCst);
                }
                let counts = &self.counts;
                let counter = if discard {
                    &counts.pages_discarded
                } else {
                    &counts.pages_written
                };
                counter.fetch_add(count, SeqCst);
            }
            Err(error) => {
                assert_eq!(error.errno(), Errno::NOSPC, "{error}");
                assert!(self.faults.excuse(began), "no fault, yet {error}");
                self.counts.refused.fetch_add(1, SeqCst);
            }
        }
    }

    fn read(&self, seed: u64) {
        let mut random = Random(seed + 200);
        while self.running() {
            let first = run(&mut random) * WRITERS * RUN + random.below(WRITERS * RUN);
            self.verify(first, 1 + random.below(RUN).min(PAGES - first - 1));
        }
    }

    fn verify(&self, first: u64, count: u64) {
        let mut data = vec![0xa5; (count * PAGE) as usize];
        let pages = &self.pages[first as usize..(first + count) as usize];
        let least: Vec<u32> = pages
            .iter()
            .map(|page| page.acknowledged.load(SeqCst))
            .collect();
        if let Err(error) = self.device.read(first * PAGE, &mut data) {
            panic!("pages {first} to {}: {error}", first + count);
        }
        for (i, page) in (first..first + count).enumerate() {
            let versions = least[i]..=pages[i].begun.load(SeqCst);
            let data: &Page = data[i * PAGE_SIZE..][..PAGE_SIZE]
                .try_into()
                .expect("a page");
            assert_holds(page, data, versions);
        }
        self.counts.pages_read.fetch_add(count, SeqCst);
    }

    /// Evictions and limits.
    fn squeeze(&self) {
        let mut random = Random(300);
        while self.running() {
            std::thread::sleep(Duration::from_millis(20));
            let began = Instant::now();
            if random.below(4) == 0 {
                let limit = [LIMIT / 2, LIMIT, 2 * LIMIT][random.below(3) as usize];
                self.device
                    .set_mem_limit(Some(limit))
                    .expect("a limit that is allowed");
                self.counts.limits.fetch_add(1, SeqCst);
            } else if random.below(8) == 0 {
                let all = Recompression::parse("algo=zstd max_pages=5000").expect("parameters");
                self.device.recompress(&all).expect("an algorithm");
            } else if let Err(error) = self.device.evict((1 + random.below(64)) * 64 * 1024) {
                assert!(self.faults.excuse(began), "no fault, yet {error}");
            } else {
                self.counts.evictions.fetch_add(1, SeqCst);
            }
        }
    }

    /// Two seconds in five the backing cannot grow past some size.
    fn fail_now_and_then(&self) {
        let mut random = Random(400);
        while self.running() {
            self.sleep(Duration::from_secs(3));
            let used = self.device.stats().backing_bytes_used;
            self.faults.set(Some(random.below(used.max(1))));
            self.counts.faults.fetch_add(1, SeqCst);
            self.sleep(Duration::from_secs(2));
            self.faults.set(None);
        }
    }

    fn sleep(&self, duration: Duration) {
        let until = Instant::now() + duration;
        while self.running() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// All of it once more, then nothing of it.
    fn settle(&self) {
        for first in (0..PAGES).step_by(RUN as usize) {
            self.verify(first, RUN);
        }
        self.device.check();
        self.device.discard(0, PAGES * PAGE).expect("a discard");
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.device.stats().backing_bytes_used > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.device.check();
        let stats = self.device.stats();
        let left = [
            ("mem_used_total", stats.mem_used_total),
            ("orig_data_size", stats.orig_data_size),
            ("compr_data_size", stats.compr_data_size),
            ("resident_pages", stats.resident_pages),
            ("same_pages", stats.same_pages),
            ("huge_pages", stats.huge_pages),
            ("written_back_pages", stats.written_back_pages),
            ("backing_bytes_live", stats.backing_bytes_live),
            ("backing_bytes_used", stats.backing_bytes_used),
        ];
        assert!(left.iter().all(|&(_, bytes)| bytes == 0), "left: {left:?}");
        self.summarise();
    }

    fn summarise(&self) {
        let count = |counter: &AtomicU64| counter.load(SeqCst);
        let counts = &self.counts;
        let stats = self.device.stats();
        println!(
            "{} pages read and verified, {} written, {} discarded; {} evictions, {} limits, {} faults, \
             {} writes refused meanwhile; {} pages out, {} back",
            count(&counts.pages_read),
            count(&counts.pages_written),
            count(&counts.pages_discarded),
            count(&counts.evictions),
            count(&counts.limits),
            count(&counts.faults),
            count(&counts.refused),
            stats.bd_writes,
            stats.bd_reads,
        );
        for (what, counter) in [
            ("writes", &counts.pages_written),
            ("discards", &counts.pages_discarded),
            ("evictions", &counts.evictions),
            ("limits", &counts.limits),
            ("faults", &counts.faults),
        ] {
            assert!(count(counter) > 0, "no {what}: nothing was shown");
        }
        assert!(
            stats.bd_writes > 0 && stats.bd_reads > 0,
            "nothing was spilled"
        );
    }
}

struct StopOnPanic<'a>(&'a AtomicBool);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, SeqCst);
        }
    }
}

fn is_discard(version: u32) -> bool {
    version == 0 || version % 8 == 7
}

/// A page of a version: its tag, and bytes that follow from it and compress to a share of a page
/// that differs from version to version, up to all of it.
fn fill(page: u64, version: u32, out: &mut [u8]) {
    out.fill(0);
    if is_discard(version) {
        return;
    }
    let mut random = Random(page << 32 | u64::from(version));
    let noise = 1 + (version as usize % 8);
    for chunk in out.chunks_exact_mut(8) {
        chunk[..noise].copy_from_slice(&random.next().to_le_bytes()[..noise]);
    }
    out[..8].copy_from_slice(&page.to_le_bytes());
    out[8..12].copy_from_slice(&version.to_le_bytes());
}

fn assert_holds(page: u64, data: &Page, versions: std::ops::RangeInclusive<u32>) {
    if data.iter().all(|&byte| byte == 0) {
        let discarded = versions.clone().any(is_discard);
        assert!(discarded, "page {page} is empty, not one of {versions:?}");
        return;
    }
    let found = u32::from_le_bytes(data[8..12].try_into().expect("4 bytes"));
    let number = u64::from_le_bytes(data[..8].try_into().expect("8 bytes"));
    assert!(
        number == page && versions.contains(&found),
        "page {page} holds version {found} of page {number}, not one of {versions:?}"
    );
    let mut expected = [0; PAGE_SIZE];
    fill(page, found, &mut expected);
    assert!(*data == expected, "page {page}, version {found} is damaged");
}

/// One of a writer's runs; half of all requests go to a tenth of the device.
fn run(random: &mut Random) -> u64 {
    let runs = PAGES / RUN / WRITERS;
    let hot = random.below(2) == 0;
    random.below(if hot { runs / 10 } else { runs })
}
