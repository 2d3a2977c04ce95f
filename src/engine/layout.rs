//! Which shard and slot a page has: page `p` belongs to shard `(p / 32) mod N`.

use std::ops::Range;

use crate::shard::SlotIndex;
use crate::sync::atomic::{AtomicU64, Ordering::Relaxed};
use crate::units::{PAGE_SHIFT, PageIndex};

/// Consecutive pages that share a shard: a request takes a lock once for each run of them.
pub(crate) const RUN_PAGES: u32 = 32;

/// An index into the device's shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ShardIndex(pub(crate) u32);

/// Consecutive pages of one shard, at most [`RUN_PAGES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) first: PageIndex,
    pub(crate) pages: u32,
    pub(crate) shard: ShardIndex,
    pub(crate) slot: SlotIndex,
}

/// The shape of a device, which may grow up to its capacity: a page's shard and slot do not depend
/// on how many pages there are.
#[derive(Debug)]
pub(crate) struct Layout {
    pages: AtomicU64,
    /// Pages that there are slots for.
    capacity: u64,
    shards: u32,
}

impl Layout {
    /// A device of `bytes` that may grow to `capacity` bytes, in `shards` shards, or as many as there
    /// may be runs of pages, if those are fewer.
    pub(crate) fn new(bytes: u64, capacity: u64, shards: u32) -> Self {
        let capacity = capacity >> PAGE_SHIFT;
        let runs = capacity.div_ceil(u64::from(RUN_PAGES));
        Self {
            pages: AtomicU64::new(bytes >> PAGE_SHIFT),
            capacity,
            shards: u64::from(shards).min(runs) as u32,
        }
    }

    pub(crate) fn pages(&self) -> u64 {
        self.pages.load(Relaxed)
    }

    /// Most pages there may be.
    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Changes how many pages there are, to at most the capacity.
    pub(crate) fn resize(&self, pages: u64) {
        debug_assert!(pages <= self.capacity);
        self.pages.store(pages, Relaxed);
    }

    pub(crate) fn shards(&self) -> impl Iterator<Item = ShardIndex> + use<> {
        (0..self.shards).map(ShardIndex)
    }

    /// Slots of a shard, one for each of its pages.
    pub(crate) fn slots(&self, shard: ShardIndex) -> u32 {
        self.slots_before(shard, self.pages())
    }

    /// Slots of a shard at most.
    pub(crate) fn most_slots(&self, shard: ShardIndex) -> u32 {
        self.slots_before(shard, self.capacity)
    }

    /// The run that starts with `first` and ends before page `end`.
    pub(crate) fn run(&self, first: PageIndex, end: u64) -> Run {
        let (group, within) = (first.0 / RUN_PAGES, first.0 % RUN_PAGES);
        let pages = u64::from(RUN_PAGES - within).min(end - u64::from(first.0)) as u32;
        Run {
            first,
            pages,
            shard: ShardIndex(group % self.shards),
            slot: SlotIndex(group / self.shards * RUN_PAGES + within),
        }
    }

    /// A run of one page.
    pub(crate) fn run_of(&self, page: PageIndex) -> Run {
        self.run(page, u64::from(page.0) + 1)
    }

    /// The page that has a slot.
    pub(crate) fn page(&self, shard: ShardIndex, slot: SlotIndex) -> PageIndex {
        let (group, within) = (slot.0 / RUN_PAGES, slot.0 % RUN_PAGES);
        PageIndex((group * self.shards + shard.0) * RUN_PAGES + within)
    }

    /// The slots of a shard that belong to `pages`.
    pub(crate) fn slots_of(&self, shard: ShardIndex, pages: Range<u64>) -> Range<u32> {
        self.slots_before(shard, pages.start)..self.slots_before(shard, pages.end)
    }

    /// The number of slots of a shard that belong to pages before `page`.
    fn slots_before(&self, shard: ShardIndex, page: u64) -> u32 {
        let run_pages = u64::from(RUN_PAGES);
        let (group, within) = (page / run_pages, page % run_pages);
        let (round, position) = (
            group / u64::from(self.shards),
            group % u64::from(self.shards),
        );
        let shard = u64::from(shard.0);
        let rest = match position.cmp(&shard) {
            std::cmp::Ordering::Greater => run_pages,
            std::cmp::Ordering::Equal => within,
            std::cmp::Ordering::Less => 0,
        };
        (round * run_pages + rest) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DeviceConfig;

    #[test]
    fn every_page_has_a_slot_of_its_own() {
        for (pages, shards) in [(1u64, 4), (31, 1), (32, 2), (33, 2), (1000, 3), (4096, 8)] {
            let layout = Layout::new(pages << PAGE_SHIFT, pages << PAGE_SHIFT, shards);
            let mut seen = std::collections::HashSet::new();
            let mut at = 0;
            while at < pages {
                let run = layout.run(PageIndex(at as u32), pages);
                assert!(run.pages >= 1 && run.pages <= RUN_PAGES);
                for i in 0..run.pages {
                    let slot = SlotIndex(run.slot.0 + i);
                    assert!(slot.0 < layout.slots(run.shard));
                    assert!(seen.insert((run.shard, slot)));
                    assert_eq!(layout.page(run.shard, slot), PageIndex(run.first.0 + i));
                }
                at += u64::from(run.pages);
            }
            assert_eq!(seen.len() as u64, pages);
        }
    }

    #[test]
    fn a_range_of_pages_is_a_range_of_slots_in_each_shard() {
        let layout = &Layout::new(1000 << PAGE_SHIFT, 1000 << PAGE_SHIFT, 3);
        for range in [0..1000, 5..7, 31..33, 90..200, 64..96, 999..1000, 400..400] {
            let mut pages: Vec<u64> = layout
                .shards()
                .flat_map(|shard| {
                    let slots = layout.slots_of(shard, range.clone());
                    slots.map(move |slot| u64::from(layout.page(shard, SlotIndex(slot)).0))
                })
                .collect();
            pages.sort_unstable();
            assert!(pages.into_iter().eq(range));
        }
    }

    #[test]
    fn the_largest_device_fits() {
        assert_eq!(DeviceConfig::min_shards(16 << 40), 2);
        let layout = Layout::new(16 << 40, 16 << 40, 2);
        assert_eq!(layout.slots(ShardIndex(1)), 1 << 31);
        let last = PageIndex(u32::MAX);
        let run = layout.run(last, 1 << 32);
        assert_eq!((run.pages, layout.page(run.shard, run.slot)), (1, last));
    }
}
