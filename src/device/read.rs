//! The read path: copy a run's compressed bytes out under a lock, decompress without it.

use std::cell::RefCell;
use std::sync::atomic::Ordering::Relaxed;

use super::core::Core;
use super::layout::{RUN_PAGES, Run};
use crate::codec::{self, Codec};
use crate::error::{Error, Result};
use crate::shard::{Shard, Slot, SlotIndex, SlotState};
use crate::spill::{MAX_RECORD_LEN, Record, RecordAddress, SegmentIndex, record_len};
use crate::units::{PAGE_SHIFT, PAGE_SIZE, Page, PageIndex};

/// A page as it was found under the lock.
#[derive(Clone, Copy)]
enum Found {
    SameFilled(u32),
    /// Compressed at `start` in the scratch.
    Copied {
        codec: Codec,
        start: usize,
        len: usize,
    },
    WrittenBack(Spilled),
}

/// A record to read, as its slot named it.
#[derive(Clone, Copy)]
struct Spilled {
    slot: Slot,
    record: RecordAddress,
    len: usize,
    codec: Codec,
    /// The use of the record's segment that the slot referred to.
    sequence: u64,
}

impl Spilled {
    fn is_same(&self, other: &Self) -> bool {
        self.slot.same_place(other.slot) && self.sequence == other.sequence
    }
}

/// A spilled page that was read back, and what from.
pub(super) struct PageCopy {
    slot: Slot,
    sequence: u64,
    pub(super) page: Page,
}

impl PageCopy {
    /// Whether `slot`, whose segment is in use `sequence`, names the record that was read.
    pub(super) fn is_of(&self, slot: Slot, sequence: u64) -> bool {
        self.slot.same_place(slot) && self.sequence == sequence
    }
}

/// A thread's memory for a run of compressed pages.
struct Scratch {
    bytes: Vec<u8>,
    pages: Vec<Found>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch { bytes: Vec::new(), pages: Vec::new() })
    };
}

impl Core {
    /// Fills `out` from `offset` on.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let within = (offset % PAGE_SIZE as u64) as usize;
        let head_len = if within == 0 {
            0
        } else {
            out.len().min(PAGE_SIZE - within)
        };
        let (head, rest) = out.split_at_mut(head_len);
        let first = offset >> PAGE_SHIFT;
        self.read_part(first, within, head)?;
        let first = first + u64::from(!head.is_empty());
        let (pages, tail) = rest.as_chunks_mut::<PAGE_SIZE>();
        let after = first + pages.len() as u64;
        self.read_pages(first, pages)?;
        self.read_part(after, 0, tail)
    }

    fn read_part(&self, page: u64, within: usize, out: &mut [u8]) -> Result<()> {
        if out.is_empty() {
            return Ok(());
        }
        let mut whole = [0; PAGE_SIZE];
        self.read_pages(page, std::slice::from_mut(&mut whole))?;
        out.copy_from_slice(&whole[within..within + out.len()]);
        Ok(())
    }

    fn read_pages(&self, first: u64, mut pages: &mut [Page]) -> Result<()> {
        let end = first + pages.len() as u64;
        let mut at = first;
        while at < end {
            let run = self.layout.run(PageIndex(at as u32), end);
            let (now, later) = pages.split_at_mut(run.pages as usize);
            SCRATCH.with_borrow_mut(|scratch| self.read_run(run, now, scratch))?;
            pages = later;
            at += u64::from(run.pages);
        }
        Ok(())
    }

    fn read_run(&self, run: Run, pages: &mut [Page], scratch: &mut Scratch) -> Result<()> {
        scratch.bytes.resize(RUN_PAGES as usize * PAGE_SIZE, 0);
        scratch.pages.clear();
        let mut start = 0;
        let mut shard = self.shard(run.shard);
        for i in 0..run.pages {
            let slot = SlotIndex(run.slot.0 + i);
            let found = self.find(&mut shard, slot, start, &mut scratch.bytes[start..]);
            if let Found::Copied { len, .. } = found {
                start += len;
            }
            scratch.pages.push(found);
        }
        drop(shard);
        for (page, (found, out)) in (run.first.0..).zip(scratch.pages.iter().zip(pages)) {
            self.unpack(PageIndex(page), *found, &scratch.bytes, out)?;
        }
        Ok(())
    }

    /// Looks at a slot and copies its object, if it has one, to `out`, which is `start` bytes into
    /// the scratch.
    fn find(&self, shard: &mut Shard, index: SlotIndex, start: usize, out: &mut [u8]) -> Found {
        let slot = shard.slot(index);
        match slot.state() {
            SlotState::Empty => Found::SameFilled(0),
            SlotState::SameFilled { pattern } => Found::SameFilled(pattern),
            SlotState::Resident { object, len, codec } => {
                out[..len].copy_from_slice(shard.pool().bytes(object, len));
                shard.touch(index);
                Found::Copied { codec, start, len }
            }
            SlotState::WrittenBack { record, len, codec } => {
                let sequence = self.sequence(record);
                Found::WrittenBack(Spilled {
                    slot,
                    record,
                    len,
                    codec,
                    sequence,
                })
            }
        }
    }

    fn unpack(&self, page: PageIndex, found: Found, scratch: &[u8], out: &mut Page) -> Result<()> {
        match found {
            Found::SameFilled(pattern) => {
                codec::fill(pattern, 0, out);
                Ok(())
            }
            Found::Copied { codec, start, len } => {
                codec::decompress(codec, &scratch[start..start + len], out)
                    .map_err(|_| Error::Corrupt { page: page.0 })
            }
            Found::WrittenBack(spilled) => self.read_back(page, spilled, out),
        }
    }

    /// Reads a spilled page, wherever it has gone meanwhile.
    fn read_back(&self, page: PageIndex, mut spilled: Spilled, out: &mut Page) -> Result<()> {
        let run = self.layout.run(page, u64::from(page.0) + 1);
        let mut copy = [0; PAGE_SIZE];
        loop {
            let Err(error) = self.read_record(page, spilled, out) else {
                self.requests.bd_reads.fetch_add(1, Relaxed);
                return Ok(());
            };
            // No lock was held: the record may have been moved or replaced, and its segment
            // written anew.
            let found = self.find(&mut self.shard(run.shard), run.slot, 0, &mut copy);
            match found {
                Found::WrittenBack(now) if now.is_same(&spilled) => return Err(error),
                Found::WrittenBack(now) => spilled = now,
                found => return self.unpack(page, found, &copy, out),
            }
        }
    }

    /// Reads a record, proves that it is the page's, and decompresses it.
    fn read_record(&self, page: PageIndex, spilled: Spilled, out: &mut Page) -> Result<()> {
        let unreadable = |reason: String| Error::Unreadable {
            page: page.0,
            reason,
        };
        let Some(backing) = &self.backing else {
            return Err(unreadable("there is no backing".into()));
        };
        let mut buf = [0; MAX_RECORD_LEN];
        let buf = &mut buf[..record_len(spilled.len)];
        let segment = SegmentIndex::of(spilled.record);
        let offset = (spilled.record.byte() - segment.byte()) as u32;
        backing
            .read(segment, offset, buf)
            .map_err(|error| unreadable(error.to_string()))?;
        match Record::decode(buf, spilled.record, spilled.sequence) {
            Ok(Record {
                page: owner,
                codec,
                data,
            }) if (owner, codec, data.len()) == (page, spilled.codec, spilled.len) => {
                codec::decompress(codec, data, out).map_err(|_| Error::Corrupt { page: page.0 })
            }
            _ => Err(unreadable("its checksum does not match".into())),
        }
    }

    /// Reads the page of a run of one page, if it is spilled.
    pub(super) fn fetch_if_written_back(&self, run: Run) -> Result<Option<PageCopy>> {
        let mut found = self.spilled(&self.shard(run.shard), run.slot);
        while let Some(spilled) = found {
            let Spilled { slot, sequence, .. } = spilled;
            let mut copy = PageCopy {
                slot,
                sequence,
                page: [0; PAGE_SIZE],
            };
            match self.read_record(run.first, spilled, &mut copy.page) {
                Ok(()) => {
                    self.requests.bd_reads.fetch_add(1, Relaxed);
                    return Ok(Some(copy));
                }
                Err(error) => {
                    found = self.spilled(&self.shard(run.shard), run.slot);
                    if found.is_some_and(|now| now.is_same(&spilled)) {
                        return Err(error);
                    }
                }
            }
        }
        Ok(None)
    }

    /// The record that a slot of a locked shard names.
    fn spilled(&self, shard: &Shard, index: SlotIndex) -> Option<Spilled> {
        let slot = shard.slot(index);
        let SlotState::WrittenBack { record, len, codec } = slot.state() else {
            return None;
        };
        Some(Spilled {
            slot,
            record,
            len,
            codec,
            sequence: self.sequence(record),
        })
    }

    /// The use of a record's segment. Stands still only under the lock of a shard with a slot
    /// that refers to the record.
    pub(super) fn sequence(&self, record: RecordAddress) -> u64 {
        self.segments.sequence(SegmentIndex::of(record))
    }
}
