//! Where the search for clean pages goes on: a hand goes over the slots of all shards, as a clock's does, so that
//! pages leave memory in turn, wherever on the device they are.

use std::ops::Range;

use crate::engine::{Layout, ShardIndex};

/// Where the hand is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::maintain) struct Hand {
    shard: u32,
    slot: u32,
}

impl Hand {
    /// At a slot of a shard.
    pub(super) fn at(shard: ShardIndex, slot: u32) -> Self {
        Self {
            shard: shard.0,
            slot,
        }
    }

    /// All slots from there on, once around. The shard that the hand is in is met twice: behind it and before it.
    pub(super) fn round(self, layout: &Layout) -> impl Iterator<Item = (ShardIndex, Range<u32>)> {
        let count = layout.shards().count() as u32;
        (0..=count).map(move |turn| {
            let shard = ShardIndex((self.shard + turn) % count);
            let all = layout.slots(shard);
            let slots = match turn {
                0 => self.slot..all,
                turn if turn == count => 0..self.slot,
                _ => 0..all,
            };
            (shard, slots)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_meets_every_slot_once() {
        // Of 32, 32 and 16 slots.
        let layout = Layout::new(80 << 12, 80 << 12, 3);
        for (shard, slot) in [(0, 0), (0, 32), (1, 7), (2, 16)] {
            let hand = Hand::at(ShardIndex(shard), slot);
            let mut met: Vec<_> = hand
                .round(&layout)
                .flat_map(|(shard, slots)| slots.map(move |slot| (shard, slot)))
                .collect();
            assert_eq!(met.len(), 80, "{hand:?}");
            let first = (shard as usize * 32 + slot as usize) % 80;
            assert_eq!(met[0], (ShardIndex(first as u32 / 32), first as u32 % 32));
            met.sort_unstable();
            met.dedup();
            assert_eq!(met.len(), 80, "{hand:?}");
        }
    }
}
