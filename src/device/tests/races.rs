//! What happens to a page while eviction writes it, or while it is read back. The backing calls the
//! test in the middle of the I/O, so every one of these happens every time.

use std::iter;
use std::sync::Weak;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use super::*;
use crate::engine::Engine;
use crate::shard::{Slot, SlotState};

/// The bug that zswap and zsmalloc each shipped: a page is freed or rewritten while eviction is
/// writing its old contents.
#[test]
fn what_changes_during_a_write_is_not_undone_by_it() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = Arc::new(device(400, 400, 1, &backing));
    for page in 0..400 {
        write(&device, page, page).expect("room");
    }
    let writes = Arc::new(AtomicU32::new(0));
    let (hook_device, hook_writes): (Weak<Device>, _) =
        (Arc::downgrade(&device), Arc::clone(&writes));
    backing.before_write(move || {
        let Some(device) = hook_device.upgrade() else {
            return;
        };
        hook_writes.fetch_add(1, Relaxed);
        // Every fourth page each: rewritten, discarded, freed and written to again, left alone.
        for page in (0..400).step_by(4) {
            write(&device, page, page + 1000).expect("room");
            device
                .discard((page + 1) * PAGE, PAGE)
                .expect("no room needed");
            device
                .discard((page + 2) * PAGE, PAGE)
                .expect("no room needed");
            write(&device, page + 2, page + 2000).expect("room");
        }
    });
    device.evict(100 * PAGE).expect("evicted");
    assert!(writes.load(Relaxed) > 0);
    device.check();
    let stats = device.stats();
    assert!(stats.written_back_pages > 0 && stats.written_back_pages <= 100);
    let mut zero = [0xff; PAGE_SIZE];
    for page in (0..400).step_by(4) {
        expect(&device, page, page + 1000);
        device.read((page + 1) * PAGE, &mut zero).expect("readable");
        assert!(zero == [0; PAGE_SIZE]);
        expect(&device, page + 2, page + 2000);
        expect(&device, page + 3, page + 3);
    }
}

/// A spilled page's slot, and the number that its record was written under.
fn record_of(engine: &Engine, page: u64) -> Option<(Slot, u64)> {
    let run = engine
        .shards
        .layout
        .run(crate::PageIndex(page as u32), page + 1);
    let shard = engine.shards.lock(run.shard);
    let slot = shard.slot(run.slot);
    match slot.state() {
        SlotState::WrittenBack { record, .. } => {
            Some((slot, engine.spilled.segments.sequence_at(record)))
        }
        _ => None,
    }
}

fn evict_all(device: &Device) {
    while device.evict(u64::MAX / 2).expect("evicted") > 0 {}
    assert_eq!(device.stats().resident_pages, 0);
}

/// When a hook is called.
#[derive(Clone, Copy, Debug)]
enum When {
    /// Before the record is read: what is read is what the hook left there.
    Before,
    /// After it was read: what was read is of before the hook.
    After,
}

/// A device whose page 0 is `tagged(1)` and spilled, alone in its segment but for page 1, and a
/// hook that calls `change` once, before or after the next read of the backing.
fn spilled_page(when: When, change: impl Fn(&Device) + Send + Sync + 'static) -> Arc<Device> {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = Arc::new(device(400, 400, 1, &backing));
    write(&device, 0, 1).expect("room");
    write(&device, 1, 2).expect("room");
    evict_all(&device);
    let weak = Arc::downgrade(&device);
    let armed = AtomicBool::new(true);
    let hook = move || {
        if armed.swap(false, Relaxed)
            && let Some(device) = weak.upgrade()
        {
            change(&device);
        }
    };
    match when {
        When::Before => backing.before_read(hook),
        When::After => backing.after_read(hook),
    }
    device
}

/// Frees the segment that pages 0 and 1 are in, and writes pages 0 and 1 to it again, with the
/// given tags: their records are where they were, in another use of the segment.
fn reuse_segment(device: &Device, first: u64, second: u64) {
    let before = record_of(&device.engine, 0).expect("spilled");
    device.discard(0, 2 * PAGE).expect("no room needed");
    // The thread frees emptied segments before it evicts.
    let _ = device.evict(PAGE);
    write(device, 0, first).expect("room");
    write(device, 1, second).expect("room");
    evict_all(device);
    let after = record_of(&device.engine, 0).expect("spilled");
    assert!(
        after.0.same_place(before.0),
        "only the use of the segment tells them apart"
    );
    assert_ne!(after.1, before.1, "not another use of the segment");
}

#[test]
fn a_page_that_is_rewritten_while_it_is_read_back_is_read() {
    let device = spilled_page(When::Before, |device| {
        // The record is gone before it is read, and the page is in memory.
        device.discard(0, 2 * PAGE).expect("no room needed");
        let _ = device.evict(PAGE);
        write(device, 0, 9).expect("room");
    });
    expect(&device, 0, 9);
}

#[test]
fn a_page_whose_segment_is_reused_while_it_is_read_back_is_read() {
    let tag = like_1();
    let device = spilled_page(When::Before, move |device| reuse_segment(device, tag, 2));
    expect(&device, 0, tag);
    expect(&device, 1, 2);
}

#[test]
fn a_page_that_is_discarded_while_it_is_read_back_is_zero() {
    let device = spilled_page(When::Before, |device| {
        device.discard(0, 2 * PAGE).expect("no room needed");
        let _ = device.evict(PAGE);
    });
    let mut found = [1; PAGE_SIZE];
    device.read(0, &mut found).expect("readable");
    assert!(found == [0; PAGE_SIZE]);
}

/// The page after `part` is written into `tagged(tag)`.
fn with_part(tag: u64, part: &[u8]) -> Page {
    let mut page = tagged(tag);
    page[100..100 + part.len()].copy_from_slice(part);
    page
}

fn expect_part_over(device: &Device, tag: u64) {
    let mut found = [0; PAGE_SIZE];
    device.read(0, &mut found).expect("readable");
    assert!(
        found == with_part(tag, b"part"),
        "the part is not over version {tag}"
    );
    device.check();
}

/// Writes part of page 0 while `change` makes page 0 `tagged(tag)`.
fn part_write_beside(tag: u64, change: fn(&Device, u64)) {
    for when in [When::Before, When::After] {
        let device = spilled_page(when, move |device| change(device, tag));
        device.write(100, b"part").expect("room");
        expect_part_over(&device, tag);
    }
}

#[test]
fn a_part_is_written_over_the_version_that_came_meanwhile() {
    part_write_beside(9, |device, tag| write(device, 0, tag).expect("room"));
}

#[test]
fn a_part_is_written_over_the_version_that_was_spilled_elsewhere_meanwhile() {
    part_write_beside(9, |device, tag| {
        let before = record_of(&device.engine, 0);
        write(device, 0, tag).expect("room");
        evict_all(device);
        assert_ne!(record_of(&device.engine, 0), before);
    });
}

#[test]
fn a_part_is_written_over_the_version_that_was_spilled_to_the_same_place_meanwhile() {
    part_write_beside(like_1(), |device, tag| reuse_segment(device, tag, 2));
}

/// A page comes back to memory as it was read, unless it changed while it was read.
#[test]
fn promotion_never_undoes_a_write() {
    for rewrite in [false, true] {
        let reads = Arc::new(AtomicU32::new(0));
        let backing = Arc::new(FaultyBacking::new(100));
        let device = Arc::new(device(400, 400, 1, &backing));
        write(&device, 0, 1).expect("room");
        // Keeps the segment from being freed with the page.
        write(&device, 1, 2).expect("room");
        evict_all(&device);
        let (weak, count) = (Arc::downgrade(&device), Arc::clone(&reads));
        // After the read: the old version is what comes to memory, if nothing stops it. It does at
        // the first read, since the page left not long ago.
        backing.after_read(move || {
            let first = count.fetch_add(1, Relaxed) == 0;
            if let (true, true, Some(device)) = (rewrite, first, weak.upgrade()) {
                write(&device, 0, 9).expect("room");
            }
        });
        expect(&device, 0, 1);
        expect(&device, 0, if rewrite { 9 } else { 1 });
        assert_eq!(reads.load(Relaxed), 1, "the read brought it to memory");
        assert_eq!(device.stats().resident_pages, 1);
        device.check();
    }
}

/// What left memory long ago stays out until it is read a second time.
#[test]
fn a_page_comes_back_when_it_is_read_again() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(4000, 4000, 1, &backing);
    for page in 0..4000 {
        write(&device, page, page).expect("room");
    }
    evict_all(&device);
    // Other pages are read until that is long ago.
    for page in 1000..4000 {
        expect(&device, page, page);
    }
    for (read, comes) in [(0, 0), (1, 1)] {
        let before = device.stats().resident_pages;
        expect(&device, 7, 7);
        assert_eq!(device.stats().resident_pages - before, comes, "read {read}");
    }
}

/// Evicts to the low watermark, so that the writeback thread has nothing left to do.
fn evict_to_low(device: &Device) {
    let over = |device: &Device| {
        let low = device.engine.limit.watermarks().low;
        device.engine.limit.budget.used().saturating_sub(low)
    };
    while over(device) > 0 {
        device
            .evict(over(device) * PAGE)
            .expect("the backing works");
    }
}

/// What a fill left in memory stays there while all is read in the order in which it was written, by
/// readers that take turns.
#[test]
fn a_scan_after_a_fill_drives_little_out() {
    const PAGES: u64 = 40_000;
    /// What comes to memory before it is known for a scan, and some.
    const LITTLE: u64 = 2000;
    for (readers, pages_at_once) in [(1, 1), (1, 64), (4, 32)] {
        let backing = Arc::new(FaultyBacking::new(100));
        let device = device(PAGES, PAGES / 12, 1, &backing);
        for page in 0..PAGES {
            write(&device, page, page).expect("room");
        }
        evict_to_low(&device);
        let before = device.stats();
        assert!(before.resident_pages > PAGES / 8, "{before:?}");
        let next = AtomicU64::new(0);
        let read_all = || {
            let mut buf = vec![0; pages_at_once * PAGE_SIZE];
            let take_turn = || next.fetch_add(pages_at_once as u64, Relaxed);
            for page in iter::repeat_with(take_turn).take_while(|&page| page < PAGES) {
                device.read(page * PAGE, &mut buf).expect("readable");
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..readers {
                scope.spawn(read_all);
            }
        });
        let after = device.stats();
        let evicted = after.bd_writes - before.bd_writes;
        assert!(evicted < LITTLE, "{readers}: {evicted} evicted");
        let read_back = after.bd_reads - before.bd_reads;
        assert!(
            read_back < before.written_back_pages + LITTLE,
            "{readers}: {read_back} read back: {before:?}"
        );
    }
}
