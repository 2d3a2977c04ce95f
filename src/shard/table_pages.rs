//! Which page frames of one of a shard's tables hold something, and which can go back to the kernel.
//!
//! A table costs memory by the page frame, from the first element that is in use on. The frame is
//! taken from a budget of the device before that element is written, so that tables are bounded, and
//! whoever writes learns it. Once none of its elements is in use the frame is *emptied*; it goes back
//! to the kernel without the shard's lock, and is *out* meanwhile: nobody may write to it until then,
//! since the kernel would drop that as well.
//!
//! A page frame may be *implied*, too: all of its elements are in use, with one value that whoever owns
//! the table knows, and none of them is written. Where the table outlives the process, so does that: it is noted
//! there before the first element is given up, and until after the last one is written.
//!
//! Invariants:
//! 1. A frame with elements in use is held and not out; one that is out has none in use.
//! 2. A frame that is held and has no element in use is in `emptied` or out. Not all that are in
//!    `emptied` are empty still.
//! 3. `held` frames are held, and taken from the budget.
//! 4. An implied frame has no element in use that is written.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::memory::{FrameBudget, IdlePages, LazyTable, MemorySource, Publish};
use crate::pool::NoRoom;
use crate::sync::{Protection, without};

/// Elements that are written and in use.
const COUNT: u16 = (1 << 11) - 1;
/// Taken from the budget.
const HELD: u16 = 1 << 15;
/// On its way back to the kernel.
const OUT: u16 = 1 << 14;
/// In `emptied`.
const LISTED: u16 = 1 << 13;
/// All elements are in use, and not written.
const IMPLIED: u16 = 1 << 12;

/// The page frames of a table.
pub(super) struct TablePages {
    states: LazyTable<u16>,
    /// Not 0 for those that are implied, or are about to be.
    implied: LazyTable<AtomicU8>,
    emptied: Vec<u32>,
    held: u64,
    budget: Arc<FrameBudget>,
}

impl TablePages {
    /// So many page frames, none of them held.
    ///
    /// # Errors
    /// The kernel's, if there is not enough address space.
    pub(super) fn new(
        pages: u32,
        budget: Arc<FrameBudget>,
        memory: &MemorySource,
    ) -> io::Result<Self> {
        Ok(Self {
            states: LazyTable::new(pages as usize)?,
            implied: LazyTable::new_in(pages as usize, memory)?,
            emptied: Vec::new(),
            held: 0,
            budget,
        })
    }

    /// Elements in use in a page frame that are written.
    pub(super) fn count(&self, page: u32) -> u32 {
        u32::from(self.states[page as usize] & COUNT)
    }

    /// Page frames that cost memory.
    pub(super) fn held(&self) -> u64 {
        self.held
    }

    /// Page frames that may be empty, and are held.
    pub(super) fn emptied(&self) -> usize {
        self.emptied.len()
    }

    /// Whether a page frame may be written to, element by element.
    pub(super) fn is_ready(&self, page: u32) -> bool {
        self.states[page as usize] & (HELD | OUT | IMPLIED) == HELD
    }

    pub(super) fn is_implied(&self, page: u32) -> bool {
        self.states[page as usize] & IMPLIED != 0
    }

    /// Says that a page frame is about to be implied: its elements are given up one by one.
    pub(super) fn begin_imply(&mut self, page: u32) {
        self.implied[page as usize].publish(1);
    }

    /// Has a page frame without an element in use be implied.
    pub(super) fn imply(&mut self, page: u32) {
        debug_assert_eq!(self.count(page), 0);
        self.states[page as usize] |= IMPLIED;
    }

    /// Ends that. The caller has written `written` elements, to a page frame that is reserved, or none.
    pub(super) fn end_implied(&mut self, page: u32, written: u32) {
        let state = &mut self.states[page as usize];
        debug_assert!(*state & COUNT == 0 && (written == 0 || *state & (HELD | OUT) == HELD));
        *state = *state & !IMPLIED | written as u16;
        self.implied[page as usize].publish(0);
    }

    /// Finds the page frames that are implied, of a table that was found as it is; returns them.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn adopt_implied(&mut self) -> io::Result<impl Iterator<Item = u32> + use<>> {
        let mut found = Vec::new();
        for page in self.implied.data_ranges()?.into_iter().flatten() {
            if self.implied[page].load(Ordering::Relaxed) != 0 {
                self.states[page] |= IMPLIED;
                found.push(page as u32);
            }
        }
        Ok(found.into_iter())
    }

    /// Finds a page frame that holds so many elements in use, or none and may cost memory all the same.
    pub(super) fn adopt(&mut self, page: u32, used: u32) {
        self.budget.take(1);
        self.held += 1;
        self.states[page as usize] |= HELD | used as u16;
        if used == 0 {
            self.list(page);
        }
    }

    /// Sees to it that a page frame may be written to. Unless an element of it is in use then,
    /// [`TablePages::abandon`] has to follow.
    ///
    /// # Errors
    /// [`NoRoom::TableLimit`]; [`NoRoom::TableBusy`] while the frame is out.
    pub(super) fn reserve(&mut self, page: u32) -> Result<(), NoRoom> {
        if self.is_ready(page) {
            return Ok(());
        }
        let state = &mut self.states[page as usize];
        if *state & OUT != 0 {
            return match without(Protection::NothingWrittenToWhatIsOut) {
                true => Ok(()),
                false => Err(NoRoom::TableBusy),
            };
        }
        if *state & HELD == 0 {
            if !self.budget.try_take(1) {
                return Err(NoRoom::TableLimit);
            }
            *state |= HELD;
            self.held += 1;
        }
        Ok(())
    }

    /// Notes that a page frame that was reserved is not written to.
    pub(super) fn abandon(&mut self, page: u32) {
        if self.is_ready(page) && self.count(page) == 0 {
            self.list(page);
        }
    }

    /// Notes that an element of a page frame that is ready is in use.
    pub(super) fn add(&mut self, page: u32) {
        let state = &mut self.states[page as usize];
        debug_assert!(
            *state & (HELD | OUT) == HELD || without(Protection::NothingWrittenToWhatIsOut)
        );
        *state += 1;
    }

    /// Notes that an element is not in use any more.
    pub(super) fn remove(&mut self, page: u32) {
        let state = &mut self.states[page as usize];
        *state -= 1;
        if *state & COUNT == 0 {
            self.list(page);
        }
    }

    fn list(&mut self, page: u32) {
        let state = &mut self.states[page as usize];
        if *state & LISTED == 0 {
            *state |= LISTED;
            self.emptied.push(page);
        }
    }

    /// Takes at most `most` empty page frames out, if there are more than `keep`; the caller has their
    /// elements be zeroes, releases them without the shard's lock, and returns them.
    pub(super) fn take_out(&mut self, keep: usize, most: usize) -> Vec<u32> {
        let mut out = Vec::new();
        while out.len() < most && self.emptied.len() > keep {
            let Some(page) = self.emptied.pop() else {
                break;
            };
            let state = &mut self.states[page as usize];
            *state &= !LISTED;
            if *state & COUNT == 0 {
                *state |= OUT;
                out.push(page);
            }
        }
        out
    }

    /// Takes back what was taken out; returns how many page frames the kernel has.
    pub(super) fn take_back(&mut self, idle: IdlePages) -> u64 {
        let released = idle.is_released();
        let mut freed = 0;
        for page in idle.into_pages() {
            self.states[page as usize] &= !OUT;
            if released {
                self.states[page as usize] &= !HELD;
                freed += 1;
            } else {
                self.list(page);
            }
        }
        self.held -= freed;
        self.budget.give_back(freed);
        freed
    }

    /// Asserts the invariants and returns how many elements are in use; `counted` says how many of a
    /// page frame are.
    pub(super) fn check(&self, counted: impl Fn(u32) -> u32) -> u64 {
        // A table of billions of elements is not read whole: most of it was never touched.
        let sparse = self.states.len() > 1 << 15;
        let (mut total, mut held, mut listed) = (0, 0, 0);
        for (page, &state) in (0..).zip(self.states.iter()) {
            if !sparse || state & COUNT != 0 {
                assert_eq!(u32::from(state & COUNT), counted(page), "page frame {page}");
            }
            assert!(state & OUT == 0, "page frame {page}");
            assert!(
                state & IMPLIED == 0 || state & COUNT == 0,
                "page frame {page}"
            );
            assert!(state & HELD != 0 || state & COUNT == 0, "page frame {page}");
            assert!(state & (HELD | LISTED) != HELD || state & COUNT != 0);
            total += u64::from(state & COUNT);
            held += u64::from(state & HELD != 0);
            listed += usize::from(state & LISTED != 0);
        }
        assert_eq!((held, listed), (self.held, self.emptied.len()));
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(limit: u64) -> (TablePages, LazyTable<u64>, Arc<FrameBudget>) {
        let budget = Arc::new(FrameBudget::new(limit));
        let pages =
            TablePages::new(10, Arc::clone(&budget), &MemorySource::Process).expect("addresses");
        (pages, LazyTable::new(10 * 512).expect("addresses"), budget)
    }

    #[test]
    fn what_is_held_is_bounded_and_comes_back() {
        let (mut pages, table, budget) = pages(2);
        for page in [3, 7, 3] {
            pages.reserve(page).expect("room");
            pages.add(page);
        }
        assert_eq!(pages.reserve(5), Err(NoRoom::TableLimit));
        pages.remove(3);
        assert!(pages.take_out(0, 10).is_empty());
        pages.remove(3);
        pages.remove(7);
        pages.reserve(7).expect("it is held");
        pages.add(7);
        assert!(pages.take_out(2, 10).is_empty());
        let out = pages.take_out(0, 10);
        assert_eq!(out, [3]);
        assert_eq!(pages.reserve(3), Err(NoRoom::TableBusy));
        let mut idle = table.lend_out(out);
        idle.release().expect("madvise");
        assert_eq!(
            (pages.take_back(idle), budget.used(), pages.held()),
            (1, 1, 1)
        );
        pages.reserve(3).expect("room");
        pages.abandon(3);
        pages.check(|page| u32::from(page == 7));
        assert_eq!(pages.take_out(0, 10), [3]);
    }

    #[test]
    fn what_the_kernel_did_not_take_is_tried_again() {
        let (mut pages, table, budget) = pages(2);
        pages.reserve(4).expect("room");
        pages.abandon(4);
        let out = pages.take_out(0, 1);
        assert_eq!(pages.take_back(table.lend_out(out)), 0);
        assert_eq!((pages.emptied(), budget.used()), (1, 1));
        pages.check(|_| 0);
    }
}
