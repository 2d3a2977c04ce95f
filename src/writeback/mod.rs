//! The writeback thread: evicts when memory runs short, cleans segments, gives memory back.
//!
//! It is the only one that isolates zspages and that writes to the backing. It never needs memory
//! from the pool to make progress: what it evicts goes through buffers that it has from the start.

mod batch;
mod cleaner;
mod evictor;

use std::sync::Arc;
use std::time::Duration;

use crossbeam::channel::{Receiver, Sender, TryRecvError};

use self::batch::Batch;
use crate::device::core::Core;
use crate::device::room::RoundEnd;
use crate::spill::SegmentLog;

/// How long after the last work all freed memory goes back to the kernel.
const IDLE: Duration = Duration::from_millis(500);

/// What the thread is asked to do.
pub(crate) enum Command {
    /// Evict the oldest zspages, of at least so many frames in all.
    Evict {
        frames: u64,
        done: Sender<Result<u64, &'static str>>,
    },
    /// Assert that everything adds up, while nothing is isolated.
    Check { done: Sender<()> },
}

/// The thread's state.
pub(crate) struct Writeback {
    core: Arc<Core>,
    commands: Receiver<Command>,
    log: Option<SegmentLog>,
    batch: Batch,
    /// A segment's contents, while it is cleaned.
    segment: Vec<u8>,
    /// Whether the last attempt to write failed, so that it is logged once.
    failing: bool,
}

impl Writeback {
    pub(crate) fn new(core: Arc<Core>, commands: Receiver<Command>) -> Self {
        let log = core.backing.as_ref().map(|backing| {
            let (table, counts) = (Arc::clone(&core.segments), Arc::clone(&core.log_counts));
            SegmentLog::new(Arc::clone(backing), table, counts)
        });
        Self {
            core,
            commands,
            log,
            batch: Batch::default(),
            segment: Vec::new(),
            failing: false,
        }
    }

    /// Works until the sender of commands is dropped.
    pub(crate) fn run(mut self) {
        self.core.segments.waker().attach();
        let mut warm = false;
        loop {
            let woken = self.core.segments.waker().wait(warm.then_some(IDLE));
            if !self.obey() {
                return;
            }
            if let Some(log) = &mut self.log {
                log.free_emptied();
            }
            self.make_room();
            self.clean_sparse_segments();
            let keep = if woken {
                self.core.warm_frames_to_keep()
            } else {
                0
            };
            warm = self.core.release_warm_frames(keep);
        }
    }

    /// Does what was asked for; returns false if it is time to stop.
    fn obey(&mut self) -> bool {
        loop {
            match self.commands.try_recv() {
                Ok(Command::Evict { frames, done }) => {
                    // Whoever asked may have gone.
                    let _ = done.send(self.evict(frames));
                }
                Ok(Command::Check { done }) => {
                    self.check();
                    let _ = done.send(());
                }
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Evicts from the high watermark to the low one, or while writers wait.
    fn make_room(&mut self) {
        let watermarks = self.core.watermarks();
        if self.core.budget.used() <= watermarks.high && !self.core.room.demand() {
            return;
        }
        loop {
            let used = self.core.budget.used();
            let waiting = self.core.room.demand();
            if used <= watermarks.low && !waiting {
                return;
            }
            // A writer may wait below the low watermark: others took the memory before it did.
            let surplus = used.saturating_sub(watermarks.low).max(1);
            let end = self.free_some(surplus);
            self.core.room.end_round(end);
            if end != RoundEnd::Room {
                return;
            }
            if let Some(log) = &mut self.log {
                log.free_emptied();
            }
            self.core
                .release_warm_frames(self.core.warm_frames_to_keep());
        }
    }

    /// Frees some memory, at least one zspage if that is possible.
    fn free_some(&mut self, frames: u64) -> RoundEnd {
        let reason = match self.evict_batch(frames) {
            Ok(freed) if freed > 0 => return RoundEnd::Room,
            Ok(_) => "everything in memory is in use",
            Err(reason) => reason,
        };
        if self.compact_some() > 0 || self.core.budget.has_room() {
            return RoundEnd::Room;
        }
        RoundEnd::Stuck(reason)
    }

    /// Frees a zspage of each shard that has one to spare; returns the frames freed.
    fn compact_some(&self) -> u64 {
        let freed = |shard| self.core.shard(shard).compact().unwrap_or(0);
        self.core.layout.shards().map(freed).sum()
    }

    /// Asserts that shards, segments and budget agree.
    fn check(&mut self) {
        let mut frames = 0;
        let mut live = std::collections::HashMap::new();
        for index in self.core.layout.shards() {
            let shard = self.core.shard(index);
            frames += shard.pool().frames_in_use();
            shard.check(|slot| batch::count_live(&mut live, slot));
        }
        assert_eq!(frames, self.core.budget.used());
        let live_bytes: u64 = live.values().map(|&bytes| u64::from(bytes)).sum();
        assert_eq!(live_bytes, self.core.segments.live_bytes());
        if let Some(log) = &self.log {
            log.check(&|segment| live.get(&segment).copied().unwrap_or(0));
        }
    }
}
