//! The backing is replaced, taken away, and changed in size while pages are in it.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::*;
use crate::error::Error;

/// A device with half its pages spilled to `backing`, tagged with their own numbers.
fn half_spilled(pages: u64, limit_pages: u64, backing: &Arc<FaultyBacking>) -> Device {
    let device = device(pages, limit_pages, 2, backing);
    for page in 0..pages {
        write(&device, page, page).expect("room");
    }
    evict_half(&device);
    device
}

fn evict_half(device: &Device) {
    let resident = device.stats().mem_used_total;
    device.evict(resident / 2).expect("evicted");
    assert!(device.stats().written_back_pages > 0);
}

fn expect_all(device: &Device, pages: u64) {
    device.check();
    for page in 0..pages {
        expect(device, page, page);
    }
}

fn replace(device: &Device, with: Option<&Arc<FaultyBacking>>) -> crate::Result<()> {
    device.replace_backing(with.map(|with| Arc::clone(with) as Arc<dyn Backing>), None)
}

#[test]
fn what_is_spilled_moves_to_the_backing_that_takes_the_others_place() {
    let backings: Vec<_> = (0..3).map(|_| Arc::new(FaultyBacking::new(100))).collect();
    let device = half_spilled(6000, 6000, &backings[0]);
    for (old, new) in backings.iter().zip(&backings[1..]) {
        let live = device.stats().backing_bytes_live;
        replace(&device, Some(new)).expect("replaced");
        assert_eq!(old.in_use(), 0);
        assert!(device.stats().backing_bytes_live == live && new.in_use() > 0);
        // Nobody but the test holds what has left.
        assert_eq!(Arc::strong_count(old), 1);
        device.check();
    }
    expect_all(&device, 6000);
}

#[test]
fn without_a_backing_in_its_place_it_comes_to_memory_or_the_backing_stays() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = half_spilled(6000, 6000, &backing);
    device.set_mem_limit(Some(1000 * PAGE)).expect("valid");
    eventually("evicted", || device.stats().mem_used_total <= 1000 * PAGE);
    let refused = replace(&device, None).expect_err("no room");
    assert!(matches!(refused, Error::Refused { .. }), "{refused}");
    assert!(device.backing_path().is_some());
    expect_all(&device, 6000);
    device.set_mem_limit(None).expect("valid");
    replace(&device, None).expect("room");
    let stats = device.stats();
    assert_eq!((stats.written_back_pages, stats.backing_bytes_used), (0, 0));
    assert!(device.backing_path().is_none() && backing.in_use() == 0);
    expect_all(&device, 6000);
    // And one can come again.
    replace(&device, Some(&backing)).expect("attached");
    device.evict(1 << 20).expect("evicted");
    expect_all(&device, 6000);
}

#[test]
fn a_backing_that_cannot_be_read_or_written_does_not_lose_what_is_in_the_other() {
    let (old, new) = (
        Arc::new(FaultyBacking::new(100)),
        Arc::new(FaultyBacking::new(100)),
    );
    let device = half_spilled(6000, 6000, &old);
    new.fail_writes.store(true, Relaxed);
    assert!(replace(&device, Some(&new)).is_err());
    eventually("given up", || Arc::strong_count(&new) == 1);
    assert!(old.in_use() > 0 && new.in_use() == 0);
    expect_all(&device, 6000);
    new.fail_writes.store(false, Relaxed);
    // Reading has brought it all to memory.
    evict_half(&device);
    old.fail_reads.store(true, Relaxed);
    assert!(replace(&device, Some(&new)).is_err());
    old.fail_reads.store(false, Relaxed);
    expect_all(&device, 6000);
    eventually("given up", || Arc::strong_count(&new) == 1);
    replace(&device, Some(&new)).expect("both are well");
    assert_eq!(old.in_use(), 0);
    expect_all(&device, 6000);
}

#[test]
fn a_device_in_use_reads_and_writes_on_while_its_backing_is_replaced() {
    const PAGES: u64 = 4000;
    let backing = Arc::new(FaultyBacking::new(100));
    let device = half_spilled(PAGES, 600, &backing);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (device, stop) = (&device, &stop);
            scope.spawn(move || {
                let mut page = thread;
                while !stop.load(Relaxed) {
                    page = (page + 14) % PAGES;
                    expect(device, page, page);
                    write(device, page, page).expect("room");
                }
            });
        }
        let mut kept = backing;
        for _ in 0..10 {
            let next = Arc::new(FaultyBacking::new(100));
            replace(&device, Some(&next)).expect("replaced");
            assert_eq!(kept.in_use(), 0);
            kept = next;
        }
        stop.store(true, Relaxed);
    });
    expect_all(&device, PAGES);
}

#[test]
fn the_size_of_a_backing_follows_its_bound() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = DeviceConfig::new(4000 * PAGE);
    config.mem_limit = Some(256 * PAGE);
    config.backing = Some(crate::BackingConfig {
        size: Some(4 << 20),
        ..crate::BackingConfig::new(dir.path().join("spill"))
    });
    let device = Device::new(&config).expect("a device");
    let full = (0..4000).find(|&page| write(&device, page, page).is_err());
    let full = full.expect("4 MiB are not enough");
    assert!(device.set_backing_size(Some(2 << 20)).is_err());
    device.set_backing_size(Some(32 << 20)).expect("grown");
    assert_eq!(device.backing_size(), Some(32 << 20));
    for page in full..4000 {
        write(&device, page, page).expect("room again");
    }
    assert!(device.set_backing_size(Some(4 << 20)).is_err(), "in use");
    expect_all(&device, 4000);
    device.discard(0, 4000 * PAGE).expect("no room needed");
    eventually("freed", || device.stats().backing_bytes_used == 0);
    device.set_backing_size(Some(4 << 20)).expect("shrunk");
}
