//! Writing chosen pages back: what the `writeback` attribute asks for.
//!
//! A job goes over the slots and collects the objects of chosen pages into batches, which are
//! written beside one another. What becomes of a page meanwhile decides whether its slot is then
//! pointed at the record (`shard::selected`). A job is done in steps, so that eviction goes on
//! between them, and ends early when what it may write is spent.
//!
//! While the number of pages is limited the largest objects go first, as in zram, in passes over
//! the slots: each page then gives most memory back.

use std::collections::VecDeque;
use std::ops::Range;

use rustix::io::Errno;

use super::append::{FAILING, Payload, SelectedOutcome};
use super::batch::MAX_BATCH;
use super::evict::AT_LIMIT;
use super::{Batch, Progress, Writeback};
use crate::engine::{Engine, ShardIndex};
use crate::error::{Error, Result};
use crate::selection::{PageKind, Part, Selection};
use crate::shard::{Purpose, Slot, SlotState};
use crate::spill::{MAX_RECORD_LEN, Target};
use crate::sync::channel::Sender;
use crate::units::PAGE_SIZE;

/// Bytes that the lengths of the objects of one pass differ by at most.
const BAND: usize = PAGE_SIZE / 8;

/// Slots that are looked at while a lock is held.
const LOOKED_AT_ONCE: u32 = 4096;

/// Times that a step takes a lock: it looks at half a million slots, a few milliseconds' work.
const HOLDS: usize = 128;

/// Selections to be written back, one after the other. Only the first has pages under way, and
/// none is forgotten while it has.
#[derive(Default)]
pub(super) struct Selected {
    jobs: VecDeque<Job>,
}

impl Selected {
    /// Whether there is nothing to do.
    pub(super) fn is_empty(&self) -> bool {
        self.jobs.is_empty()
    }
}

/// A selection, and how far the search for its pages is.
struct Job {
    parts: Vec<Part>,
    /// Lengths of the objects of each pass.
    bands: Vec<Range<usize>>,
    at: Cursor,
    /// Who waits for it.
    done: Sender<Result<u64>>,
}

/// Where the search for chosen pages goes on.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    part: usize,
    band: usize,
    shard: u32,
    /// A slot, of those of the part and the shard.
    slot: u32,
}

/// Why collecting came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// There are no more such pages.
    Over,
    /// The batch is full, or the step has taken long enough.
    Full,
    /// The batch has as many pages as it may, and there are more.
    Spent,
    /// What comes next may be the same pages again: a mark does not tell which batch made it, so
    /// those have to be completed first.
    Round,
}

/// How many of the chosen pages were found so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    Some,
    All,
}

impl Job {
    fn new(selection: Selection, largest_first: bool, done: Sender<Result<u64>>) -> Self {
        // Lengths are 1 to PAGE_SIZE.
        let bands = if largest_first {
            let ends = (1..=PAGE_SIZE / BAND).rev().map(|n| n * BAND + 1);
            ends.map(|end| end - BAND..end).collect()
        } else {
            std::iter::once(1..PAGE_SIZE + 1).collect()
        };
        Self {
            parts: selection.parts,
            bands,
            at: Cursor::default(),
            done,
        }
    }

    /// Adds chosen pages to a batch, at most `pages` and about `room` bytes, of those that a step
    /// comes by.
    fn collect(&mut self, engine: &Engine, batch: &mut Batch, room: usize, pages: u64) -> Stop {
        let shards = engine.shards.layout.shards().count() as u32;
        let mut holds = 0;
        while let Some(part) = self.parts.get(self.at.part) {
            let shard = ShardIndex(self.at.shard);
            let slots = engine.shards.layout.slots_of(shard, part.pages.clone());
            let at = self.at.slot.max(slots.start);
            if at < slots.end {
                let band = &self.bands[self.at.band];
                let wanted = |slot: Slot| is_wanted(slot, part.kind, band);
                let limits = Limits { room, pages };
                let (next, stop) = pick_some(engine, batch, shard, at..slots.end, &wanted, limits);
                self.at.slot = next;
                holds += 1;
                if let Some(stop) = stop {
                    return stop;
                }
                if holds == HOLDS {
                    return Stop::Full;
                }
                continue;
            }
            (self.at.shard, self.at.slot) = (self.at.shard + 1, 0);
            if self.at.shard == shards {
                (self.at.shard, self.at.band) = (0, self.at.band + 1);
                if self.at.band == self.bands.len() {
                    (self.at.band, self.at.part) = (0, self.at.part + 1);
                }
                return Stop::Round;
            }
        }
        Stop::Over
    }
}

fn is_wanted(slot: Slot, kind: PageKind, band: &Range<usize>) -> bool {
    let SlotState::Resident { len, .. } = slot.state() else {
        return false;
    };
    kind.includes(slot) && band.contains(&len) && !slot.is_selected()
}

/// Bounds of a batch.
#[derive(Clone, Copy)]
struct Limits {
    room: usize,
    pages: u64,
}

/// Adds wanted pages of a range of slots to a batch; returns where to go on, and whether the batch
/// is complete. What it does at once is bounded, since a lock is held.
fn pick_some(
    engine: &Engine,
    batch: &mut Batch,
    index: ShardIndex,
    slots: Range<u32>,
    wanted: &dyn Fn(Slot) -> bool,
    limits: Limits,
) -> (u32, Option<Stop>) {
    const PICKED_AT_ONCE: usize = 32;
    const SEARCHED_AT_ONCE: u32 = 1 << 19;
    let end = slots.end.min(slots.start.saturating_add(SEARCHED_AT_ONCE));
    let (before, mut looked, mut at) = (batch.records(), 0, slots.start);
    let mut shard = engine.shards.lock(index);
    while let Some(used) = shard.next_used(at..end) {
        if wanted(shard.slot(used)) {
            if batch.records() as u64 == limits.pages {
                return (used.0, Some(Stop::Spent));
            }
            if batch.len() + MAX_RECORD_LEN > limits.room {
                return (used.0, Some(Stop::Full));
            }
            let page = engine.shards.layout.page(index, used);
            shard.select(used, Purpose::WriteBack, &mut |selected| {
                batch.push(index, page, selected);
            });
        }
        at = used.0 + 1;
        looked += 1;
        if looked == LOOKED_AT_ONCE || batch.records() - before == PICKED_AT_ONCE {
            return (at, None);
        }
    }
    (end, None)
}

impl Batch {
    /// After the append of chosen pages: points the slots at their records, those that may be;
    /// returns how many.
    pub(super) fn settle_selected(&self, engine: &Engine, target: &Target) -> u64 {
        let mut settled = 0;
        self.visit(engine, &mut |shard, entry| {
            settled += u64::from(shard.settle_selected(entry.index, target.address(entry.at)));
        });
        settled
    }

    /// Leaves chosen pages where they are.
    pub(super) fn unselect(&self, engine: &Engine) {
        self.visit(engine, &mut |shard, entry| {
            shard.unselect(entry.index, Purpose::WriteBack, entry.expected);
        });
    }
}

impl Writeback {
    /// Takes on a selection; `done` is told how many pages have left memory, or why not all have.
    pub(super) fn select(&mut self, selection: Selection, done: Sender<Result<u64>>) {
        let largest_first = self.engine.spilled.quota.limits_pages();
        let job = Job::new(selection, largest_first, done);
        self.selected.jobs.push_back(job);
    }

    /// Does a step of writing chosen pages back.
    pub(super) fn go_on_selected(&mut self) -> Progress {
        let Some(mut job) = self.selected.jobs.pop_front() else {
            return Progress::Idle;
        };
        let submitted = self.submit_selected(&mut job);
        let stops = self.engine.is_stopping();
        if matches!(submitted, Ok(Found::Some)) && !self.appender.selected.failed && !stops {
            self.selected.jobs.push_front(job);
            return Progress::More;
        }
        // What failed is noted.
        let _ = self.appender.complete_all();
        let SelectedOutcome { written, failed } = std::mem::take(&mut self.appender.selected);
        // Whoever asked may have gone.
        let _ = job.done.send(match submitted {
            Ok(Found::Some) if stops => refused(Errno::INTR, "the device is stopping"),
            _ if failed => refused(Errno::IO, without_limit(FAILING)),
            Err(error) => Err(error),
            Ok(_) => Ok(written),
        });
        match self.selected.is_empty() {
            true => Progress::Idle,
            false => Progress::More,
        }
    }

    /// Submits a batch of chosen pages, or completes one if all are in flight.
    fn submit_selected(&mut self, job: &mut Job) -> Result<Found> {
        if !self.engine.spilled.stores.spills() {
            return refused(Errno::NODEV, "there is no backing to write to");
        }
        let target = self.eviction_target();
        let target = target.map_err(|reason| Error::NoSpace(without_limit(reason)))?;
        let Some(mut batch) = self.appender.try_take_batch() else {
            // What failed is noted.
            let _ = self.appender.complete();
            return Ok(Found::Some);
        };
        let left = self.engine.spilled.may_write(&self.engine.time);
        let (pages, bytes) = left.map_or((0, u64::MAX), |left| (left.pages, left.bytes));
        let room = target.room().min(MAX_BATCH).min(bytes as usize) - target.start_len();
        let stop = job.collect(&self.engine, &mut batch, room, pages);
        self.appender.submit(target, batch, Payload::Selected);
        if stop == Stop::Round {
            // What failed is noted.
            let _ = self.appender.complete_all();
        }
        match (stop, left) {
            (Stop::Over, _) => Ok(Found::All),
            (Stop::Spent, Err(reason)) => refused(Errno::IO, without_limit(reason)),
            (Stop::Spent | Stop::Full | Stop::Round, _) => Ok(Found::Some),
        }
    }
}

fn without_limit(reason: &'static str) -> &'static str {
    reason.strip_prefix(AT_LIMIT).unwrap_or(reason)
}

fn refused<T>(errno: Errno, reason: &str) -> Result<T> {
    Err(Error::Refused {
        what: "writeback",
        reason: reason.to_owned(),
        errno: errno.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maintain::rig::writeback;
    use crate::shard::SlotIndex;
    use crate::sync::channel;

    #[test]
    fn a_step_ends_where_little_of_much_is_chosen() {
        const MOST: u32 = HOLDS as u32 * LOOKED_AT_ONCE;
        const PAGES: u32 = 2 * MOST + 1000;
        let (engine, mut writeback, _commands) = writeback(PAGES);
        for slot in 0..PAGES {
            let mut shard = engine.shards.lock(ShardIndex(0));
            shard.store_same_filled(SlotIndex(slot), 5).expect("room");
        }
        let all = format!("page_indexes=0-{}", PAGES - 1);
        let selection = Selection::parse(&all, u64::from(PAGES)).expect("valid");
        let (done, answer) = channel::bounded(1);
        writeback.select(selection, done);
        for step in 1..=2 {
            assert_eq!(writeback.go_on_selected(), Progress::More);
            let at = writeback.selected.jobs.front().expect("not done").at;
            assert_eq!(at.slot, step * MOST);
        }
        while writeback.go_on_selected() == Progress::More {}
        assert_eq!(answer.recv().expect("done").expect("nothing to do"), 0);
    }
}
