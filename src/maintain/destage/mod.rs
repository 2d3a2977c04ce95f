//! Destaging: what is written to the device goes to the image.
//!
//! ```text
//!             write, discard                  batch of writes          sync
//!  absent ────────────────────> dirty ──────────────────────> clean ────────> durable
//!    ^                            ^                             │
//!    │ leaves memory              └──── write, discard ─────────┤
//!    └──────────────────────────────────────────────────────────┘
//! ```
//!
//! A page is absent, dirty or clean: only in the image, not in it as it is, or in memory as well. A
//! dirty page is in memory until a write of it has ended well and it has not changed since. Pages
//! are written in batches, one batch at a time, with no shard locked: a batch takes dirty pages
//! along, copies them, and looks again at each when it has ended. So no two writes of a page are
//! under way at once, and a later one is never overtaken by an earlier.
//!
//! Eviction and flushes take turns at that, batch by batch, and neither needs memory of the
//! pool. Locks: the turn, a mutex; shards are locked under it. Above it is that of [`Syncs`], which
//! a flush holds. The hand's is that of the one who makes room for tables; shards are locked under it.

mod batch;
mod evict;
mod hand;
mod syncs;
mod writers;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use self::batch::{BATCH_PAGES, Completion, DestageBatch};
pub(super) use self::hand::Hand;
use self::syncs::Syncs;
use super::periodic::Periodic;
use crate::engine::{Engine, Relief};
use crate::error::{Error, Result};
use crate::origin::{Image, Origin};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use crate::sync::{Mutex, MutexGuard};
use crate::units::PageIndex;

/// Pages that a search for dirty ones looks at together.
const WINDOW: u64 = BATCH_PAGES as u64 / 2;

/// What destaging counts.
#[derive(Debug, Default)]
pub(crate) struct DestageCounts {
    /// Pages written, and pages made holes.
    pub(crate) writes: AtomicU64,
    pub(crate) holes: AtomicU64,
    pub(crate) syncs: AtomicU64,
}

/// What destages a device to its image.
pub(crate) struct Destager {
    engine: Arc<Engine>,
    image: Arc<dyn Image>,
    /// Whoever holds it has pages on their way.
    batch: Mutex<DestageBatch>,
    syncs: Syncs,
    /// Where pages leave next for tables to have room.
    hand: Mutex<Hand>,
    /// Whether a sync of the image has failed.
    is_lost: AtomicBool,
    /// Whether the last attempt to write failed, so that it is logged once.
    failing: AtomicBool,
    pub(crate) counts: DestageCounts,
}

impl Destager {
    /// The destager of a device; `None` if it has no image to destage to.
    pub(crate) fn of(engine: &Arc<Engine>) -> Option<Arc<Self>> {
        let Origin::WriteBack(image, _) = &engine.origin else {
            return None;
        };
        let destager = Arc::new(Self {
            engine: Arc::clone(engine),
            image: Arc::clone(image),
            batch: Mutex::new(DestageBatch::new()),
            syncs: Syncs::default(),
            hand: Mutex::default(),
            is_lost: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            counts: DestageCounts::default(),
        });
        let relief = Arc::downgrade(&destager);
        engine.tables.relieve_by(relief);
        Some(destager)
    }

    /// Syncs once in each period, in a thread of its own.
    ///
    /// # Errors
    /// [`Error::Io`] if there cannot be another thread.
    pub(crate) fn sync_every(this: &Arc<Self>, period: Duration) -> Result<Periodic> {
        let this = Arc::clone(this);
        Periodic::start("uzram-sync", period, move |rounds| {
            for () in rounds {
                // What failed is logged, and tried again the next time.
                let _ = this.sync();
            }
        })
    }

    /// Waits for a turn to write pages.
    fn turn(&self) -> MutexGuard<'_, DestageBatch> {
        self.batch.lock()
    }

    /// Writes the pages of a batch and looks at them again. What could not be written is dirty as
    /// before.
    ///
    /// # Errors
    /// The first failure; others of the pages may have been written.
    fn write(&self, batch: &mut DestageBatch) -> Result<()> {
        if batch.len() == 0 {
            return Ok(());
        }
        let written = batch.write(&self.engine, &self.image);
        batch.complete(&self.engine);
        self.counts.writes.fetch_add(written.pages, Relaxed);
        self.counts.holes.fetch_add(written.holes, Relaxed);
        self.note_health(written.failure.as_ref());
        written.failure.map_or(Ok(()), Err)
    }

    /// Has all that was written to the device before this was called in the image, durably.
    ///
    /// # Errors
    /// What the image said to a write: what it does not have is in memory, and the next sync tries
    /// again. What it said to a sync: then this fails for ever, since the kernel forgets what it
    /// could not write, and nobody has what had left memory by then.
    pub(crate) fn sync(&self) -> Result<()> {
        self.syncs.run(|| {
            self.write_all()?;
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

    /// Writes every page that is dirty now.
    ///
    /// # Errors
    /// The first failure; all others were tried.
    fn write_all(&self) -> Result<()> {
        let (mut at, mut done) = (0, Ok(()));
        while at < self.engine.shards.layout.pages() {
            let mut batch = self.turn();
            at = collect_from(&self.engine, &mut batch, at);
            let written = self.write(&mut batch);
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

impl Relief for Destager {
    fn empty_tables(&self, is_enough: &dyn Fn() -> bool) -> Result<()> {
        // What the image has already goes first, and the rest although some cannot be written.
        self.drop_clean(is_enough);
        if is_enough() {
            return Ok(());
        }
        let written = self.write_all();
        self.drop_clean(is_enough);
        match is_enough() {
            true => Ok(()),
            false => written,
        }
    }
}

impl Destager {
    /// Has clean pages leave memory until tables have enough room.
    fn drop_clean(&self, is_enough: &dyn Fn() -> bool) {
        let Engine { shards, tables, .. } = &*self.engine;
        tables.release(shards, 0);
        let mut hand = self.hand.lock();
        for (index, slots) in hand.round(&shards.layout) {
            let (mut at, end) = (slots.start, slots.end);
            while at < end && !is_enough() {
                let mut shard = shards.lock(index);
                let gone_by = shard.drop_clean(at..end, u64::MAX).next;
                // Those that were read lately had their chance.
                shard.drop_clean(at..gone_by, u64::MAX);
                drop(shard);
                at = gone_by;
                *hand = Hand::at(index, at);
                tables.release_of(shards, index, 0);
            }
        }
    }
}

/// Fills a batch with dirty pages in their order from page `at` on; returns where to go on.
fn collect_from(engine: &Engine, batch: &mut DestageBatch, mut at: u64) -> u64 {
    let pages = engine.shards.layout.pages();
    while batch.room() as u64 >= WINDOW {
        let first_in = |index| {
            let dirty = engine
                .shards
                .lock(index)
                .next_dirty(engine.shards.layout.slots_of(index, at..pages))?;
            Some(u64::from(engine.shards.layout.page(index, dirty).0))
        };
        let Some(first) = engine.shards.layout.shards().filter_map(first_in).min() else {
            return pages;
        };
        at = (first + WINDOW).min(pages);
        for index in engine.shards.layout.shards() {
            let slots = engine.shards.layout.slots_of(index, first..at);
            let mut shard = engine.shards.lock(index);
            let mut from = slots.start;
            while let Some(dirty) = shard.next_dirty(from..slots.end) {
                let page: PageIndex = engine.shards.layout.page(index, dirty);
                shard.take_dirty(dirty, &mut |contents| {
                    batch.push(index, dirty, page, contents, Completion::Stay);
                });
                from = dirty.0 + 1;
            }
        }
    }
    at
}
