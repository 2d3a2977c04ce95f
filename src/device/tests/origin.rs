//! The device over an image that has its pages, and misbehaves.

use std::collections::HashMap;
use std::sync::Arc;

use rustix::io::Errno;

use super::{Device, PAGE, eventually, expect, tagged, write};
use crate::block_device::BlockDevice;
use crate::config::DeviceConfig;
use crate::origin::{FaultyImage, Image, Origin, SyncPolicy};
use crate::pool::PoolKind;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::units::PAGE_SIZE;
use support::{Random, noise_page};

/// A device over an image of pages full of 7.
fn device(pages: u64, limit_pages: u64, shards: u32) -> (Arc<Device>, Arc<FaultyImage>) {
    over(
        pages,
        limit_pages,
        shards,
        SyncPolicy::Flush,
        PoolKind::Zsmalloc,
    )
}

pub(super) fn over(
    pages: u64,
    limit_pages: u64,
    shards: u32,
    policy: SyncPolicy,
    pool: PoolKind,
) -> (Arc<Device>, Arc<FaultyImage>) {
    let image = Arc::new(FaultyImage::new(pages as usize, 7));
    let mut config = DeviceConfig::new(pages * PAGE);
    config.mem_limit = Some(limit_pages * PAGE);
    config.shards = Some(shards);
    config.pool = pool;
    let origin = Origin::WriteBack(Arc::clone(&image) as Arc<dyn Image>, policy);
    let device = Device::with_stores(&config, origin, None).expect("a device");
    (Arc::new(device), image)
}

#[track_caller]
fn expect_bytes(device: &Device, page: u64, byte: u8) {
    let mut found = [0; PAGE_SIZE];
    device.read(page * PAGE, &mut found).expect("readable");
    assert!(
        found == [byte; PAGE_SIZE],
        "page {page} is not full of {byte}"
    );
}

#[test]
fn nothing_is_saved_from_or_restored_to_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    let blank = Device::new(&DeviceConfig::new(100 * PAGE)).expect("a device");
    write(&blank, 1, 1).expect("room");
    blank.save(&path).expect("saved");
    let (device, _image) = device(100, 100, 1);
    let error = device.restore(&path).expect_err("there is an image");
    assert!(
        error.to_string().contains("on the device already"),
        "{error}"
    );
    let error = device.save(&path).expect_err("there is an image");
    assert_eq!(error.errno(), Errno::OPNOTSUPP);
    expect_bytes(&device, 1, 7);
    device.check();
}

#[test]
fn what_is_written_goes_home_past_the_limit_and_by_a_flush() {
    for pool in PoolKind::ALL {
        let (device, image) = over(4000, 256, 2, SyncPolicy::Flush, pool);
        for page in 0..3000 {
            write(&device, page, page).expect("evicts");
        }
        device.check();
        let stats = device.stats();
        assert!(
            stats.origin_writes > 1000 && stats.mem_used_max <= 256 * PAGE,
            "{stats:?}"
        );
        for page in 0..3000 {
            expect(&device, page, page);
        }
        expect_bytes(&device, 3500, 7);
        device.flush().expect("the image works");
        assert_eq!((device.dirty_pages(), device.stats().origin_syncs), (0, 1));
        for page in 0..3000 {
            assert!(image.durable_page(page as usize) == tagged(page), "{page}");
        }
        // Nothing is written twice that has not changed.
        let written = device.stats().origin_writes;
        device.evict(u64::MAX).expect("clean");
        device.flush().expect("nothing to do");
        assert_eq!(device.stats().origin_writes, written);
        device.check();
    }
}

#[test]
fn a_pattern_goes_home_whole() {
    let (device, image) = device(64, 64, 2);
    // One after the other, beside pages of other kinds.
    for page in 0..30 {
        match page % 3 {
            0 => write(&device, page, page),
            1 => device.write(page * PAGE, &[page as u8; PAGE_SIZE]),
            _ => device.write(page * PAGE, &[0; PAGE_SIZE]),
        }
        .expect("room");
    }
    device.flush().expect("the image works");
    for page in 0..30 {
        let there = image.durable_page(page as usize);
        let is_right = match page % 3 {
            0 => there == tagged(page),
            1 => there == [page as u8; PAGE_SIZE],
            _ => there == [0; PAGE_SIZE],
        };
        assert!(is_right, "page {page}");
    }
    device.check();
}

#[test]
fn neighbours_are_written_together() {
    let (device, image) = device(1024, 2048, 2);
    for page in (0..1024).rev() {
        write(&device, page, page).expect("room");
    }
    device.flush().expect("the image works");
    assert_eq!(device.stats().origin_writes, 1024);
    assert!(image.calls.load(Ordering::Relaxed) <= 4);
}

/// A page that leaves memory takes the dirty ones around it along, as far as they are one run.
#[test]
fn neighbours_go_home_with_the_page_that_leaves() {
    let (device, _image) = device(64, 128, 1);
    // Alone in its zspage, since it does not compress, and the oldest.
    device.write(20 * PAGE, &noise_page(20)).expect("room");
    assert_eq!(device.stats().huge_pages, 1);
    for page in (0..64).filter(|&page| page != 20) {
        write(&device, page, page).expect("room");
    }
    assert_eq!(device.evict(PAGE).expect("the image works"), PAGE);
    let stats = device.stats();
    assert_eq!((device.dirty_pages(), stats.origin_writes), (32, 32));
    assert_eq!(stats.resident_pages, 63);
    device.check();
}

/// What costs no write goes first, wherever it lies and however old it is.
#[test]
fn what_is_clean_leaves_before_what_is_dirty() {
    for pool in PoolKind::ALL {
        let (device, _image) = over(2000, 2000, 2, SyncPolicy::Flush, pool);
        for page in 400..1400 {
            write(&device, page, page).expect("room");
        }
        device.flush().expect("the image works");
        device.evict(u64::MAX).expect("clean");
        for page in 0..400 {
            write(&device, page, page).expect("room");
        }
        // Read of the image, so that zspages hold pages from all over the device.
        for page in (0..1000).map(|n| 400 + n * 619 % 1000) {
            expect(&device, page, page);
        }
        let before = device.stats();
        let freed = device.evict(100 * PAGE).expect("clean");
        let after = device.stats();
        assert!(freed >= 100 * PAGE, "{freed} of {pool:?}");
        assert_eq!(before.mem_used_total - after.mem_used_total, freed);
        assert_eq!(after.origin_writes, before.origin_writes);
        assert_eq!(device.dirty_pages(), 400);
        device.check();
    }
}

#[test]
fn what_is_discarded_reads_as_zeroes_and_is_discarded_at_home() {
    let (device, image) = device(100, 200, 1);
    write(&device, 3, 3).expect("room");
    device.discard(PAGE + 100, 9 * PAGE).expect("done");
    device.write_zeroes(20 * PAGE, 5 * PAGE).expect("done");
    let is_as_expected = |image: bool, read: &dyn Fn(u64) -> Vec<u8>| {
        for page in 2..10 {
            assert!(read(page) == [0; PAGE_SIZE], "{page} {image}");
        }
        let mut first = vec![7; PAGE_SIZE];
        first[100..].fill(0);
        assert!(read(1) == first);
        first.fill(0);
        first[100..].fill(7);
        assert!(read(10) == first);
        assert!((20..25).all(|page| read(page) == [0; PAGE_SIZE]));
        assert!(read(25) == [7; PAGE_SIZE] && read(0) == [7; PAGE_SIZE]);
    };
    let of_device = |page: u64| {
        let mut found = vec![1; PAGE_SIZE];
        device.read(page * PAGE, &mut found).expect("readable");
        found
    };
    is_as_expected(false, &of_device);
    device.flush().expect("the image works");
    let stats = device.stats();
    assert_eq!((stats.origin_discards, stats.origin_writes), (8, 7));
    is_as_expected(true, &|page| image.durable_page(page as usize));
    is_as_expected(false, &of_device);
    device.check();
}

#[test]
fn a_page_that_changes_on_its_way_home_stays_dirty_and_is_read_as_it_is() {
    let (device, image) = device(64, 128, 1);
    let changed = Arc::new(AtomicBool::new(false));
    write(&device, 5, 1).expect("room");
    write(&device, 6, 1).expect("room");
    image.before_write({
        let (device, changed) = (Arc::downgrade(&device), Arc::clone(&changed));
        move || {
            if !changed.swap(true, Ordering::SeqCst)
                && let Some(device) = device.upgrade()
            {
                write(&device, 5, 2).expect("room");
                device.discard(6 * PAGE, PAGE).expect("done");
                expect(&device, 5, 2);
                expect_bytes(&device, 6, 0);
            }
        }
    });
    device.evict(PAGE).expect("the image works");
    assert!(changed.load(Ordering::SeqCst));
    expect(&device, 5, 2);
    expect_bytes(&device, 6, 0);
    device.flush().expect("the image works");
    assert!(image.durable_page(5) == tagged(2) && image.durable_page(6) == [0; PAGE_SIZE]);
    device.check();
}

#[test]
fn what_was_read_of_the_image_too_early_is_not_taken_for_the_page() {
    let (device, image) = device(64, 128, 1);
    let changed = Arc::new(AtomicBool::new(false));
    image.after_read({
        let (device, changed) = (Arc::downgrade(&device), Arc::clone(&changed));
        move || {
            if !changed.swap(true, Ordering::SeqCst)
                && let Some(device) = device.upgrade()
            {
                // There and back again: the slot looks as it did.
                write(&device, 9, 9).expect("room");
                device.evict(u64::MAX).expect("the image works");
            }
        }
    });
    for change in [false, true] {
        changed.store(false, Ordering::SeqCst);
        device.discard(9 * PAGE, PAGE).expect("done");
        device.flush().expect("the image works");
        device.evict(u64::MAX).expect("the image works");
        if change {
            device.write(9 * PAGE + 4000, &[1]).expect("room");
            let mut expected = tagged(9);
            expected[4000] = 1;
            let mut found = [0; PAGE_SIZE];
            device.read(9 * PAGE, &mut found).expect("readable");
            assert!(found == expected);
        } else {
            expect(&device, 9, 9);
        }
        assert!(changed.load(Ordering::SeqCst));
    }
}

#[test]
fn what_is_written_while_a_snapshot_is_read_is_what_the_page_is() {
    let image = Arc::new(FaultyImage::new(64, 7));
    let origin = Origin::Snapshot(Arc::clone(&image) as Arc<dyn Image>);
    let device = Device::with_stores(&DeviceConfig::new(64 * PAGE), origin, None);
    let device = Arc::new(device.expect("a device"));
    let written = Arc::downgrade(&device);
    image.after_read(move || {
        if let Some(device) = written.upgrade() {
            write(&device, 9, 9).expect("room");
        }
    });
    expect(&device, 9, 9);
    expect_bytes(&device, 10, 7);
}

#[test]
fn a_long_read_takes_each_page_from_where_it_is() {
    const PAGES: u64 = 200;
    let (device, _image) = device(PAGES, 1000, 3);
    for page in 0..PAGES {
        write(&device, page, page).expect("room");
    }
    for ahead in [false, true] {
        device.flush().expect("the image works");
        device.evict(u64::MAX).expect("the image works");
        assert_eq!(device.stats().resident_pages, 0);
        for page in (0..PAGES).step_by(7) {
            write(&device, page, page).expect("room");
        }
        let before = device.stats().origin_reads;
        if ahead {
            device.prefetch(0..PAGES * PAGE).expect("the image works");
            assert_eq!(device.stats().resident_pages, PAGES);
        }
        let mut found = vec![0; PAGES as usize * PAGE_SIZE];
        device.read(0, &mut found).expect("readable");
        for (page, found) in (0..).zip(found.chunks_exact(PAGE_SIZE)) {
            assert!(found == tagged(page), "page {page}");
        }
        let (absent, stats) = (PAGES - PAGES.div_ceil(7), device.stats());
        assert_eq!(stats.origin_reads - before, absent);
        assert_eq!(stats.resident_pages, PAGES);
        device.check();
    }
}

#[test]
fn nothing_is_lost_while_the_image_fails() {
    let (device, image) = device(4000, 256, 2);
    for errno in [Errno::NOSPC, Errno::IO] {
        *image.fail_writes.lock() = Some(errno);
        let mut written = Vec::new();
        let mut refused = 0;
        for page in 0..1500 {
            let tag = page + 10_000 * errno.raw_os_error() as u64;
            match write(&device, page, tag) {
                Ok(()) => written.push((page, tag)),
                Err(error) => {
                    assert!(
                        error.to_string().contains("image cannot be written"),
                        "{error}"
                    );
                    refused += 1;
                    if refused == 3 {
                        break;
                    }
                }
            }
        }
        assert!(
            refused == 3 && written.len() > 200,
            "{refused} {}",
            written.len()
        );
        let failed = device.flush().expect_err("it cannot be kept");
        assert_eq!(failed.errno(), errno);
        device.check();
        for &(page, tag) in &written {
            expect(&device, page, tag);
        }
        *image.fail_writes.lock() = None;
        eventually("going on", || write(&device, 3999, 1).is_ok());
        device.flush().expect("the image works again");
        for (page, tag) in written {
            assert!(image.durable_page(page as usize) == tagged(tag), "{page}");
        }
    }
}

#[test]
fn a_sync_that_failed_is_never_forgotten() {
    let (device, image) = device(64, 128, 1);
    write(&device, 1, 1).expect("room");
    image.fail_syncs.store(true, Ordering::SeqCst);
    assert_eq!(device.flush().expect_err("fails").errno(), Errno::IO);
    image.fail_syncs.store(false, Ordering::SeqCst);
    assert!(device.flush().is_err());
    expect(&device, 1, 1);
    write(&device, 2, 2).expect("the device goes on");
    expect(&device, 2, 2);
}

#[test]
fn what_is_read_ahead_of_the_image_is_counted_too() {
    let (device, image) = device(200, 400, 2);
    let reads = Arc::new(AtomicU64::new(0));
    image.after_read({
        let reads = Arc::clone(&reads);
        move || {
            reads.fetch_add(1, Ordering::SeqCst);
        }
    });
    for page in 0..200 {
        expect_bytes(&device, page, 7);
    }
    let reads = reads.load(Ordering::SeqCst);
    assert!(reads < 50, "{reads}");
    assert_eq!(device.stats().origin_reads, 200);
}

#[test]
fn a_page_that_cannot_be_read_fails_alone() {
    let (device, image) = device(64, 128, 1);
    write(&device, 1, 1).expect("room");
    image.fail_reads.store(true, Ordering::SeqCst);
    let mut page = [0; PAGE_SIZE];
    let failed = device.read(0, &mut page).expect_err("fails");
    assert_eq!(failed.errno(), Errno::IO);
    assert!(
        failed
            .to_string()
            .contains("page 0 cannot be read from the image")
    );
    assert!(
        device.write(100, &[1]).is_err(),
        "the rest of the page is not known"
    );
    expect(&device, 1, 1);
    image.fail_reads.store(false, Ordering::SeqCst);
    expect_bytes(&device, 0, 7);
}

#[test]
fn a_flush_keeps_what_was_written_before_it_whatever_goes_on_beside_it() {
    let pages = 600u64;
    let (device, image) = device(pages, 100, 2);
    let stop = AtomicBool::new(false);
    let versions: Vec<AtomicU64> = (0..pages).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        for writer in 0..2u64 {
            let (device, versions, stop) = (&device, &versions, &stop);
            scope.spawn(move || {
                let mut random = Random(writer + 1);
                while !stop.load(Ordering::SeqCst) {
                    let state = random.next();
                    // Each page has one writer, so that its versions only grow.
                    let page = (state >> 33) % (pages / 2) * 2 + writer;
                    let version = versions[page as usize].load(Ordering::SeqCst) + 1;
                    write(device, page, version << 16 | page).expect("evicts");
                    versions[page as usize].store(version, Ordering::SeqCst);
                    if state >> 60 == 0 {
                        expect(device, page, version << 16 | page);
                    }
                }
            });
        }
        for round in 0..60 {
            let before: Vec<u64> = versions.iter().map(|v| v.load(Ordering::SeqCst)).collect();
            device.flush().expect("the image works");
            let durable: Vec<_> = (0..pages as usize).map(|p| image.durable_page(p)).collect();
            for (page, bytes) in (0..pages).zip(durable) {
                let since = before[page as usize];
                if since == 0 && bytes == [7; PAGE_SIZE] {
                    continue;
                }
                let tag = u64::from_le_bytes(bytes[8..16].try_into().expect("eight"));
                assert!(bytes == tagged(tag) && tag & 0xffff == page, "torn: {page}");
                assert!(tag >> 16 >= since, "round {round}: {page} is too old");
            }
        }
        stop.store(true, Ordering::SeqCst);
    });
    device.check();
}

#[test]
fn without_flushes_a_sync_does_and_so_does_the_end() {
    let (device, image) = over(64, 128, 1, SyncPolicy::Never, PoolKind::Zbud);
    assert!(!device.has_flush() && !device.offers_flush());
    write(&device, 1, 1).expect("room");
    device.flush().expect("does nothing");
    assert!(image.durable_page(1) == [7; PAGE_SIZE]);
    device.sync().expect("the image works");
    assert!(image.durable_page(1) == tagged(1));
    write(&device, 2, 2).expect("room");
    drop(device);
    assert!(image.durable_page(2) == tagged(2));
    let every = SyncPolicy::Every(std::time::Duration::from_millis(20));
    let (device, image) = over(64, 128, 1, every, PoolKind::Z3fold);
    write(&device, 3, 3).expect("room");
    eventually("synced", || image.durable_page(3) == tagged(3));
    drop(device);
}

#[test]
fn a_snapshot_leaves_its_image_alone() {
    let image = Arc::new(FaultyImage::new(300, 7));
    let backing = Arc::new(crate::spill::FaultyBacking::new(8));
    let mut config = DeviceConfig::new(300 * PAGE);
    config.mem_limit = Some(64 * PAGE);
    let origin = Origin::Snapshot(Arc::clone(&image) as Arc<dyn Image>);
    let device = Device::with_stores(&config, origin, Some(backing)).expect("a device");
    for page in 0..200 {
        write(&device, page, page).expect("spills");
    }
    device.discard(10 * PAGE, 5 * PAGE).expect("done");
    device.discard(250 * PAGE, 5 * PAGE).expect("done");
    device.write(220 * PAGE + 5, &[1]).expect("room");
    device.flush().expect("nothing to do");
    for page in (0..10).chain(15..200) {
        expect(&device, page, page);
    }
    for page in (10..15).chain(250..255) {
        expect_bytes(&device, page, 0);
    }
    let mut found = [0; PAGE_SIZE];
    device.read(220 * PAGE, &mut found).expect("readable");
    let mut changed = [7; PAGE_SIZE];
    changed[5] = 1;
    assert!(found == changed);
    expect_bytes(&device, 299, 7);
    device.check();
    assert!(device.stats().written_back_pages > 0);
    device.reset().expect("nobody uses it");
    expect_bytes(&device, 10, 7);
    drop(device);
    assert_eq!(image.calls.load(Ordering::SeqCst), 0);
}

/// Requests of several threads on few pages, beside eviction and flushes: a read that begins after
/// a write has ended sees it or a later one.
#[test]
fn no_read_is_behind_a_write_that_has_ended() {
    let pages = 128u64;
    let (device, image) = device(pages, 32, 2);
    image.before_write(std::thread::yield_now);
    let latest: Vec<Mutex<u64>> = (0..pages).map(|_| Mutex::new(0)).collect();
    let seen: Mutex<HashMap<u64, u64>> = Mutex::default();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (device, latest, stop, seen) = (&device, &latest, &stop, &seen);
        for writer in 0..2u64 {
            scope.spawn(move || {
                let mut random = Random(writer + 77);
                for _ in 0..8000 {
                    let state = random.next();
                    let page = (state >> 33) % pages;
                    let mut version = latest[page as usize].lock();
                    *version += 1;
                    write(device, page, *version << 16 | page).expect("evicts");
                }
                stop.store(true, Ordering::SeqCst);
            });
        }
        scope.spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                device.flush().expect("the image works");
                device.evict(8 * PAGE).expect("the image works");
            }
        });
        scope.spawn(move || {
            let mut page = 0;
            while !stop.load(Ordering::SeqCst) {
                page = (page + 1) % pages;
                let mut found = [0; PAGE_SIZE];
                device.read(page * PAGE, &mut found).expect("readable");
                if found == [7; PAGE_SIZE] {
                    assert_eq!(seen.lock().get(&page), None);
                    continue;
                }
                let tag = u64::from_le_bytes(found[8..16].try_into().expect("eight"));
                assert!(found == tagged(tag) && tag & 0xffff == page, "torn: {page}");
                let before = seen.lock().insert(page, tag >> 16).unwrap_or(0);
                assert!(tag >> 16 >= before, "{page} went back");
            }
        });
    });
    for page in 0..pages {
        let version = *latest[page as usize].lock();
        if version > 0 {
            expect(device.as_ref(), page, version << 16 | page);
        }
    }
    device.check();
}
