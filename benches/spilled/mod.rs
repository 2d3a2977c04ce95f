//! Random reads of pages in the backing, beside random direct reads of the file they are in.

use std::fs::{File, OpenOptions};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{Advice, OFlags, fadvise};
use uzram::{BlockDevice, Device, PAGE_SIZE, PageState};

use super::{PAGE, Random, device, line, real_pages, write_all};

/// Most that one contender reads for.
const TIME: Duration = Duration::from_secs(3);

/// Memory as O_DIRECT wants it.
#[repr(align(4096))]
pub(super) struct Aligned<const BYTES: usize>(pub(super) [u8; BYTES]);

/// A gigabyte with memory for an eighth, read by one and by four threads.
pub(super) fn reads(dir: &Path) {
    let pages = real_pages(131_072);
    let count = 2 * pages.len() as u64;
    let device = device(dir, count, Some(count * PAGE / 8));
    write_all(&device, 0, &pages);
    write_all(&device, count / 2, &pages);
    drop(pages);
    let spill = dir.join("spill");
    for (name, threads) in [("one thread", 1), ("four threads", 4)] {
        let ours = || ours(&device, &spill, threads);
        let plain = || plain(&spill, threads);
        // Neither is always the first.
        let (ours, plain) = if threads == 1 {
            let ours = ours();
            (ours, plain())
        } else {
            let plain = plain();
            (ours(), plain)
        };
        line(
            &format!("reads of spilled pages, {name}"),
            "IOPS",
            &[("uzram", ours), ("file, direct", plain)],
        );
    }
}

/// Reads of distinct pages a second, all of which were in the backing when the first was read.
fn ours(device: &Device, spill: &Path, threads: usize) -> f64 {
    let spilled = shuffled(spilled(device));
    forget(spill);
    let before = device.stats().bd_reads;
    let chunks: Vec<&[u64]> = spilled.chunks(spilled.len().div_ceil(threads)).collect();
    let (reads, rate) = rate(threads, |thread, go_on| {
        let mut buf = [0; PAGE_SIZE];
        let mut pages = chunks[thread].iter().take_while(|_| go_on());
        pages
            .try_fold(0, |reads, page| {
                device.read(page * PAGE, &mut buf).map(|()| reads + 1)
            })
            .expect("readable")
    });
    let from_backing = device.stats().bd_reads - before;
    assert!(
        from_backing * 100 >= reads * 95,
        "only {from_backing} of {reads} reads went to the backing"
    );
    rate
}

/// Direct reads a second of whole blocks at random places of the file.
fn plain(spill: &Path, threads: usize) -> f64 {
    forget(spill);
    let blocks = std::fs::metadata(spill).expect("a spill").len() / PAGE;
    rate(threads, |thread, go_on| {
        let file = direct(OpenOptions::new().read(true), spill);
        let mut random = Random(thread as u64 + 1);
        let mut buf = Aligned([0; PAGE_SIZE]);
        let mut reads = 0;
        while go_on() {
            let offset = random.below(blocks) * PAGE;
            file.read_exact_at(&mut buf.0, offset).expect("a block");
            reads += 1;
        }
        reads
    })
    .1
}

/// Runs `work` in each of so many threads until it is done or `TIME` is over: the sum of what it
/// returns, and that sum by the second.
fn rate(threads: usize, work: impl Fn(usize, &dyn Fn() -> bool) -> u64 + Sync) -> (u64, f64) {
    let (start, sum) = (Instant::now(), AtomicU64::new(0));
    thread::scope(|scope| {
        for thread in 0..threads {
            let (work, sum) = (&work, &sum);
            scope.spawn(move || {
                let done = work(thread, &|| start.elapsed() < TIME);
                sum.fetch_add(done, Ordering::Relaxed);
            });
        }
    });
    let sum = sum.into_inner();
    (sum, sum as f64 / start.elapsed().as_secs_f64())
}

fn spilled(device: &Device) -> Vec<u64> {
    let mut pages = Vec::new();
    device.extents(0..device.size(), &mut |extent| {
        if extent.state == PageState::WrittenBack {
            pages.extend(extent.offset / PAGE..(extent.offset + extent.len) / PAGE);
        }
        ControlFlow::Continue(())
    });
    pages
}

fn shuffled(mut pages: Vec<u64>) -> Vec<u64> {
    let mut random = Random(3);
    for i in (1..pages.len()).rev() {
        pages.swap(i, random.below(i as u64 + 1) as usize);
    }
    pages
}

/// Opens a file past the page cache.
pub(super) fn direct(options: &mut OpenOptions, path: &Path) -> File {
    let options = options.custom_flags(OFlags::DIRECT.bits() as i32);
    options.open(path).expect("a file system with O_DIRECT")
}

/// Drops a file from the page cache: neither contender shall read memory.
fn forget(path: &Path) {
    let file = File::open(path).expect("a spill");
    file.sync_all().expect("a disk");
    fadvise(&file, 0, None, Advice::DontNeed).expect("a file system that forgets");
}
