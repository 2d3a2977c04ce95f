//! What the engine adds to the codec: nanoseconds a page for `lz4_flex` alone and for
//! `Device::write` and `Device::read` over the same real pages, in turns.
//!
//! `cargo bench --bench engine [-- ROUNDS]`

mod corpus;

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

use corpus::pages_under;
use lz4_flex::block::{CompressTable, compress_into_with_table, decompress_into};
use uzram::{BlockDevice, Device, DeviceConfig, PAGE_SIZE, Page};

/// Pages of each kind: 128 MiB.
const PAGES: usize = 32768;

fn main() {
    let rounds = std::env::args()
        .find_map(|arg| arg.parse().ok())
        .unwrap_or(3);
    let sysroot = PathBuf::from(env!("CARGO")).join("../../lib");
    let corpora = [
        (
            "machine code",
            pages_of(&[&sysroot, Path::new("/usr/lib")], &["so", "a"]),
        ),
        (
            "source text",
            pages_of(&[Path::new("/usr/include"), Path::new("/usr/share")], TEXT),
        ),
    ];
    println!(
        "{:<14}{:>7} {:>20} {:>20} {:>20}",
        "", "", "codec ns/page", "device ns/page", "ratio"
    );
    for (name, pages) in corpora {
        let mut write_ratios = Vec::new();
        let mut read_ratios = Vec::new();
        for _ in 0..rounds {
            let (compress, decompress) = codec_alone(&pages);
            let (write, read) = device(&pages);
            row(name, "write", compress, write, &mut write_ratios);
            row(name, "read", decompress, read, &mut read_ratios);
        }
        println!(
            "{name}: median write {:.3}, read {:.3}",
            median(write_ratios),
            median(read_ratios)
        );
    }
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

/// Nanoseconds a page to compress and to decompress.
fn codec_alone(pages: &[Page]) -> (f64, f64) {
    let mut table = CompressTable::small();
    // Not zero, so that the memory is there before the clock starts, as the device's is.
    let mut packed = vec![1; pages.len() * PAGE_SIZE];
    let mut lens = Vec::with_capacity(pages.len());
    let mut at = 0;
    let start = Instant::now();
    for page in pages {
        let mut out = [0; PAGE_SIZE + 512];
        let len = compress_into_with_table(page, &mut out, &mut table).expect("room");
        let kept = len.min(PAGE_SIZE);
        packed[at..at + kept].copy_from_slice(&out[..kept]);
        lens.push((at, len));
        at += kept;
    }
    let compress = per_page(start, pages);
    let mut page = [0; PAGE_SIZE];
    let start = Instant::now();
    for (at, len) in lens {
        if len <= PAGE_SIZE {
            decompress_into(&packed[at..at + len], &mut page).expect("what was compressed");
        }
        black_box(&page);
    }
    (compress, per_page(start, pages))
}

/// Nanoseconds a page to write to a new device, and to read back.
fn device(pages: &[Page]) -> (f64, f64) {
    const REQUEST: usize = 1 << 20;
    let size = (pages.len() * PAGE_SIZE) as u64;
    let device = Device::new(&DeviceConfig::new(size)).expect("a device");
    let bytes = pages.as_flattened();
    let write = |device: &Device| {
        for (at, chunk) in bytes.chunks(REQUEST).enumerate() {
            device
                .write((at * REQUEST) as u64, chunk)
                .expect("no limit");
        }
    };
    // The first pass takes memory from the kernel; what is measured is the engine.
    write(&device);
    let start = Instant::now();
    write(&device);
    let write = per_page(start, pages);
    let mut buf = vec![0; REQUEST];
    let start = Instant::now();
    for at in (0..bytes.len()).step_by(REQUEST) {
        let len = REQUEST.min(bytes.len() - at);
        device.read(at as u64, &mut buf[..len]).expect("readable");
    }
    let read = per_page(start, pages);
    let stats = device.stats();
    let density = stats.mem_used_total as f64 / stats.compr_data_size as f64;
    println!("  mem_used_total / compr_data_size = {density:.4}");
    (write, read)
}

fn per_page(start: Instant, pages: &[Page]) -> f64 {
    start.elapsed().as_nanos() as f64 / pages.len() as f64
}

fn row(name: &str, what: &str, codec: f64, device: f64, ratios: &mut Vec<f64>) {
    let ratio = codec / device;
    ratios.push(ratio);
    println!("{name:<14}{what:>7} {codec:>20.0} {device:>20.0} {ratio:>20.3}");
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
