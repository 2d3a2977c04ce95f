//! Reading what only the image has.
//!
//! No lock is held while the image is read. Meanwhile a page may be written, destaged and leave
//! memory again: then what was read of it may be neither the old nor the new, and it is looked at
//! anew. Whether that was so, its slot tells, which was empty all the time if not.

use std::cell::RefCell;
use std::io;

use super::Reader;
use super::found::{AbsentPage, PageCopy};
use super::sequential::SMALL;
use crate::codec::{self, Codec, MAX_COMPRESSED_LEN};
use crate::engine::RUN_PAGES;
use crate::error::{Error, Result};
use crate::origin::Image;
use crate::shard::{EvictionGeneration, Slot, SlotIndex};
use crate::spill::BlockBuf;
use crate::sync::atomic::Ordering::Relaxed;
use crate::units::{PAGE_SHIFT, PAGE_SIZE, Page, PageIndex};

/// Pages read ahead of those.
const AHEAD: u64 = 32;

crate::sync::thread_local! {
    /// Where the image is read to: its memory is aligned as direct I/O wants it.
    static BUFFER: RefCell<BlockBuf> = RefCell::default();
}

impl Reader {
    /// Reads the absent pages of a request, whose first page is `first`, into its `pages`: those
    /// that lie next to one another in one go, and some more if requests come in order. What is
    /// read is kept in memory while there is room.
    pub(super) fn read_absent(
        &self,
        first: PageIndex,
        absent: &[AbsentPage],
        pages: &mut [Page],
    ) -> Result<()> {
        let Some(image) = self.engine.origin.image() else {
            return Ok(());
        };
        for group in absent.chunk_by(|a, b| a.0.0 + 1 == b.0.0) {
            let ahead = self.pages_ahead(group);
            BUFFER.with(|buffer| {
                let buffer = &mut *buffer.borrow_mut();
                if ahead.is_empty() || self.fetch_absent(image, &ahead, buffer).is_err() {
                    self.fetch_absent(image, group, buffer)?;
                }
                let (read, _) = buffer.as_chunks::<PAGE_SIZE>();
                for (&(page, generation), copy) in group.iter().zip(read) {
                    let out = &mut pages[(page.0 - first.0) as usize];
                    self.accept(page, generation, copy, out)?;
                }
                for (&(page, generation), copy) in ahead.iter().zip(read).skip(group.len()) {
                    self.keep(page, generation, copy);
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The pages of a group and those to be read ahead with it, all absent; none if there is
    /// nothing to be read ahead.
    fn pages_ahead(&self, group: &[AbsentPage]) -> Vec<AbsentPage> {
        let (Some((start, _)), Some((last, _))) = (group.first(), group.last()) else {
            return Vec::new();
        };
        // Where nothing is kept, the page cache reads ahead.
        if group.len() > SMALL || !self.keeps_absent() || !self.read_ahead.is_in_order(*start) {
            return Vec::new();
        }
        // Nothing that could be kept.
        if self.is_hole(*start) {
            return Vec::new();
        }
        let mut pages = group.to_vec();
        let end = (u64::from(last.0) + 1 + AHEAD).min(self.engine.shards.layout.pages());
        let mut at = u64::from(last.0) + 1;
        while at < end {
            let run = self.engine.shards.layout.run(PageIndex(at as u32), end);
            let shard = self.engine.shards.lock(run.shard);
            for i in 0..run.pages {
                let slot = SlotIndex(run.slot.0 + i);
                if !shard.slot(slot).is_empty() {
                    return pages;
                }
                pages.push((PageIndex(run.first.0 + i), shard.eviction_generation(slot)));
            }
            at += u64::from(run.pages);
        }
        pages
    }

    /// Whether there is room to keep what is read.
    fn keeps_absent(&self) -> bool {
        self.engine.origin.destages()
            && self.engine.limit.budget.used() <= self.engine.limit.watermarks().high
    }

    /// Reads pages that lie next to one another.
    fn fetch_absent(
        &self,
        image: &dyn Image,
        group: &[AbsentPage],
        buffer: &mut BlockBuf,
    ) -> Result<()> {
        let Some(&(PageIndex(page), _)) = group.first() else {
            return Ok(());
        };
        buffer.resize(group.len() * PAGE_SIZE);
        let read = image.read(u64::from(page) << PAGE_SHIFT, buffer);
        read.map_err(|source| Error::Absent {
            page,
            source: match source.kind() {
                io::ErrorKind::UnexpectedEof => io::Error::other("it is shorter than it was"),
                _ => source,
            },
        })?;
        let pages = group.len() as u64;
        self.engine.counts.origin_reads.fetch_add(pages, Relaxed);
        Ok(())
    }

    /// Makes a page of what was read of the image, or of what it is by now.
    fn accept(
        &self,
        page: PageIndex,
        generation: EvictionGeneration,
        copy: &Page,
        out: &mut Page,
    ) -> Result<()> {
        let unchanged = if self.keeps_absent() {
            self.keep(page, generation, copy)
        } else {
            self.is_unchanged(page, generation)
        };
        if unchanged {
            *out = *copy;
            return Ok(());
        }
        self.read_elsewhere(page, None, false, out)
    }

    /// Reads a page of the image; returns false if it has changed meanwhile.
    pub(super) fn read_unchanged(
        &self,
        page: PageIndex,
        generation: EvictionGeneration,
        out: &mut Page,
    ) -> Result<bool> {
        let Some(image) = self.engine.origin.image() else {
            return Ok(false);
        };
        let mut copy = BlockBuf::default();
        self.fetch_absent(image, &[(page, generation)], &mut copy)?;
        out.copy_from_slice(&copy);
        Ok(self.is_unchanged(page, generation))
    }

    /// Whether a page is what the image has since that eviction generation.
    fn is_unchanged(&self, page: PageIndex, generation: EvictionGeneration) -> bool {
        let run = self.engine.shards.layout.run_of(page);
        let shard = self.engine.shards.lock(run.shard);
        shard.is_absent_since(run.slot, generation)
    }

    /// Whether a page that only the image has is in one of its holes.
    fn is_hole(&self, page: PageIndex) -> bool {
        let at = u64::from(page.0) << PAGE_SHIFT;
        let image = self.engine.origin.image();
        image.is_some_and(|image| image.next_data(at).start > at)
    }

    /// Keeps a page that was read of the image in memory, where there is room; returns whether that
    /// is what the page is. One in a hole stays that: it costs nothing, and nothing to read.
    fn keep(&self, page: PageIndex, generation: EvictionGeneration, copy: &Page) -> bool {
        if codec::same_filled(copy) == Some(0) && self.is_hole(page) {
            return self.is_unchanged(page, generation);
        }
        let mut scratch = [0; MAX_COMPRESSED_LEN];
        let most = self.engine.shards.max_compressed_len();
        let compressed = self.engine.codecs.compress(copy, &mut scratch, most);
        let (codec, object) = match compressed {
            Some((codec, len)) => (codec, &scratch[..len]),
            None => (Codec::Raw, &copy[..]),
        };
        let run = self.engine.shards.layout.run_of(page);
        let mut shard = self.engine.shards.lock(run.shard);
        let same = shard.is_absent_since(run.slot, generation);
        if same {
            shard.store_clean(run.slot, codec, object);
        }
        drop(shard);
        self.engine.limit.wake_if_needed(false);
        same
    }

    /// Reads the absent page of an empty slot, to be changed.
    pub(super) fn copy_absent(
        &self,
        page: PageIndex,
        generation: EvictionGeneration,
    ) -> Result<PageCopy> {
        let mut copy = [0; PAGE_SIZE];
        if let Some(image) = self.engine.origin.image() {
            BUFFER.with(|buffer| {
                let buffer = &mut *buffer.borrow_mut();
                self.fetch_absent(image, &[(page, generation)], buffer)?;
                copy.copy_from_slice(buffer);
                Ok::<_, Error>(())
            })?;
        }
        Ok(PageCopy::new(Slot::EMPTY, generation.0, copy))
    }

    /// Whether a run of one page is absent, and how often it had left memory.
    pub(super) fn absent(&self, page: PageIndex) -> Option<EvictionGeneration> {
        self.engine.origin.image()?;
        let run = self.engine.shards.layout.run_of(page);
        let shard = self.engine.shards.lock(run.shard);
        let is_empty = shard.slot(run.slot).is_empty();
        is_empty.then(|| shard.eviction_generation(run.slot))
    }

    /// Has absent pages of a range in memory, while there is room.
    pub(super) fn prefetch_absent(&self, pages: std::ops::Range<u64>) -> Result<()> {
        let mut some = vec![[0; PAGE_SIZE]; RUN_PAGES as usize];
        let mut at = pages.start;
        while at < pages.end && self.keeps_absent() {
            let run = self
                .engine
                .shards
                .layout
                .run(PageIndex(at as u32), pages.end);
            self.read(
                at << PAGE_SHIFT,
                some[..run.pages as usize].as_flattened_mut(),
            )?;
            at += u64::from(run.pages);
        }
        Ok(())
    }
}
