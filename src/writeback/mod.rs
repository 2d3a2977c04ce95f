//! The writeback thread: evicts when memory runs short, cleans segments, gives memory back.
//!
//! It is the only one that isolates zspages and that writes to the backing. It never needs memory
//! from the pool to make progress: what it evicts goes through buffers that it has from the start.

mod batch;
mod cleaner;
mod evictor;
mod waker;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, TryRecvError};

use self::batch::Batch;
pub(crate) use self::waker::Waker;
use crate::device::core::Core;
use crate::device::room::RoundEnd;
use crate::spill::{SEGMENT_BYTES, SegmentLog};

/// How long after the last work all freed memory goes back to the kernel.
const IDLE: Duration = Duration::from_millis(500);

/// How long eviction rests after it found that it can do nothing, unless a writer waits.
const REST: Duration = Duration::from_millis(100);

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
    pub(crate) fn new(core: Arc<Core>, commands: Receiver<Command>) -> Self {
        let log = core.backing.as_ref().map(|backing| {
            let (table, counts) = (Arc::clone(&core.segments), Arc::clone(&core.log_counts));
            SegmentLog::new(Arc::clone(backing), table, counts)
        });
        let spills = log.is_some();
        Self {
            core,
            commands,
            log,
            batch: if spills {
                Batch::new()
            } else {
                Batch::default()
            },
            segment: Vec::with_capacity(if spills { SEGMENT_BYTES as usize } else { 0 }),
            failing: false,
            stuck_at: None,
        }
    }

    /// Works until the sender of commands is dropped.
    pub(crate) fn run(mut self) {
        let _closer = CloseRoom(Arc::clone(&self.core));
        self.core.waker.attach();
        let (mut warm, mut done) = (false, true);
        loop {
            let woken = !done || self.core.waker.wait(warm.then_some(IDLE));
            if !self.obey() {
                return;
            }
            self.free_emptied_segments();
            done = self.make_room() && self.clean_sparse_segments();
            warm = self.core.trim(woken);
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

    /// Whether a command waits, or the device stops: what takes long is interrupted after a step.
    fn should_yield(&self) -> bool {
        !self.commands.is_empty() || self.core.room.is_closed()
    }

    /// Evicts from the high watermark to the low one, or while writers wait; returns false if it
    /// was interrupted.
    fn make_room(&mut self) -> bool {
        let core = Arc::clone(&self.core);
        let rests = self.stuck_at.is_some_and(|at| at.elapsed() < REST);
        if !core.room.demand() && (rests || core.budget.used() <= core.watermarks().high) {
            return true;
        }
        loop {
            let (used, low) = (core.budget.used(), core.watermarks().low);
            if used <= low && !core.room.demand() {
                return true;
            }
            // A writer may wait below the low watermark: others took the memory before it did.
            let end = self.free_some(used.saturating_sub(low).max(1));
            self.stuck_at = matches!(end, RoundEnd::Stuck(_)).then(Instant::now);
            core.room.end_round(end);
            if self.stuck_at.is_some() {
                return true;
            }
            self.free_emptied_segments();
            core.release_warm_frames(core.warm_frames_to_keep());
            if self.is_bloated() {
                // What fails here is logged, and fails a writer only if it comes to need the space.
                let _ = self.clean_one();
            }
            if self.should_yield() {
                return false;
            }
        }
    }

    fn free_emptied_segments(&mut self) {
        if let Some(log) = &mut self.log {
            log.free_emptied();
        }
    }

    /// Frees some memory, at least one zspage if that is possible.
    fn free_some(&mut self, frames: u64) -> RoundEnd {
        let reason = match self.evict_batch(frames) {
            Ok(evicted) if evicted.objects > 0 => return RoundEnd::Room,
            Ok(_) => "the memory limit is reached and there is nothing to evict",
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
