//! Where the pages of an image go, as there is room in memory and in the backing.

use std::sync::atomic::Ordering::Relaxed;

use super::faults::Failing;
use super::*;
use crate::attributes::Attribute;
use crate::engine::Watermarks;
use crate::spill::BackingConfig;
use crate::spill::SEGMENT_BYTES;

#[test]
fn what_finds_no_room_waits_for_it() {
    let image = image();
    let device = Device::new(&config(Some(NO_ROOM))).expect("a device");
    let failing = Failing::restore(&device, &image.path, 0..0);
    // Half of the memory is left to writers, also by what is read.
    expect_all(&device);
    let half = NO_ROOM / 2 * PAGE;
    eventually("half full", || {
        device.stats().mem_used_total > half - 8 * PAGE
    });
    expect_all(&device);
    assert!(device.stats().mem_used_max <= half && left(&device) > 0);
    // Nor is it read for nothing, though it is looked at now and then.
    let read = failing.segments_read.load(Relaxed);
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(failing.segments_read.load(Relaxed), read);
    for page in 0..30 {
        write(&device, page, page).expect("room");
    }
    device.set_mem_limit(Some(PAGES * PAGE)).expect("a limit");
    eventually("restored", || is_restored(&device));
    expect_all(&device);
    device.check();
}

#[test]
fn what_finds_no_room_in_memory_goes_to_the_backing() {
    let image = image();
    for encrypt in [false, true] {
        let backing = Arc::new(FaultyBacking::new(100));
        let mut config = config(Some(1200));
        config.backing = Some(BackingConfig {
            encrypt,
            ..BackingConfig::new("unused")
        });
        let to = Some(Arc::clone(&backing) as Arc<dyn Backing>);
        let device = Device::with_stores(&config, Origin::Blank, to).expect("a device");
        device.restore(&image.path).expect("an image");
        eventually("restored", || is_restored(&device));
        let stats = device.stats();
        assert!(stats.mem_used_max <= 1200 * PAGE);
        assert!(stats.resident_pages > 500 && stats.written_back_pages > 1000);
        assert!(stats.backing_bytes_live > 0);
        device.check();
        expect_all(&device);
    }
}

#[test]
fn a_backing_that_is_too_small_for_the_image_serves_those_who_write() {
    let image = image();
    let backing = Arc::new(FaultyBacking::new(5));
    let device = device(PAGES + 3, 400, 2, &backing);
    device.restore(&image.path).expect("an image");
    eventually("as much as can be is there", || {
        device.stats().backing_bytes_used > SEGMENT_BYTES
    });
    expect_all(&device);
    for round in 1..20 {
        for page in 0..1000 {
            write(&device, page, page + round).expect("room");
        }
    }
    assert!(left(&device) > 0);
    device.check();
    for page in 0..PAGES {
        expect(&device, page, if page < 1000 { page + 19 } else { page });
    }
    device.discard(0, PAGES * PAGE).expect("no room needed");
    eventually("closed", || is_restored(&device));
}

#[test]
fn nothing_is_driven_out_whatever_the_pool() {
    let image = image();
    for pool in PoolKind::ALL {
        let backing = Arc::new(FaultyBacking::new(100));
        let device = device_with(pool, PAGES + 3, 2000, 2, &backing);
        device.restore(&image.path).expect("an image");
        eventually("restored", || is_restored(&device));
        let Watermarks { low, high } = device.engine.limit.watermarks();
        let stats = device.stats();
        let (used, most) = (stats.mem_used_total / PAGE, stats.mem_used_max / PAGE);
        assert!(most <= high, "{pool}: {most}");
        // All that is below the low one was used, but for what a zspage may take.
        assert!(used + 8 * 2 > low, "{pool}: {used} of {low}");
        // It counts as what is written to the backing.
        assert_eq!(stats.bd_writes, stats.written_back_pages);
        expect_all(&device);
        device.check();
    }
}

#[test]
fn what_fits_comes_to_memory_though_it_takes_more_than_half() {
    let image = image();
    let unlimited = Device::new(&config(None)).expect("a device");
    unlimited.restore(&image.path).expect("an image");
    eventually("restored", || is_restored(&unlimited));
    let needed = unlimited.stats().mem_used_total / PAGE;
    let device = Device::new(&config(Some(needed * 4 / 3))).expect("a device");
    device.restore(&image.path).expect("an image");
    eventually("restored", || is_restored(&device));
    assert_eq!(device.stats().resident_pages, PAGES);
    expect_all(&device);
}

#[test]
fn a_few_pages_come_to_little_memory() {
    let (dir, small) = (tempfile::tempdir().expect("a directory"), 20);
    let path = dir.path().join("image");
    let saved = Device::new(&DeviceConfig::new(small * PAGE)).expect("a device");
    for page in 0..small {
        write(&saved, page, page).expect("room");
    }
    saved.save(&path).expect("saved");
    let mut config = DeviceConfig::new(small * PAGE);
    config.mem_limit = Some(100 * PAGE);
    let device = Device::new(&config).expect("a device");
    device.restore(&path).expect("an image");
    eventually("restored", || is_restored(&device));
    for page in 0..small {
        expect(&device, page, page);
    }
}

#[test]
fn what_may_be_written_back_is_not_spent_on_an_image() {
    let image = image();
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(PAGES + 3, 400, 2, &backing);
    let set = |attribute: Attribute, value: &str| {
        attribute.store(&device, value).expect("a value");
    };
    set(Attribute::WritebackDailyLimit, "8M");
    device.restore(&image.path).expect("an image");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(device.stats().bd_writes, 0);
    for page in 0..2000 {
        write(&device, page, page).expect("room");
    }
    assert!(left(&device) > 0);
    set(Attribute::WritebackDailyLimit, "0");
    eventually("restored", || is_restored(&device));
    expect_all(&device);
    device.check();
}

#[test]
fn a_backing_comes_and_goes_beside_the_image() {
    let image = image();
    let device = waiting(&image.path);
    for page in 0..100 {
        write(&device, page, page).expect("room");
    }
    let backings = [0, 1].map(|_| Arc::new(FaultyBacking::new(100)));
    backings[0].fail_writes.store(true, Relaxed);
    for backing in &backings {
        let to = Arc::clone(backing) as Arc<dyn Backing>;
        device.replace_backing(Some(to), None).expect("replaced");
    }
    eventually("restored", || is_restored(&device));
    assert_eq!(backings[0].in_use(), 0);
    device.set_mem_limit(None).expect("no limit");
    device.replace_backing(None, None).expect("room");
    expect_all(&device);
    device.check();
}
