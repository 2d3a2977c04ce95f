//! Writing chosen pages back: which, how many, and what happens to them meanwhile.

use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use rustix::io::Errno;
use support::noise_page;

use super::*;
use crate::device::tests::idle::slot;
use crate::error::Error;
use crate::selection::Selection;
use crate::shard::SlotState;

fn write_back(device: &Device, what: &str) -> crate::Result<u64> {
    device.write_back(Selection::parse(what, device.pages())?)
}

fn spilled(device: &Device) -> Vec<u64> {
    let is_spilled = |page: &u64| {
        let state = slot(device, *page).state();
        matches!(state, SlotState::WrittenBack { .. })
    };
    (0..device.pages()).filter(is_spilled).collect()
}

/// 400 pages in two shards: every tenth is huge, and 390 to 399 are same-filled.
fn filled(backing: &Arc<FaultyBacking>) -> Arc<Device> {
    let device = Arc::new(device(500, 4000, 2, backing));
    write_mixed(&device, 390);
    device
        .write(390 * PAGE, &[5; 10 * PAGE_SIZE])
        .expect("no room needed");
    device
}

/// Writes pages, of which every tenth is noise.
pub(super) fn write_mixed(device: &Device, pages: u64) {
    for page in 0..pages {
        if page % 10 == 0 {
            device.write(page * PAGE, &noise_page(page)).expect("room");
        } else {
            write(device, page, page).expect("room");
        }
    }
}

/// Shows that those pages are there.
#[track_caller]
pub(super) fn expect_mixed(device: &Device, pages: u64) {
    for page in 0..pages {
        if page % 10 == 0 {
            let mut found = [0; PAGE_SIZE];
            device.read(page * PAGE, &mut found).expect("readable");
            assert!(found == noise_page(page), "page {page}");
        } else {
            expect(device, page, page);
        }
    }
    device.check();
}

#[test]
fn what_is_chosen_is_written_back_and_nothing_else() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = filled(&backing);
    assert_eq!(write_back(&device, "idle").expect("written"), 0);
    let pages = write_back(&device, "page_index=7 page_indexes=385-399 page_index=450");
    assert_eq!(
        pages.expect("written"),
        6,
        "no page twice, none that is same-filled or empty"
    );
    let mut expected: Vec<u64> = [7].into_iter().chain(385..390).collect();
    assert_eq!(spilled(&device), expected);

    device.mark_idle(None);
    for page in 20..390 {
        let mut found = [0; PAGE_SIZE];
        device.read(page * PAGE, &mut found).expect("readable");
    }
    assert_eq!(write_back(&device, "huge_idle").expect("written"), 2);
    expected.splice(0..0, [0]);
    expected.insert(2, 10);
    // Reading may have brought some back.
    expected.retain(|&page| page < 20);
    let low = |device: &Device| -> Vec<u64> {
        spilled(device)
            .into_iter()
            .filter(|&page| page < 20)
            .collect()
    };
    assert_eq!(low(&device), expected);
    assert_eq!(write_back(&device, "type=idle").expect("written"), 17);
    assert_eq!(low(&device), (0..20).collect::<Vec<_>>());
    assert_eq!(write_back(&device, "incompressible").expect("written"), 37);
    assert_eq!(device.stats().huge_pages, 0);
    assert_eq!(write_back(&device, "huge").expect("written"), 0);
    device.check();
    expect_mixed(&device, 390);
}

#[test]
fn many_batches_go_beside_one_another() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(20_000, 20_000, 3, &backing);
    for page in 0..20_000 {
        write(&device, page, page).expect("room");
    }
    let before = device.stats();
    let pages = write_back(&device, "page_indexes=0-19999").expect("written");
    let after = device.stats();
    assert_eq!((pages, after.written_back_pages), (20_000, 20_000));
    assert_eq!(after.bd_writes - before.bd_writes, 20_000);
    assert_eq!((after.resident_pages, after.mem_used_total), (0, 0));
    device.check();
    for page in (0..20_000).step_by(7) {
        expect(&device, page, page);
    }
}

/// An object may be freed, and another come to its address, while it is being written.
#[test]
fn what_changes_while_it_is_written_is_not_undone() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = Arc::new(device(400, 4000, 1, &backing));
    for page in 0..400 {
        write(&device, page, page).expect("room");
    }
    let (weak, armed): (Weak<Device>, _) = (Arc::downgrade(&device), AtomicBool::new(true));
    let places = Arc::new(AtomicU32::new(0));
    let same_places = Arc::clone(&places);
    backing.before_write(move || {
        let (true, Some(device)) = (armed.swap(false, Relaxed), weak.upgrade()) else {
            return;
        };
        for page in (0..400).step_by(8) {
            // Written anew to where it was: the address that is freed last is taken first.
            let before = slot(&device, page);
            device.discard(page * PAGE, PAGE).expect("no room needed");
            write(&device, page, page).expect("room");
            same_places.fetch_add(u32::from(slot(&device, page).same_place(before)), Relaxed);
            device.discard(page * PAGE, PAGE).expect("no room needed");
            write(&device, page, page + 1000).expect("room");
            write(&device, page + 1, page + 2000).expect("room");
            device
                .discard((page + 2) * PAGE, PAGE)
                .expect("no room needed");
            expect(&device, page + 3, page + 3);
            let mut part = tagged(page + 4);
            part[9] ^= 1;
            device
                .write((page + 4) * PAGE + 9, &part[9..10])
                .expect("room");
        }
        // Marking and moving change nothing of what is written.
        device.mark_idle(None);
        device.compact();
    });
    let pages = write_back(&device, "page_indexes=0-399").expect("written");
    assert!(places.load(Relaxed) > 0, "no address was taken again");
    assert_eq!(pages, 3 * 50);
    device.check();
    let expected: Vec<u64> = (0..400).filter(|page| page % 8 > 4).collect();
    assert_eq!(spilled(&device), expected);
    for page in (0..400).step_by(8) {
        expect(&device, page, page + 1000);
        expect(&device, page + 1, page + 2000);
        let mut found = [1; PAGE_SIZE];
        device
            .read((page + 2) * PAGE, &mut found)
            .expect("readable");
        assert!(found == [0; PAGE_SIZE]);
        expect(&device, page + 3, page + 3);
        let mut part = tagged(page + 4);
        part[9] ^= 1;
        device
            .read((page + 4) * PAGE, &mut found)
            .expect("readable");
        assert!(found == part);
        for page in page + 5..page + 8 {
            expect(&device, page, page);
        }
    }
}

#[test]
fn a_backing_that_fails_leaves_pages_as_they_were() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = filled(&backing);
    device.mark_idle(None);
    let before: Vec<_> = (0..390).map(|page| slot(&device, page)).collect();
    backing.fail_writes.store(true, Relaxed);
    let error = write_back(&device, "idle").expect_err("it fails");
    assert_eq!(error.errno(), Errno::IO);
    assert!(!error.to_string().contains("limit"), "{error}");
    let after: Vec<_> = (0..390).map(|page| slot(&device, page)).collect();
    assert_eq!(before, after);
    device.check();
    backing.fail_writes.store(false, Relaxed);
    assert_eq!(write_back(&device, "idle").expect("written"), 390);
    expect_mixed(&device, 390);
}

#[test]
fn without_a_backing_or_time_it_is_refused() {
    let device = Device::new(&DeviceConfig::new(100 * PAGE)).expect("a device");
    write(&device, 0, 0).expect("room");
    let error = write_back(&device, "page_index=0").expect_err("no backing");
    assert_eq!(error.errno(), Errno::NODEV);

    let backing = Arc::new(FaultyBacking::new(2));
    let device = super::device(4000, 4000, 1, &backing);
    for page in 0..4000 {
        device.write(page * PAGE, &noise_page(page)).expect("room");
    }
    let error = write_back(&device, "huge").expect_err("it is full");
    assert!(
        matches!(error, Error::NoSpace("the backing is full")),
        "{error}"
    );
    assert!(device.stats().written_back_pages > 0);
    device.check();
    device.stop();
    let error = write_back(&device, "huge").expect_err("it stops");
    assert!(
        [Errno::INTR, Errno::NOSPC].contains(&error.errno().into()),
        "{error}"
    );
}

/// What is on its way may have room made for more: a backing is full only once it has landed.
#[test]
fn a_backing_is_not_full_while_its_pages_go() {
    // Eviction leaves one of the two segments to cleaning.
    let backing = Arc::new(FaultyBacking::new(2));
    let device = Arc::new(device(900, 2000, 1, &backing));
    for page in 0..900 {
        device.write(page * PAGE, &noise_page(page)).expect("room");
    }
    let (going, writes) = (Arc::downgrade(&device), AtomicU64::new(0));
    backing.before_write(move || {
        // The first two fill the segment.
        if writes.fetch_add(1, Relaxed) < 2
            && let Some(device) = going.upgrade()
        {
            std::thread::sleep(Duration::from_millis(200));
            device.discard(0, 500 * PAGE).expect("no room needed");
        }
    });
    let written = write_back(&device, "page_indexes=0-899").expect("there is room");
    assert_eq!((written, device.stats().written_back_pages), (400, 400));
    device.check();
}

/// Whoever waits for what takes long is told when nothing is written any more.
#[test]
fn writing_back_ends_when_spilling_does() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = Arc::new(device(20_000, 20_000, 1, &backing));
    for page in 0..20_000 {
        write(&device, page, page).expect("room");
    }
    backing.before_write(|| std::thread::sleep(Duration::from_millis(50)));
    let waiting = std::thread::spawn({
        let device = Arc::clone(&device);
        move || write_back(&device, "page_indexes=0-19999")
    });
    eventually("begun", || device.stats().written_back_pages > 0);
    assert!(device.stop_spilling(Duration::from_secs(60)));
    eventually("answered", || waiting.is_finished());
    let error = waiting.join().expect("no panic").expect_err("it ends");
    assert_eq!(error.errno(), Errno::INTR, "{error}");
}

#[test]
fn the_limit_is_kept_to_the_page_and_spent_on_the_largest() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = filled(&backing);
    device.enable_writeback_limit(true);
    let error = write_back(&device, "page_indexes=0-399").expect_err("it is 0");
    assert_eq!(error.errno(), Errno::IO);
    assert!(error.to_string().contains("writeback_limit"), "{error}");
    assert_eq!(spilled(&device), [0; 0]);
    assert_eq!(
        write_back(&device, "page_index=450").expect("nothing to do"),
        0
    );

    device.set_writeback_limit(45);
    let error = write_back(&device, "page_indexes=0-399").expect_err("it is spent");
    assert_eq!(error.errno(), Errno::IO);
    assert_eq!(device.writeback_limit(), 0);
    let spilled = spilled(&device);
    assert_eq!(spilled.len(), 45);
    assert_eq!(spilled.iter().filter(|&&page| page % 10 == 0).count(), 39);

    device.set_writeback_limit(345);
    let pages = write_back(&device, "page_indexes=0-399").expect("just enough");
    assert_eq!((pages, device.writeback_limit()), (345, 0));
    expect_mixed(&device, 390);
}

#[test]
fn eviction_keeps_to_the_limit_and_writers_are_told() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(4000, 200, 2, &backing);
    device.enable_writeback_limit(true);
    device.set_writeback_limit(333);
    let mut page = 0;
    let error = loop {
        match write(&device, page, page) {
            Ok(()) => page += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.errno(), Errno::NOSPC);
    assert!(error.to_string().contains("writeback_limit"), "{error}");
    let stats = device.stats();
    assert_eq!((stats.bd_writes, device.writeback_limit()), (333, 0));
    device.check();
    for page in 0..page {
        expect(&device, page, page);
    }
    device.set_writeback_limit(100);
    for page in page..page + 50 {
        write(&device, page, page).expect("there is some again");
    }
    device.enable_writeback_limit(false);
    for page in page..4000 {
        write(&device, page, page).expect("there is no limit");
    }
    for page in 0..4000 {
        expect(&device, page, page);
    }
    device.check();
}

#[test]
fn a_days_bytes_are_kept_to_and_come_free_a_day_later() {
    const LIMIT: u64 = 1 << 20;
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(8000, 200, 2, &backing);
    device
        .set_writeback_daily_limit(Some(LIMIT))
        .expect("valid");
    let mut page = 0;
    for day in 1..=3 {
        let error = loop {
            match write(&device, page, page) {
                Ok(()) => page += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.errno(), Errno::NOSPC);
        assert!(error.to_string().contains("daily"), "{error}");
        let stats = device.stats();
        assert!(stats.backing_bytes_written <= day * LIMIT);
        assert!(stats.backing_bytes_written > day * LIMIT - (128 << 10) * day);
        assert!(stats.backing_bytes_day <= LIMIT);
        let error = write_back(&device, "page_indexes=0-7999").expect_err("it is spent");
        assert_eq!(error.errno(), Errno::IO);
        device
            .engine
            .time
            .skip(Duration::from_secs(24 * 3600 + 900));
    }
    device.check();
    for page in 0..page {
        expect(&device, page, page);
    }
    device.set_writeback_daily_limit(None).expect("valid");
    for page in page..8000 {
        write(&device, page, page).expect("there is no limit");
    }
    device.check();
}

/// Chosen pages, eviction, promotion, compaction and writers all at once.
#[test]
fn everything_at_once() {
    const PAGES: u64 = 1200;
    let backing = Arc::new(FaultyBacking::new(60));
    let device = device(PAGES, 256, 3, &backing);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..3)
            .map(|writer| {
                let device = &device;
                scope.spawn(move || faults::work_on_own_pages(device, writer, 3, PAGES))
            })
            .collect();
        scope.spawn(|| {
            for round in 0u64.. {
                if stop.load(Relaxed) {
                    break;
                }
                device.mark_idle(None);
                let what = ["idle", "page_indexes=0-1199", "page_indexes=300-500 huge"];
                write_back(&device, what[round as usize % 3]).expect("there is space");
                device.engine.time.skip(Duration::from_secs(1));
                device.compact();
            }
        });
        for writer in writers {
            writer.join().expect("no panic");
        }
        stop.store(true, Relaxed);
    });
    device.check();
    device.discard(0, PAGES * PAGE).expect("no room needed");
    device.check();
    let stats = device.stats();
    assert_eq!((stats.mem_used_total, stats.backing_bytes_live), (0, 0));
}

/// A selection that names a page twice meets it again, changed, while its first contents are being
/// written: those must not take the place of the new ones.
#[test]
fn a_page_that_is_chosen_twice_keeps_what_was_written_between() {
    // As many batches as may be under way.
    const PAGES: u64 = 900;
    let backing = Arc::new(FaultyBacking::new(100));
    let device = Arc::new(device(PAGES, 8 * PAGES, 1, &backing));
    let fill = |device: &Device, version: u64| {
        for page in 0..PAGES {
            let data = noise_page(page + version * PAGES);
            device.write(page * PAGE, &data).expect("room");
        }
    };
    fill(&device, 0);
    let weak: Weak<Device> = Arc::downgrade(&device);
    let (calls, filled) = (AtomicU32::new(0), AtomicBool::new(false));
    backing.before_write(move || match calls.fetch_add(1, Relaxed) {
        0 => {
            if let Some(device) = weak.upgrade() {
                fill(&device, 1);
            }
            filled.store(true, Relaxed);
            // Others land, and the search comes by the pages of this one again.
            std::thread::sleep(Duration::from_millis(200));
        }
        1..=3 => {
            while !filled.load(Relaxed) {
                std::thread::yield_now();
            }
        }
        // What is found then lands after this.
        _ => std::thread::sleep(Duration::from_millis(400)),
    });
    let all = format!("page_indexes=0-{}", PAGES - 1);
    write_back(&device, &format!("{all} {all} {all}")).expect("written");
    for page in 0..PAGES {
        let mut found = [0; PAGE_SIZE];
        device.read(page * PAGE, &mut found).expect("readable");
        assert!(found == noise_page(page + PAGES), "page {page} is of old");
    }
    device.check();
}
