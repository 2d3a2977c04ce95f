//! The backing is replaced, taken away, and changed in size while pages are in it.

use std::sync::Weak;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::io::Errno;

use super::*;
use crate::error::Error;
use crate::spill::SEGMENT_BYTES;

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
fn a_backing_that_could_not_stay_leaves_once_there_is_room() {
    let [small, roomy, other] = [4, 100, 100].map(|n| Arc::new(FaultyBacking::new(n)));
    let device = device(20_000, 1000, 2, &small);
    let full = (0..20_000).find(|&page| write(&device, page, page).is_err());
    let full = full.expect("four segments are not enough");
    small.damage(|segment| segment[SEGMENT_BYTES as usize / 2] ^= 1);
    let refused = replace(&device, Some(&roomy)).expect_err("damaged");
    assert!(refused.to_string().contains("damaged"), "{refused}");
    // What is damaged stays, and what has moved does not fit beside it.
    eventually("given up", || {
        let refused = replace(&device, Some(&other)).expect_err("no room");
        refused.to_string().contains("no room")
    });
    assert!(roomy.in_use() > 0 && other.in_use() == 0);
    device.check();
    let lost = (0..full).filter(|&page| {
        let read = device.read(page * PAGE, &mut [0; PAGE_SIZE]);
        read.is_err()
    });
    for page in lost.collect::<Vec<_>>() {
        device.discard(page * PAGE, PAGE).expect("no room needed");
    }
    let half = full / 2 * PAGE;
    device.discard(half, half).expect("no room needed");
    eventually("gone", || Arc::strong_count(&roomy) == 1);
    assert_eq!(roomy.in_use(), 0);
    replace(&device, Some(&other)).expect("there is room");
    assert_eq!(small.in_use(), 0);
    device.check();
}

/// A device of which a part is spilled, what replacing its `backing` came to, and what `then` did
/// as that began to leave.
fn while_one_leaves<T>(
    backing: &Arc<FaultyBacking>,
    with: Option<&Arc<FaultyBacking>>,
    then: impl FnOnce(&Arc<Device>) -> T,
) -> (Arc<Device>, crate::Result<()>, T) {
    let device = Arc::new(device(20_000, 2000, 2, backing));
    for page in 0..4000 {
        write(&device, page, page).expect("room");
    }
    device.evict(1000 * PAGE).expect("evicted");
    assert!(backing.in_use() > 1);
    let (reading, read) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    backing.before_read({
        let (reading, read) = (Arc::clone(&reading), Arc::clone(&read));
        move || {
            reading.store(true, Relaxed);
            eventually("let go", || read.load(Relaxed));
        }
    });
    let (replaced, done) = std::thread::scope(|scope| {
        let replacing = scope.spawn(|| replace(&device, with));
        eventually("leaving", || reading.load(Relaxed));
        let done = then(&device);
        read.store(true, Relaxed);
        (replacing.join().expect("no panic"), done)
    });
    (device, replaced, done)
}

#[test]
fn a_stop_leaves_the_backing_to_those_who_still_write() {
    let backing = Arc::new(FaultyBacking::new(100));
    let (device, replaced, ()) = while_one_leaves(&backing, None, |device| device.stop());
    let refused = replaced.expect_err("it stops");
    assert!(refused.to_string().contains("stopping"), "{refused}");
    for page in 4000..10_000 {
        write(&device, page, page).expect("spills");
    }
    expect_all(&device, 10_000);
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
fn a_size_is_refused_while_a_backing_leaves() {
    let [backing, next] = [(); 2].map(|()| Arc::new(FaultyBacking::new(100)));
    let (device, replaced, sizing) = while_one_leaves(&backing, Some(&next), |device| {
        let sized = Arc::clone(device);
        let sizing = std::thread::spawn(move || sized.set_backing_size(Some(64 << 20)));

        eventually("asked", || device.background.has_queued());
        sizing
    });
    let refused = sizing.join().expect("no panic").expect_err("one leaves");
    assert_eq!(refused.errno(), Errno::BUSY);
    replaced.expect("there is room");
    assert_eq!(device.backing_size(), None);
    device
        .set_backing_size(Some(64 << 20))
        .expect("it has left");
    assert_eq!(device.backing_size(), Some(64 << 20));
}

#[test]
fn a_size_is_of_the_backing_that_there_is() {
    let [first, small] = [100, 4].map(|n| Arc::new(FaultyBacking::new(n)));
    let device = Arc::new(device(20_000, 1000, 2, &first));
    let (weak, (started, replacing)): (Weak<Device>, _) =
        (Arc::downgrade(&device), std::sync::mpsc::channel());
    first.before_capacity({
        let small = Arc::clone(&small);
        move || {
            let Some(device) = weak.upgrade() else { return };
            let small = Arc::clone(&small);
            let replaces = std::thread::spawn(move || replace(&device, Some(&small)));
            // Not for ever: it may wait for this.
            let start = Instant::now();
            while !replaces.is_finished() && start.elapsed() < Duration::from_secs(1) {
                std::thread::sleep(Duration::from_millis(5));
            }
            started.send(replaces).expect("the test waits");
        }
    });
    device.set_backing_size(None).expect("resized");
    let replaced = replacing.recv().expect("asked");
    replaced.join().expect("no panic").expect("replaced");
    let mut pages = 0..20_000;
    let full = pages.find_map(|page| write(&device, page, page).err());
    let full = full.expect("four segments are not enough");
    assert!(full.to_string().contains("is full"), "{full}");
    device.check();
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

/// Writers that are faster than a backing do not keep it from being replaced.
#[test]
fn a_backing_is_replaced_while_writers_wait_for_it() {
    let (slow, fast) = (
        Arc::new(FaultyBacking::new(100)),
        Arc::new(FaultyBacking::new(100)),
    );
    let device = half_spilled(2000, 64, &slow);
    slow.before_write(|| std::thread::sleep(Duration::from_millis(20)));
    fast.before_write(|| std::thread::sleep(Duration::from_millis(20)));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..4 {
            let (device, stop) = (&device, &stop);
            scope.spawn(move || {
                for at in (0..500).cycle() {
                    let page = writer * 500 + at;
                    write(device, page, page).expect("room");
                    if stop.load(Relaxed) {
                        break;
                    }
                }
            });
        }
        let replacing = scope.spawn(|| replace(&device, Some(&fast)));
        let began = Instant::now();
        while !replacing.is_finished() && began.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let is_replaced = replacing.is_finished();
        stop.store(true, Relaxed);
        assert!(is_replaced);
        replacing.join().expect("no panic").expect("room");
    });
    assert_eq!(slow.in_use(), 0);
    device.check();
}
