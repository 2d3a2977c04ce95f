//! The read path: copy a run's compressed bytes out under a lock, decompress without it.

use std::cell::RefCell;

use super::Reader;
use super::found::{AbsentPage, Found, Promote, Spilled};
use crate::codec;
use crate::engine::{RUN_PAGES, Run};
use crate::error::Result;
use crate::shard::{Shard, SlotIndex, SlotState};
use crate::spill::SegmentIndex;
use crate::units::{PAGE_SHIFT, PAGE_SIZE, Page, PageIndex};

/// How many pages ahead objects are prefetched.
const AHEAD: u32 = 1;

/// Pages of a request that are looked at before those that are spilled are read back.
const MAX_GROUP: usize = 256;

/// A thread's memory for a run of compressed pages.
struct Scratch {
    bytes: Vec<u8>,
    pages: Vec<Found>,
    /// Pages of the request that are to be read back.
    spilled: Vec<(PageIndex, Spilled)>,
    /// Those that only the image has.
    absent: Vec<AbsentPage>,
}

crate::sync::thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            bytes: Vec::new(),
            pages: Vec::new(),
            spilled: Vec::new(),
            absent: Vec::new(),
        })
    };
}

impl Reader {
    /// Fills `out` from `offset` on.
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
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

    fn read_pages(&self, first: u64, pages: &mut [Page]) -> Result<()> {
        let mut at = first;
        // So many at a time, for what is spilled of them to be read in a few large reads.
        for some in pages.chunks_mut(MAX_GROUP) {
            self.read_group(at, some)?;
            at += some.len() as u64;
        }
        Ok(())
    }

    fn read_group(&self, first: u64, pages: &mut [Page]) -> Result<()> {
        SCRATCH.with(|scratch| {
            let scratch = &mut *scratch.borrow_mut();
            scratch.spilled.clear();
            scratch.absent.clear();
            let end = first + pages.len() as u64;
            let mut at = first;
            while at < end {
                let run = self.engine.shards.layout.run(PageIndex(at as u32), end);
                let from = (at - first) as usize;
                let now = &mut pages[from..from + run.pages as usize];
                self.read_run(run, now, scratch)?;
                at += u64::from(run.pages);
            }
            let first = PageIndex(first as u32);
            self.read_absent(first, &scratch.absent, pages)?;
            self.read_back_all(first, &mut scratch.spilled, pages)
        })
    }

    fn read_run(&self, run: Run, pages: &mut [Page], scratch: &mut Scratch) -> Result<()> {
        scratch.bytes.resize(RUN_PAGES as usize * PAGE_SIZE, 0);
        scratch.pages.clear();
        let mut start = 0;
        let mut shard = self.engine.shards.lock(run.shard);
        for i in 0..run.pages {
            let slot = SlotIndex(run.slot.0 + i);
            if i + AHEAD < run.pages {
                shard.prefetch(SlotIndex(run.slot.0 + i + AHEAD));
            }
            let found = self.find(&mut shard, slot, start, &mut scratch.bytes[start..]);
            if let Found::Copied { len, .. } = found {
                start += len;
            }
            scratch.pages.push(found);
        }
        drop(shard);
        for (i, (found, out)) in scratch.pages.iter().zip(pages).enumerate() {
            let page = PageIndex(run.first.0 + i as u32);
            match *found {
                Found::SameFilled(pattern) => codec::fill(pattern, 0, out),
                Found::Copied { codec, start, len } => {
                    let object = &scratch.bytes[start..start + len];
                    self.engine.codecs.unpack(page, codec, object, out)?;
                }
                Found::WrittenBack(spilled) => scratch.spilled.push((page, spilled)),
                Found::Absent(generation) => scratch.absent.push((page, generation)),
            }
        }
        Ok(())
    }

    /// Looks at a slot and copies its object, if it has one, to `out`, which is `start` bytes into
    /// the scratch.
    pub(super) fn find(
        &self,
        shard: &mut Shard,
        index: SlotIndex,
        start: usize,
        out: &mut [u8],
    ) -> Found {
        let slot = shard.slot(index);
        match slot.state() {
            SlotState::Empty if self.engine.origin.image().is_some() => {
                Found::Absent(shard.eviction_generation(index))
            }
            SlotState::Empty => Found::SameFilled(0),
            SlotState::SameFilled { pattern } => Found::SameFilled(pattern),
            SlotState::Resident { object, len, codec } => {
                out[..len].copy_from_slice(shard.pool().bytes(object, len));
                shard.touch(index);
                Found::Copied { codec, start, len }
            }
            SlotState::WrittenBack { record, len, codec } => {
                let is_refault = shard.note_read_back(index);
                let promote = match SegmentIndex::of(record).is_in_image() {
                    true => Promote::Always,
                    false if is_refault => Promote::OnRefault,
                    false => Promote::No,
                };
                let sequence = self.engine.spilled.sequence(record);
                Found::WrittenBack(Spilled {
                    slot,
                    record,
                    len,
                    codec,
                    sequence,
                    promote,
                })
            }
        }
    }
}
