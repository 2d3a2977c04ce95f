//! The state of each page, as zram's `block_state` tells it.

use std::fmt::Write;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Device;
use crate::algorithm::Priority;
use crate::codec::Codec;
use crate::shard::{SLOTS_PER_BLOCK, Shard, Slot, SlotIndex, SlotState};
use crate::units::PageIndex;

/// Lines of a step, about.
const LINES_AT_ONCE: usize = 1000;

/// Runs of pages that a step looks at.
const RUNS_AT_ONCE: u32 = 1 << 12;

/// Stripes, one block of slots in each shard, that a search for data looks at.
const STRIPES_AT_ONCE: u64 = 1024;

/// Some lines of `block_state`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct BlockStates {
    /// At most 48 KiB, and possibly none.
    pub text: String,
    /// The page to go on from; `None` at the end of the device.
    pub next: Option<u64>,
}

/// What a line tells.
struct State {
    page: PageIndex,
    slot: Slot,
    priority: Priority,
}

impl Device {
    /// The lines of `block_state` of pages from page `from` on. A step takes a bounded time.
    pub fn block_states(&self, from: u64) -> BlockStates {
        let end = self.engine.shards.layout.pages();
        let stripe_pages =
            self.engine.shards.layout.shards().count() as u64 * u64::from(SLOTS_PER_BLOCK);
        let (mut at, mut found) = (from, Vec::new());
        for _ in 0..RUNS_AT_ONCE {
            if at >= end || found.len() >= LINES_AT_ONCE {
                break;
            }
            let window_end = at.saturating_add(STRIPES_AT_ONCE * stripe_pages).min(end);
            at = match self.engine.shards.first_used(at..window_end) {
                Some(used) => self.states_of_run(used, end, &mut found),
                None => window_end,
            };
        }
        BlockStates {
            text: self.lines(&found),
            next: (at < end).then_some(at),
        }
    }

    /// All of `block_state`: 40 bytes for each page that holds data.
    pub fn block_state(&self) -> String {
        let (mut text, mut next) = (String::new(), Some(0));
        while let Some(from) = next {
            let states = self.block_states(from);
            text.push_str(&states.text);
            next = states.next;
        }
        text
    }

    /// Lists the pages of the run that starts at page `first`; returns the page after it.
    fn states_of_run(&self, first: u64, end: u64, found: &mut Vec<State>) -> u64 {
        let run = self.engine.shards.layout.run(PageIndex(first as u32), end);
        let shard: &Shard = &self.engine.shards.lock(run.shard);
        found.extend((0..run.pages).filter_map(|i| {
            let slot = shard.slot(SlotIndex(run.slot.0 + i));
            (!slot.is_empty()).then(|| State {
                page: PageIndex(run.first.0 + i),
                slot,
                priority: shard.priority(slot),
            })
        }));
        first + u64::from(run.pages)
    }

    fn lines(&self, found: &[State]) -> String {
        let secondary = self.engine.codecs.secondary();
        let top = secondary.last().map_or(Priority::PRIMARY, |last| last.0);
        let times = self.engine.ages.access_times(&self.engine.time);
        let mut text = String::with_capacity(found.len() * 40);
        for State {
            page,
            slot,
            priority,
        } in found
        {
            let time = slot.age().map_or(Duration::ZERO, |tag| times.latest(tag));
            let (state, is_raw) = match slot.state() {
                SlotState::Resident { codec, .. } => (SlotState::Empty, codec == Codec::Raw),
                state @ SlotState::WrittenBack { codec, .. } => (state, codec == Codec::Raw),
                state => (state, false),
            };
            let flags = [
                (matches!(state, SlotState::SameFilled { .. }), 's'),
                (matches!(state, SlotState::WrittenBack { .. }), 'w'),
                (is_raw, 'h'),
                (slot.is_idle(), 'i'),
                (*priority != Priority::PRIMARY, 'r'),
                (slot.is_tried() && *priority < top, 'n'),
            ];
            let flags = flags.map(|(is_set, flag)| if is_set { flag } else { '.' });
            let flags: String = flags.into_iter().collect();
            let (seconds, micros) = (time.as_secs(), time.subsec_micros());
            // Writing to a string does not fail.
            let _ = writeln!(text, "{:12} {seconds:12}.{micros:06} {flags}", page.0);
        }
        text
    }
}
