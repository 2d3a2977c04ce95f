//! Which pages were read back not long ago.

use std::io;

use super::SlotIndex;
use crate::memory::LazyTable;

/// Most entries, 1 MiB.
const MAX_ENTRIES: u32 = 1 << 18;

/// A direct-mapped table of slots: an entry is forgotten when another slot takes its place, which
/// is after about as many read-backs as there are entries. So a scan of more than that leaves no
/// trace, and a page that is read back again and again does.
pub(super) struct RecentReadBacks {
    /// A slot's index plus one, or 0.
    entries: LazyTable<u32>,
}

impl RecentReadBacks {
    /// An empty table for a shard of `slots` slots.
    ///
    /// # Errors
    /// The kernel's, if there is not enough address space.
    pub(super) fn new(slots: u32) -> io::Result<Self> {
        let entries = (slots / 4).clamp(16, MAX_ENTRIES).next_power_of_two();
        Ok(Self {
            entries: LazyTable::new(entries as usize)?,
        })
    }

    /// Notes that a slot is read back; returns whether it was noted before. If so it is forgotten,
    /// since it is on its way to memory.
    pub(super) fn note(&mut self, index: SlotIndex) -> bool {
        // Fibonacci hashing: neighbours must not all map to neighbours.
        let hash = index.0.wrapping_mul(0x9e37_79b9) >> (32 - self.entries.len().ilog2());
        let entry = &mut self.entries[hash as usize];
        let again = *entry == index.0 + 1;
        *entry = if again { 0 } else { index.0 + 1 };
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_what_was_read_back_lately() {
        let mut recent = RecentReadBacks::new(4096).expect("addresses");
        assert!(!recent.note(SlotIndex(0)) && recent.note(SlotIndex(0)));
        assert!(!recent.note(SlotIndex(0)));
        let again = (1..500)
            .filter(|&slot| recent.note(SlotIndex(slot)))
            .count();
        assert_eq!(again, 0);
        // A scan of four times as many slots as entries drives all but a few out.
        for slot in 1000..5000 {
            recent.note(SlotIndex(slot));
        }
        let again = (0..500)
            .filter(|&slot| recent.note(SlotIndex(slot)))
            .count();
        assert!(again < 50, "{again} still known");
    }
}
