//! A batch of dirty pages on their way to the image.

use std::io;
use std::sync::Arc;

use super::writers::{Part, Writers};
use crate::codec::{self, Codec};
use crate::engine::{Engine, ShardIndex};
use crate::error::Error;
use crate::origin::Image;
use crate::shard::{Contents, SlotIndex};
use crate::spill::BlockBuf;
use crate::units::{PAGE_SHIFT, PAGE_SIZE, Page, PageIndex};

/// Most pages of a batch.
pub(super) const BATCH_PAGES: usize = 512;

/// What becomes of a page in memory once it is in the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Completion {
    /// It stays, clean.
    Stay,
    /// It leaves.
    Leave,
}

/// What a page is, as it was copied.
#[derive(Clone, Copy)]
enum Copied {
    Hole,
    SameFilled(u32),
    /// Compressed at `start` in the scratch.
    Object {
        codec: Codec,
        start: usize,
        len: usize,
    },
}

struct Entry {
    shard: ShardIndex,
    index: SlotIndex,
    page: PageIndex,
    copied: Copied,
    completion: Completion,
    written: bool,
}

/// The batch. All its memory is there from the start.
pub(super) struct DestageBatch {
    entries: Vec<Entry>,
    scratch: Vec<u8>,
    bytes: BlockBuf,
    writers: Writers,
}

/// What a batch has done.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Pages that were written, and pages that were made holes.
    pub(super) pages: u64,
    pub(super) holes: u64,
    pub(super) failure: Option<Error>,
}

impl DestageBatch {
    pub(super) fn new() -> Self {
        Self {
            entries: Vec::with_capacity(BATCH_PAGES),
            scratch: Vec::with_capacity(BATCH_PAGES * PAGE_SIZE),
            bytes: BlockBuf::with_capacity(BATCH_PAGES * PAGE_SIZE),
            writers: Writers::new(),
        }
    }

    /// Pages that may still be added.
    pub(super) fn room(&self) -> usize {
        BATCH_PAGES - self.entries.len()
    }

    /// Pages in it.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Adds a page that was taken.
    pub(super) fn push(
        &mut self,
        shard: ShardIndex,
        index: SlotIndex,
        page: PageIndex,
        contents: Contents<'_>,
        completion: Completion,
    ) {
        debug_assert!(self.room() > 0);
        let copied = match contents {
            Contents::Hole => Copied::Hole,
            Contents::SameFilled(pattern) => Copied::SameFilled(pattern),
            Contents::Object { codec, data } => {
                let start = self.scratch.len();
                self.scratch.extend_from_slice(data);
                Copied::Object {
                    codec,
                    start,
                    len: data.len(),
                }
            }
        };
        self.entries.push(Entry {
            shard,
            index,
            page,
            copied,
            completion,
            written: false,
        });
    }

    /// Writes the pages, neighbours together.
    pub(super) fn write(&mut self, engine: &Engine, image: &Arc<dyn Image>) -> Written {
        // In the order of pages, and then of shards again, so that few locks are taken.
        self.entries.sort_unstable_by_key(|entry| entry.page);
        let (parts, failure) = self.lay_out(engine);
        let mut written = Written {
            failure,
            ..Written::default()
        };
        let (parts, failed) = self.writers.write(image, parts, &mut self.bytes);
        let failed_at = |page: PageIndex| {
            let at = u64::from(page.0) << PAGE_SHIFT;
            let holds = |(part, _): &&(usize, io::Error)| {
                (parts[*part].at..parts[*part].at + parts[*part].len).contains(&at)
            };
            failed.iter().find(holds)
        };
        for entry in &mut self.entries {
            if entry.written && failed_at(entry.page).is_none() {
                match entry.copied {
                    Copied::Hole => written.holes += 1,
                    _ => written.pages += 1,
                }
            } else {
                entry.written = false;
            }
        }
        if let Some((_, error)) = failed.into_iter().next() {
            written.failure = Some(Error::io("write to the image", error));
        }
        written
    }

    /// Decompresses the pages into the bytes to be written; returns the parts. A page that cannot
    /// be is left out, and why the last of them is returned.
    fn lay_out(&mut self, engine: &Engine) -> (Vec<Part>, Option<Error>) {
        let (mut parts, mut failure) = (Vec::<Part>::new(), None);
        self.bytes.clear();
        for entry in &mut self.entries {
            let start = self.bytes.len();
            let data = match entry.copied {
                Copied::Hole => None,
                Copied::SameFilled(pattern) => {
                    self.bytes.resize(start + PAGE_SIZE);
                    codec::fill(pattern, 0, &mut self.bytes[start..]);
                    Some(start)
                }
                Copied::Object {
                    codec,
                    start: at,
                    len,
                } => {
                    let mut page: Page = [0; PAGE_SIZE];
                    let object = &self.scratch[at..at + len];
                    let algorithms = &engine.codecs;
                    if algorithms.decompress(codec, object, &mut page).is_err() {
                        failure = Some(Error::Corrupt { page: entry.page.0 });
                        continue;
                    }
                    self.bytes.extend_from_slice(&page);
                    Some(start)
                }
            };
            entry.written = true;
            let at = u64::from(entry.page.0) << PAGE_SHIFT;
            match parts.last_mut() {
                Some(part) if part.at + part.len == at && part.data.is_some() == data.is_some() => {
                    part.len += PAGE_SIZE as u64;
                }
                _ => parts.push(Part {
                    at,
                    len: PAGE_SIZE as u64,
                    data,
                }),
            }
        }
        (parts, failure)
    }

    /// Looks at the pages again, after they were written or not, and forgets them.
    pub(super) fn complete(&mut self, engine: &Engine) {
        self.entries
            .sort_unstable_by_key(|entry| (entry.shard.0, entry.index));
        for run in self.entries.chunk_by(|a, b| a.shard == b.shard) {
            // Short holds.
            for some in run.chunks(128) {
                let mut shard = engine.shards.lock(some[0].shard);
                for entry in some {
                    let leave = entry.completion == Completion::Leave;
                    shard.settle_destaged(entry.index, entry.written, leave);
                }
                engine.unlock(shard);
            }
        }
        self.entries.clear();
        self.scratch.clear();
    }
}
