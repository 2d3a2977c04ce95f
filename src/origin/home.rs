//! The image as the home of what is written to the device.

use std::io;
use std::sync::Arc;

use super::batch::{BATCH_PAGES, HomeBatch, Landing, outcome};
use super::image::Image;
use super::{SyncPolicy, Syncs};
use crate::device::core::Core;
use crate::error::{Error, Result};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use crate::sync::{Mutex, MutexGuard};
use crate::units::PageIndex;

/// Pages that a search for dirty ones looks at together.
const WINDOW: u64 = BATCH_PAGES as u64 / 2;

/// What is counted of the way home.
#[derive(Debug, Default)]
pub(crate) struct HomeCounts {
    /// Pages written, and pages made holes.
    pub(crate) writes: AtomicU64,
    pub(crate) holes: AtomicU64,
    pub(crate) syncs: AtomicU64,
}

/// The home.
pub(crate) struct Home {
    image: Arc<dyn Image>,
    policy: SyncPolicy,
    /// Whoever holds it has pages on their way.
    batch: Mutex<HomeBatch>,
    syncs: Syncs,
    /// Whether a sync of the image has failed.
    is_lost: AtomicBool,
    /// Whether the last attempt to write failed, so that it is logged once.
    failing: AtomicBool,
    pub(crate) counts: HomeCounts,
}

impl Home {
    pub(crate) fn new(image: Arc<dyn Image>, policy: SyncPolicy) -> Self {
        Self {
            image,
            policy,
            batch: Mutex::new(HomeBatch::new()),
            syncs: Syncs::default(),
            is_lost: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            counts: HomeCounts::default(),
        }
    }

    pub(crate) fn image(&self) -> &dyn Image {
        &*self.image
    }

    pub(crate) fn policy(&self) -> SyncPolicy {
        self.policy
    }

    /// Waits for one's turn to write pages home.
    pub(crate) fn turn(&self) -> MutexGuard<'_, HomeBatch> {
        self.batch.lock()
    }

    /// Writes the pages of a batch and looks at them again. What could not be written is dirty as
    /// before.
    ///
    /// # Errors
    /// The first failure; others of the pages may have been written.
    pub(crate) fn write(&self, core: &Core, batch: &mut HomeBatch) -> Result<()> {
        if batch.len() == 0 {
            return Ok(());
        }
        let written = batch.write(core, &self.image);
        batch.land(core);
        self.counts.writes.fetch_add(written.pages, Relaxed);
        self.counts.holes.fetch_add(written.holes, Relaxed);
        self.note_health(written.failure.as_ref());
        outcome(written.failure)
    }

    /// Has all that was written to the device before this was called in the image, durably.
    ///
    /// # Errors
    /// What the image said to a write: what it does not have is in memory, and the next sync tries
    /// again. What it said to a sync: then this fails for ever, since the kernel forgets what it
    /// could not write, and nobody has what had left memory by then.
    pub(crate) fn sync(&self, core: &Core) -> Result<()> {
        self.syncs.run(|| {
            self.write_all(core)?;
            if !self.is_lost.load(Relaxed) {
                match self.image.sync() {
                    Ok(()) => {
                        self.counts.syncs.fetch_add(1, Relaxed);
                        return Ok(());
                    }
                    Err(error) => {
                        tracing::error!(
                            "cannot sync the image: {error}; what was written to it since the \
                             last sync may be lost, and every sync from here on fails"
                        );
                        self.is_lost.store(true, Relaxed);
                        return Err(Error::io("sync the image", error));
                    }
                }
            }
            let lost = io::Error::other("it failed before, and what it lost is not known");
            Err(Error::io("sync the image", lost))
        })
    }

    /// Writes every page home that is dirty now.
    ///
    /// # Errors
    /// The first failure; all others were tried.
    pub(crate) fn write_all(&self, core: &Core) -> Result<()> {
        let (mut at, mut done) = (0, Ok(()));
        while at < core.layout.pages() {
            let mut batch = self.turn();
            at = collect_from(core, &mut batch, at);
            let written = self.write(core, &mut batch);
            drop(batch);
            done = done.and(written);
        }
        done
    }

    fn note_health(&self, failure: Option<&Error>) {
        match failure {
            None if self.failing.swap(false, Relaxed) => {
                tracing::info!("the image takes writes again");
            }
            Some(error) if !self.failing.swap(true, Relaxed) => {
                tracing::error!("{error}; the pages stay in memory");
            }
            _ => {}
        }
    }
}

/// Fills a batch with dirty pages in their order from page `at` on; returns where to go on.
fn collect_from(core: &Core, batch: &mut HomeBatch, mut at: u64) -> u64 {
    let pages = core.layout.pages();
    while batch.room() as u64 >= WINDOW {
        let first_in = |index| {
            let dirty = core
                .shard(index)
                .next_dirty(core.layout.slots_of(index, at..pages))?;
            Some(u64::from(core.layout.page(index, dirty).0))
        };
        let Some(first) = core.layout.shards().filter_map(first_in).min() else {
            return pages;
        };
        at = (first + WINDOW).min(pages);
        for index in core.layout.shards() {
            let slots = core.layout.slots_of(index, first..at);
            let mut shard = core.shard(index);
            let mut from = slots.start;
            while let Some(dirty) = shard.next_dirty(from..slots.end) {
                let page: PageIndex = core.layout.page(index, dirty);
                shard.take_home(dirty, &mut |contents| {
                    batch.push(index, dirty, page, contents, Landing::Stay);
                });
                from = dirty.0 + 1;
            }
        }
    }
    at
}
