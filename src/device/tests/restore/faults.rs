//! An image that cannot be read, hangs, or is damaged.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::*;
use crate::codec::Codec;
use crate::image::{Entry, ImageReader, ImageWriter, PageData, Part};
use crate::spill::{SEGMENT_BYTES, Store};
use crate::units::PageIndex;

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
pub(super) struct Failing {
    store: Arc<dyn Store>,
    /// Segments that cannot be read.
    unreadable: Mutex<Range<u32>>,
    /// Reads of whole segments.
    pub(super) segments_read: AtomicU64,
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

    pub(super) fn restore(device: &Device, image: &Path, unreadable: Range<u32>) -> Arc<Self> {
        let (reader, failing) = Self::of(image);
        *failing.unreadable.lock() = unreadable;
        let restored = device.restore_from(reader, Arc::clone(&failing) as _);
        assert_eq!(restored.expect("an image"), PAGES + 1);
        failing
    }
}

impl Store for Failing {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        if buf.len() > 1 << 19 {
            self.segments_read.fetch_add(1, Relaxed);
            drop(self.hangs.lock());
        }
        if self
            .unreadable
            .lock()
            .contains(&((offset / SEGMENT_BYTES) as u32))
        {
            return Err(Errno::IO.into());
        }
        self.store.read_at(offset, buf)
    }

    fn discard(&self, segment: Range<u64>) {
        self.store.discard(segment);
    }

    fn path(&self) -> &Path {
        self.store.path()
    }
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
