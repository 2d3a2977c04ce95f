//! Space: what is freed, cleaned, given back and counted.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use support::Random;

use super::*;
use crate::spill::SEGMENT_BYTES;

/// Fills a device until its backing of so many segments is full; returns the pages written.
fn fill(device: &Device) -> u64 {
    let pages = device.size() / PAGE;
    (0..pages)
        .find(|&page| write(device, page, page).is_err())
        .expect("full")
}

/// Retries a write that fails while the backing recovers.
fn write_soon(device: &Device, page: u64, tag: u64) {
    let start = Instant::now();
    while let Err(error) = write(device, page, tag) {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{error}: {:?}",
            device.stats()
        );
    }
}

#[test]
fn the_smallest_backing_is_cleaned_too() {
    let backing = Arc::new(FaultyBacking::new(2));
    let device = device(20_000, 64, 1, &backing);
    let written = fill(&device);
    for page in (0..written).filter(|page| page % 10 != 0) {
        device.discard(page * PAGE, PAGE).expect("no room needed");
    }
    for page in 20_000 - written / 3..20_000 {
        write(&device, page, page).expect("there is space");
    }
    device.check();
}

#[test]
fn cleaning_goes_on_after_reads_failed() {
    let backing = Arc::new(FaultyBacking::new(8));
    let device = device(20_000, 64, 1, &backing);
    let written = fill(&device);
    backing.fail_reads.store(true, Relaxed);
    for page in (0..written).step_by(2) {
        device.discard(page * PAGE, PAGE).expect("no room needed");
    }
    assert!(write(&device, 0, 0).is_err() || device.evict(64 * PAGE).is_err());
    backing.fail_reads.store(false, Relaxed);
    for page in (0..written * 2 / 3).step_by(2) {
        write_soon(&device, page, page + 1);
    }
    device.check();
}

#[test]
fn cleaning_goes_on_after_a_write_of_its_own_failed() {
    for failures in 1..4 {
        let backing = Arc::new(FaultyBacking::new(6));
        let device = device(20_000, 64, 1, &backing);
        let written = fill(&device);
        backing.fail_writes.store(true, Relaxed);
        for page in (0..written).filter(|page| page % 5 < 2) {
            device.discard(page * PAGE, PAGE).expect("no room needed");
        }
        // Memory is filled, so that eviction needs cleaning first; then some of its writes fail.
        let mut next = written;
        while write(&device, next, next).is_ok() {
            next += 1;
        }
        let (writes, weak) = (AtomicU32::new(0), Arc::downgrade(&backing));
        backing.before_write(move || {
            let fails = (1..=failures).contains(&writes.fetch_add(1, Relaxed));
            if let Some(backing) = weak.upgrade() {
                backing.fail_writes.store(fails, Relaxed);
            }
        });
        for page in next..next + 500 {
            write_soon(&device, page, page);
        }
        device.check();
    }
}

#[test]
fn the_spill_stays_within_bounds_while_it_is_overwritten() {
    const PAGES: u64 = 6000;
    let backing = Arc::new(FaultyBacking::new(4000));
    let device = Arc::new(device(PAGES, 512, 2, &backing));
    backing.before_write(|| std::thread::sleep(Duration::from_millis(2)));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (device, stop) = (&device, &stop);
            scope.spawn(move || {
                let mut random = Random(thread + 1);
                while !stop.load(Relaxed) {
                    let state = random.next();
                    write(device, (state >> 33) % PAGES, state).expect("room");
                    assert!(device.stats().mem_used_total <= 512 * PAGE);
                }
            });
        }
        let start = Instant::now();
        while device.stats().backing_bytes_written < 100 << 20 && start.elapsed().as_secs() < 20 {
            let stats = device.stats();
            let bound = 8 * SEGMENT_BYTES + 2 * stats.backing_bytes_live;
            if stats.backing_bytes_used > bound {
                stop.store(true, Relaxed);
                panic!(
                    "{} used, {} live",
                    stats.backing_bytes_used, stats.backing_bytes_live
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // A command is obeyed although memory is always short.
        device.evict(PAGE).expect("evicted");
        stop.store(true, Relaxed);
    });
    eventually("cleaned", || {
        let stats = device.stats();
        stats.backing_bytes_used <= 4 * SEGMENT_BYTES
            || stats.backing_bytes_live * 10 >= stats.backing_bytes_used * 7
    });
    device.check();
}

/// Cleaning is work, too: a spill of a few segments is left alone, however much of it is dead.
#[test]
fn a_small_spill_is_not_cleaned() {
    let backing = Arc::new(FaultyBacking::new(100));
    let reads = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&reads);
    backing.before_read(move || {
        counted.fetch_add(1, Relaxed);
    });
    let device = device(5000, 600, 1, &backing);
    for page in 0..4000 {
        write(&device, page, page).expect("room");
    }
    for page in (0..2400).step_by(2) {
        device.discard(page * PAGE, PAGE).expect("no room needed");
    }
    // Eviction looks whether cleaning has to keep pace.
    for page in 4000..4500 {
        write(&device, page, page).expect("room");
    }
    // The thread obeys, looks at the spill, and obeys again.
    device.check();
    device.check();
    let used = device.stats().backing_bytes_used;
    assert!(
        (2 * SEGMENT_BYTES..4 * SEGMENT_BYTES).contains(&used),
        "{used}"
    );
    assert_eq!(reads.load(Relaxed), 0, "{used}");
}

#[test]
fn freed_memory_goes_back_to_the_kernel() {
    for pages in [100, 4000] {
        let backing = Arc::new(FaultyBacking::new(4));
        let device = device(4000, 4000, 2, &backing);
        for page in 0..pages {
            write(&device, page, page).expect("room");
        }
        // The thread has nothing to do, and expects nothing.
        std::thread::sleep(Duration::from_millis(700));
        device.discard(0, pages * PAGE).expect("no room needed");
        let engine = &device.engine;
        eventually("given back", || {
            engine
                .shards
                .layout
                .shards()
                .all(|shard| engine.shards.lock(shard).pool().warm_frames() == 0)
        });
        device.check();
    }
}

#[test]
fn what_is_counted_is_what_happened() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(1000, 1000, 2, &backing);
    for page in 0..100 {
        write(&device, page, page).expect("room");
    }
    let noise: Vec<u8> = (0..10 * PAGE)
        .map(|i| ((i * i * 2_654_435_761) >> 13) as u8)
        .collect();
    device.write(100 * PAGE, &noise).expect("room");
    device
        .write_zeroes(200 * PAGE, 5 * PAGE)
        .expect("no room needed");
    let stats = device.stats();
    assert_eq!(stats.orig_data_size, 115 * PAGE);
    assert_eq!((stats.resident_pages, stats.same_pages), (110, 5));
    assert_eq!((stats.huge_pages, stats.huge_pages_since), (10, 10));
    assert!(stats.compr_data_size > 10 * PAGE && stats.compr_data_size < 60 * PAGE);

    while device.evict(PAGE).expect("evicted") > 0 {}
    let stats = device.stats();
    assert_eq!((stats.bd_writes, stats.written_back_pages), (110, 110));
    assert_eq!((stats.compr_data_size, stats.mem_used_total), (0, 0));
    assert_eq!((stats.huge_pages, stats.huge_pages_since), (0, 10));
    assert_eq!(stats.orig_data_size, 115 * PAGE);
    assert!(stats.backing_bytes_written >= stats.backing_bytes_live);

    for page in 0..50 {
        expect(&device, page, page);
    }
    assert_eq!(device.stats().bd_reads, 50);
    device
        .discard(40 * PAGE, 30 * PAGE)
        .expect("no room needed");
    device
        .discard(300 * PAGE, 30 * PAGE)
        .expect("no room needed");
    assert_eq!(device.stats().notify_free, 30);
    assert_eq!(device.stats().orig_data_size, 85 * PAGE);
    device.reset().expect("nobody uses it");
    let stats = device.stats();
    assert_eq!(
        (stats.bd_reads, stats.bd_writes, stats.notify_free),
        (0, 0, 0)
    );
    assert_eq!((stats.orig_data_size, stats.huge_pages_since), (0, 0));
    device.check();
}

#[test]
fn pages_that_come_back_are_not_counted_as_new() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(100, 1000, 2, &backing);
    let noise: Vec<u8> = (0..10 * PAGE)
        .map(|i| ((i * i * 2_654_435_761) >> 13) as u8)
        .collect();
    device.write(0, &noise).expect("room");
    device.evict(100 * PAGE).expect("evicted");
    let huge = || {
        let stats = device.stats();
        (stats.huge_pages, stats.huge_pages_since)
    };
    assert_eq!(huge(), (0, 10));
    device.prefetch(0..5 * PAGE).expect("readable");
    assert_eq!(huge(), (5, 10));
    device.replace_backing(None, None).expect("room");
    assert_eq!(huge(), (10, 10));
    device.check();
}

#[test]
fn usage_by_class_adds_up_to_the_whole() {
    let backing = Arc::new(FaultyBacking::new(4));
    let device = device(2000, 2000, 3, &backing);
    for page in 0..1000 {
        write(&device, page, page).expect("room");
    }
    for page in (0..1000).filter(|page| page % 3 != 0) {
        device.discard(page * PAGE, PAGE).expect("no room needed");
    }
    let (stats, classes) = (device.stats(), device.class_stats());
    let sum = |of: fn(&crate::ClassStats) -> u64| classes.iter().map(of).sum::<u64>();
    assert_eq!(sum(|class| class.objects_used), stats.resident_pages);
    assert_eq!(sum(|class| class.frames) * PAGE, stats.mem_used_total);
    assert!(
        classes
            .iter()
            .all(|class| class.objects_used <= class.objects)
    );
    let freeable = sum(|class| class.frames_freeable);
    assert!(freeable > 0);
    // Each shard rounds down, so what is promised can be had.
    assert!(device.compact() >= freeable);
    assert_eq!(
        device
            .class_stats()
            .iter()
            .map(|class| class.frames_freeable)
            .sum::<u64>(),
        0
    );
}

/// What could not be written is the first to go when the backing works again.
#[test]
fn a_failed_eviction_keeps_the_order() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(1000, 1000, 1, &backing);
    for page in 0..400 {
        write(&device, page, page).expect("room");
    }
    backing.fail_writes.store(true, Relaxed);
    device.evict(30 * PAGE).expect_err("the backing fails");
    for page in 400..500 {
        write(&device, page, page).expect("room");
    }
    backing.fail_writes.store(false, Relaxed);
    device.evict(20 * PAGE).expect("evicted");
    let reads = device.stats().bd_reads;
    for page in 300..500 {
        expect(&device, page, page);
    }
    assert_eq!(device.stats().bd_reads, reads, "younger pages went first");
    expect(&device, 0, 0);
    assert_eq!(device.stats().bd_reads, reads + 1, "the oldest page stayed");
}

/// However long reads that fail take, a writer is not kept for ever, and what was asked for is done.
#[test]
fn a_backing_that_cannot_be_read_holds_nobody_up_for_long() {
    let backing = Arc::new(FaultyBacking::new(8));
    let device = device(20_000, 64, 1, &backing);
    let written = fill(&device);
    for page in (0..written).step_by(2) {
        device.discard(page * PAGE, PAGE).expect("no room needed");
    }
    backing.fail_reads.store(true, Relaxed);
    // All of them take longer than one is left alone after it could not be read.
    backing.before_read(|| std::thread::sleep(Duration::from_millis(600)));
    let began = Instant::now();
    (0..written)
        .find(|&page| write(&device, page, page).is_err())
        .expect("full");
    assert!(began.elapsed() < Duration::from_secs(30));
    device.check();
    assert!(began.elapsed() < Duration::from_secs(45));
}

/// Giving back what a large discard frees may take long; eviction does not wait for all of it.
#[test]
fn writers_get_room_while_much_is_given_back() {
    let backing = Arc::new(FaultyBacking::new(200));
    let device = device(80_000, 64, 1, &backing);
    for page in 0..80_000 {
        write(&device, page, page).expect("room");
    }
    device.evict(u64::MAX / 2).expect("evicted");
    let in_use = backing.in_use() as u64;
    let given_back = Arc::new(AtomicU64::new(0));
    let (count, has_written) = (Arc::clone(&given_back), Arc::new(AtomicBool::new(false)));
    let hurry = Arc::clone(&has_written);
    backing.before_discard(move || {
        count.fetch_add(1, Relaxed);
        if !hurry.load(Relaxed) {
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    device.discard(0, 79_000 * PAGE).expect("no room needed");
    let evicted = device.stats().bd_writes;
    let has_evicted = (0..1000).any(|page| {
        write(&device, page, page).expect("room");
        device.stats().bd_writes > evicted
    });
    let before = given_back.load(Relaxed);
    has_written.store(true, Relaxed);
    assert!(
        has_evicted && in_use > 40 && before < in_use / 2,
        "{before} of {in_use}"
    );
    eventually("given back", || backing.in_use() < 4);
    device.check();
}
