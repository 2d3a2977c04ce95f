//! Faults and limits: what is lost, what is refused, what recovers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use rustix::io::Errno;
use support::{Random, noise_page};

use super::*;
use crate::error::Error;
use crate::selection::Selection;
use crate::spill::SEGMENT_BYTES;

#[test]
fn a_backing_that_fails_loses_nothing_and_recovers() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(4000, 200, 2, &backing);
    let mut written = 0;
    while device.stats().written_back_pages == 0 {
        write(&device, written, written).expect("room");
        written += 1;
    }
    backing.fail_writes.store(true, Relaxed);
    let error = loop {
        match write(&device, written, written) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.errno(), Errno::NOSPC);
    for page in 0..written {
        expect(&device, page, page);
    }
    assert!(device.stats().mem_used_total <= 200 * PAGE && device.stats().failed_writes == 1);
    device.check();

    backing.fail_writes.store(false, Relaxed);
    for page in written..4000 {
        write(&device, page, page).expect("the backing works again");
    }
    for page in 0..4000 {
        expect(&device, page, page);
    }
    device.check();
}

#[test]
fn a_full_backing_is_an_error_until_there_is_space() {
    let backing = Arc::new(FaultyBacking::new(3));
    let device = device(20_000, 64, 1, &backing);
    let written = (0..20_000)
        .find(|&page| write(&device, page, page).is_err())
        .expect("full");
    assert!(device.stats().backing_bytes_live > SEGMENT_BYTES);
    for page in 0..written {
        expect(&device, page, page);
    }
    device.check();
    // Every other page goes: no segment is empty, so they must be cleaned for this to help.
    for page in (0..written).step_by(2) {
        device.discard(page * PAGE, PAGE).expect("no room needed");
    }
    for page in (0..written * 2 / 3).step_by(2) {
        write(&device, page, page + 1).expect("there is space again");
    }
    for page in 0..written * 2 / 3 {
        expect(&device, page, page + u64::from(page % 2 == 0));
    }
    device.check();
    device.discard(0, 20_000 * PAGE).expect("no room needed");
    eventually("empty", || {
        backing.in_use() == 0 && device.stats().backing_bytes_used == 0
    });
    device.check();
}

#[test]
fn unreadable_pages_fail_alone_and_only_while_unreadable() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(1000, 100, 1, &backing);
    for page in 0..1000 {
        write(&device, page, page).expect("room");
    }
    device.evict(50 * PAGE).expect("evicted");
    backing.fail_reads.store(true, Relaxed);
    let mut buf = [0; PAGE_SIZE];
    let failed = (0..1000)
        .filter(|page| device.read(page * PAGE, &mut buf).is_err())
        .count();
    let stats = device.stats();
    assert_eq!(
        (failed as u64, stats.failed_reads),
        (stats.written_back_pages, failed as u64)
    );
    // Part of an unreadable page cannot be written; the whole page can.
    assert_eq!(
        device.write(10, b"part").expect_err("unreadable").errno(),
        Errno::IO
    );
    write(&device, 0, 7).expect("room");
    expect(&device, 0, 7);
    backing.fail_reads.store(false, Relaxed);
    for page in 1..1000 {
        expect(&device, page, page);
    }
    device.check();
}

#[test]
fn damage_is_found_and_never_returned() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(2000, 64, 2, &backing);
    for page in 0..2000 {
        write(&device, page, page).expect("room");
    }
    let mut bit = 9;
    backing.damage(|segment| {
        for _ in 0..40 {
            bit = (bit * 48_271) % 0x7fff_ffff;
            let at = bit % (SEGMENT_BYTES as usize / 4 * 8);
            segment[at / 8] ^= 1 << (at % 8);
        }
        // Two blocks change places.
        let (low, high) = segment.split_at_mut(PAGE_SIZE * 9);
        low[PAGE_SIZE * 3..PAGE_SIZE * 4].swap_with_slice(&mut high[..PAGE_SIZE]);
    });
    let mut refused = 0;
    for page in 0..2000 {
        let mut found = [0; PAGE_SIZE];
        match device.read(page * PAGE, &mut found) {
            Ok(()) => assert!(found == tagged(page), "page {page}: wrong data"),
            Err(error) => {
                assert_eq!(error.errno(), Errno::IO);
                refused += 1;
            }
        }
    }
    assert!((2..200).contains(&refused), "{refused} pages refused");
    device.check();
}

#[test]
fn pages_that_are_read_stay_while_others_go() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(3000, 600, 2, &backing);
    let hot = 0..64;
    for page in 0..3000 {
        write(&device, page, page).expect("room");
        // Read often enough that each is read again before its zspage is the oldest.
        for page in hot
            .clone()
            .filter(|hot| hot % 16 == page % 16 && *hot < page)
        {
            expect(&device, page, page);
        }
    }
    let before = device.stats().bd_reads;
    for page in hot {
        expect(&device, page, page);
    }
    let missed = device.stats().bd_reads - before;
    assert!(missed < 8, "{missed} of 64 hot pages were evicted");
    device.check();
}

#[test]
fn what_is_prefetched_is_in_memory_as_far_as_there_is_room() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(3000, 600, 2, &backing);
    for page in 0..3000 {
        write(&device, page, page).expect("room");
    }
    device.evict(600 * PAGE).expect("room on the backing");
    assert!(device.read_would_wait(0..PAGE));
    device.prefetch(0..64 * PAGE).expect("readable");
    assert!(!device.read_would_wait(0..64 * PAGE));
    let before = device.stats();
    for page in 0..64 {
        expect(&device, page, page);
    }
    assert_eq!(device.stats().bd_reads, before.bd_reads, "read again");

    device.prefetch(0..3000 * PAGE).expect("readable");
    let after = device.stats();
    assert!(after.resident_pages > before.resident_pages);
    assert!(after.written_back_pages > 0, "no room for all");
    assert!(after.mem_used_max <= 600 * PAGE);
    device.check();
}

#[test]
fn whether_a_request_waits_is_known_before() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(3000, 600, 2, &backing);
    for page in 0..100 {
        write(&device, page, page).expect("room");
    }
    assert!(!device.read_would_wait(0..3000 * PAGE));
    assert!(!device.write_would_wait(PAGE + 1..2 * PAGE));
    device.evict(600 * PAGE).expect("room on the backing");
    assert!(device.read_would_wait(99 * PAGE..101 * PAGE));
    assert!(!device.read_would_wait(100 * PAGE..3000 * PAGE));
    // Only a part of a page needs the rest of it.
    assert!(!device.write_would_wait(PAGE..2 * PAGE));
    assert!(device.write_would_wait(PAGE..2 * PAGE - 1));
    assert!(device.write_would_wait(PAGE + 1..2 * PAGE));
    assert!(!device.write_would_wait(2999 * PAGE + 1..3000 * PAGE));
    // More than memory has room for.
    assert!(device.write_would_wait(0..600 * PAGE));
}

#[test]
fn a_pool_of_accessed_pages_can_still_be_evicted() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(2000, 400, 1, &backing);
    for page in 0..600 {
        write(&device, page, page).expect("room");
    }
    for page in 0..600 {
        expect(&device, page, page);
    }
    for page in 600..2000 {
        write(&device, page, page).expect("room");
        expect(&device, page, page);
    }
    device.check();
}

#[test]
fn many_threads_see_only_what_was_written() {
    const WRITERS: u64 = 4;
    const PAGES: u64 = 2000;
    let backing = Arc::new(FaultyBacking::new(40));
    let device = Arc::new(device(PAGES, 256, 3, &backing));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let device = Arc::clone(&device);
                scope.spawn(move || work_on_own_pages(&device, writer, WRITERS, PAGES))
            })
            .collect();
        scope.spawn(|| {
            // Everybody's pages: what is read must be some version of that page.
            let mut page = 0;
            while !stop.load(Relaxed) {
                let mut found = [0; PAGE_SIZE];
                page = (page * 31 + 17) % PAGES;
                device.read(page * PAGE, &mut found).expect("readable");
                let tag = u64::from_le_bytes(found[8..16].try_into().expect("8 bytes"));
                assert!(found == [0; PAGE_SIZE] || (found == tagged(tag) && tag % PAGES == page));
            }
        });
        scope.spawn(|| {
            for round in 0.. {
                if stop.load(Relaxed) {
                    break;
                }
                device.compact();
                device
                    .set_mem_limit(Some((128 + round % 5 * 64) * PAGE))
                    .expect("valid");
                std::thread::sleep(Duration::from_millis(3));
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
    assert_eq!(
        (
            device.stats().mem_used_total,
            device.stats().backing_bytes_live
        ),
        (0, 0)
    );
}

/// Writes, discards and verifies the pages that are `writer` modulo `writers`.
pub(super) fn work_on_own_pages(device: &Device, writer: u64, writers: u64, pages: u64) {
    let mut versions = vec![None; (pages / writers) as usize];
    let mut random = Random(writer + 1);
    for step in 0..15_000u64 {
        let state = random.next();
        let own = (state >> 33) % (pages / writers);
        let page = own * writers + writer;
        match (state >> 20) % 8 {
            0 => {
                device.discard(page * PAGE, PAGE).expect("no room needed");
                versions[own as usize] = None;
            }
            1..4 => {
                let tag = (step + 1) * pages + page;
                write(device, page, tag).expect("room");
                versions[own as usize] = Some(tag);
            }
            _ => match versions[own as usize] {
                Some(tag) => expect(device, page, tag),
                None => {
                    let mut found = [1; PAGE_SIZE];
                    device.read(page * PAGE, &mut found).expect("readable");
                    assert!(found == [0; PAGE_SIZE], "page {page} was discarded");
                }
            },
        }
    }
}

/// A bug in the code that writes costs nothing that is in memory, and hangs nobody.
#[test]
fn a_writer_that_panics_is_a_write_that_failed() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(400, 400, 1, &backing);
    for page in 0..400 {
        write(&device, page, page).expect("room");
    }
    let panics = Arc::new(AtomicBool::new(true));
    let hook = Arc::clone(&panics);
    backing.before_write(move || assert!(!hook.load(Relaxed), "as the test wants"));
    assert!(device.evict(100 * PAGE).is_err());
    panics.store(false, Relaxed);
    assert!(device.evict(100 * PAGE).expect("it works") > 0);
    device.check();
    for page in 0..400 {
        expect(&device, page, page);
    }
}

/// A segment that cannot be read for good does not keep the others from being cleaned.
#[test]
fn an_unreadable_segment_does_not_stop_cleaning() {
    let backing = Arc::new(FaultyBacking::new(8));
    let device = device(20_000, 64, 1, &backing);
    let written = (0..20_000).find(|&page| write(&device, page, page).is_err());
    let written = written.expect("full");
    // The segment that pages were spilled to first is the emptiest, and it fails.
    backing.fail_reads_of(Some(0));
    for page in (0..written).filter(|page| *page < written / 8 || page % 3 == 0) {
        device.discard(page * PAGE, PAGE).expect("no room needed");
    }
    for page in 0..written / 8 {
        let start = Instant::now();
        while let Err(error) = write(&device, page, page) {
            assert!(start.elapsed() < Duration::from_secs(10), "{error}");
        }
    }
    device.check();
}

/// Where nothing can be evicted the writeback thread rests, though there is room below the limit.
#[test]
fn the_thread_rests_when_nothing_can_be_evicted() {
    let backing = Arc::new(FaultyBacking::new(100));
    backing.fail_writes.store(true, Relaxed);
    let device = device(4000, 1000, 1, &backing);
    let tries = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&tries);
    backing.before_write(move || {
        counted.fetch_add(1, Relaxed);
    });
    let mut page = 0;
    while device.stats().mem_used_total < 950 * PAGE {
        write(&device, page, page).expect("room");
        page += 1;
    }
    tries.store(0, Relaxed);
    // Each write wakes it, since memory is short.
    let start = Instant::now();
    for _ in 0..300 {
        write(&device, 0, page).expect("room");
        std::thread::sleep(Duration::from_millis(1));
    }
    let rests = start.elapsed().as_millis() as u64 / 100;
    let tries = tries.load(Relaxed);
    assert!(tries <= 4 * (rests + 2), "{tries} tries, {rests} rests");
}

/// Part of an append that fails may be there, whole records among it; what is read ahead of others
/// has them. The next append to that place is of the same pages, with objects of the same lengths.
#[test]
fn what_a_failed_append_left_is_not_taken_for_what_came_after_it() {
    for lost in [false, true] {
        let backing = Arc::new(FaultyBacking::new(2));
        let device = device(200, 100, 1, &backing);
        let write_back = |pages: &str| {
            let which = Selection::parse(pages, device.pages()).expect("a selection");
            device.write_back(which)
        };
        let rewrite = |add: u64| {
            for page in 100..108 {
                device
                    .write(page * PAGE, &noise_page(page + add))
                    .expect("room");
            }
            write_back("page_indexes=100-107")
        };
        for page in 0..8 {
            write(&device, page, page).expect("room");
        }
        write_back("page_indexes=0-7").expect("written");
        backing.fail_writes.store(true, Relaxed);
        rewrite(0).expect_err("the backing fails");
        for page in 0..3 {
            expect(&device, page, page);
        }
        backing.fail_writes.store(false, Relaxed);
        backing.lose_writes.store(lost, Relaxed);
        rewrite(1000).expect("the backing works, or says so");
        // Three are back in memory.
        assert_eq!(device.stats().written_back_pages, 8 + 5);
        for page in 100..108 {
            let mut found = [0; PAGE_SIZE];
            match device.read(page * PAGE, &mut found) {
                Ok(()) => assert!(!lost && found == noise_page(page + 1000), "page {page}"),
                Err(error) => assert!(lost && matches!(error, Error::Damaged { .. }), "{error}"),
            }
        }
        device.check();
    }
}
