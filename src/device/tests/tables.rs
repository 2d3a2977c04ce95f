//! The tables that say where pages are: bounded, an error for whoever asks for more, and given back.

use std::fs;
use std::path::Path;

use rustix::io::Errno;

use super::*;
use crate::algorithm::Priority;
use crate::codec::MAX_DICTIONARY_LEN;
use crate::origin::{FaultyImage, Image, SyncPolicy};
use crate::sync::atomic::Ordering;

/// Pages that a page frame of slots is for.
const BLOCK: u64 = 512;

/// Page frames of the smallest limit.
const LIMIT: u64 = DeviceConfig::MIN_TABLE_LIMIT / PAGE;

/// Blocks of the devices here: more than that.
const BLOCKS: u64 = 24;

fn config() -> DeviceConfig {
    let mut config = DeviceConfig::new(BLOCKS * BLOCK * PAGE);
    config.table_limit = Some(DeviceConfig::MIN_TABLE_LIMIT);
    config.shards = Some(1);
    config
}

fn used(device: &Device) -> u64 {
    device.stats().slot_table_bytes / PAGE
}

#[track_caller]
fn expect_no_room(done: crate::Result<()>) {
    let error = done.expect_err("the tables are at their limit");
    assert_eq!(error.errno(), Errno::NOSPC);
    assert!(
        error.to_string().contains("DeviceConfig::table_limit"),
        "{error}"
    );
}

#[test]
fn a_write_beyond_the_limit_fails_and_the_device_goes_on() {
    let device = Device::new(&config()).expect("a device");
    for block in 0..LIMIT {
        write(&device, block * BLOCK, block).expect("room");
    }
    expect_no_room(write(&device, LIMIT * BLOCK, 1));
    expect_no_room(device.write(LIMIT * BLOCK * PAGE, &[7; PAGE_SIZE]));
    expect_no_room(device.write_zeroes(LIMIT * BLOCK * PAGE, PAGE));
    expect_no_room(device.write(LIMIT * BLOCK * PAGE + 7, b"part"));
    device.check();
    // What is in use may change, and be joined by its neighbours.
    for block in 0..LIMIT {
        expect(&device, block * BLOCK, block);
        write(&device, block * BLOCK, block + 1).expect("room");
        write(&device, block * BLOCK + 1, block).expect("room");
    }
    // A block that is emptied makes room for another at once.
    for block in 0..LIMIT / 2 {
        device
            .discard(block * BLOCK * PAGE, 2 * PAGE)
            .expect("no room needed");
        write(&device, (LIMIT + block) * BLOCK, block).expect("room");
        expect(&device, (LIMIT + block) * BLOCK, block);
    }
    assert_eq!(used(&device), LIMIT);
    device.check();
    device.discard(0, device.size()).expect("no room needed");
    eventually("given back", || used(&device) == 0);
    device.check();
}

#[test]
fn a_write_that_the_pool_has_no_room_for_costs_no_table() {
    let mut config = config();
    config.mem_limit = Some(8 * PAGE);
    let device = Device::new(&config).expect("a device");
    let full = (0..)
        .find(|&page| write(&device, page, page).is_err())
        .expect("there is a limit");
    assert!(full < BLOCK);
    assert!(write(&device, 3 * BLOCK, 1).is_err());
    eventually("given back", || used(&device) == 1);
    device.check();
}

/// Where pages have an image, they leave for it rather than that a writer fails.
#[test]
fn at_the_limit_pages_go_home() {
    let image = Arc::new(FaultyImage::new((BLOCKS * BLOCK) as usize, 7));
    let origin = Origin::WriteBack(Arc::clone(&image) as Arc<dyn Image>, SyncPolicy::Flush);
    let device = Device::with_stores(&config(), origin, None).expect("a device");
    for block in 0..BLOCKS {
        write(&device, block * BLOCK, block).expect("pages are destaged");
        assert!(used(&device) <= LIMIT);
    }
    for block in 0..BLOCKS {
        expect(&device, block * BLOCK, block);
    }
    device.check();
    *image.fail_writes.lock() = Some(Errno::IO);
    for block in 0..BLOCKS {
        // As long as there is room.
        let _ = write(&device, block * BLOCK + 2, block);
    }
    let failed = device.write_zeroes(0, device.size());
    failed.expect_err("the image takes nothing");
    device.check();
    *image.fail_writes.lock() = None;
    device
        .discard(0, device.size())
        .expect("pages are destaged");
    assert!(used(&device) <= LIMIT);
    device.check();
    device.flush().expect("the image works");
    eventually("given back", || used(&device) == 0);
    for block in 0..BLOCKS {
        assert!(image.durable_page((block * BLOCK) as usize) == [0; PAGE_SIZE]);
    }
    device.check();
}

/// Wherever on the device they are: those at its start do not leave each time.
#[test]
fn at_the_limit_pages_go_home_in_turn() {
    let image = Arc::new(FaultyImage::new((BLOCKS * BLOCK) as usize, 7));
    let origin = Origin::WriteBack(Arc::clone(&image) as Arc<dyn Image>, SyncPolicy::Flush);
    let device = Device::with_stores(&config(), origin, None).expect("a device");
    let in_memory = |block: u64| {
        image.fail_reads.store(true, Ordering::Relaxed);
        let read = device.read(block * BLOCK * PAGE, &mut [0; PAGE_SIZE]);
        image.fail_reads.store(false, Ordering::Relaxed);
        read.is_ok()
    };
    // Whole blocks: pages are looked at some at a time.
    let write = |block: u64| {
        let data: Vec<u8> = (0..BLOCK)
            .flat_map(|page| tagged(block * BLOCK + page))
            .collect();
        let written = device.write(block * BLOCK * PAGE, &data);
        written.expect("pages are destaged");
        // All that leaves is clean.
        device.flush().expect("the image works");
    };
    let mut next = 0;
    while in_memory(0) || next == 0 {
        write(next);
        next += 1;
    }
    write(0);
    let left = (1..next).take_while(|&block| !in_memory(block)).count() as u64;
    while (left + 1..next).all(in_memory) && in_memory(0) {
        write(next);
        next += 1;
    }
    assert!(in_memory(0), "the first to leave was the first again");
    device.check();
}

/// That a snapshot's pages are discarded is noted by the block, whatever the limit.
#[test]
fn a_discard_of_a_snapshot_costs_no_slots() {
    for shards in [1, 3] {
        let image = Arc::new(FaultyImage::new((BLOCKS * BLOCK) as usize, 7));
        let mut config = config();
        config.shards = Some(shards);
        let origin = Origin::Snapshot(Arc::clone(&image) as Arc<dyn Image>);
        let device = Device::with_stores(&config, origin, None).expect("a device");
        let is_full_of = |page: u64, byte: u8| {
            let mut found = [1; PAGE_SIZE];
            device.read(page * PAGE, &mut found).expect("readable");
            found == [byte; PAGE_SIZE]
        };
        write(&device, 5, 5).expect("room");
        write(&device, 4 * BLOCK, 6).expect("room");
        // But for a page at each end.
        let whole = device.size() - 2 * PAGE;
        device.discard(PAGE, whole).expect("no room needed");
        assert_eq!(device.stats().notify_free, 2);
        eventually("given back", || used(&device) <= 2 * u64::from(shards));
        for page in (1..BLOCKS * BLOCK - 1).step_by(97) {
            assert!(is_full_of(page, 0), "{page}");
        }
        assert!(is_full_of(0, 7) && is_full_of(BLOCKS * BLOCK - 1, 7));
        device.check();
        // A page that is written is one, and its neighbours stay what they are.
        write(&device, 7 * BLOCK + 3, 9).expect("room");
        expect(&device, 7 * BLOCK + 3, 9);
        assert!(is_full_of(7 * BLOCK + 2, 0) && is_full_of(7 * BLOCK + 4, 0));
        device.check();
        // All of it again, and what is zeroed as well.
        device.discard(0, device.size()).expect("no room needed");
        device
            .write_zeroes(0, device.size())
            .expect("no room needed");
        let stats = device.stats();
        assert_eq!(stats.same_pages, BLOCKS * BLOCK);
        assert_eq!(stats.notify_free, 2 + BLOCKS * BLOCK - 2);
        eventually("given back", || used(&device) == 0);
        let mut zeroes = 0;
        device.extents(0..device.size(), &mut |extent| {
            assert_eq!(extent.state, crate::PageState::Zero);
            zeroes += extent.len;
            std::ops::ControlFlow::Continue(())
        });
        assert_eq!(zeroes, device.size());
        device.check();
        device.reset().expect("not in use");
        assert!(is_full_of(7 * BLOCK + 3, 7) && is_full_of(0, 7));
        assert_eq!(device.stats().same_pages, 0);
        device.check();
    }
}

#[test]
fn an_image_with_more_than_fits_is_not_restored() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    let mut roomy = config();
    roomy.table_limit = None;
    let device = Device::new(&roomy).expect("a device");
    for block in 0..BLOCKS {
        write(&device, block * BLOCK, block).expect("room");
        let at = (block * BLOCK + 1) * PAGE;
        device.write(at, &[5; PAGE_SIZE]).expect("room");
    }
    device.save(&path).expect("saved");
    drop(device);
    let device = Device::new(&config()).expect("a device");
    expect_no_room(device.restore(&path).map(drop));
    assert!(used(&device) <= LIMIT);
    let stats = device.stats();
    assert_eq!((stats.orig_data_size, stats.restore_bytes_left), (0, 0));
    device.check();
    for block in 0..LIMIT {
        write(&device, block * BLOCK, block).expect("room");
    }
    device.check();
}

/// A file that serves as a dictionary, as large as any.
fn dictionary(dir: &Path, number: u64) -> std::path::PathBuf {
    let path = dir.join(number.to_string());
    let pages =
        (0..(MAX_DICTIONARY_LEN / PAGE_SIZE) as u64).map(|page| tagged(number << 32 | page));
    fs::write(&path, pages.collect::<Vec<_>>().as_flattened()).expect("written");
    path
}

#[test]
fn of_dictionaries_only_those_in_use_are_kept_ready() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = DeviceConfig::new(100 * PAGE);
    config.algorithm = Algorithm::Zstd { level: 22 };
    config.table_limit = Some(256 << 20);
    let device = Device::new(&config).expect("a device");
    let primary = Priority::PRIMARY;
    let set = |number| {
        let path = dictionary(dir.path(), number);
        device.set_algorithm_params(primary, Some(22), Some(&path))
    };
    let taken = || device.stats().dictionary_bytes;
    set(0).expect("room");
    let one = taken();
    assert!(one > 8 << 20, "{one}");
    for number in 1..4 {
        set(number).expect("room");
        write(&device, number, number).expect("room");
    }
    // The dictionaries themselves are kept, twice as large as their files at most.
    assert!(taken() < one + 3 * (3 << 20), "{one}, {}", taken());
    device.check();
    device
        .set_algorithm(Algorithm::Lz4)
        .expect("it is in this build");
    // What compressed last has its own.
    assert!(taken() < one + 3 * (3 << 20), "{one}, {}", taken());
    for number in 1..4 {
        expect(&device, number, number);
    }
    device.check();
}

#[test]
fn a_dictionary_beyond_the_limit_is_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = config();
    config.algorithm = Algorithm::Zstd { level: 3 };
    config.table_limit = Some(4 << 20);
    let device = Device::new(&config).expect("a device");
    let path = dictionary(dir.path(), 1);
    let error = device
        .set_algorithm_params(Priority::PRIMARY, Some(22), Some(&path))
        .expect_err("what compressing takes is larger");
    assert_eq!(error.errno(), Errno::NOSPC);
    assert!(
        error.to_string().contains("DeviceConfig::table_limit"),
        "{error}"
    );
    assert_eq!(device.algorithm(), Algorithm::Zstd { level: 3 });
    write(&device, 1, 1).expect("room");
    expect(&device, 1, 1);
    device.check();
}
