//! What the engine adds to the codec: `lz4_flex` alone beside `Device::write` and `Device::read` over
//! the same real pages, in turns; with two threads; and over devices of 1 GiB and of 64 GiB.
//!
//! `cargo bench --bench engine [-- [--json] ROUNDS]`
//!
//! It prints nanoseconds a page or, with `--json`, pages a second: a line for each case, with the
//! figure of each contender.

mod heap;

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use heap::heap_pages;
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into};
use support::Random;
use support::corpus::pages_under;
use uzram::{BlockDevice, Device, DeviceBuilder, DeviceConfig, DeviceMemory, PAGE_SIZE, Page};

/// Pages of each kind: 128 MiB.
const PAGES: usize = 32768;

const GIB: u64 = 1 << 30;

/// Seconds to write pages, or to compress them, and to read them, or to decompress them.
#[derive(Clone, Copy)]
struct Times {
    write: f64,
    read: f64,
}

fn main() {
    let json = std::env::args().any(|arg| arg == "--json");
    let rounds = std::env::args()
        .find_map(|arg| arg.parse().ok())
        .unwrap_or(3);
    let report = if json { json_line } else { text_line };
    let corpora = corpora();
    for round in 0..rounds {
        for (name, pages) in &corpora {
            compare(name, pages, round, report);
            outliving(name, pages, round, report);
        }
        // The codec takes least time over the last, so the slots weigh most.
        if let Some((_, pages)) = corpora.last() {
            flat(pages, round, report);
        }
    }
}

fn corpora() -> Vec<(&'static str, Vec<Page>)> {
    let sysroot = PathBuf::from(env!("CARGO")).join("../../lib");
    vec![
        (
            "machine code",
            pages_of(&[&sysroot, Path::new("/usr/lib")], &["so", "a"]),
        ),
        (
            "source text",
            pages_of(&[Path::new("/usr/include"), Path::new("/usr/share")], TEXT),
        ),
        ("process heap", heap_pages(PAGES)),
    ]
}

const TEXT: &[&str] = &["h", "hpp", "txt", "py", "pl", "pm", "md", "html", "rst"];

/// Pages of the files with such endings.
fn pages_of(roots: &[&Path], endings: &[&str]) -> Vec<Page> {
    let wanted = |path: &Path| {
        path.extension()
            .is_some_and(|e| endings.iter().any(|want| e == *want))
    };
    pages_under(roots, PAGES, wanted)
}

/// The device and the codec alone, on one thread and on two.
fn compare(name: &str, pages: &[Page], round: usize, report: Report) {
    let single = in_turns(round, || device(pages, 1), || codec(pages, 1));
    let double = in_turns(round, || device(pages, 2), || codec(pages, 2));
    for (what, time) in WHAT {
        report(
            &format!("{name}, {what}"),
            pages.len(),
            &[("uzram", time(single.0)), ("lz4_flex", time(single.1))],
        );
        report(
            &format!("{name}, {what}, two threads"),
            pages.len(),
            &[
                ("uzram", time(double.0)),
                ("one thread", time(single.0)),
                ("lz4_flex", time(double.1)),
            ],
        );
    }
}

/// The device in memory that outlives the process, beside one in memory that does not; and how long it takes to
/// adopt what the process has left there, a GiB.
fn outliving(name: &str, pages: &[Page], round: usize, report: Report) {
    let outlives = || {
        let memory = DeviceMemory::new().expect("memory");
        device_of(pages, 1, builder(pages).memory(memory))
    };
    let (outlives, ends) = in_turns(round, outlives, || device(pages, 1));
    for (what, time) in WHAT {
        report(
            &format!("{name}, {what}, outliving"),
            pages.len(),
            &[("uzram", time(outlives)), ("in the process", time(ends))],
        );
    }
    let (adopted, seconds) = adopted(pages);
    report(&format!("{name}, adopted"), adopted, &[("uzram", seconds)]);
}

/// Pages of a device of a GiB, all of them in memory, and the seconds that adopting it takes.
fn adopted(pages: &[Page]) -> (usize, f64) {
    let count = (GIB / PAGE_SIZE as u64) as usize;
    let memory = DeviceMemory::new().expect("memory");
    let [memory_fd, key_fd] = memory.as_fds();
    let fds = [memory_fd, key_fd].map(|fd| fd.try_clone_to_owned().expect("a descriptor"));
    let device = Device::builder(GIB).memory(memory).build();
    let device = device.expect("a device");
    for (at, page) in pages.iter().cycle().take(count).enumerate() {
        device.write(offset(at), page).expect("no limit");
    }
    // What is dropped frees nothing: the memory is its descriptors'.
    drop(device);
    let [memory, key] = fds;
    let clock = Clock::start();
    let memory = DeviceMemory::open(memory, key).expect("nobody else has it");
    let device = Device::builder(GIB).memory(memory).build();
    let seconds = clock.seconds();
    let device = device.expect("a device");
    assert_eq!(device.stats().orig_data_size, GIB);
    (count, seconds)
}

/// The same pages all over a small device and all over a large one.
fn flat(pages: &[Page], round: usize, report: Report) {
    let (large, small) = in_turns(
        round,
        || scattered(pages, 64 * GIB),
        || scattered(pages, GIB),
    );
    for (what, time) in WHAT {
        report(
            &format!("{what} of random pages, 64 GiB"),
            pages.len() * SCATTERED,
            &[("uzram", time(large)), ("of 1 GiB", time(small))],
        );
    }
}

type Report = fn(&str, usize, &[(&str, f64)]);

type Field = fn(Times) -> f64;

const WHAT: [(&str, Field); 2] = [("write", |times| times.write), ("read", |times| times.read)];

/// Neither is always the first.
fn in_turns<T>(round: usize, ours: impl Fn() -> T, other: impl Fn() -> T) -> (T, T) {
    if round.is_multiple_of(2) {
        let ours = ours();
        (ours, other())
    } else {
        let other = other();
        (ours(), other)
    }
}

/// Runs `part` in each of so many threads, over a part of the pages each, and takes the time of
/// the slowest.
fn in_parts(
    pages: &[Page],
    threads: usize,
    part: impl Fn(usize, &[Page]) -> Times + Sync,
) -> Times {
    let len = pages.len().div_ceil(threads);
    thread::scope(|scope| {
        let parts: Vec<_> = pages
            .chunks(len)
            .enumerate()
            .map(|(number, pages)| {
                let part = &part;
                scope.spawn(move || part(number * len, pages))
            })
            .collect();
        let times = parts.into_iter().map(|part| part.join().expect("no panic"));
        times
            .reduce(|a, b| Times {
                write: a.write.max(b.write),
                read: a.read.max(b.read),
            })
            .expect("a thread")
    })
}

/// `lz4_flex` alone, with room for each page's compressed bytes.
fn codec(pages: &[Page], threads: usize) -> Times {
    let barrier = Barrier::new(threads);
    in_parts(pages, threads, |_, pages| {
        let mut table = CompressTable::small();
        // Not zero, so that the memory is there before the clock starts, as the device's is.
        let mut packed = vec![1; pages.len() * PAGE_SIZE];
        let mut lens = Vec::with_capacity(pages.len());
        let mut at = 0;
        barrier.wait();
        let clock = Clock::start();
        for page in pages {
            let mut out = [0; PAGE_SIZE + 512];
            let len = compress_into_with_table(page, &mut out, &mut table).expect("room");
            let kept = len.min(PAGE_SIZE);
            packed[at..at + kept].copy_from_slice(&out[..kept]);
            lens.push((at, len));
            at += kept;
        }
        let write = clock.seconds();
        let mut page = [0; PAGE_SIZE];
        barrier.wait();
        let clock = Clock::start();
        for (at, len) in lens {
            if len <= PAGE_SIZE {
                decompress_into(&packed[at..at + len], &mut page).expect("what was compressed");
            }
            black_box(&page);
        }
        Times {
            write,
            read: clock.seconds(),
        }
    })
}

/// A new device that holds the pages, written and read by requests of a megabyte.
fn device(pages: &[Page], threads: usize) -> Times {
    device_of(pages, threads, builder(pages))
}

fn builder(pages: &[Page]) -> DeviceBuilder {
    Device::builder((pages.len() * PAGE_SIZE) as u64)
}

fn device_of(pages: &[Page], threads: usize, builder: DeviceBuilder) -> Times {
    const REQUEST: usize = 256;
    let device = builder.build().expect("a device");
    let barrier = Barrier::new(threads);
    in_parts(pages, threads, |first, pages| {
        let requests = || {
            let chunks = pages.chunks(REQUEST).enumerate();
            chunks.map(move |(at, chunk)| (offset(first + at * REQUEST), chunk.as_flattened()))
        };
        let write = || requests().for_each(|(at, data)| device.write(at, data).expect("no limit"));
        // The first pass takes memory from the kernel; what is measured is the engine.
        write();
        barrier.wait();
        let clock = Clock::start();
        write();
        let write = clock.seconds();
        let mut buf = vec![0; REQUEST * PAGE_SIZE];
        barrier.wait();
        let clock = Clock::start();
        for (at, data) in requests() {
            device.read(at, &mut buf[..data.len()]).expect("readable");
        }
        Times {
            write,
            read: clock.seconds(),
        }
    })
}

/// How often each page is on a device that they are scattered over.
const SCATTERED: usize = 4;

/// A new device of so many bytes, the pages at random places all over it, written and read in
/// random order, one a request.
fn scattered(pages: &[Page], bytes: u64) -> Times {
    let device = new_device(bytes);
    let count = pages.len() * SCATTERED;
    let stride = bytes / PAGE_SIZE as u64 / count as u64;
    let mut random = Random(5);
    let mut places: Vec<u64> = (0..count as u64)
        .map(|i| (i * stride + random.below(stride)) * PAGE_SIZE as u64)
        .collect();
    for i in (1..count).rev() {
        places.swap(i, random.below(i as u64 + 1) as usize);
    }
    let write = || {
        for (&at, page) in places.iter().zip(pages.iter().cycle()) {
            device.write(at, page).expect("no limit");
        }
    };
    write();
    let clock = Clock::start();
    write();
    let write = clock.seconds();
    let mut page = [0; PAGE_SIZE];
    let clock = Clock::start();
    for &at in &places {
        device.read(at, &mut page).expect("readable");
    }
    Times {
        write,
        read: clock.seconds(),
    }
}

fn new_device(bytes: u64) -> Device {
    Device::new(&DeviceConfig::new(bytes)).expect("a device")
}

fn offset(page: usize) -> u64 {
    (page * PAGE_SIZE) as u64
}

/// Counts the time of this thread, but for that in which it waited for a processor: what else the
/// machine does is not the engine's. Waiting for a lock is.
struct Clock {
    start: Instant,
    waited: Duration,
}

impl Clock {
    fn start() -> Self {
        let waited = waited_for_a_processor();
        Self {
            start: Instant::now(),
            waited,
        }
    }

    fn seconds(&self) -> f64 {
        let elapsed = self.start.elapsed();
        let waited = waited_for_a_processor() - self.waited;
        elapsed.saturating_sub(waited).as_secs_f64()
    }
}

/// By the scheduler's statistics; zero for a kernel without them.
fn waited_for_a_processor() -> Duration {
    let counted = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = counted.split_whitespace().nth(1);
    Duration::from_nanos(nanoseconds.and_then(|n| n.parse().ok()).unwrap_or(0))
}

fn json_line(case: &str, pages: usize, seconds: &[(&str, f64)]) {
    let figures: Vec<String> = seconds
        .iter()
        .map(|(contender, seconds)| format!("\"{contender}\": {:.0}", pages as f64 / seconds))
        .collect();
    let figures = figures.join(", ");
    println!("{{\"case\": \"{case}\", \"unit\": \"pages/s\", \"figures\": {{{figures}}}}}");
}

/// With the speed of the first, of each other's.
fn text_line(case: &str, pages: usize, seconds: &[(&str, f64)]) {
    let ours = seconds[0].1;
    print!("{case:<36}");
    for &(contender, seconds) in seconds {
        let each = seconds * 1e9 / pages as f64;
        print!(" {contender} {each:.0} ns/page ({:.3})", seconds / ours);
    }
    println!();
}
