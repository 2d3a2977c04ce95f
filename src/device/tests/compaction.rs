//! Compaction that nobody asked for.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use support::Random;

use super::*;

/// A device of 8192 pages, about 20 MiB of memory, all written.
fn full(shards: u32) -> Device {
    let mut config = DeviceConfig::new(8192 * PAGE);
    config.shards = Some(shards);
    let device = Device::new(&config).expect("a device");
    for page in 0..8192 {
        write(&device, page, page).expect("no limit");
    }
    device
}

fn freeable(device: &Device) -> u64 {
    device
        .class_stats()
        .iter()
        .map(|class| class.frames_freeable * PAGE)
        .sum()
}

#[test]
fn what_discards_leave_sparse_is_packed() {
    for shards in [1, 3] {
        let device = full(shards);
        let before = device.stats();
        assert_eq!(before.pages_compacted, 0);
        for page in (0..8192).filter(|page| page % 4 != 0) {
            device.discard(page * PAGE, PAGE).expect("no room needed");
        }
        eventually("packed", || {
            let used = device.stats().mem_used_total;
            used < before.mem_used_total * 3 / 10 && freeable(&device) <= used / 64
        });
        assert!(device.stats().pages_compacted > 0);
        for page in (0..8192).step_by(4) {
            expect(&device, page, page);
        }
        device.check();
    }
}

/// Has the thread look after the pools while the device is busy; returns whether it left them
/// alone.
fn is_left_alone(device: &Device) -> bool {
    // It looks after so many objects were freed.
    for tag in 0..600 {
        write(device, 0, tag).expect("room");
    }
    // The thread obeys, looks after the pools, and obeys again.
    device.check();
    device.check();
    device.stats().pages_compacted == 0
}

#[test]
fn what_would_free_little_is_left_alone_while_there_is_work() {
    let left_alone = |_| {
        let device = full(1);
        // A sixteenth of the memory at most.
        for page in (0..8192).step_by(17) {
            device.discard(page * PAGE, PAGE).expect("no room needed");
        }
        is_left_alone(&device)
    };
    // On a machine that stands still for half a second, the device seems to be left alone.
    assert!((0..3).any(left_alone));
}

/// A quarter of a megabyte is not worth the work.
#[test]
fn a_small_device_is_left_alone_while_there_is_work() {
    let left_alone = |_| {
        let device = device(100, 100, 1, &Arc::new(FaultyBacking::new(4)));
        for page in 0..100 {
            write(&device, page, page).expect("room");
        }
        for page in (0..100).filter(|page| page % 3 != 0) {
            device.discard(page * PAGE, PAGE).expect("no room needed");
        }
        assert!(freeable(&device) * 4 > device.stats().mem_used_total);
        is_left_alone(&device)
    };
    assert!((0..3).any(left_alone));
}

/// Pages that are overwritten, discarded and read while their objects are moved.
#[test]
fn pages_are_what_they_were_while_they_move() {
    const THREADS: u64 = 2;
    let device = full(2);
    let done = AtomicBool::new(false);
    let moved = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (device, done, moved) = (&device, &done, &moved);
            scope.spawn(move || {
                // What each of this thread's pages holds, `None` for nothing.
                let mut tags: Vec<Option<u64>> = (0..8192 / THREADS)
                    .map(|n| Some(n * THREADS + thread))
                    .collect();
                let mut random = Random(thread);
                let mut random = || {
                    let state = random.next();
                    state >> 33
                };
                while !done.load(Relaxed) {
                    // Many discards in a row, then many writes: memory gets sparse and fills up.
                    let discards = random() % 2 == 0;
                    for _ in 0..1500 {
                        let n = random() % (8192 / THREADS);
                        let (page, tag) = (n * THREADS + thread, random());
                        if let Some(tag) = tags[n as usize] {
                            expect(device, page, tag);
                        }
                        if discards {
                            device.discard(page * PAGE, PAGE).expect("no room needed");
                            tags[n as usize] = None;
                        } else {
                            write(device, page, tag).expect("no limit");
                            tags[n as usize] = Some(tag);
                        }
                    }
                    moved.fetch_max(device.stats().pages_compacted, Relaxed);
                }
                for (n, tag) in tags.into_iter().enumerate() {
                    if let Some(tag) = tag {
                        expect(device, n as u64 * THREADS + thread, tag);
                    }
                }
            });
        }
        eventually("compacted", || moved.load(Relaxed) > 1000);
        done.store(true, Relaxed);
    });
    device.check();
}

/// Below a limit, memory that is only sparse is packed rather than written to the backing.
#[test]
fn what_packing_frees_is_not_evicted() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(16384, 6000, 1, &backing);
    let used = || device.stats().mem_used_total;
    let written = (0..8192)
        .take_while(|&page| {
            write(&device, page, page).expect("room");
            used() < 5000 * PAGE
        })
        .count() as u64;
    for page in (0..written).filter(|page| page % 2 == 0) {
        device.discard(page * PAGE, PAGE).expect("no room needed");
    }
    for page in 8192..8192 + written / 2 {
        write(&device, page, page).expect("room");
    }
    device.check();
    assert_eq!(device.stats().bd_writes, 0);
}
