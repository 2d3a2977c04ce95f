//! A device whose pages are still in the image that it is restored from.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rustix::io::Errno;

use parking_lot::Mutex;

use super::*;
use crate::attributes::Attribute;
use crate::codec::Codec;
use crate::config::BackingConfig;
use crate::device::core::Watermarks;
use crate::image::{Entry, ImageReader, ImageWriter, PageData, Part};
use crate::spill::{SEGMENT_BYTES, SegmentStore, StoreSegment};
use crate::units::PageIndex;

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

/// The bytes of an image where the records of pages start.
fn places(image: &Path) -> BTreeMap<u64, u64> {
    let mut reader = ImageReader::open(image).expect("an image");
    let (mut places, mut buffer) = (BTreeMap::new(), Vec::new());
    while let Some(part) = reader.next(&mut buffer).expect("whole") {
        let Part::Pages(index) = part else {
            panic!("there is no dictionary");
        };
        for (entry, _) in index.entries().flatten() {
            if let Entry::Record { page, address, .. } = entry {
                places.insert(page.0.into(), address.byte());
            }
        }
    }
    places
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

/// An image's store that can be told to misbehave.
struct Failing {
    store: Arc<dyn SegmentStore>,
    /// Segments that cannot be read.
    unreadable: Mutex<Range<u32>>,
    /// Reads of whole segments.
    segments_read: AtomicU64,
    /// Held while reads of whole segments hang.
    hangs: Mutex<()>,
}

impl Failing {
    fn of(image: &Path) -> (ImageReader, Arc<Self>) {
        let reader = ImageReader::open(image).expect("an image");
        let failing = Self {
            store: Arc::new(reader.store().expect("open")),
            unreadable: Mutex::new(0..0),
            segments_read: AtomicU64::new(0),
            hangs: Mutex::default(),
        };
        (reader, Arc::new(failing))
    }

    fn restore(device: &Device, image: &Path, unreadable: Range<u32>) -> Arc<Self> {
        let (reader, failing) = Self::of(image);
        *failing.unreadable.lock() = unreadable;
        let restored = device.restore_from(reader, Arc::clone(&failing) as _);
        assert_eq!(restored.expect("an image"), PAGES + 1);
        failing
    }
}

impl SegmentStore for Failing {
    fn read(&self, segment: StoreSegment, offset: u32, buf: &mut [u8]) -> io::Result<()> {
        if buf.len() > 1 << 19 {
            self.segments_read.fetch_add(1, Relaxed);
            drop(self.hangs.lock());
        }
        if self.unreadable.lock().contains(&segment.0) {
            return Err(Errno::IO.into());
        }
        self.store.read(segment, offset, buf)
    }

    fn discard(&self, segment: StoreSegment) {
        self.store.discard(segment);
    }

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
fn all_of_it_comes_to_memory_where_there_is_room() {
    let image = image();
    let device = Device::new(&config(None)).expect("a device");
    let failing = Failing::restore(&device, &image.path, 0..100);
    // It is not to be read before it is needed, and tried again when it cannot be.
    let error = device.read(0, &mut [0; PAGE_SIZE]).expect_err("unreadable");
    assert_eq!(error.errno(), Errno::IO);
    assert!(left(&device) > 0);
    *failing.unreadable.lock() = 0..0;
    eventually("restored", || is_restored(&device));
    assert_eq!(Arc::strong_count(&failing), 1);
    let stats = device.stats();
    assert_eq!((stats.resident_pages, stats.written_back_pages), (PAGES, 0));
    expect_all(&device);
    device.check();
}

#[test]
fn what_cannot_be_read_holds_up_nothing_else() {
    let image = image();
    let device = Device::new(&config(None)).expect("a device");
    let segments = fs::metadata(&image.path)
        .expect("there")
        .len()
        .div_ceil(SEGMENT_BYTES);
    assert!(segments >= 4);
    let failing = Failing::restore(&device, &image.path, 0..3);
    eventually("the others are there", || {
        left(&device) <= 3 * SEGMENT_BYTES
    });
    *failing.unreadable.lock() = 0..0;
    eventually("restored", || is_restored(&device));
    expect_all(&device);
    device.check();
}

#[test]
fn an_image_that_hangs_holds_up_nobody() {
    let image = image();
    let backing = Arc::new(FaultyBacking::new(100));
    let device = device(PAGES + 3, 1200, 2, &backing);
    let (reader, failing) = Failing::of(&image.path);
    let hanging = failing.hangs.lock();
    let restored = device.restore_from(reader, Arc::clone(&failing) as _);
    restored.expect("an image");
    let begun = Instant::now();
    // What needs the writeback thread.
    for page in 0..PAGES {
        write(&device, page, page + 1).expect("room");
    }
    device.evict(1 << 20).expect("room");
    device.replace_backing(None, None).expect_err("no room");
    assert!(begun.elapsed() < Duration::from_secs(30));
    for page in (0..PAGES).rev() {
        expect(&device, page, page + 1);
    }
    drop(device);
    drop(hanging);
}

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
        let Watermarks { low, high } = device.core.watermarks();
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
fn an_image_that_is_refused_leaves_nothing_behind() {
    let good = image();
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("twice");
    let file = File::create(&path).expect("a file");
    let mut bad = ImageWriter::new(file, 200 * PAGE).expect("room");
    for page in 0..200 {
        let data = PageData::Object(Codec::Lz4, &[7; 1000]);
        bad.push(PageIndex(page), data).expect("room");
    }
    let data = PageData::SameFilled(7);
    bad.push(PageIndex(100), data).expect("room");
    bad.finish().expect("room");
    let device = Device::new(&config(None)).expect("a device");
    let error = device.restore(&path).expect_err("twice");
    assert!(
        error.to_string().ends_with("page 100 is in it twice"),
        "{error}"
    );
    let stats = device.stats();
    assert_eq!((stats.orig_data_size, stats.restore_bytes_left), (0, 0));
    let mut found = [1; 200 * PAGE_SIZE];
    device.read(0, &mut found).expect("empty");
    assert!(found == [0; 200 * PAGE_SIZE]);
    device.check();
    device.restore(&good.path).expect("an image");
    eventually("restored", || is_restored(&device));
    expect_all(&device);
    device.check();
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

#[test]
fn damage_costs_the_pages_that_it_hit() {
    let image = image();
    let places = places(&image.path);
    let hit = [0, 7, 2000, 2001, PAGES - 1];
    for page in hit {
        damage(&image.path, places[&page] + 11);
    }
    for limit in [Some(NO_ROOM), None] {
        let device = Device::new(&config(limit)).expect("a device");
        device.restore(&image.path).expect("an image");
        if limit.is_none() {
            eventually("salvaged", || {
                device.stats().written_back_pages == hit.len() as u64
            });
        }
        let (mut found, mut next) = (Vec::new(), Some(0));
        while let Some(from) = next {
            let step = device.scrub(from);
            found.extend(step.damaged);
            next = step.next;
        }
        assert_eq!(found, hit);
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
    const LEN: u64 = 3 << 20;
    let image = image();
    let places = places(&image.path);
    let device = waiting(&image.path);
    let file = File::options()
        .write(true)
        .open(&image.path)
        .expect("there");
    file.set_len(LEN).expect("shorter");
    let mut lost = 0;
    for page in 0..PAGES {
        match device.read(page * PAGE, &mut [0; PAGE_SIZE]) {
            Ok(()) => expect(&device, page, page),
            Err(error) => {
                assert_eq!(error.errno(), Errno::IO);
                // Or its record goes on behind the end.
                assert!(places[&page] + PAGE > LEN, "page {page}");
                lost += 1;
            }
        }
    }
    assert!(lost > 1000 && device.stats().failed_reads == lost);
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
