//! The write path: compress without a lock, then store a run of pages under one.

use std::cell::RefCell;

use super::Writer;
use super::change::Refusals;
use super::found::PageCopy;
use crate::codec::{self, Codec, MAX_COMPRESSED_LEN};
use crate::engine::{RUN_PAGES, Run};
use crate::error::Result;
use crate::pool::NoRoom;
use crate::shard::{Shard, SlotIndex, SlotState};
use crate::sync::{Protection, without};
use crate::units::{PAGE_SHIFT, PAGE_SIZE, Page, PageIndex};

/// A page as it is to be stored.
#[derive(Clone, Copy)]
enum Prepared {
    SameFilled(u32),
    /// Stored as it came.
    Raw,
    /// Compressed at `start` in the scratch.
    Compressed {
        codec: Codec,
        start: usize,
        len: usize,
    },
}

/// A thread's memory for a run of compressed pages.
struct Scratch {
    bytes: Vec<u8>,
    pages: Vec<Prepared>,
}

crate::sync::thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch { bytes: Vec::new(), pages: Vec::new() })
    };
}

impl Writer {
    /// Stores `data` at `offset`.
    pub(crate) fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let within = (offset % PAGE_SIZE as u64) as usize;
        let head_len = if within == 0 {
            0
        } else {
            data.len().min(PAGE_SIZE - within)
        };
        let (head, rest) = data.split_at(head_len);
        let (pages, tail) = rest.as_chunks::<PAGE_SIZE>();
        let first = offset >> PAGE_SHIFT;
        if !head.is_empty() {
            self.write_part(PageIndex(first as u32), within, head)?;
        }
        let first = first + u64::from(!head.is_empty());
        self.write_pages(first, pages)?;
        if !tail.is_empty() {
            self.write_part(PageIndex((first + pages.len() as u64) as u32), 0, tail)?;
        }
        Ok(())
    }

    fn write_pages(&self, first: u64, mut pages: &[Page]) -> Result<()> {
        let end = first + pages.len() as u64;
        let mut at = first;
        while at < end {
            let run = self.engine.shards.layout.run(PageIndex(at as u32), end);
            let (now, later) = pages.split_at(run.pages as usize);
            SCRATCH.with(|scratch| self.write_run(run, now, &mut scratch.borrow_mut()))?;
            pages = later;
            at += u64::from(run.pages);
        }
        Ok(())
    }

    fn write_run(&self, run: Run, pages: &[Page], scratch: &mut Scratch) -> Result<()> {
        self.prepare(pages, scratch);
        if without(Protection::FreedAsReplaced) {
            let first = u64::from(run.first.0);
            self.clear(first..first + u64::from(run.pages));
        }
        let (mut stored, mut refusals) = (0, Refusals::default());
        loop {
            let mut shard = self.lock_to_change(run);
            let mut refused = None;
            while let (Some(prepared), None) = (scratch.pages.get(stored), refused) {
                let slot = SlotIndex(run.slot.0 + stored as u32);
                match store(&mut shard, slot, *prepared, &scratch.bytes, &pages[stored]) {
                    Ok(()) => stored += 1,
                    Err(no_room) => refused = Some(no_room),
                }
            }
            self.engine.unlock(shard);
            match refused {
                None => return Ok(()),
                Some(no_room) => self.wait_for_room(no_room, &mut refusals)?,
            }
        }
    }

    /// Compresses pages into the scratch.
    fn prepare(&self, pages: &[Page], scratch: &mut Scratch) {
        scratch
            .bytes
            .resize(RUN_PAGES as usize * MAX_COMPRESSED_LEN, 0);
        scratch.pages.clear();
        let mut start = 0;
        for page in pages {
            let prepared = self.prepare_page(page, start, &mut scratch.bytes[start..]);
            if let Prepared::Compressed { len, .. } = prepared {
                start += len;
            }
            scratch.pages.push(prepared);
        }
    }

    fn prepare_page(&self, page: &Page, start: usize, out: &mut [u8]) -> Prepared {
        if let Some(pattern) = codec::same_filled(page) {
            return Prepared::SameFilled(pattern);
        }
        let most = self.engine.shards.max_compressed_len();
        match self.engine.codecs.compress(page, out, most) {
            Some((codec, len)) => Prepared::Compressed { codec, start, len },
            None => Prepared::Raw,
        }
    }

    /// Changes part of a page.
    fn write_part(&self, page: PageIndex, within: usize, part: &[u8]) -> Result<()> {
        self.modify(page, |page| {
            page[within..within + part.len()].copy_from_slice(part);
        })
    }

    /// Zeroes part of a page, which stays empty if it is.
    pub(crate) fn zero_part(&self, page: PageIndex, within: usize, len: usize) -> Result<()> {
        let run = self.engine.shards.layout.run_of(page);
        let engine = &*self.engine;
        let is_empty = || engine.shards.lock(run.shard).slot(run.slot).is_empty();
        if engine.origin.image().is_none() && is_empty() {
            return Ok(());
        }
        self.modify(page, |page| page[within..within + len].fill(0))
    }

    /// Reads, changes and writes a page as one step.
    ///
    /// The page is read without the lock, and stored only if its slot is still the one that was
    /// read. A slot that looks the same might hold an object that was freed and allocated anew in
    /// the same place, so a resident page is read and stored under one hold of the lock. A record
    /// cannot come back: no two have the same address and sequence number.
    fn modify(&self, page: PageIndex, change: impl Fn(&mut Page)) -> Result<()> {
        let run = self.engine.shards.layout.run_of(page);
        let mut scratch = [0; MAX_COMPRESSED_LEN];
        let mut refusals = Refusals::default();
        // What is not in memory is fetched first: no I/O under the lock.
        let mut fetched = self.reader.fetch_to_change(run)?;
        loop {
            let mut copy = [0; PAGE_SIZE];
            let mut shard = self.lock_to_change(run);
            if let Change::Stale = self.copy_for_change(&shard, run, fetched.as_ref(), &mut copy)? {
                drop(shard);
                fetched = self.reader.fetch_to_change(run)?;
                continue;
            }
            change(&mut copy);
            let prepared = self.prepare_page(&copy, 0, &mut scratch);
            let stored = store(&mut shard, run.slot, prepared, &scratch, &copy);
            self.engine.unlock(shard);
            match stored {
                Ok(()) => return Ok(()),
                Err(no_room) => self.wait_for_room(no_room, &mut refusals)?,
            }
        }
    }

    /// Copies the page of a locked slot to `copy`.
    fn copy_for_change(
        &self,
        shard: &Shard,
        run: Run,
        fetched: Option<&PageCopy>,
        copy: &mut Page,
    ) -> Result<Change> {
        let slot = shard.slot(run.slot);
        match slot.state() {
            SlotState::Empty if self.engine.origin.image().is_none() => copy.fill(0),
            SlotState::Empty => match fetched {
                Some(fetched) if fetched.is_of(slot, shard.eviction_generation(run.slot).0) => {
                    *copy = fetched.page;
                }
                _ => return Ok(Change::Stale),
            },
            SlotState::SameFilled { pattern } => codec::fill(pattern, 0, copy),
            SlotState::Resident { object, len, codec } => {
                let object = shard.pool().bytes(object, len);
                let codecs = &self.engine.codecs;
                codecs.unpack(run.first, codec, object, copy)?;
            }
            SlotState::WrittenBack { record, .. } => match fetched {
                Some(fetched)
                    if fetched.is_of(slot, self.engine.spilled.sequence(record))
                        || without(Protection::ChangedIfUnchanged) =>
                {
                    *copy = fetched.page;
                }
                _ => return Ok(Change::Stale),
            },
        }
        Ok(Change::Ready)
    }
}

/// Whether a page is at hand to be changed.
#[derive(Clone, Copy)]
enum Change {
    Ready,
    /// It left memory, or its record was moved, after it was looked at.
    Stale,
}

/// Stores a prepared page in its slot.
fn store(
    shard: &mut Shard,
    slot: SlotIndex,
    prepared: Prepared,
    scratch: &[u8],
    page: &Page,
) -> Result<(), NoRoom> {
    match prepared {
        Prepared::SameFilled(pattern) => shard.store_same_filled(slot, pattern),
        Prepared::Raw => shard.store(slot, Codec::Raw, page),
        Prepared::Compressed { codec, start, len } => {
            shard.store(slot, codec, &scratch[start..start + len])
        }
    }
}
