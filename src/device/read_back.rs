//! Reading spilled pages back.
//!
//! No lock is held while a record is read, and nothing is pinned: meanwhile the page may be
//! rewritten or discarded, its record moved, and its segment written anew. The checksum tells a
//! record from anything else that may be there. When it does not match, the slot decides: if it
//! still names the same record under the same number, the record is damaged.

use std::io;

use super::core::Core;
use super::layout::Run;
use super::read::Found;
use super::read_ahead::{Place, Source};
use crate::codec::Codec;
use crate::error::{Error, Result};
use crate::latency::Operation;
use crate::shard::{Shard, Slot, SlotIndex, SlotState};
use crate::spill::{MAX_RECORD_LEN, RecordAddress, RecordBuf, RecordFormats, SegmentIndex};
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::{Protection, without};
use crate::units::{PAGE_SIZE, Page, PageIndex};

/// A record to read, as its slot named it.
#[derive(Clone, Copy)]
pub(super) struct Spilled {
    pub(super) slot: Slot,
    pub(super) record: RecordAddress,
    pub(super) len: usize,
    pub(super) codec: Codec,
    /// The number that the record was written under.
    pub(super) sequence: u64,
    pub(super) wanted: Wanted,
}

/// Whether a page that is read back belongs in memory again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// It does not: it has not been wanted for long, and may be so again.
    Once,
    /// It was read back or evicted not long ago. It does unless it is only that a scan comes by.
    Again,
    /// It is asked for, or comes from an image, which is to be emptied.
    Anyhow,
}

impl Spilled {
    fn is_same(&self, other: &Self) -> bool {
        self.slot.same_place(other.slot) && self.sequence == other.sequence
    }

    /// Whether the page's record starts `bytes`.
    pub(super) fn is_in(
        &self,
        page: PageIndex,
        formats: &RecordFormats,
        bytes: &[u8],
        scratch: &mut RecordBuf,
    ) -> bool {
        let format = formats.at(self.record);
        let record = format.open(bytes, scratch, self.record, self.sequence);
        record.is_ok_and(|record| {
            (record.page, record.codec, record.data.len()) == (page, self.codec, self.len)
        })
    }

    /// Where its record is.
    pub(super) fn place(&self, formats: &RecordFormats) -> Place {
        let len = formats.at(self.record).record_len(self.len);
        Place::of(self.record, len, self.sequence)
    }
}

/// A spilled page that was read back, and what from.
pub(super) struct PageCopy {
    slot: Slot,
    sequence: u64,
    pub(super) page: Page,
}

impl PageCopy {
    /// The page of a slot, whose record was written under that number; or, of an empty slot, from the image
    /// after so many departures.
    pub(super) fn new(slot: Slot, sequence: u64, page: Page) -> Self {
        Self {
            slot,
            sequence,
            page,
        }
    }

    /// Whether `slot`, whose record was written under `sequence`, names the record that was read.
    pub(super) fn is_of(&self, slot: Slot, sequence: u64) -> bool {
        self.slot.same_place(slot) && self.sequence == sequence
    }
}

/// A page and the record that its slot named.
pub(super) type SpilledPage = (PageIndex, Spilled);

/// A place, the pages whose records are in it, and those behind.
type Group<'a> = (Place, &'a [SpilledPage], &'a [SpilledPage]);

/// Most bytes between two records that are read over rather than read around.
const MAX_GAP: u32 = 16 << 10;

/// Most bytes of a read for several pages.
const MAX_READ: u32 = 128 << 10;

/// Pages of a request that gains from what others in order read ahead. Those of a larger one are
/// read together.
const SMALL: usize = 8;

/// Memory for a record: as it is read, and decrypted.
pub(super) struct Buffers {
    read: RecordBuf,
    opened: RecordBuf,
}

impl Buffers {
    pub(super) fn new() -> Self {
        Self {
            read: [0; MAX_RECORD_LEN],
            opened: [0; MAX_RECORD_LEN],
        }
    }
}

impl Core {
    /// Reads a spilled page, of a `small` request or not, wherever it has gone meanwhile, and brings
    /// one that was wanted not long ago to memory again.
    pub(super) fn read_back(
        &self,
        page: PageIndex,
        spilled: Spilled,
        small: bool,
        out: &mut Page,
    ) -> Result<()> {
        self.latencies.of(Operation::ReadBack, || {
            self.read_back_now(page, spilled, small, out)
        })
    }

    fn read_back_now(
        &self,
        page: PageIndex,
        mut spilled: Spilled,
        small: bool,
        out: &mut Page,
    ) -> Result<()> {
        let run = self.layout.run(page, u64::from(page.0) + 1);
        let mut buffers = Buffers::new();
        loop {
            let error = match self.read_record(page, spilled, small, &mut buffers) {
                Ok(object) => {
                    self.requests.bd_reads.fetch_add(1, Relaxed);
                    self.decompress(page, spilled.codec, object, out)?;
                    if self.belongs_in_memory(page, spilled) {
                        let storable = self.storable(page, spilled.codec, object, out)?;
                        self.promote(run, spilled, storable);
                    }
                    return Ok(());
                }
                Err(error) => error,
            };
            let buf = &mut buffers.read;
            let found = self.find(&mut self.shard(run.shard), run.slot, 0, buf);
            match found {
                Found::WrittenBack(now)
                    if now.is_same(&spilled) || without(Protection::LookedForAgain) =>
                {
                    return Err(self.lost(page, spilled, error));
                }
                Found::WrittenBack(now) => {
                    // What it noted was this very read.
                    spilled = Spilled {
                        wanted: spilled.wanted,
                        ..now
                    };
                }
                found => return self.unpack(page, found, buf, out),
            }
        }
    }

    /// Reads a record and proves that it is the page's; returns the object in it.
    fn read_record<'a>(
        &self,
        page: PageIndex,
        spilled: Spilled,
        small: bool,
        buffers: &'a mut Buffers,
    ) -> Result<&'a [u8]> {
        let PageIndex(number) = page;
        let failed = |error: io::Error| match error.kind() {
            // The file was cut off.
            io::ErrorKind::UnexpectedEof => Error::Damaged { page: number },
            _ => Error::Unreadable {
                page: number,
                source: error,
            },
        };
        let Buffers { read, opened } = buffers;
        let format = self.formats.at(spilled.record);
        let read = &mut read[..format.record_len(spilled.len)];
        let place = spilled.place(&self.formats);
        let Some(backing) = self.stores.of(place.segment) else {
            return Err(failed(io::ErrorKind::NotFound.into()));
        };
        loop {
            let source = self
                .read_ahead
                .read(&*backing, page, small, &place, read)
                .map_err(failed)?;
            if spilled.is_in(page, &self.formats, read, opened) {
                return Ok(format.data(read, opened, spilled.len));
            }
            if source != Source::Window {
                return Err(Error::Damaged { page: number });
            }
            self.read_ahead.forget();
        }
    }

    /// Why a page could not be read back from the record that is still its own.
    fn lost(&self, page: PageIndex, spilled: Spilled, error: Error) -> Error {
        if let Error::Damaged { .. } = error {
            self.note_damage(page, spilled.record, spilled.sequence);
        }
        error
    }

    /// Of pages in the order of their records, those at the start whose records are near enough to
    /// be read in one go: the place of these, the pages, and the rest.
    pub(super) fn first_group<'a>(&self, spilled: &'a [SpilledPage]) -> Option<Group<'a>> {
        let (_, first) = spilled.first()?;
        let mut place = first.place(&self.formats);
        let joined = spilled
            .iter()
            .take_while(|(_, next)| place.join(&next.place(&self.formats), MAX_GAP, MAX_READ));
        let (group, others) = spilled.split_at(joined.count());
        Some((place, group, others))
    }

    /// Reads spilled pages of a request, whose first page is `first`, into its `pages`: those whose
    /// records are near each other in one go.
    pub(super) fn read_back_all(
        &self,
        first: PageIndex,
        spilled: &mut [SpilledPage],
        pages: &mut [Page],
    ) -> Result<()> {
        let small = spilled.len() <= SMALL;
        if !small {
            self.read_ahead.note_large(first, pages.len());
        }
        spilled.sort_unstable_by_key(|(_, spilled)| spilled.record.0);
        let mut rest = &*spilled;
        while let Some((place, group, others)) = self.first_group(rest) {
            if group.len() > 1
                && let Some(backing) = self.stores.of(place.segment)
            {
                self.read_ahead.prepare(&*backing, place);
            }
            for &(page, spilled) in group {
                self.read_back(
                    page,
                    spilled,
                    small,
                    &mut pages[(page.0 - first.0) as usize],
                )?;
            }
            rest = others;
        }
        Ok(())
    }

    /// An object as this device's pool takes it, that may be in `page` then: an image may keep
    /// compressed what this one stores raw.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it does not decompress.
    pub(crate) fn storable<'a>(
        &self,
        page: PageIndex,
        codec: Codec,
        object: &'a [u8],
        raw: &'a mut Page,
    ) -> Result<(Codec, &'a [u8])> {
        if codec == Codec::Raw || object.len() <= self.max_compressed_len {
            return Ok((codec, object));
        }
        self.decompress(page, codec, object, raw)?;
        Ok((Codec::Raw, raw))
    }

    /// Whether a page that was read back is to be stored in memory.
    fn belongs_in_memory(&self, page: PageIndex, spilled: Spilled) -> bool {
        match spilled.wanted {
            Wanted::Once => false,
            // Where memory is not short, nothing is driven out.
            Wanted::Again => {
                self.budget.used() < self.watermarks().low || !self.read_ahead.is_scanned(page)
            }
            Wanted::Anyhow => true,
        }
    }

    /// Stores a page that was read back in memory, unless it has changed or that would keep
    /// writers waiting.
    fn promote(&self, run: Run, spilled: Spilled, (codec, object): (Codec, &[u8])) {
        let has_room = match SegmentIndex::of(spilled.record).is_in_image() {
            true => self.has_room_to_restore(),
            false => self.budget.used() <= self.watermarks().high,
        };
        if !has_room {
            return;
        }
        let mut shard = self.shard(run.shard);
        let now = self.spilled(&shard, run.slot);
        let unchanged = now.is_some_and(|now| now.is_same(&spilled));
        if unchanged || without(Protection::PromotedIfUnchanged) {
            // Without room it stays where it is.
            let _ = shard.bring_back(run.slot, codec, object);
        }
        drop(shard);
        self.wake_if_needed(false);
    }

    /// Brings a page to memory, if it is spilled and there is room.
    pub(super) fn bring_back(&self, page: PageIndex) -> Result<()> {
        let run = self.layout.run(page, u64::from(page.0) + 1);
        let spilled = self.spilled(&self.shard(run.shard), run.slot);
        let Some(spilled) = spilled else {
            return Ok(());
        };
        let wanted = Spilled {
            wanted: Wanted::Anyhow,
            ..spilled
        };
        self.read_back(page, wanted, false, &mut [0; PAGE_SIZE])
    }

    /// Reads the page of a run of one page, if it is not in memory.
    pub(super) fn fetch_to_change(&self, run: Run) -> Result<Option<PageCopy>> {
        if let Some(departures) = self.absent(run.first) {
            return self.fetch_absent(run.first, departures).map(Some);
        }
        let fetched = self.fetch_if_written_back(run)?;
        let read_back = u64::from(fetched.is_some());
        self.requests.bd_reads.fetch_add(read_back, Relaxed);
        Ok(fetched)
    }

    /// Reads the page of a run of one page, if it is spilled.
    pub(super) fn fetch_if_written_back(&self, run: Run) -> Result<Option<PageCopy>> {
        let mut buffers = Buffers::new();
        let Some((spilled, object)) = self.fetch_object(run, &mut buffers)? else {
            return Ok(None);
        };
        let mut copy = PageCopy::new(spilled.slot, spilled.sequence, [0; PAGE_SIZE]);
        self.decompress(run.first, spilled.codec, object, &mut copy.page)?;
        Ok(Some(copy))
    }

    /// Reads the object of a run of one page, if it is spilled.
    pub(super) fn fetch_object<'a>(
        &self,
        run: Run,
        buffers: &'a mut Buffers,
    ) -> Result<Option<(Spilled, &'a [u8])>> {
        let mut found = self.spilled(&self.shard(run.shard), run.slot);
        while let Some(spilled) = found {
            let Err(error) = self.read_record(run.first, spilled, false, buffers) else {
                let Buffers { read, opened } = buffers;
                let format = self.formats.at(spilled.record);
                let object = format.data(read, opened, spilled.len);
                return Ok(Some((spilled, object)));
            };
            found = self.spilled(&self.shard(run.shard), run.slot);
            if found.is_some_and(|now| now.is_same(&spilled)) {
                return Err(self.lost(run.first, spilled, error));
            }
        }
        Ok(None)
    }

    /// The record that a slot of a locked shard names.
    pub(super) fn spilled(&self, shard: &Shard, index: SlotIndex) -> Option<Spilled> {
        let slot = shard.slot(index);
        let SlotState::WrittenBack { record, len, codec } = slot.state() else {
            return None;
        };
        let sequence = self.sequence(record);
        Some(Spilled {
            slot,
            record,
            len,
            codec,
            sequence,
            wanted: Wanted::Once,
        })
    }

    fn decompress(
        &self,
        page: PageIndex,
        codec: Codec,
        object: &[u8],
        out: &mut Page,
    ) -> Result<()> {
        let read = self.algorithms.decompress(codec, object, out);
        read.map_err(|_| Error::Corrupt { page: page.0 })
    }

    /// The number that a record was written under. Stands still only under the lock of a shard with
    /// a slot that refers to the record.
    pub(super) fn sequence(&self, record: RecordAddress) -> u64 {
        self.segments.sequence_at(record)
    }
}
