//! What the pages of a device hold, in a few figures for each part of it: for whoever draws it.

use std::ops::Range;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Device;
use crate::codec::Codec;
use crate::engine::ShardIndex;
use crate::error::{Error, Result};
use crate::shard::{Shard, SlotIndex, SlotState};

/// Pages of a part of the device, by what they hold; the others are empty. As JSON, an array in the
/// order of the fields.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[u64; 4]", into = "[u64; 4]")]
pub struct MapCell {
    /// One repeated pattern, zeroes or another.
    pub same_filled: u64,
    /// Compressed in memory.
    pub resident: u64,
    /// In memory as they are, because they do not compress.
    pub huge: u64,
    /// In the backing.
    pub written_back: u64,
}

impl From<[u64; 4]> for MapCell {
    fn from([same_filled, resident, huge, written_back]: [u64; 4]) -> Self {
        Self {
            same_filled,
            resident,
            huge,
            written_back,
        }
    }
}

impl From<MapCell> for [u64; 4] {
    fn from(cell: MapCell) -> Self {
        [
            cell.same_filled,
            cell.resident,
            cell.huge,
            cell.written_back,
        ]
    }
}

/// A device's pages in equal parts, as far as they can be equal: cell `i` of `n` starts at page
/// `first + ceil(i * pages / n)`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageMap {
    /// Pages of the device.
    pub device_pages: u64,
    /// The first page of the map.
    pub first: u64,
    /// Pages in the map.
    pub pages: u64,
    /// What they hold.
    pub cells: Vec<MapCell>,
}

/// Most cells of a [`PageMap`]: it has to fit in a line of the control protocol.
pub const MAX_MAP_CELLS: u64 = 1024;

impl Device {
    /// What `pages` hold, clipped to the device, in up to `cells` cells: fewer if there are not so
    /// many pages. Each page is looked at by itself, at one time or another.
    ///
    /// # Errors
    /// [`Error::Refused`] (EINVAL) for no cells, or more than [`MAX_MAP_CELLS`].
    pub fn page_map(&self, pages: Range<u64>, cells: u64) -> Result<PageMap> {
        if !(1..=MAX_MAP_CELLS).contains(&cells) {
            return Err(Error::Refused {
                what: "map",
                reason: format!("it has 1 to {MAX_MAP_CELLS} cells"),
                errno: Errno::INVAL.into(),
            });
        }
        let device_pages = self.pages();
        let end = pages.end.min(device_pages);
        let first = pages.start.min(end);
        let pages = end - first;
        let mut map = PageMap {
            device_pages,
            first,
            pages,
            cells: vec![MapCell::default(); cells.min(pages) as usize],
        };
        for index in self.engine.shards.layout.shards() {
            self.add_to_map(index, &mut map);
        }
        Ok(map)
    }

    /// Adds a shard's pages. Its lock is held for a bounded number of them at a time.
    fn add_to_map(&self, index: ShardIndex, map: &mut PageMap) {
        const USED_AT_ONCE: usize = 1024;
        const SEARCHED_AT_ONCE: u32 = 1 << 19;
        let slots = self
            .engine
            .shards
            .layout
            .slots_of(index, map.first..map.first + map.pages);
        let mut at = slots.start;
        while at < slots.end {
            let end = slots.end.min(at.saturating_add(SEARCHED_AT_ONCE));
            let shard = self.engine.shards.lock(index);
            let mut used = 0;
            while let Some(slot) = shard.next_used(at..end) {
                let page = u64::from(self.engine.shards.layout.page(index, slot).0) - map.first;
                let cell = page * map.cells.len() as u64 / map.pages;
                count(&mut map.cells[cell as usize], &shard, slot);
                at = slot.0 + 1;
                used += 1;
                if used == USED_AT_ONCE {
                    break;
                }
            }
            if used < USED_AT_ONCE {
                at = end;
            }
        }
    }
}

fn count(cell: &mut MapCell, shard: &Shard, slot: SlotIndex) {
    match shard.slot(slot).state() {
        SlotState::Empty => {}
        SlotState::SameFilled { .. } => cell.same_filled += 1,
        SlotState::Resident {
            codec: Codec::Raw, ..
        } => cell.huge += 1,
        SlotState::Resident { .. } => cell.resident += 1,
        SlotState::WrittenBack { .. } => cell.written_back += 1,
    }
}
