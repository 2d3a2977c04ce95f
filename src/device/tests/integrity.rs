//! Damage done to the backing: found wherever it is, in either format, and of no more than the
//! pages whose records it hit.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::*;
use crate::device::Scrubbed;
use crate::origin::Origin;
use crate::shard::SlotState;
use crate::spill::BackingConfig;
use crate::spill::{
    MAX_RECORD_LEN, RecordAddress, RecordFormat, SEGMENT_BYTES, SegmentIndex, Store,
};

/// A device whose records are of either format.
fn device_of(format: Format, pages: u64, backing: Arc<dyn Backing>) -> Device {
    limited(format, pages, 64, backing)
}

fn limited(format: Format, pages: u64, limit: u64, backing: Arc<dyn Backing>) -> Device {
    let mut config = DeviceConfig::new(pages * PAGE);
    config.mem_limit = Some(limit * PAGE);
    config.shards = Some(2);
    config.backing = Some(BackingConfig {
        encrypt: format == Format::Sealed,
        ..BackingConfig::new("unused")
    });
    Device::with_stores(&config, Origin::Blank, Some(backing)).expect("a device")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Checked,
    Sealed,
}

const FORMATS: [Format; 2] = [Format::Checked, Format::Sealed];

fn fill(device: &Device, pages: u64) {
    for page in 0..pages {
        write(device, page, page).expect("room");
    }
    while device.evict(u64::MAX / 2).expect("evicted") > 0 {}
}

/// Where each spilled page's record is, and its bytes up to the padding.
fn records(device: &Device, pages: u64) -> BTreeMap<u64, (RecordAddress, usize)> {
    let engine = &device.engine;
    let record = |page| {
        let run = engine
            .shards
            .layout
            .run(crate::PageIndex(page as u32), page + 1);
        match engine.shards.lock(run.shard).slot(run.slot).state() {
            SlotState::WrittenBack { record, len, .. } => Some((
                page,
                (record, engine.spilled.formats.spilled.record_len(len) - 16),
            )),
            _ => None,
        }
    };
    (0..pages).filter_map(record).collect()
}

/// The pages that cannot be read. What can be is what was written.
fn refused(device: &Device, pages: u64) -> BTreeSet<u64> {
    (0..pages)
        .filter(|&page| {
            let mut found = [0; PAGE_SIZE];
            match device.read(page * PAGE, &mut found) {
                Ok(()) => {
                    assert!(found == tagged(page), "page {page}: wrong data");
                    false
                }
                Err(error) => {
                    assert_eq!(error.errno(), Errno::IO);
                    true
                }
            }
        })
        .collect()
}

fn scrub(device: &Device) -> Scrubbed {
    let mut total = Scrubbed::default();
    let mut at = Some(0);
    while let Some(from) = at {
        let step = device.scrub(from);
        total.intact += step.intact;
        total.damaged.extend(step.damaged);
        total.unreadable.extend(step.unreadable);
        at = step.next;
    }
    total
}

/// Calls `damage` on the contents of the segment that a record is in, with the record's offset.
fn damage_record(
    backing: &FaultyBacking,
    record: RecordAddress,
    damage: impl FnOnce(&mut [u8], usize),
) {
    let segment = SegmentIndex::of(record);
    let offset = (record.byte() - segment.byte()) as usize;
    backing.damage_segment(segment.within_store().0, |bytes| damage(bytes, offset));
}

#[test]
fn every_flipped_page_fails_alone_and_counts_once() {
    for format in FORMATS {
        let backing = Arc::new(FaultyBacking::new(100));
        let device = device_of(format, 3000, Arc::clone(&backing) as _);
        fill(&device, 3000);
        let records = records(&device, 3000);
        assert_eq!(records.len(), 3000);
        let whole = scrub(&device);
        assert_eq!((whole.intact, whole.damaged.len()), (3000, 0));

        let mut hit = BTreeSet::new();
        for (&page, &(record, len)) in records.iter().step_by(37) {
            let bit = (page * 7919) as usize % (len * 8);
            damage_record(&backing, record, |bytes, at| {
                bytes[at + bit / 8] ^= 1 << (bit % 8);
            });
            hit.insert(page);
        }
        assert_eq!(refused(&device, 3000), hit, "{format:?}");
        assert_eq!(device.stats().damaged_records, hit.len() as u64);
        // Found again they are the same ones.
        assert_eq!(refused(&device, 3000), hit);
        let scrubbed = scrub(&device);
        let damaged: BTreeSet<u64> = scrubbed.damaged.iter().copied().collect();
        assert_eq!(damaged, hit);
        assert_eq!(device.stats().damaged_records, hit.len() as u64);
        device.check();
    }
}

#[test]
fn of_swapped_blocks_every_record_is_refused() {
    for format in FORMATS {
        let backing = Arc::new(FaultyBacking::new(100));
        let device = device_of(format, 3000, Arc::clone(&backing) as _);
        fill(&device, 3000);
        let swapped = [3 * PAGE_SIZE..4 * PAGE_SIZE, 9 * PAGE_SIZE..10 * PAGE_SIZE];
        backing.damage_segment(0, |bytes| {
            let (low, high) = bytes.split_at_mut(swapped[1].start);
            low[swapped[0].clone()].swap_with_slice(&mut high[..PAGE_SIZE]);
        });
        let touched = |&(record, len): &(RecordAddress, usize)| {
            let (start, end) = (record.byte() as usize, record.byte() as usize + len);
            swapped
                .iter()
                .any(|block| start < block.end && end > block.start)
        };
        let hit: BTreeSet<u64> = records(&device, 3000)
            .iter()
            .filter(|(_, place)| touched(place))
            .map(|(&page, _)| page)
            .collect();
        assert!(hit.len() > 4);
        assert_eq!(refused(&device, 3000), hit, "{format:?}");
        assert_eq!(scrub(&device).damaged.len(), hit.len());
    }
}

#[test]
fn cleaning_leaves_behind_only_what_is_damaged() {
    const PAGES: u64 = 16_000;
    for format in FORMATS {
        let backing = Arc::new(FaultyBacking::new(100));
        let device = device_of(format, PAGES, Arc::clone(&backing) as _);
        fill(&device, PAGES);
        let before = records(&device, PAGES);
        let segment_of = |page: &u64| SegmentIndex::of(before[page].0);
        // The open one is not cleaned.
        let last = before.keys().map(segment_of).max().expect("spilled");
        assert!(last.0 > 7);
        let lost = damage_two_in_each(&backing, &before, last);
        // Seven pages in eight go, and all segments become sparse.
        for page in (0..PAGES).filter(|page| page % 8 != 0) {
            device.discard(page * PAGE, PAGE).expect("no room needed");
        }
        eventually("counted", || {
            device.stats().damaged_records == lost.len() as u64
        });
        device.check();
        let after = records(&device, PAGES);
        let stayed: BTreeSet<u64> = after
            .iter()
            .filter(|(page, (record, _))| segment_of(page) != last && before[page].0 == *record)
            .map(|(&page, _)| page)
            .collect();
        assert_eq!(stayed, lost, "{format:?}");
        for page in (0..PAGES).step_by(8).filter(|page| !lost.contains(page)) {
            expect(&device, page, page);
        }
        // A lost page can be written, and then nothing is left of the damage.
        for &page in &lost {
            write(&device, page, page).expect("room");
        }
        for page in (0..PAGES).step_by(8) {
            expect(&device, page, page);
        }
        device.check();
        device.discard(0, PAGES * PAGE).expect("no room needed");
        eventually("empty", || backing.in_use() == 0);
    }
}

/// Damages the headers of two records in each segment but the last, so that where they end is
/// unknown; returns their pages, which are multiples of 8.
fn damage_two_in_each(
    backing: &FaultyBacking,
    records: &BTreeMap<u64, (RecordAddress, usize)>,
    last: SegmentIndex,
) -> BTreeSet<u64> {
    let mut lost = BTreeSet::new();
    for segment in (0..last.0).map(SegmentIndex) {
        let inside = records
            .iter()
            .filter(|(page, (record, _))| SegmentIndex::of(*record) == segment && **page % 8 == 0);
        for (&page, &(record, _)) in inside.skip(20).step_by(15).take(2) {
            damage_record(backing, record, |bytes, at| bytes[at..at + 20].fill(0xee));
            lost.insert(page);
        }
    }
    assert_eq!(lost.len(), 2 * last.0 as usize);
    lost
}

#[test]
fn what_an_earlier_device_left_is_never_read() {
    let backings = [(); 2].map(|()| Arc::new(FaultyBacking::new(100)));
    let [old, new] = backings.clone().map(|backing| {
        let device = limited(Format::Checked, 1000, 4000, backing as _);
        // The same objects evicted in the same order: the records are at the same places in both.
        fill(&device, 1000);
        device
    });
    assert!(records(&old, 1000) == records(&new, 1000));
    assert_eq!(scrub(&new).intact, 1000);
    backings[1].take_contents_of(&backings[0]);
    assert_eq!(refused(&new, 1000).len(), 1000);
    assert_eq!(scrub(&new).damaged.len(), 1000);
}

#[test]
fn an_encrypted_backing_shows_nothing_of_the_pages() {
    for format in FORMATS {
        let backing = Arc::new(FaultyBacking::new(100));
        let device = device_of(format, 500, Arc::clone(&backing) as _);
        // Pages that stay raw, and that anyone would know again.
        let secret = |i: u64| (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes();
        for page in 0..500 {
            let words = (0..PAGE / 8).flat_map(|i| secret(page * PAGE / 8 + i));
            let bytes: Vec<u8> = words.collect();
            device.write(page * PAGE, &bytes).expect("room");
        }
        while device.evict(u64::MAX / 2).expect("evicted") > 0 {}
        let known: std::collections::HashSet<[u8; 8]> = (0..500 * PAGE / 8).map(secret).collect();
        let mut shown = 0;
        backing.damage(|bytes| {
            let windows = bytes.windows(8).filter_map(|window| window.try_into().ok());
            shown += windows
                .filter(|word: &[u8; 8]| known.contains(word))
                .count();
        });
        match format {
            Format::Checked => assert!(shown > 100_000, "{shown}"),
            Format::Sealed => assert_eq!(shown, 0),
        }
        for page in 0..500 {
            let mut found = [0; PAGE_SIZE];
            device.read(page * PAGE, &mut found).expect("readable");
            assert_eq!(found[..8], secret(page * PAGE / 8));
        }
    }
}

/// Asserts of checked records that no two ever have one address and sequence number, whether they
/// are written successfully or not.
struct OncePerNumber {
    inner: FaultyBacking,
    uses: Mutex<BTreeMap<u64, Use>>,
}

/// A use of a segment.
#[derive(Default)]
struct Use {
    /// Its own number.
    first: u64,
    /// What was written to, and how many numbers behind the first.
    writes: Vec<(Range<u64>, u64)>,
}

impl OncePerNumber {
    fn note(&self, at: u64, data: &[u8]) {
        const NUMBERS: u64 = 256;
        let mut uses = self.uses.lock();
        let (segment, offset) = (at / SEGMENT_BYTES, at % SEGMENT_BYTES);
        let present = uses.entry(segment).or_default();
        let (mut record, mut at) = (data, at);
        if offset == 0 {
            let (header, records) = data.split_at(32);
            let sequence = u64::from_le_bytes(header[12..20].try_into().expect("8 bytes"));
            let first = sequence / NUMBERS * NUMBERS;
            if first != present.first {
                *present = Use {
                    first,
                    writes: Vec::new(),
                };
            }
            (record, at) = (records, at + 32);
        }
        let (at, mut scratch) = (RecordAddress::from_byte(at), [0; MAX_RECORD_LEN]);
        let mut opens = |number| {
            let sequence = present.first + number;
            let opened = RecordFormat::Checked.open(record, &mut scratch, at, sequence);
            opened.is_ok()
        };
        let number = (0..NUMBERS).find(|&number| opens(number));
        let number = number.expect("it is of this use of the segment");
        let range = offset..offset + data.len() as u64;
        for (earlier, before) in &present.writes {
            let apart = range.end <= earlier.start || earlier.end <= range.start;
            assert!(apart || number > *before, "{segment} {range:?}");
        }
        present.writes.push((range, number));
    }
}

impl Backing for OncePerNumber {
    fn capacity(&self) -> io::Result<u64> {
        self.inner.capacity()
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.note(offset, data);
        self.inner.write_at(offset, data)
    }
}

impl Store for OncePerNumber {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, buf)
    }

    fn discard(&self, segment: Range<u64>) {
        self.inner.discard(segment);
    }

    fn path(&self) -> &Path {
        self.inner.path()
    }
}

#[test]
fn no_nonce_is_used_twice_even_if_writes_fail() {
    let backing = Arc::new(OncePerNumber {
        inner: FaultyBacking::new(4),
        uses: Mutex::default(),
    });
    let device = device_of(Format::Checked, 3000, Arc::clone(&backing) as _);
    write_while_writes_fail(&device, &backing.inner);
    let uses = backing.uses.lock();
    let writes = uses.values().flat_map(|present| &present.writes);
    assert!(writes.map(|(_, number)| number).max() > Some(&0));
}

#[test]
fn failed_writes_damage_nothing_that_is_encrypted() {
    let backing = Arc::new(FaultyBacking::new(4));
    let device = device_of(Format::Sealed, 3000, Arc::clone(&backing) as _);
    write_while_writes_fail(&device, &backing);
}

/// Fills the few segments of a backing again and again, with appends that fail in the middle of
/// them, so that they are taken up again and cleaned later.
fn write_while_writes_fail(device: &Device, backing: &FaultyBacking) {
    let mut versions = BTreeMap::new();
    for step in 0..12_000u64 {
        backing.fail_writes.store(step % 1000 > 900, Relaxed);
        let page = step.wrapping_mul(2_654_435_761) % 3000;
        if write(device, page, step).is_ok() {
            versions.insert(page, step);
        }
    }
    for (page, version) in versions {
        expect(device, page, version);
    }
    assert_eq!(device.stats().damaged_records, 0);
    device.check();
    assert!(device.stats().backing_bytes_written > 4 * SEGMENT_BYTES);
}
