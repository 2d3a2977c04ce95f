//! What happens to a device in the background, most of it by one thread: it evicts when memory runs short,
//! cleans segments, packs the pools, gives memory back, empties an image that is restored.
//!
//! ```text
//! thread (here) ─┬─ evict ─────┐
//!                ├─ clean ─────┤
//!                ├─ selected ──┼── append ── in_flight: a few threads that write
//!                ├─ restore ───┤
//!                ├─ replace ───┘
//!                ├─ compact
//!                └─ destage::evict ── destage: batches of dirty pages, for a flush too
//! recompress: whoever asks, and a thread of its own
//! ```
//!
//! The thread is the only one that isolates zspages and that decides what is written where. It never needs
//! memory from the pool to make progress: what it evicts goes through buffers that it has from the
//! start.

mod append;
mod batch;
mod clean;
mod compact;
#[cfg(all(test, not(shuttle)))]
mod deaths;
mod destage;
mod evict;
mod in_flight;
mod oldest;
mod periodic;
mod recompress;
mod replace;
mod restore;
#[cfg(test)]
mod rig;
mod salvage;
mod selected;

use std::sync::Arc;
use std::time::Duration;

use self::append::Appender;
use self::batch::Batch;
pub(crate) use self::destage::Destager;
use self::destage::Hand;
use self::evict::NOTHING;
pub(crate) use self::periodic::Periodic;
#[cfg(test)]
pub(crate) use self::recompress::Scratch;
pub(crate) use self::recompress::{Plan, Recompressor, Wanted};
pub(crate) use self::replace::AdoptedStores;
use self::replace::Leaving;
use self::restore::Restoring;
use self::selected::Selected;
use crate::engine::{Engine, RoundEnd};
use crate::error::Result;
use crate::selection::Selection;
use crate::spill::{Backing, BlockBuf, Imported};
use crate::sync::channel::{Receiver, Sender, TryRecvError};
use crate::sync::time::Instant;

/// How long after the last work pools are packed once more, and all freed memory goes back to the
/// kernel.
const IDLE: Duration = Duration::from_millis(500);

/// How long eviction rests after it found that it can do nothing, unless a writer waits.
const REST: Duration = Duration::from_millis(100);

/// Segments that are given back at once: each may take a while.
const FREED_AT_ONCE: usize = 4;

/// What the thread is asked to do.
pub(crate) enum Command {
    /// Evict the oldest zspages, of at least so many frames in all.
    Evict {
        frames: u64,
        done: Sender<std::result::Result<u64, &'static str>>,
    },
    /// Write chosen pages back.
    WriteBack {
        selection: Selection,
        done: Sender<Result<u64>>,
    },
    /// Spill to another backing from here on, or to none; what the present one holds is moved.
    Replace {
        backing: Option<NewBacking>,
        done: Sender<std::result::Result<(), String>>,
    },
    /// Have the backing hold at most so many bytes, or all it can.
    Resize {
        size: Option<u64>,
        done: Sender<Result<()>>,
    },
    /// Empty the image that slots refer to.
    Restore {
        image: Imported,
        done: Sender<std::result::Result<(), String>>,
    },
    /// Complete what is in flight.
    Complete { done: Sender<()> },
    /// Assert that everything adds up, while nothing is isolated.
    Check { done: Sender<()> },
}

/// A backing, and the segments it may hold, which are at most so many bytes.
pub(crate) struct NewBacking {
    pub(crate) backing: Arc<dyn Backing>,
    pub(crate) capacity: u32,
    pub(crate) size: Option<u64>,
}

/// Whether there is more to be done at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// There is not, until the thread is woken or has rested.
    Idle,
    /// There is; or what was begun was interrupted.
    More,
}

impl Progress {
    /// What two pieces of work have come to together.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Idle, Self::Idle) => Self::Idle,
            _ => Self::More,
        }
    }

    /// Does `next`, if this is done.
    fn then(self, next: impl FnOnce() -> Self) -> Self {
        match self {
            Self::Idle => next(),
            Self::More => Self::More,
        }
    }
}

/// The thread's state.
pub(crate) struct Writeback {
    engine: Arc<Engine>,
    /// What destages pages, if there is an image to destage to.
    destager: Option<Arc<Destager>>,
    commands: Receiver<Command>,
    appender: Appender,
    /// A segment's contents, while it is cleaned.
    segment: BlockBuf,
    selected: Selected,
    /// Where clean pages are dropped next, of those that the image has.
    hand: Hand,
    /// Whether a shard has told of many freed objects since all were compacted.
    churned: bool,
    /// A backing that is to leave.
    replaced: Option<Leaving>,
    /// When a draining backing was tried that could not leave, if there is one.
    draining_tried_at: Option<Instant>,
    /// An image that is being emptied.
    restoring: Option<Restoring>,
    /// When eviction last found that it can do nothing.
    stuck_at: Option<Instant>,
}

/// Sends writers away when the thread ends, however it ends.
struct CloseThrottle(Arc<Engine>);

impl Drop for CloseThrottle {
    fn drop(&mut self) {
        self.0.limit.throttle.close();
    }
}

impl Writeback {
    /// The background of a device whose segment uses have numbers behind `sequence`.
    pub(crate) fn new(
        engine: Arc<Engine>,
        destager: Option<Arc<Destager>>,
        commands: Receiver<Command>,
        sequence: u64,
    ) -> Self {
        Self {
            appender: Appender::new(Arc::clone(&engine), sequence),
            engine,
            destager,
            commands,
            segment: BlockBuf::default(),
            selected: Selected::default(),
            hand: Hand::default(),
            churned: false,
            replaced: None,
            draining_tried_at: None,
            restoring: None,
            stuck_at: None,
        }
    }

    /// Works until the sender of commands is dropped.
    pub(crate) fn run(mut self) {
        let engine = Arc::clone(&self.engine);
        let _closer = CloseThrottle(Arc::clone(&engine));
        engine.waker.attach();
        let (mut unsettled, mut progress) = (false, Progress::Idle);
        loop {
            let ages = engine
                .ages
                .keep(&engine.shards, &engine.time, || self.is_awaited());
            let idle = unsettled.then_some(IDLE);
            let rests = [self.draining_rests(), self.restoring_rests()];
            let timeout = [ages, idle].into_iter().chain(rests).flatten().min();
            // Only the time that is waited for is told from work: ages are kept beside it.
            let woken =
                progress == Progress::More || engine.waker.wait(timeout) || timeout != Some(IDLE);
            if !self.obey() {
                // What failed is logged, and nobody is left to need the memory.
                let _ = self.appender.complete_all();
                return;
            }
            progress = if engine.limit.throttle.is_closed() {
                self.dismiss();
                Progress::Idle
            } else {
                self.work(woken)
            };
            unsettled = engine.trim(woken) || self.churned;
            engine.remember_changes();
        }
    }

    /// Does what is to be done.
    fn work(&mut self, woken: bool) -> Progress {
        let room = self.make_room();
        let freed = match self.appender.log.free_emptied(FREED_AT_ONCE) {
            FREED_AT_ONCE => Progress::More,
            _ => Progress::Idle,
        };
        // What somebody has asked for gets on, step by step, even if writers never let up.
        let selected = self.go_on_selected();
        let left = self.go_on_leaving();
        let restored = self.go_on_restoring();
        room.and(freed)
            .then(|| self.compact_sparse_shards(woken))
            .then(|| self.clean_sparse_segments())
            .and(selected)
            .and(left)
            .and(restored)
    }

    /// Ends what takes long: whoever waits for it learns that the device stops.
    fn dismiss(&mut self) {
        // What failed is logged.
        let _ = self.appender.complete_all();
        self.selected = Selected::default();
        self.replaced = None;
        self.draining_tried_at = None;
        self.restoring = None;
    }

    /// Does what was asked for; returns false if it is time to stop.
    fn obey(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Evict { frames, done }) => {
                    // Whoever asked may have gone.
                    let _ = done.send(match self.destager.clone() {
                        Some(destager) => self.evict_to_image(&destager, frames),
                        None => self.evict(frames),
                    });
                }
                Ok(Command::WriteBack { selection, done }) => self.select(selection, done),
                Ok(Command::Replace { backing, done }) => self.replace(backing, done),
                Ok(Command::Resize { size, done }) => {
                    let _ = done.send(self.resize(size));
                }
                Ok(Command::Restore { image, done }) => {
                    let _ = done.send(self.restore(image));
                }
                Ok(Command::Complete { done }) => {
                    // What failed is logged.
                    let _ = self.appender.complete_all();
                    let _ = done.send(());
                }
                Ok(Command::Check { done }) => {
                    let _ = self.appender.complete_all();
                    self.check();
                    let _ = done.send(());
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Whether a command waits, the device stops, or it is time for another generation: what takes
    /// long is interrupted after a step.
    fn should_yield(&self) -> bool {
        let engine = &*self.engine;
        !self.commands.is_empty()
            || engine.limit.throttle.is_closed()
            || engine.ages.are_due(&engine.time)
    }

    /// Whether somebody waits for what this thread does.
    fn is_awaited(&self) -> bool {
        let throttle = &self.engine.limit.throttle;
        throttle.demand() || !self.commands.is_empty() || throttle.is_closed()
    }

    /// Evicts from the high watermark to the low one, or while writers wait; there is more to do if it
    /// was interrupted, also once what somebody has asked for has waited for it long enough.
    fn make_room(&mut self) -> Progress {
        /// Rounds, each of about a batch.
        const IN_TURN: usize = 16;

        let engine = Arc::clone(&self.engine);
        let rests = self.stuck_at.is_some_and(|at| at.elapsed() < REST);
        if !engine.limit.throttle.demand() && (rests || !engine.limit.is_short()) {
            return Progress::Idle;
        }
        let mut rounds = 0;
        loop {
            // Cheaper than writing, where it frees as much.
            self.compact_sparse_shards(true);
            let progress = match self.destager.clone() {
                Some(destager) => self.destage_some(&destager),
                None => self.make_some_room(),
            };
            if progress == Progress::Idle {
                return match self.appender.in_flight() {
                    0 => Progress::Idle,
                    _ => Progress::More,
                };
            }
            // A round fills less than these.
            self.appender.log.free_emptied(2);
            let shards = &engine.shards;
            shards.release_warm_frames(shards.frames_to_keep(true));
            self.keep_pace();
            if self.should_yield() {
                // What failed is logged.
                let _ = self.appender.complete_all();
                return Progress::More;
            }
            rounds += 1;
            if rounds >= IN_TURN && self.is_asked_for_more() {
                return Progress::More;
            }
        }
    }

    /// Whether there is something to do that somebody has asked for.
    fn is_asked_for_more(&self) -> bool {
        self.replaced.is_some() || !self.selected.is_empty()
    }

    /// Has as many batches in flight as it takes to get to the low watermark, and completes one;
    /// there is more to do unless that is the end of it.
    fn make_some_room(&mut self) -> Progress {
        let stopped = self.submit_evictions();
        let stopped = match self.appender.complete() {
            None => stopped,
            Some(Ok(())) => return Progress::More,
            Some(Err(reason)) => {
                // The others decide whether that is the end of it.
                let mut any = false;
                while let Some(completed) = self.appender.complete() {
                    any |= completed.is_ok();
                }
                if any {
                    return Progress::More;
                }
                Some(reason)
            }
        };
        let Some(reason) = stopped else {
            return Progress::Idle;
        };
        let freed = self.compact_some();
        let limit = &self.engine.limit;
        let end = if freed > 0 || limit.budget.has_room() {
            RoundEnd::Room
        } else {
            RoundEnd::Stuck(reason)
        };
        self.stuck_at = (freed == 0).then(Instant::now);
        limit.throttle.end_round(end);
        match freed {
            0 => Progress::Idle,
            _ => Progress::More,
        }
    }

    /// Submits batches of the oldest zspages until those in flight free enough, or no other can be; returns
    /// why nothing more can be evicted, if that is so.
    fn submit_evictions(&mut self) -> Option<&'static str> {
        loop {
            let limit = &self.engine.limit;
            let above = limit.budget.used().saturating_sub(limit.watermarks().low);
            let mut wanted = above.saturating_sub(self.appender.leaving_frames());
            // A writer may wait below the low watermark: others took the memory before it did.
            if limit.throttle.demand() && self.appender.in_flight() == 0 {
                wanted = wanted.max(1);
            }
            if wanted == 0 || !self.appender.is_open() {
                return None;
            }
            match self.submit_eviction(wanted) {
                Ok(0) => return Some(NOTHING),
                Ok(_) => {}
                Err(reason) => return Some(reason),
            }
        }
    }

    /// Frees a zspage of each shard that has one to spare; returns the frames freed.
    fn compact_some(&self) -> u64 {
        let shards = &self.engine.shards;
        let freed = |index| shards.compact_one(index).unwrap_or(0);
        shards.layout.shards().map(freed).sum()
    }

    /// Asserts that shards, segments and budget agree.
    fn check(&mut self) {
        let (mut frames, mut tables) = (0, self.engine.codecs.dictionaries.frames());
        let mut live = std::collections::HashMap::new();
        for index in self.engine.shards.layout.shards() {
            let shard = self.engine.shards.lock(index);
            frames += shard.pool().frames_in_use();
            tables += shard.table_pages();
            shard.check(|slot| batch::count_live(&mut live, &self.engine.spilled.formats, slot));
        }
        assert_eq!(frames, self.engine.limit.budget.used());
        assert_eq!(tables, self.engine.tables.budget.used());
        let segments = &self.engine.spilled.segments;
        for (in_image, counted) in [
            (false, segments.live_bytes()),
            (true, segments.image_bytes()),
        ] {
            let there = live.iter().filter(|(at, _)| at.is_in_image() == in_image);
            let bytes: u64 = there.map(|(_, &bytes)| u64::from(bytes)).sum();
            assert_eq!(bytes, counted);
        }
        self.appender
            .log
            .check(&|segment| live.get(&segment).copied().unwrap_or(0));
    }
}
