//! Reading spilled pages back.
//!
//! No lock is held while a record is read, and nothing is pinned: meanwhile the page may be
//! rewritten or discarded, its record moved, and its segment written anew. The checksum tells a
//! record from anything else that may be there. When it does not match, the slot decides: if it
//! still names the same record under the same number, the record is damaged.

use std::io;

use super::Reader;
use super::found::{Found, PageCopy, Promote, Spilled, SpilledPage};
use super::read_ahead::{Place, Source};
use super::sequential::SMALL;
use crate::codec::{self, Codec};
use crate::engine::{Engine, Run};
use crate::error::{Error, Result};
use crate::latency::Operation;
use crate::shard::{Shard, SlotIndex, SlotState};
use crate::spill::{MAX_RECORD_LEN, RecordBuf, SegmentIndex};
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::{Protection, without};
use crate::units::{PAGE_SIZE, Page, PageIndex};

/// A place, the pages whose records are in it, and those behind.
type Group<'a> = (Place, &'a [SpilledPage], &'a [SpilledPage]);

/// Most bytes between two records that are read over rather than read around.
const MAX_GAP: u32 = 16 << 10;

/// Most bytes of a read for several pages.
const MAX_READ: u32 = 128 << 10;

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

impl Reader {
    /// Reads a spilled page, of a `small` request or not, wherever it has gone meanwhile, and promotes
    /// it to memory if it was read or evicted not long ago.
    pub(super) fn read_back(
        &self,
        page: PageIndex,
        spilled: Spilled,
        small: bool,
        out: &mut Page,
    ) -> Result<()> {
        self.engine.latencies.of(Operation::ReadBack, || {
            self.read_elsewhere(page, Some(spilled), small, out)
        })
    }

    /// Reads a page from where it is, first from where it was found spilled, if so, until it has not
    /// moved meanwhile.
    pub(super) fn read_elsewhere(
        &self,
        page: PageIndex,
        spilled: Option<Spilled>,
        small: bool,
        out: &mut Page,
    ) -> Result<()> {
        let run = self.engine.shards.layout.run_of(page);
        let mut buffers = Buffers::new();
        let find = |bytes: &mut [u8]| {
            let mut shard = self.engine.shards.lock(run.shard);
            self.find(&mut shard, run.slot, 0, bytes)
        };
        let mut found = match spilled {
            Some(spilled) => Found::WrittenBack(spilled),
            None => find(&mut buffers.read),
        };
        loop {
            match found {
                Found::SameFilled(pattern) => {
                    codec::fill(pattern, 0, out);
                    return Ok(());
                }
                Found::Copied { codec, len, .. } => {
                    let object = &buffers.read[..len];
                    return self.engine.codecs.unpack(page, codec, object, out);
                }
                Found::Absent(generation) => {
                    if self.read_unchanged(page, generation, out)? {
                        return Ok(());
                    }
                    found = find(&mut buffers.read);
                }
                Found::WrittenBack(spilled) => {
                    let error = match self.read_record(page, spilled, small, &mut buffers) {
                        Ok(object) => return self.take(page, spilled, object, out),
                        Err(error) => error,
                    };
                    found = match find(&mut buffers.read) {
                        Found::WrittenBack(now)
                            if now.is_same(&spilled) || without(Protection::LookedForAgain) =>
                        {
                            return Err(self.lost(page, spilled, error));
                        }
                        // What was noted of this look is of this very read.
                        Found::WrittenBack(now) => Found::WrittenBack(Spilled {
                            promote: spilled.promote,
                            ..now
                        }),
                        found => found,
                    };
                }
            }
        }
    }

    /// Makes a page of the object that was read back, and promotes it if it is to be.
    fn take(&self, page: PageIndex, spilled: Spilled, object: &[u8], out: &mut Page) -> Result<()> {
        self.engine.counts.bd_reads.fetch_add(1, Relaxed);
        self.engine
            .codecs
            .unpack(page, spilled.codec, object, out)?;
        if self.is_promoted(page, spilled.promote) {
            let mut raw = [0; PAGE_SIZE];
            let storable = storable(&self.engine, page, spilled.codec, object, &mut raw)?;
            self.promote(page, spilled, storable);
        }
        Ok(())
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
        let format = self.engine.spilled.formats.at(spilled.record);
        let read = &mut read[..format.record_len(spilled.len)];
        let place = spilled.place(&self.engine.spilled.formats);
        let Some(backing) = self.engine.spilled.stores.of(place.segment) else {
            return Err(failed(io::ErrorKind::NotFound.into()));
        };
        loop {
            let source = self
                .read_ahead
                .read(&*backing, page, small, &place, read)
                .map_err(failed)?;
            if spilled.is_in(page, &self.engine.spilled.formats, read, opened) {
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
            let (damaged, limit) = (&self.engine.spilled, &self.engine.log_limit);
            damaged.note_damage(page, spilled.record, spilled.sequence, limit);
        }
        error
    }

    /// Of pages in the order of their records, those at the start whose records are near enough to
    /// be read in one go: the place of these, the pages, and the rest.
    pub(super) fn first_group<'a>(&self, spilled: &'a [SpilledPage]) -> Option<Group<'a>> {
        let (_, first) = spilled.first()?;
        let mut place = first.place(&self.engine.spilled.formats);
        let joined = spilled.iter().take_while(|(_, next)| {
            place.join(&next.place(&self.engine.spilled.formats), MAX_GAP, MAX_READ)
        });
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
                && let Some(backing) = self.engine.spilled.stores.of(place.segment)
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

    /// Whether a page that was read back is to be stored in memory.
    fn is_promoted(&self, page: PageIndex, promote: Promote) -> bool {
        let limit = &self.engine.limit;
        match promote {
            Promote::No => false,
            // Where memory is not short, nothing is driven out.
            Promote::OnRefault => {
                limit.budget.used() < limit.watermarks().low || !self.read_ahead.is_scanned(page)
            }
            Promote::Always => true,
        }
    }

    /// Stores a page that was read back in memory, unless it has changed or that would keep
    /// writers waiting.
    fn promote(&self, page: PageIndex, spilled: Spilled, (codec, object): (Codec, &[u8])) {
        let engine = &*self.engine;
        let has_room = match SegmentIndex::of(spilled.record).is_in_image() {
            true => has_room_to_restore(engine),
            false => !engine.limit.is_short(),
        };
        if !has_room {
            return;
        }
        let run = engine.shards.layout.run_of(page);
        let mut shard = engine.shards.lock(run.shard);
        let now = self.spilled(&shard, run.slot);
        let unchanged = now.is_some_and(|now| now.is_same(&spilled));
        if unchanged || without(Protection::PromotedIfUnchanged) {
            // Without room it stays where it is.
            let _ = shard.promote(run.slot, codec, object);
        }
        drop(shard);
        engine.limit.wake_if_needed(false);
    }

    /// Promotes a page to memory, if it is spilled and there is room.
    pub(super) fn fetch(&self, page: PageIndex) -> Result<()> {
        let run = self.engine.shards.layout.run_of(page);
        let spilled = self.spilled(&self.engine.shards.lock(run.shard), run.slot);
        let Some(spilled) = spilled else {
            return Ok(());
        };
        let promoted = Spilled {
            promote: Promote::Always,
            ..spilled
        };
        self.read_back(page, promoted, false, &mut [0; PAGE_SIZE])
    }

    /// Reads the page of a run of one page, if it is not in memory.
    pub(super) fn fetch_to_change(&self, run: Run) -> Result<Option<PageCopy>> {
        if let Some(generation) = self.absent(run.first) {
            return self.copy_absent(run.first, generation).map(Some);
        }
        let fetched = self.fetch_if_written_back(run)?;
        let read_back = u64::from(fetched.is_some());
        self.engine.counts.bd_reads.fetch_add(read_back, Relaxed);
        Ok(fetched)
    }

    /// Reads the page of a run of one page, if it is spilled.
    pub(super) fn fetch_if_written_back(&self, run: Run) -> Result<Option<PageCopy>> {
        let mut buffers = Buffers::new();
        let Some((spilled, object)) = self.fetch_object(run, &mut buffers)? else {
            return Ok(None);
        };
        let mut copy = PageCopy::new(spilled.slot, spilled.sequence, [0; PAGE_SIZE]);
        let page = &mut copy.page;
        self.engine
            .codecs
            .unpack(run.first, spilled.codec, object, page)?;
        Ok(Some(copy))
    }

    /// Reads the object of a run of one page, if it is spilled.
    pub(super) fn fetch_object<'a>(
        &self,
        run: Run,
        buffers: &'a mut Buffers,
    ) -> Result<Option<(Spilled, &'a [u8])>> {
        let mut found = self.spilled(&self.engine.shards.lock(run.shard), run.slot);
        while let Some(spilled) = found {
            let Err(error) = self.read_record(run.first, spilled, false, buffers) else {
                let Buffers { read, opened } = buffers;
                let format = self.engine.spilled.formats.at(spilled.record);
                let object = format.data(read, opened, spilled.len);
                return Ok(Some((spilled, object)));
            };
            found = self.spilled(&self.engine.shards.lock(run.shard), run.slot);
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
        let sequence = self.engine.spilled.sequence(record);
        Some(Spilled {
            slot,
            record,
            len,
            codec,
            sequence,
            promote: Promote::No,
        })
    }
}

/// An object as this device's pool takes it, that may be in `page` then: an image may keep
/// compressed what this one stores raw.
///
/// # Errors
/// [`Error::Corrupt`] if it does not decompress.
pub(crate) fn storable<'a>(
    engine: &Engine,
    page: PageIndex,
    codec: Codec,
    object: &'a [u8],
    raw: &'a mut Page,
) -> Result<(Codec, &'a [u8])> {
    if codec == Codec::Raw || object.len() <= engine.shards.max_compressed_len() {
        return Ok((codec, object));
    }
    engine.codecs.unpack(page, codec, object, raw)?;
    Ok((Codec::Raw, raw))
}

/// Whether a page of an image may come to memory: it is not to drive others out, nor, where what has no
/// room there does not go to a backing, to take all of what writers need.
pub(crate) fn has_room_to_restore(engine: &Engine) -> bool {
    /// Most that a page can take: a zspage.
    const FRAMES: u64 = 8;
    let limit = engine.limit.watermarks().low;
    let used = || engine.limit.budget.used();
    let spilled = &engine.spilled;
    let fits = || used() + spilled.segments.image_bytes() / PAGE_SIZE as u64 <= limit;
    let limit = match spilled.image_spills.load(Relaxed) || fits() {
        true => limit,
        false => limit / 2,
    };
    used() + FRAMES <= limit
}
