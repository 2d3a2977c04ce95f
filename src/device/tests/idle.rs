//! Which pages are idle, and for how long.

use super::*;
use crate::shard::{Slot, SlotState};

pub(super) fn slot(device: &Device, page: u64) -> Slot {
    let run = device
        .engine
        .shards
        .layout
        .run(crate::PageIndex(page as u32), page + 1);
    device.engine.shards.lock(run.shard).slot(run.slot)
}

fn idle_pages(device: &Device, pages: std::ops::Range<u64>) -> Vec<u64> {
    pages.filter(|&page| slot(device, page).is_idle()).collect()
}

/// Has time pass, of which the writeback thread notices the start and the end.
pub(super) fn pass(device: &Device, time: Duration) {
    let start = time.min(Duration::from_secs(1));
    for time in [start, time - start] {
        device.engine.time.skip(time);
        device.engine.waker.wake();
        // The second is obeyed after the thread has gone round once, in which it keeps ages.
        device.check();
        device.check();
    }
}

pub(super) fn no_limit(pages: u64, shards: u32) -> Device {
    let mut config = DeviceConfig::new(pages * PAGE);
    config.shards = Some(shards);
    Device::new(&config).expect("a device")
}

#[test]
fn a_mark_lasts_until_its_page_is_read_or_written() {
    let device = no_limit(100, 2);
    for page in 0..50 {
        write(&device, page, page).expect("room");
    }
    device
        .write(60 * PAGE, &[7; 10 * PAGE_SIZE])
        .expect("no room needed");
    assert_eq!(device.mark_idle(None), 50);
    assert_eq!(idle_pages(&device, 0..100), (0..50).collect::<Vec<_>>());
    expect(&device, 3, 3);
    write(&device, 4, 9).expect("room");
    device.write(5 * PAGE + 100, b"part").expect("room");
    device.discard(6 * PAGE, PAGE).expect("no room needed");
    let mut part = [0; 10];
    device.read(7 * PAGE + 50, &mut part).expect("readable");
    let left: Vec<u64> = (0..50).filter(|page| !(3..8).contains(page)).collect();
    assert_eq!(idle_pages(&device, 0..100), left);
    device.check();
}

#[test]
fn compaction_and_second_chances_leave_marks_and_ages() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(4000, 4000, 1, &backing);
    for page in 0..4000 {
        write(&device, page, page).expect("room");
    }
    pass(&device, Duration::from_secs(100));
    for page in (0..4000).filter(|page| page % 10 != 0) {
        device.discard(page * PAGE, PAGE).expect("no room needed");
    }
    device.mark_idle(None);
    let before: Vec<_> = (0..400).map(|page| slot(&device, page * 10)).collect();
    assert!(device.compact() > 0);
    let after: Vec<_> = (0..400).map(|page| slot(&device, page * 10)).collect();
    assert!(before.iter().zip(&after).any(|(a, b)| !a.same_place(*b)));
    for (before, after) in before.iter().zip(&after) {
        assert!(after.is_idle());
        assert_eq!(after.age(), before.age());
    }
    // Read, so that they are spared, and marked after that.
    for page in 0..400 {
        expect(&device, page * 10, page * 10);
    }
    device.mark_idle(None);
    let before: Vec<_> = (0..400).map(|page| slot(&device, page * 10)).collect();
    device.evict(PAGE).expect("evicted");
    let mut spared = 0;
    for (page, before) in before.iter().enumerate() {
        let after = slot(&device, page as u64 * 10);
        if matches!(after.state(), SlotState::Resident { .. }) && !after.accessed() {
            spared += 1;
            assert!(after.is_idle());
            assert_eq!(after.age(), before.age());
        }
    }
    assert!(spared > 0);
    device.check();
}

#[test]
fn pages_are_idle_from_their_age_on_and_never_sooner() {
    let device = no_limit(2000, 3);
    let mut accessed = vec![None; 2000];
    let mut state = 7u64;
    for _ in 0..120 {
        pass(&device, Duration::from_secs(1 + state % 9));
        for _ in 0..20 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let page = (state >> 33) % 2000;
            if accessed[page as usize].is_some() && state >> 20 & 1 == 0 {
                let mut found = [0; PAGE_SIZE];
                device.read(page * PAGE, &mut found).expect("readable");
            } else {
                write(&device, page, page).expect("room");
            }
            accessed[page as usize] = Some(device.engine.time.now());
        }
        let age = Duration::from_secs(state >> 40 & 255);
        device.mark_idle(Some(age));
        let now = device.engine.time.now();
        for page in idle_pages(&device, 0..2000) {
            let accessed = accessed[page as usize].expect("it is resident");
            assert!(
                now - accessed >= age,
                "{page}: {:?} {age:?}",
                now - accessed
            );
        }
        // So that the next marks are of the next age.
        for index in device.engine.shards.layout.shards() {
            let (mut at, end) = (0, device.engine.shards.layout.slots(index));
            while at < end {
                let mut shard = device.engine.shards.lock(index);
                at = shard.change_notes(at..end, |_, slot| slot.without_mark());
            }
        }
    }
    device.check();
    // All that was not accessed for three times as long is found.
    let hour = Duration::from_secs(3600);
    pass(&device, 3 * hour);
    let resident = device.stats().resident_pages;
    assert_eq!(device.mark_idle(Some(hour)), resident);
}

/// Accesses, marks and merges by several threads at once.
#[test]
fn marking_beside_accesses_marks_nothing_that_was_accessed() {
    let device = no_limit(4000, 2);
    let stop = std::sync::atomic::AtomicBool::new(false);
    for page in 0..4000 {
        write(&device, page, page).expect("room");
    }
    std::thread::scope(|scope| {
        for half in 0..2 {
            let (device, stop) = (&device, &stop);
            scope.spawn(move || {
                let mut page = half;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    expect(device, page, page);
                    page = (page + 2) % 2000;
                }
            });
        }
        for _ in 0..300 {
            device.engine.time.skip(Duration::from_secs(2));
            device.engine.waker.wake();
            // A round of either reader takes far less.
            device.mark_idle(Some(Duration::from_secs(3600)));
            assert_eq!(idle_pages(&device, 0..2000), [0; 0]);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    device.check();
}
