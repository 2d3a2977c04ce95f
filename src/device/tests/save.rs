//! Saving while the device is in use, failures on the way, and what is restored.

use std::cell::Cell;
use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use rustix::io::Errno;
use support::Random;

use super::*;
use crate::algorithm::{Algorithm, Priority};
use crate::error::Error;
use crate::image::ImageFile;
use crate::pool::PoolKind;
use crate::recompression::Recompression;

const PAGES: u64 = 800;

/// The tag of each page of a new device that an image is restored to.
fn restored(path: &Path, config: &DeviceConfig) -> Vec<u64> {
    let device = Device::new(config).expect("a device");
    let pages = device.restore(path).expect("a whole image");
    assert_eq!(device.stats().orig_data_size, pages * PAGE);
    device.check();
    let mut page = [0; PAGE_SIZE];
    (0..PAGES)
        .map(|at| {
            device.read(at * PAGE, &mut page).expect("readable");
            let tag = u64::from_le_bytes(*page[8..].first_chunk().expect("long enough"));
            assert!(
                tag == 0 && page == [0; PAGE_SIZE] || page == tagged(tag),
                "page {at}"
            );
            tag
        })
        .collect()
}

fn image_path() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    (dir, path)
}

/// One writer writes the numbers from 1 on to the pages in turn: at any time each page has the last
/// number that was its own.
#[test]
fn what_is_saved_is_of_one_time_whatever_goes_on() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(PAGES, 200, 4, &backing);
    device
        .set_algorithm_of(Priority::SECONDARY[0], Algorithm::Zstd { level: 1 })
        .expect("it is in this build");
    let (_dir, path) = image_path();
    // In turn on pages of different shards.
    let page_of = |number: u64| number * 37 % PAGES;
    let (stop, written) = (AtomicBool::new(false), AtomicU64::new(0));
    for number in 1..=PAGES {
        write(&device, page_of(number), number).expect("room");
    }
    written.store(PAGES, Relaxed);
    let mut moments = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut number = PAGES;
            while !stop.load(Relaxed) {
                number += 1;
                write(&device, page_of(number), number).expect("room");
                written.store(number, Relaxed);
            }
        });
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                device.compact();
                device.evict(50 * PAGE).expect("room");
                device.recompress(&Recompression::ALL).expect("no end");
                device
                    .read(0, &mut vec![0; 300 * PAGE_SIZE])
                    .expect("readable");
            }
        });
        for _ in 0..12 {
            let before = written.load(Relaxed);
            let saved = device.save(&path).expect("saved");
            let after = written.load(Relaxed) + 1;
            assert_eq!(saved.pages, PAGES);
            assert_eq!(saved.bytes, fs::metadata(&path).expect("there").len());
            let tags = restored(&path, &DeviceConfig::new(PAGES * PAGE));
            let last = *tags.iter().max().expect("pages");
            assert!((before..=after).contains(&last), "{before} {last} {after}");
            let expected = (last + 1 - PAGES..=last).map(|number| (page_of(number), number));
            for (page, number) in expected {
                assert_eq!(tags[page as usize], number, "page {page} at {last}");
            }
            moments.push(after - before);
        }
        stop.store(true, Relaxed);
    });
    assert!(
        moments.iter().any(|&written| written > 1),
        "nothing went on"
    );
    assert!(device.save_progress().is_none());
    device.check();
}

#[test]
fn what_is_discarded_or_zeroed_meanwhile_is_saved_first() {
    let device = Device::new(&DeviceConfig::new(PAGES * PAGE)).expect("a device");
    for page in 0..PAGES {
        write(&device, page, page + 1).expect("room");
    }
    let (_dir, path) = image_path();
    std::thread::scope(|scope| {
        let saving = scope.spawn(|| device.save_to(Vec::new(), &path, &|| true));
        device.discard(0, 300 * PAGE).expect("no room needed");
        device
            .write_zeroes(300 * PAGE, 300 * PAGE)
            .expect("no room needed");
        device.write(600 * PAGE + 5, b"part").expect("room");
        let (out, saved) = saving.join().expect("no panic").expect("saved");
        fs::write(&path, out).expect("written");
        let order = restored_as_at_a_time(&path, saved.pages);
        assert!(order.is_ok(), "{order:?}");
    });
}

/// Whether the steps of the test above appear in the image in their order, if at all.
fn restored_as_at_a_time(path: &Path, pages: u64) -> Result<(), String> {
    let device = Device::new(&DeviceConfig::new(PAGES * PAGE)).expect("a device");
    device.restore(path).expect("a whole image");
    let mut page = [0; PAGE_SIZE];
    let mut is = |at: u64, expected: &Page| {
        device.read(at * PAGE, &mut page).expect("readable");
        page == *expected
    };
    let zero = [0; PAGE_SIZE];
    // Both go page by page, each shard in its order: a page that is done says that the step began.
    let discarded = (0..300).filter(|&at| is(at, &zero)).count();
    let zeroed = (300..600).filter(|&at| is(at, &zero)).count();
    let mut part = tagged(601);
    part[5..9].copy_from_slice(b"part");
    let changed = is(600, &part);
    if !changed && !is(600, &tagged(601)) {
        return Err("a torn page".to_owned());
    }
    for at in (0..600).chain(601..PAGES) {
        if !is(at, &zero) && !is(at, &tagged(at + 1)) {
            return Err(format!("page {at}"));
        }
    }
    let in_order = (zeroed == 0 || discarded == 300) && (!changed || zeroed == 300);
    let empty = PAGES - pages;
    (in_order && empty == discarded as u64)
        .then_some(())
        .ok_or_else(|| format!("{discarded} {zeroed} {changed} {empty}"))
}

/// All pages change after the save began, and before it comes to any of them: while the first are read
/// from the backing.
#[test]
fn what_changes_before_its_turn_is_saved_as_it_was() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = Arc::new(device(PAGES, 2 * PAGES, 2, &backing));
    for page in 0..PAGES {
        write(&device, page, page + 1).expect("room");
    }
    device.evict(PAGES * PAGE).expect("room");
    // Most are in memory.
    for page in 100..PAGES {
        write(&device, page, page + 1).expect("room");
    }
    let change = |device: &Device, page: u64| match page % 4 {
        0 => write(device, page, page + 1000),
        1 => device.write(page * PAGE + 5, b"part"),
        2 => device.discard(page * PAGE, PAGE),
        _ => device.write_zeroes(page * PAGE, PAGE),
    };
    let (saved, has_begun) = (Arc::downgrade(&device), AtomicBool::new(false));
    backing.before_read(move || {
        if let Some(device) = saved.upgrade()
            && !has_begun.swap(true, Relaxed)
        {
            let progress = device.save_progress().expect("it goes on");
            assert_eq!((progress.pages, progress.of), (0, PAGES));
            (0..PAGES).for_each(|page| change(&device, page).expect("room"));
        }
    });
    let (_dir, path) = image_path();
    assert_eq!(device.save(&path).expect("saved").pages, PAGES);
    let tags = restored(&path, &DeviceConfig::new(PAGES * PAGE));
    assert!(tags.into_iter().eq(1..=PAGES));
    for page in 0..PAGES {
        let mut expected = match page % 4 {
            0 => tagged(page + 1000),
            1 => tagged(page + 1),
            _ => [0; PAGE_SIZE],
        };
        if page % 4 == 1 {
            expected[5..9].copy_from_slice(b"part");
        }
        let mut found = [0; PAGE_SIZE];
        device.read(page * PAGE, &mut found).expect("readable");
        assert!(found == expected, "page {page}");
    }
    assert!(device.save_progress().is_none());
    device.check();
}

#[test]
fn an_image_fits_other_pools_and_larger_devices() {
    let (_dir, path) = image_path();
    let mut config = DeviceConfig::new(PAGES * PAGE);
    config.pool = PoolKind::Zbud;
    let device = Device::new(&config).expect("a device");
    for page in (0..PAGES).step_by(3) {
        write(&device, page, page + 1).expect("room");
    }
    // One that only zbud stores compressed.
    let mut noise = tagged(7);
    Random(1).fill(&mut noise[..3750]);
    device.write((PAGES - 1) * PAGE, &noise).expect("room");
    device.save(&path).expect("saved");
    assert_eq!(crate::saved_size(&path).expect("an image"), PAGES * PAGE);
    for pool in PoolKind::ALL {
        let mut config = DeviceConfig::new(2 * PAGES * PAGE);
        config.pool = pool;
        config.shards = Some(3);
        let restored = Device::new(&config).expect("a device");
        restored.restore(&path).expect("a whole image");
        for page in (0..PAGES - 1).step_by(3) {
            expect(&restored, page, page + 1);
        }
        let mut found = [0; PAGE_SIZE];
        restored
            .read((PAGES - 1) * PAGE, &mut found)
            .expect("readable");
        assert!(found == noise, "{pool}");
        restored.check();
        let twice = restored.restore(&path).expect_err("not empty");
        assert_eq!(twice.errno(), Errno::BUSY);
    }
    let small = Device::new(&DeviceConfig::new(PAGE)).expect("a device");
    let error = small.restore(&path).expect_err("too small");
    assert!(matches!(error, Error::Unusable { .. }), "{error}");
}

#[test]
fn a_file_that_fails_leaves_the_old_one_and_the_device_alone() {
    struct Failing {
        file: ImageFile,
        room: usize,
        errno: Errno,
    }
    impl Write for Failing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let left = self.room.checked_sub(bytes.len());
            self.room = left.ok_or(io::Error::from(self.errno))?;
            self.file.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            self.file.flush()
        }
    }
    let device = Device::new(&DeviceConfig::new(PAGES * PAGE)).expect("a device");
    for page in 0..PAGES {
        write(&device, page, page + 1).expect("room");
    }
    let (dir, path) = image_path();
    for (room, errno) in [
        (0, Errno::NOSPC),
        (100, Errno::IO),
        (200_000, Errno::NOSPC),
        (200_000, Errno::IO),
    ] {
        let file = ImageFile::create(&path).expect("a file");
        let failing = Failing { file, room, errno };
        let saved = device.save_to(failing, &path, &|| true);
        let error = saved.map(|_| ()).expect_err("failing");
        assert_eq!(error.errno(), errno);
        let words = format!("write {}", path.display());
        assert!(error.to_string().contains(&words), "{error}");
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 0);
    }
    fs::write(&path, "old").expect("written");
    let error = device.save(dir.path()).expect_err("a directory");
    assert!(error.to_string().contains("not a regular file"), "{error}");
    let missing = dir.path().join("missing/image");
    assert_eq!(
        device.save(&missing).expect_err("no directory").errno(),
        Errno::NOENT
    );
    assert_eq!(fs::read(&path).expect("there"), b"old");
    assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 1);
    write(&device, 5, 1000).expect("room");
    assert_eq!(device.save(&path).expect("saved").pages, PAGES);
    assert_eq!(restored(&path, &DeviceConfig::new(PAGES * PAGE))[5], 1000);
}

#[test]
fn a_save_that_nobody_waits_for_ends() {
    let device = Device::new(&DeviceConfig::new(PAGES * PAGE)).expect("a device");
    for page in 0..PAGES {
        write(&device, page, page + 1).expect("room");
    }
    let (dir, path) = image_path();
    let asked = Cell::new(0);
    let amid = || asked.replace(asked.get() + 1) < 10;
    let until_all_is_written = || device.save_progress().is_some();
    let ends: [&dyn Fn() -> bool; 3] = [&|| false, &amid, &until_all_is_written];
    for (number, wanted) in (1..).zip(ends) {
        let error = device.save_while(&path, wanted).expect_err("not wanted");
        assert_eq!(error.errno(), Errno::CANCELED);
        assert_eq!(fs::read_dir(dir.path()).expect("there").count(), 0);
        assert!(device.save_progress().is_none());
        write(&device, 5, 1000 + number).expect("room");
    }
    device.save(&path).expect("saved");
}

#[test]
fn a_save_says_how_far_it_is() {
    let device = Device::new(&DeviceConfig::new(PAGES * PAGE)).expect("a device");
    for page in 0..PAGES {
        write(&device, page, page + 1).expect("room");
    }
    let (_dir, path) = image_path();
    // It is asked once more when all is written.
    let last = Cell::new(0);
    let note = || {
        if let Some(progress) = device.save_progress() {
            assert!((last.get()..=PAGES).contains(&progress.pages) && progress.of == PAGES);
            last.set(progress.pages);
        }
        true
    };
    device.save_while(&path, &note).expect("saved");
    assert_eq!(last.get(), PAGES);
}

#[test]
fn a_page_that_is_lost_is_no_part_of_an_image() {
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(PAGES, 200, 1, &backing);
    for page in 0..PAGES {
        write(&device, page, page + 1).expect("room");
    }
    device.evict(PAGES * PAGE).expect("room");
    let (_dir, path) = image_path();
    backing.fail_reads.store(true, Relaxed);
    let error = device.save(&path).expect_err("unreadable");
    assert_eq!(error.errno(), Errno::IO);
    assert!(!path.exists());
    // Writers do not wait for a save that has failed.
    write(&device, 7, 7).expect("room");
    backing.fail_reads.store(false, Relaxed);
    device.save(&path).expect("saved");
}

#[test]
fn the_last_image_has_all_that_was_ever_written() {
    let device = Device::new(&DeviceConfig::new(PAGES * PAGE)).expect("a device");
    write(&device, 3, 33).expect("room");
    let (_dir, path) = image_path();
    let user = device.enter(crate::Who::default());
    assert_eq!(
        device
            .save_last(&path, &|| true)
            .expect_err("in use")
            .errno(),
        Errno::BUSY
    );
    write(&device, 4, 44).expect("room");
    drop(user);
    device.save_last(&path, &|| true).expect("saved");
    assert_eq!(
        write(&device, 3, 1).expect_err("final").errno(),
        Errno::ROFS
    );
    assert!(device.discard(0, PAGES * PAGE).is_err() && device.write_zeroes(0, PAGE).is_err());
    for refused in [
        device.reset(),
        device.resize(4 * PAGE),
        device.resize_discarding(PAGE),
        device.resize(2 * PAGES * PAGE),
    ] {
        assert_eq!(refused.expect_err("final").errno(), Errno::ROFS);
    }
    let tags = restored(&path, &DeviceConfig::new(PAGES * PAGE));
    assert_eq!((tags[3], tags[4]), (33, 44));
    expect(&device, 3, 33);
}
