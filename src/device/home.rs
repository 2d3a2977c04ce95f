//! Reading what only the image has.
//!
//! No lock is held while the image is read. Meanwhile a page may be written, go home and leave
//! memory again: then what was read of it may be neither the old nor the new, and it is looked at
//! anew. Whether that was so, its slot tells, which was empty all the time if not.

use std::cell::RefCell;
use std::io;

use super::core::Core;
use super::layout::RUN_PAGES;
use super::read::Found;
use super::read_back::PageCopy;
use crate::codec::{Codec, MAX_COMPRESSED_LEN};
use crate::error::{Error, Result};
use crate::origin::Image;
use crate::shard::{Departures, Slot, SlotIndex};
use crate::spill::BlockBuf;
use crate::sync::atomic::Ordering::Relaxed;
use crate::units::{PAGE_SHIFT, PAGE_SIZE, Page, PageIndex};

/// Pages of a request that gains from what others in order read ahead.
const SMALL: usize = 8;

/// Pages read ahead of those.
const AHEAD: u64 = 32;

/// A page that only the image has, and how often it had left memory when that was found.
pub(super) type AbsentPage = (PageIndex, Departures);

thread_local! {
    /// Where the image is read to: its memory is aligned as direct I/O wants it.
    static BUFFER: RefCell<BlockBuf> = RefCell::default();
}

impl Core {
    /// Reads the absent pages of a request, whose first page is `first`, into its `pages`: those
    /// that lie next to one another in one go, and some more if requests come in order. What is
    /// read is kept in memory while there is room.
    pub(super) fn read_absent(
        &self,
        first: PageIndex,
        absent: &[AbsentPage],
        pages: &mut [Page],
    ) -> Result<()> {
        let Some(image) = self.origin.image() else {
            return Ok(());
        };
        for group in absent.chunk_by(|a, b| a.0.0 + 1 == b.0.0) {
            let ahead = self.pages_ahead(group);
            BUFFER.with_borrow_mut(|buffer| {
                if ahead.is_empty() || self.fetch(image, &ahead, buffer).is_err() {
                    self.fetch(image, group, buffer)?;
                }
                let (read, _) = buffer.as_chunks::<PAGE_SIZE>();
                for (&(page, departures), copy) in group.iter().zip(read) {
                    let out = &mut pages[(page.0 - first.0) as usize];
                    self.accept(page, departures, copy, out)?;
                }
                for (&(page, departures), copy) in ahead.iter().zip(read).skip(group.len()) {
                    self.keep(page, departures, copy);
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
        let mut pages = group.to_vec();
        let end = (u64::from(last.0) + 1 + AHEAD).min(self.layout.pages());
        let mut at = u64::from(last.0) + 1;
        while at < end {
            let run = self.layout.run(PageIndex(at as u32), end);
            let shard = self.shard(run.shard);
            for i in 0..run.pages {
                let slot = SlotIndex(run.slot.0 + i);
                if !shard.slot(slot).is_empty() {
                    return pages;
                }
                pages.push((PageIndex(run.first.0 + i), shard.departures(slot)));
            }
            at += u64::from(run.pages);
        }
        pages
    }

    /// Whether there is room to keep what is read.
    fn keeps_absent(&self) -> bool {
        self.origin.home().is_some() && self.budget.used() <= self.watermarks().high
    }

    /// Reads pages that lie next to one another.
    fn fetch(&self, image: &dyn Image, group: &[AbsentPage], buffer: &mut BlockBuf) -> Result<()> {
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
        self.requests.origin_reads.fetch_add(pages, Relaxed);
        Ok(())
    }

    /// Makes a page of what was read of the image, or of what it is by now.
    fn accept(
        &self,
        page: PageIndex,
        departures: Departures,
        copy: &Page,
        out: &mut Page,
    ) -> Result<()> {
        if self.keeps_absent() {
            if self.keep(page, departures, copy) {
                *out = *copy;
                return Ok(());
            }
        } else {
            let run = self.layout.run(page, u64::from(page.0) + 1);
            if self.shard(run.shard).is_at_home(run.slot, departures) {
                *out = *copy;
                return Ok(());
            }
        }
        self.read_changed(page, out)
    }

    /// Reads a page that has changed while the image was read.
    pub(super) fn read_changed(&self, page: PageIndex, out: &mut Page) -> Result<()> {
        let run = self.layout.run(page, u64::from(page.0) + 1);
        let mut scratch = [0; PAGE_SIZE];
        let mut copy = BlockBuf::default();
        loop {
            let found = self.find(&mut self.shard(run.shard), run.slot, 0, &mut scratch);
            let (Found::Absent(departures), Some(image)) = (found, self.origin.image()) else {
                return self.unpack(page, found, &scratch, out);
            };
            self.fetch(image, &[(page, departures)], &mut copy)?;
            if self.shard(run.shard).is_at_home(run.slot, departures) {
                out.copy_from_slice(&copy);
                return Ok(());
            }
        }
    }

    /// Keeps a page that was read of the image in memory, where there is room; returns whether that
    /// is what the page is.
    fn keep(&self, page: PageIndex, departures: Departures, copy: &Page) -> bool {
        let mut scratch = [0; MAX_COMPRESSED_LEN];
        let most = self.max_compressed_len;
        let compressed = self.algorithms.compress(copy, &mut scratch, most);
        let (codec, object) = match compressed {
            Some((codec, len)) => (codec, &scratch[..len]),
            None => (Codec::Raw, &copy[..]),
        };
        let run = self.layout.run(page, u64::from(page.0) + 1);
        let mut shard = self.shard(run.shard);
        let same = shard.is_at_home(run.slot, departures);
        if same {
            shard.store_clean(run.slot, codec, object);
        }
        drop(shard);
        self.wake_if_needed(false);
        same
    }

    /// Reads the absent page of an empty slot, to be changed.
    pub(super) fn fetch_absent(&self, page: PageIndex, departures: Departures) -> Result<PageCopy> {
        let mut copy = [0; PAGE_SIZE];
        if let Some(image) = self.origin.image() {
            BUFFER.with_borrow_mut(|buffer| {
                self.fetch(image, &[(page, departures)], buffer)?;
                copy.copy_from_slice(buffer);
                Ok::<_, Error>(())
            })?;
        }
        Ok(PageCopy::new(Slot::EMPTY, departures.0, copy))
    }

    /// Whether a run of one page is absent, and how often it had left memory.
    pub(super) fn absent(&self, page: PageIndex) -> Option<Departures> {
        self.origin.image()?;
        let run = self.layout.run(page, u64::from(page.0) + 1);
        let shard = self.shard(run.shard);
        let is_empty = shard.slot(run.slot).is_empty();
        is_empty.then(|| shard.departures(run.slot))
    }

    /// Has absent pages of a range in memory, while there is room.
    pub(super) fn prefetch_absent(&self, pages: std::ops::Range<u64>) -> Result<()> {
        let mut some = vec![[0; PAGE_SIZE]; RUN_PAGES as usize];
        let mut at = pages.start;
        while at < pages.end && self.keeps_absent() {
            let run = self.layout.run(PageIndex(at as u32), pages.end);
            self.read(
                at << PAGE_SHIFT,
                some[..run.pages as usize].as_flattened_mut(),
            )?;
            at += u64::from(run.pages);
        }
        Ok(())
    }
}
