//! The writeback thread: evicts when memory runs short, cleans segments, packs the pools, gives
//! memory back, empties an image that is restored.
//!
//! It is the only one that isolates zspages and that decides what is written where; helpers do the
//! writing ([`flights`]). It never needs memory from the pool to make progress: what it evicts goes
//! through buffers that it has from the start.

mod allowance;
mod batch;
mod cleaner;
mod compactor;
mod evictor;
mod flights;
mod homeward;
mod replace;
mod restore;
mod salvage;
mod selected;
mod waker;

use std::sync::Arc;
use std::time::Duration;

pub(crate) use self::allowance::{Allowance, Left};
use self::batch::Batch;
use self::evictor::NOTHING;
use self::flights::Flights;
use self::homeward::Hand;
use self::replace::Leaving;
use self::restore::Restoring;
use self::selected::Selected;
pub(crate) use self::waker::Waker;
use crate::device::core::Core;
use crate::device::room::RoundEnd;
use crate::selection::Selection;
use crate::spill::{Adopted, Backing, BlockBuf, SegmentLog};
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
        done: Sender<Result<u64, &'static str>>,
    },
    /// Write chosen pages back.
    WriteBack {
        selection: Selection,
        done: Sender<crate::Result<u64>>,
    },
    /// Spill to another backing from here on, or to none; what the present one holds is moved.
    Replace {
        backing: Option<NewBacking>,
        done: Sender<Result<(), String>>,
    },
    /// Have the backing hold at most so many bytes, or all it can.
    Resize {
        size: Option<u64>,
        done: Sender<crate::Result<()>>,
    },
    /// Empty the image that slots refer to.
    Restore {
        image: Adopted,
        done: Sender<Result<(), String>>,
    },
    /// Wait for what is under way.
    Land { done: Sender<()> },
    /// Assert that everything adds up, while nothing is isolated.
    Check { done: Sender<()> },
}

/// A backing, and the segments it may hold, which are at most so many bytes.
pub(crate) struct NewBacking {
    pub(crate) backing: Arc<dyn Backing>,
    pub(crate) capacity: u32,
    pub(crate) size: Option<u64>,
}

/// The thread's state.
pub(crate) struct Writeback {
    core: Arc<Core>,
    commands: Receiver<Command>,
    log: SegmentLog,
    flights: Flights,
    /// Page frames of zspages that are isolated while their objects are being written.
    leaving: u64,
    /// Page frames that eviction ever freed.
    evicted_frames: u64,
    /// Whether an append of records that cleaning moves failed.
    moves_failed: bool,
    /// A segment's contents, while it is cleaned.
    segment: BlockBuf,
    selected: Selected,
    /// Where clean pages are dropped next, of those that have a home.
    hand: Hand,
    /// Whether a shard has told of many freed objects since all were compacted.
    churned: bool,
    /// A backing that is to leave.
    replaced: Option<Leaving>,
    /// When a guest could not leave, if there is one that cannot yet.
    guest_tried_at: Option<Instant>,
    /// An image that is being emptied.
    restoring: Option<Restoring>,
    /// Whether the last attempt to write failed, so that it is logged once.
    failing: bool,
    /// When eviction last found that it can do nothing.
    stuck_at: Option<Instant>,
}

/// Sends writers away when the thread ends, however it ends.
struct CloseRoom(Arc<Core>);

impl Drop for CloseRoom {
    fn drop(&mut self) {
        self.0.room.close();
    }
}

impl Writeback {
    /// The writeback of a device whose segment uses have numbers behind `sequence`.
    pub(crate) fn new(core: Arc<Core>, commands: Receiver<Command>, sequence: u64) -> Self {
        let (stores, table) = (Arc::clone(&core.stores), Arc::clone(&core.segments));
        let log = SegmentLog::new(stores, table, Arc::clone(&core.log_counts), sequence);
        Self {
            commands,
            log,
            flights: Flights::new(core.formats.spilled.clone()),
            core,
            leaving: 0,
            evicted_frames: 0,
            moves_failed: false,
            segment: BlockBuf::default(),
            selected: Selected::default(),
            hand: Hand::default(),
            churned: false,
            replaced: None,
            guest_tried_at: None,
            restoring: None,
            failing: false,
            stuck_at: None,
        }
    }

    /// Works until the sender of commands is dropped.
    pub(crate) fn run(mut self) {
        let _closer = CloseRoom(Arc::clone(&self.core));
        self.core.waker.attach();
        let (mut unsettled, mut done) = (false, true);
        loop {
            let ages = self.core.keep_ages(|| self.should_go_on());
            let idle = unsettled.then_some(IDLE);
            let rests = [self.guest_rests(), self.restoring_rests()];
            let timeout = [ages, idle].into_iter().chain(rests).flatten().min();
            // Only the time that is waited for is told from work: ages are kept beside it.
            let woken = !done || self.core.waker.wait(timeout) || timeout != Some(IDLE);
            if !self.obey() {
                // What failed is logged, and nobody is left to need the memory.
                let _ = self.land_all();
                return;
            }
            if self.core.room.is_closed() {
                self.dismiss();
                done = true;
            } else {
                done = self.work(woken);
            }
            unsettled = self.core.trim(woken) || self.churned;
        }
    }

    /// Does what is to be done; returns false if more is to be done at once.
    fn work(&mut self, woken: bool) -> bool {
        let roomy = self.make_room();
        let freed_all = self.log.free_emptied(FREED_AT_ONCE) < FREED_AT_ONCE;
        // What somebody has asked for gets on, step by step, even if writers never let up.
        let selected = self.go_on_selected();
        let left = self.go_on_leaving();
        let restored = self.go_on_restoring();
        roomy
            && freed_all
            && self.compact_sparse_shards(woken)
            && self.clean_sparse_segments()
            && selected
            && left
            && restored
    }

    /// Ends what takes long: whoever waits for it learns that the device stops.
    fn dismiss(&mut self) {
        // What failed is logged.
        let _ = self.land_all();
        self.selected = Selected::default();
        self.replaced = None;
        self.guest_tried_at = None;
        self.restoring = None;
    }

    /// Does what was asked for; returns false if it is time to stop.
    fn obey(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Evict { frames, done }) => {
                    // Whoever asked may have gone.
                    let core = Arc::clone(&self.core);
                    let _ = done.send(match core.origin.home() {
                        Some(home) => self.evict_home(home, frames),
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
                Ok(Command::Land { done }) => {
                    // What failed is logged.
                    let _ = self.land_all();
                    let _ = done.send(());
                }
                Ok(Command::Check { done }) => {
                    let _ = self.land_all();
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
        !self.commands.is_empty() || self.core.room.is_closed() || self.core.ages_are_due()
    }

    /// Whether somebody waits for what this thread does.
    fn should_go_on(&self) -> bool {
        self.core.room.demand() || !self.commands.is_empty() || self.core.room.is_closed()
    }

    /// Evicts from the high watermark to the low one, or while writers wait; returns false if it
    /// was interrupted, also once what somebody has asked for has waited for it long enough.
    fn make_room(&mut self) -> bool {
        /// Rounds, each of about a batch.
        const IN_TURN: usize = 16;

        let core = Arc::clone(&self.core);
        let rests = self.stuck_at.is_some_and(|at| at.elapsed() < REST);
        if !core.room.demand() && (rests || core.budget.used() <= core.watermarks().high) {
            return true;
        }
        let mut rounds = 0;
        loop {
            // Cheaper than writing, where it frees as much.
            self.compact_sparse_shards(true);
            let more = match core.origin.home() {
                Some(home) => self.make_some_room_home(home),
                None => self.make_some_room(),
            };
            if !more {
                return self.flights.under_way() == 0;
            }
            // A round fills less than these.
            self.log.free_emptied(2);
            core.release_warm_frames(core.warm_frames_to_keep());
            self.keep_pace();
            if self.should_yield() {
                // What failed is logged.
                let _ = self.land_all();
                return false;
            }
            rounds += 1;
            if rounds >= IN_TURN && self.is_asked_for_more() {
                return false;
            }
        }
    }

    /// Whether there is something to do that somebody has asked for.
    fn is_asked_for_more(&self) -> bool {
        self.replaced.is_some() || !self.selected.is_empty()
    }

    /// Has as many batches under way as it takes to get to the low watermark, and lands one;
    /// returns whether that is not the end of it.
    fn make_some_room(&mut self) -> bool {
        let mut nothing = None;
        loop {
            let (used, low) = (self.core.budget.used(), self.core.watermarks().low);
            let mut wanted = used.saturating_sub(low).saturating_sub(self.leaving);
            // A writer may wait below the low watermark: others took the memory before it did.
            if self.core.room.demand() && self.flights.under_way() == 0 {
                wanted = wanted.max(1);
            }
            if wanted == 0 || !self.flights.is_open() {
                break;
            }
            match self.launch_eviction(wanted) {
                Ok(0) => nothing = Some(NOTHING),
                Ok(_) => continue,
                Err(reason) => nothing = Some(reason),
            }
            break;
        }
        match self.land() {
            Some(Ok(())) => return true,
            Some(Err(reason)) => {
                // The others decide whether that is the end of it.
                let mut any = false;
                while let Some(landed) = self.land() {
                    any |= landed.is_ok();
                }
                if any {
                    return true;
                }
                nothing = Some(reason);
            }
            None => {}
        }
        let Some(reason) = nothing else { return false };
        let freed = self.compact_some();
        let end = if freed > 0 || self.core.budget.has_room() {
            RoundEnd::Room
        } else {
            RoundEnd::Stuck(reason)
        };
        self.stuck_at = (freed == 0).then(Instant::now);
        self.core.room.end_round(end);
        freed > 0
    }

    /// Frees a zspage of each shard that has one to spare; returns the frames freed.
    fn compact_some(&self) -> u64 {
        let freed = |shard| self.core.shard(shard).compact().unwrap_or(0);
        self.core.layout.shards().map(freed).sum()
    }

    /// Asserts that shards, segments and budget agree.
    fn check(&mut self) {
        let (mut frames, mut tables) = (0, self.core.algorithms.dictionaries.frames());
        let mut live = std::collections::HashMap::new();
        for index in self.core.layout.shards() {
            let shard = self.core.shard(index);
            frames += shard.pool().frames_in_use();
            tables += shard.table_pages();
            shard.check(|slot| batch::count_live(&mut live, &self.core.formats, slot));
        }
        assert_eq!(frames, self.core.budget.used());
        assert_eq!(tables, self.core.tables.budget.used());
        let segments = &self.core.segments;
        for (in_image, counted) in [
            (false, segments.live_bytes()),
            (true, segments.image_bytes()),
        ] {
            let there = live.iter().filter(|(at, _)| at.is_in_image() == in_image);
            let bytes: u64 = there.map(|(_, &bytes)| u64::from(bytes)).sum();
            assert_eq!(bytes, counted);
        }
        self.log
            .check(&|segment| live.get(&segment).copied().unwrap_or(0));
    }
}
