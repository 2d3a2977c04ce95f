//! A device whose pages are still in the image that it is restored from.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::io::Errno;

use super::*;
use crate::config::BackingConfig;
use crate::image::ImageReader;
use crate::shard::SlotState;
use crate::spill::StoreSegment;

/// Enough for several segments.
const PAGES: u64 = 10_000;

/// Too little memory for anything to come there by itself.
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
    left(device) == 0 && device.core.stores.image().is_none()
}

fn expect_all(device: &Device) {
    for page in 0..PAGES {
        expect(device, page, page);
    }
    let mut found = [0; 3 * PAGE_SIZE];
    device.read(PAGES * PAGE, &mut found).expect("readable");
    assert!(found[..PAGE_SIZE] == [5; PAGE_SIZE] && found[PAGE_SIZE..] == [0; 2 * PAGE_SIZE]);
}

/// The byte of the image where the record of a page starts.
fn place(device: &Device, page: u64) -> u64 {
    let run = device
        .core
        .layout
        .run(crate::PageIndex(page as u32), page + 1);
    match device.core.shard(run.shard).slot(run.slot).state() {
        SlotState::WrittenBack { record, .. } => record.within_store().byte(),
        state => panic!("{state:?}"),
    }
}

fn damage(image: &Path, byte: u64) {
    let file = File::options()
        .read(true)
        .write(true)
        .open(image)
        .expect("there");
    let mut there = [0];
    file.read_exact_at(&mut there, byte).expect("there");
    file.write_all_at(&[!there[0]], byte).expect("written");
}

/// An image's store that can be told to fail.
struct Failing {
    store: Arc<dyn Backing>,
    fails: AtomicBool,
}

impl Failing {
    fn restore(device: &Device, image: &Path) -> Arc<Self> {
        let reader = ImageReader::open(image).expect("an image");
        let failing = Arc::new(Self {
            store: Arc::new(reader.store().expect("open")),
            fails: AtomicBool::new(true),
        });
        let restored = device.restore_from(reader, Arc::clone(&failing) as _);
        assert_eq!(restored.expect("an image"), PAGES + 1);
        failing
    }
}

impl Backing for Failing {
    fn capacity(&self, size: Option<u64>) -> crate::Result<u32> {
        self.store.capacity(size)
    }

    fn write(&self, _: StoreSegment, _: u32, _: &[u8]) -> io::Result<()> {
        panic!("an image is only read");
    }

    fn read(&self, segment: StoreSegment, offset: u32, buf: &mut [u8]) -> io::Result<()> {
        if self.fails.load(Relaxed) {
            return Err(Errno::IO.into());
        }
        self.store.read(segment, offset, buf)
    }

    fn discard(&self, _: StoreSegment) {}

    fn path(&self) -> &Path {
        self.store.path()
    }
}

#[test]
fn pages_are_read_from_the_image_and_change_while_they_are_there() {
    let image = image();
    let device = waiting(&image.path);
    // It is open.
    fs::remove_file(&image.path).expect("there");
    let stats = device.stats();
    assert_eq!(stats.written_back_pages, PAGES);
    assert_eq!(stats.orig_data_size, (PAGES + 1) * PAGE);
    assert_eq!((stats.backing_bytes_used, stats.backing_bytes_live), (0, 0));
    assert!(stats.restore_bytes_left > PAGES * PAGE / 12);
    device.check();
    expect_all(&device);
    assert_eq!(left(&device), stats.restore_bytes_left);
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
fn all_of_it_comes_to_memory_where_there_is_room() {
    let image = image();
    let device = Device::new(&config(None)).expect("a device");
    let failing = Failing::restore(&device, &image.path);
    // It is not to be read before it is needed, and tried again when it cannot be.
    let error = device.read(0, &mut [0; PAGE_SIZE]).expect_err("unreadable");
    assert_eq!(error.errno(), Errno::IO);
    assert!(left(&device) > 0);
    failing.fails.store(false, Relaxed);
    eventually("restored", || is_restored(&device));
    assert_eq!(Arc::strong_count(&failing), 1);
    let stats = device.stats();
    assert_eq!((stats.resident_pages, stats.written_back_pages), (PAGES, 0));
    expect_all(&device);
    device.check();
}

#[test]
fn what_finds_no_room_waits_for_it() {
    let image = image();
    let device = waiting(&image.path);
    // What is read is not kept either: writers need the room.
    expect_all(&device);
    assert_eq!(device.stats().resident_pages, 0);
    std::thread::sleep(Duration::from_millis(100));
    assert!(left(&device) > 0);
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

#[test]
fn damage_costs_the_pages_that_it_hit() {
    let image = image();
    let places: Vec<_> = {
        let device = waiting(&image.path);
        (0..PAGES).map(|page| place(&device, page)).collect()
    };
    let hit = [0, 7, 2000, 2001, PAGES - 1];
    for page in hit {
        damage(&image.path, places[page as usize] + 11);
    }
    for limit in [Some(NO_ROOM), None] {
        let device = Device::new(&config(limit)).expect("a device");
        device.restore(&image.path).expect("an image");
        if limit.is_none() {
            eventually("salvaged", || {
                device.stats().written_back_pages == hit.len() as u64
            });
        }
        let scrubbed = device.scrub(0);
        assert_eq!(scrubbed.damaged[..], hit[..scrubbed.damaged.len()]);
        for page in 0..PAGES {
            if hit.contains(&page) {
                let read = device.read(page * PAGE, &mut [0; PAGE_SIZE]);
                assert_eq!(read.expect_err("damaged").errno(), Errno::IO);
            } else {
                expect(&device, page, page);
            }
        }
        assert_eq!(device.stats().damaged_records, hit.len() as u64);
        device.check();
        for page in hit {
            write(&device, page, page).expect("room");
        }
        expect_all(&device);
        device.check();
    }
}

#[test]
fn a_file_that_was_cut_off_later_loses_what_was_there() {
    let image = image();
    let device = waiting(&image.path);
    let file = File::options()
        .write(true)
        .open(&image.path)
        .expect("there");
    file.set_len(3 << 20).expect("shorter");
    for page in 0..PAGES {
        let (read, is_there) = (
            device.read(page * PAGE, &mut [0; PAGE_SIZE]),
            place_if_spilled(&device, page).is_none_or(|at| at < (3 << 20) - 4096),
        );
        match read {
            Ok(()) => expect(&device, page, page),
            Err(error) => assert!(error.errno() == Errno::IO && !is_there, "{page}: {error}"),
        }
    }
    assert!(device.stats().failed_reads > 100);
    device.check();
}

fn place_if_spilled(device: &Device, page: u64) -> Option<u64> {
    let run = device
        .core
        .layout
        .run(crate::PageIndex(page as u32), page + 1);
    let state = device.core.shard(run.shard).slot(run.slot).state();
    matches!(state, SlotState::WrittenBack { .. }).then(|| place(device, page))
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
