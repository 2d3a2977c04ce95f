//! What memory the pool takes for what it holds: `mem_used_total / compr_data_size`, of ours and,
//! as root, of the kernel's zram with the same pages.
//!
//! `cargo bench --bench density [-- fresh|churn]`
//!
//! Each line of the output is JSON: a case, its unit, and the figure of each contender. The
//! kernel's is left out where `/dev/zram0` is not there or not free; stderr says so.

mod heap;
mod zram;

use std::path::{Path, PathBuf};
use std::time::Duration;

use heap::heap_pages;
use support::corpus::pages_under;
use uzram::{BlockDevice, Device, DeviceConfig, PAGE_SIZE, Page, Stats};
use zram::Zram;

/// Pages of each kind: 128 MiB.
const PAGES: usize = 32768;

/// Bytes of the devices: large enough for the default number of shards.
const SIZE: u64 = 1 << 30;

/// How often each page is overwritten, on average.
const OVERWRITES: usize = 3;

/// How long the device is left alone for what it does by itself.
const LEFT_ALONE: Duration = Duration::from_secs(3);

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let runs = |name: &str| wanted.is_empty() || wanted.iter().any(|arg| arg == name);
    let kinds = [
        ("machine code", machine_code()),
        ("source text", source_text()),
        ("process heap", heap_pages(PAGES)),
    ];
    if runs("fresh") {
        for (name, pages) in &kinds {
            fresh(name, pages);
        }
    }
    if runs("churn") {
        let share = |(_, pages): &(_, Vec<Page>)| pages[..pages.len() / kinds.len()].to_vec();
        churn(&kinds.iter().flat_map(share).collect::<Vec<Page>>());
    }
}

fn machine_code() -> Vec<Page> {
    let sysroot = PathBuf::from(env!("CARGO")).join("../../lib");
    let of_code = |path: &Path| path.extension().is_some_and(|e| e == "so" || e == "a");
    pages_under(&[&sysroot, Path::new("/usr/lib")], PAGES, of_code)
}

fn source_text() -> Vec<Page> {
    let endings = ["h", "hpp", "txt", "py", "pl", "pm", "md", "html", "rst"];
    let of_text = |path: &Path| {
        path.extension()
            .is_some_and(|e| endings.iter().any(|want| e == *want))
    };
    let roots = [Path::new("/usr/include"), Path::new("/usr/share")];
    pages_under(&roots, PAGES, of_text)
}

/// What is measured, and its figures.
trait Contender {
    fn write(&mut self, at: u64, data: &[u8]);
    fn compact(&mut self);
    /// Bytes held for each byte stored.
    fn density(&self) -> f64;
}

impl Contender for Device {
    fn write(&mut self, at: u64, data: &[u8]) {
        BlockDevice::write(self, at, data).expect("no limit");
    }

    fn compact(&mut self) {
        Device::compact(self);
    }

    fn density(&self) -> f64 {
        let Stats {
            mem_used_total,
            compr_data_size,
            ..
        } = self.stats();
        mem_used_total as f64 / compr_data_size as f64
    }
}

/// Makes a contender anew: they are run one after the other.
type Maker = fn() -> Option<Box<dyn Contender>>;

const CONTENDERS: [(&str, Maker); 3] = [
    ("uzram", || ours(None)),
    ("uzram, one shard", || ours(Some(1))),
    ("kernel zram", || Some(Box::new(Zram::new(SIZE)?))),
];

fn ours(shards: Option<u32>) -> Option<Box<dyn Contender>> {
    let mut config = DeviceConfig::new(SIZE);
    config.shards = shards;
    Some(Box::new(Device::new(&config).expect("a device")))
}

/// Each page written once, from first to last.
fn fresh(name: &str, pages: &[Page]) {
    let mut figures = Vec::new();
    for (contender, make) in CONTENDERS {
        if let Some(mut device) = make() {
            fill(&mut *device, pages);
            figures.push((contender, device.density()));
        }
    }
    report(name, &figures);
}

/// All kinds mixed, overwritten at random, left alone, and compacted.
fn churn(pages: &[Page]) {
    let cases = ["overwritten", "left alone", "compacted"];
    let mut figures = cases.map(|_| Vec::new());
    for (contender, make) in CONTENDERS {
        let Some(mut device) = make() else { continue };
        fill(&mut *device, pages);
        let mut random = 1;
        for _ in 0..OVERWRITES * pages.len() {
            let (at, with) = (below(&mut random, pages), below(&mut random, pages));
            device.write((at * PAGE_SIZE) as u64, &pages[with]);
        }
        let overwritten = device.density();
        std::thread::sleep(LEFT_ALONE);
        let left_alone = device.density();
        device.compact();
        let seen = [overwritten, left_alone, device.density()];
        for (case, figure) in figures.iter_mut().zip(seen) {
            case.push((contender, figure));
        }
    }
    for (name, case) in cases.iter().zip(&figures) {
        report(name, case);
    }
}

fn fill(device: &mut dyn Contender, pages: &[Page]) {
    const REQUEST: usize = 1 << 20;
    for (at, chunk) in pages.as_flattened().chunks(REQUEST).enumerate() {
        device.write((at * REQUEST) as u64, chunk);
    }
}

/// The index of some page (SplitMix64).
fn below(state: &mut u64, pages: &[Page]) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) % pages.len() as u64) as usize
}

fn report(case: &str, figures: &[(&str, f64)]) {
    let figures: serde_json::Map<_, _> = figures
        .iter()
        .map(|&(name, figure)| (name.to_owned(), figure.into()))
        .collect();
    let line = serde_json::json!({ "case": case, "unit": "bytes held a byte", "figures": figures });
    println!("{line}");
}
