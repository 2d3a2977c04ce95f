//! The allocators beside one another: how densely they pack, what storing and loading take, how
//! many pages leave with one eviction, and what that does to misses.
//!
//! `cargo bench --bench pools`
//!
//! Each line of the output is JSON: a case, its unit, and the figure of each allocator; `uzram` is
//! zsmalloc, which is the default.

mod heap;

use std::path::{Path, PathBuf};
use std::time::Instant;

use heap::heap_pages;
use support::corpus::pages_under;
use uzram::{BackingConfig, BlockDevice, Device, DeviceConfig, PAGE_SIZE, Page, PoolKind};

/// Pages of each kind: 64 MiB.
const PAGES: usize = 16384;

const PAGE: u64 = PAGE_SIZE as u64;

fn main() {
    let dir = tempfile::tempdir().expect("a directory");
    let sysroot = PathBuf::from(env!("CARGO")).join("../../lib");
    let libraries = [&sysroot, Path::new("/usr/lib")];
    let texts = [Path::new("/usr/include"), Path::new("/usr/share")];
    let ends_with = |path: &Path, endings: &[&str]| {
        let extension = path.extension().and_then(|e| e.to_str());
        extension.is_some_and(|extension| endings.contains(&extension))
    };
    let code = pages_under(&libraries, PAGES, |path| ends_with(path, &["so", "a"]));
    let text = pages_under(&texts, PAGES, |path| {
        ends_with(path, &["h", "py", "pm", "md", "txt"])
    });
    let kinds = [
        ("machine code", code),
        ("source text", text),
        ("process heap", heap_pages(PAGES)),
    ];
    for (name, pages) in &kinds {
        let used = PoolKind::ALL.map(|pool| pack(pool, pages));
        case(
            &format!("{name}, pages in a page of memory"),
            "pages",
            used.map(|p| p.density),
        );
        case(
            &format!("{name}, written"),
            "pages/s",
            used.map(|p| p.writes),
        );
        case(&format!("{name}, read"), "pages/s", used.map(|p| p.reads));
    }
    let mixed: Vec<Page> = kinds.iter().flat_map(|(_, pages)| pages).copied().collect();
    let leave = PoolKind::ALL.map(|pool| pages_of_an_eviction(dir.path(), pool, &mixed));
    case("mixed, pages of an eviction", "pages", leave);
    let misses = PoolKind::ALL.map(|pool| misses(dir.path(), pool, &mixed));
    case("mixed, misses", "per 10,000 reads", misses);
}

fn case(name: &str, unit: &str, figures: [f64; 3]) {
    let named = ["uzram", "zbud", "z3fold"].into_iter().zip(figures);
    let figures: Vec<String> = named
        .map(|(pool, figure)| format!("\"{pool}\": {figure}"))
        .collect();
    let figures = figures.join(", ");
    println!(r#"{{"case": "{name}", "unit": "{unit}", "figures": {{{figures}}}}}"#);
}

fn device(pool: PoolKind, pages: usize, limited: Option<(&Path, u64)>) -> Device {
    let mut config = DeviceConfig::new((pages as u64).next_multiple_of(32) * PAGE);
    config.pool = pool;
    config.shards = Some(1);
    if let Some((dir, limit)) = limited {
        config.mem_limit = Some(limit);
        config.backing = Some(BackingConfig::new(dir.join("spill")));
    }
    Device::new(&config).expect("a device")
}

fn write(device: &Device, at: u64, page: &Page) {
    device.write(at * PAGE, page).expect("room");
}

#[derive(Clone, Copy)]
struct Packed {
    /// Pages for each page of memory.
    density: f64,
    /// A second.
    writes: f64,
    reads: f64,
}

/// One thread writes and reads pages one by one; the second time round the memory is there.
fn pack(pool: PoolKind, pages: &[Page]) -> Packed {
    let device = device(pool, pages.len(), None);
    let rate = |each: &dyn Fn(u64, &Page)| {
        let begun = Instant::now();
        for (at, page) in (0..).zip(pages) {
            each(at, page);
        }
        pages.len() as f64 / begun.elapsed().as_secs_f64()
    };
    rate(&|at, page| write(&device, at, page));
    let stats = device.stats();
    let writes = rate(&|at, page| write(&device, at, page));
    let reads = rate(&|at, page| {
        let mut found = [0; PAGE_SIZE];
        device.read(at * PAGE, &mut found).expect("readable");
        assert!(found == *page);
    });
    Packed {
        density: (stats.resident_pages * PAGE) as f64 / stats.mem_used_total as f64,
        writes,
        reads,
    }
}

/// How many pages leave memory if as little as possible is evicted.
fn pages_of_an_eviction(dir: &Path, pool: PoolKind, pages: &[Page]) -> f64 {
    const EVICTIONS: u64 = 200;
    let device = device(pool, pages.len(), Some((dir, 1 << 30)));
    for (at, page) in (0..).zip(pages) {
        write(&device, at, page);
    }
    for _ in 0..EVICTIONS {
        device.evict(1).expect("there is room");
    }
    device.stats().written_back_pages as f64 / EVICTIONS as f64
}

/// Of a million reads, Zipf(0.99), with 24 MiB of memory, those that go to the backing.
fn misses(dir: &Path, pool: PoolKind, pages: &[Page]) -> f64 {
    const READS: usize = 1_000_000;
    let device = device(pool, pages.len(), Some((dir, 24 << 20)));
    for (at, page) in (0..).zip(pages) {
        write(&device, at, page);
    }
    let mut sum = 0.0;
    let cumulative: Vec<f64> = (1..=pages.len())
        .map(|rank| {
            sum += (rank as f64).powf(-0.99);
            sum
        })
        .collect();
    let mut state = 1u64;
    let mut found = [0; PAGE_SIZE];
    let mut start = 0;
    for i in 0..READS + READS / 4 {
        // The first quarter is not counted.
        if i == READS / 4 {
            start = device.stats().bd_reads;
        }
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let point = (state >> 11) as f64 / (1u64 << 53) as f64 * sum;
        let rank = cumulative.partition_point(|&c| c < point);
        // Neighbours in rank are no neighbours on the device.
        let at = rank * 7919 % pages.len();
        device.read(at as u64 * PAGE, &mut found).expect("readable");
    }
    (device.stats().bd_reads - start) as f64 * 10_000.0 / READS as f64
}
