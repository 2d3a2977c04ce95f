//! A device whose pages are still in the image that it is restored from.

mod faults;
mod room;

use std::fs;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::*;

/// Enough for several segments.
const PAGES: u64 = 10_000;

/// Too little memory for much to come there.
const NO_ROOM: u64 = 100;

struct Image {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

/// A page that tells its tag, and compresses to a length of its own.
fn mixed(tag: u64) -> Page {
    let mut page = tagged(tag);
    page[16 + tag as usize % 4000..].fill(7);
    page
}

fn write(device: &Device, page: u64, tag: u64) -> crate::Result<()> {
    device.write(page * PAGE, &mixed(tag))
}

#[track_caller]
fn expect(device: &Device, page: u64, tag: u64) {
    let mut found = [0; PAGE_SIZE];
    device.read(page * PAGE, &mut found).expect("readable");
    assert!(found == mixed(tag), "page {page} is not {tag}");
}

/// An image in which each page has its own number for a tag, but for a same-filled one and two that are
/// empty at its end.
fn image() -> Image {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("image");
    let device = Device::new(&DeviceConfig::new((PAGES + 3) * PAGE)).expect("a device");
    for page in 0..PAGES {
        write(&device, page, page).expect("room");
    }
    device.write(PAGES * PAGE, &[5; PAGE_SIZE]).expect("room");
    assert_eq!(device.save(&path).expect("saved").pages, PAGES + 1);
    Image { _dir: dir, path }
}

fn config(limit_pages: Option<u64>) -> DeviceConfig {
    let mut config = DeviceConfig::new((PAGES + 3) * PAGE);
    config.mem_limit = limit_pages.map(|pages| pages * PAGE);
    config.shards = Some(2);
    config
}

/// A device that keeps its pages in the image.
fn waiting(image: &Path) -> Device {
    let device = Device::new(&config(Some(NO_ROOM))).expect("a device");
    assert_eq!(device.restore(image).expect("an image"), PAGES + 1);
    device
}

fn left(device: &Device) -> u64 {
    device.stats().restore_bytes_left
}

fn is_restored(device: &Device) -> bool {
    left(device) == 0 && device.engine.spilled.stores.image().is_none()
}

fn expect_all(device: &Device) {
    for page in 0..PAGES {
        expect(device, page, page);
    }
    let mut found = [0; 3 * PAGE_SIZE];
    device.read(PAGES * PAGE, &mut found).expect("readable");
    assert!(found[..PAGE_SIZE] == [5; PAGE_SIZE] && found[PAGE_SIZE..] == [0; 2 * PAGE_SIZE]);
}

#[test]
fn pages_are_read_from_the_image_and_change_while_they_are_there() {
    let image = image();
    let device = waiting(&image.path);
    // It is open.
    fs::remove_file(&image.path).expect("there");
    let stats = device.stats();
    assert_eq!(stats.written_back_pages + stats.resident_pages, PAGES);
    assert_eq!(stats.orig_data_size, (PAGES + 1) * PAGE);
    assert_eq!((stats.backing_bytes_used, stats.backing_bytes_live), (0, 0));
    assert!(stats.restore_bytes_left > PAGES * PAGE / 12);
    device.check();
    expect_all(&device);
    assert!(left(&device) > stats.restore_bytes_left * 9 / 10);
    device.check();

    write(&device, 10, 1000).expect("room");
    device.write(11 * PAGE + 16, &[7; 8]).expect("room");
    device
        .discard(20 * PAGE, 3000 * PAGE)
        .expect("no room needed");
    device
        .write_zeroes(3020 * PAGE, 10 * PAGE)
        .expect("no room needed");
    expect(&device, 10, 1000);
    let mut part = mixed(11);
    part[16..24].fill(7);
    let mut found = vec![0; 3010 * PAGE_SIZE];
    device
        .read(11 * PAGE, &mut found[..PAGE_SIZE])
        .expect("readable");
    assert!(found[..PAGE_SIZE] == part);
    device.read(20 * PAGE, &mut found).expect("readable");
    assert!(found.iter().all(|&byte| byte == 0));
    for page in (0..10).chain(12..20).chain(3030..PAGES) {
        expect(&device, page, page);
    }
    assert!(left(&device) < stats.restore_bytes_left * 3 / 4);
    device.check();

    device.discard(0, PAGES * PAGE).expect("no room needed");
    assert_eq!(left(&device), 0);
    eventually("closed", || is_restored(&device));
    device.check();
}

#[test]
fn it_can_be_saved_and_reset_before_it_is_there() {
    let image = image();
    let device = waiting(&image.path);
    write(&device, 3, 33).expect("room");
    device.save(&image.path).expect("saved");
    assert!(left(&device) > 0);
    device.reset().expect("not in use");
    assert_eq!(left(&device), 0);
    let mut found = [1; PAGE_SIZE];
    device.read(4 * PAGE, &mut found).expect("readable");
    assert_eq!(found, [0; PAGE_SIZE]);
    eventually("closed", || is_restored(&device));

    let again = waiting(&image.path);
    expect(&again, 3, 33);
    write(&again, 3, 3).expect("room");
    expect_all(&again);
    let refused = again.restore(&image.path).expect_err("not empty");
    assert_eq!(refused.errno(), Errno::BUSY);
    // The first image may be the second one's, too.
    device.restore(&image.path).expect("an image");
    expect(&device, 3, 33);
    device.check();
}

/// Each page is written by one thread and read by another, while all of them come to memory.
#[test]
fn nothing_that_is_written_meanwhile_is_lost() {
    let image = image();
    for limit in [None, Some(1500)] {
        let backing = limit.map(|_| Arc::new(FaultyBacking::new(100)) as Arc<dyn Backing>);
        let device = Device::with_stores(&config(limit), Origin::Blank, backing);
        let device = device.expect("a device");
        device.restore(&image.path).expect("an image");
        std::thread::scope(|scope| {
            for writer in 0..2 {
                let device = &device;
                scope.spawn(move || {
                    for page in (writer..PAGES).step_by(4) {
                        write(device, page, page + PAGES).expect("room");
                        expect(device, page, page + PAGES);
                    }
                });
            }
            scope.spawn(|| {
                for page in (0..PAGES).rev().filter(|page| page % 4 > 1) {
                    expect(&device, page, page);
                }
            });
        });
        eventually("restored", || is_restored(&device));
        for page in 0..PAGES {
            expect(
                &device,
                page,
                if page % 4 < 2 { page + PAGES } else { page },
            );
        }
        device.check();
    }
}
