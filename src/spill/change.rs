//! Changes of the backing while it is in use.

use std::sync::Arc;

use super::backing::Backing;
use super::log::{SegmentLog, Space, State};
use super::segment::SegmentIndex;
use super::stores::{STORES, StoreIndex};

impl SegmentLog {
    /// Appends to `backing` from here on; gives it back if an earlier one has not left yet.
    pub(crate) fn attach(
        &mut self,
        backing: Arc<dyn Backing>,
        capacity: u32,
    ) -> Result<(), Arc<dyn Backing>> {
        let store = self.stores.add(backing)?;
        self.seal_heads();
        self.retired = self.current;
        *self.space_mut(store) = Space {
            capacity,
            ..Space::default()
        };
        self.current = Some(store);
        Ok(())
    }

    /// Appends to nothing from here on: the current backing is to leave.
    pub(crate) fn retire(&mut self) {
        self.seal_heads();
        self.retired = self.current.take();
        self.stores.set_current(None);
    }

    /// Appends again to the backing that was to leave; one that came in its place is now to leave
    /// itself.
    pub(crate) fn reinstate(&mut self) {
        if let Some(store) = self.retired.take() {
            self.seal_heads();
            self.current = Some(store);
            self.stores.set_current(self.current);
        }
    }

    /// Has the current backing hold so many segments; returns false if it has none or if more than
    /// that are in use.
    pub(crate) fn set_capacity(&mut self, capacity: u32) -> bool {
        let Some(store) = self.current else {
            return false;
        };
        let space = self.space_mut(store);
        let beyond = space.segments.iter().skip(capacity as usize);
        if beyond.clone().any(|segment| segment.state != State::Free) {
            return false;
        }
        space.segments.truncate(capacity as usize);
        space
            .free
            .retain(|segment| segment.within_store().0 < capacity);
        space.capacity = capacity;
        true
    }

    /// The place of a backing that is to leave; the one that might come back is the last.
    fn leaving(&self) -> Option<StoreIndex> {
        let stores = (0..STORES as u8).map(StoreIndex);
        stores
            .filter(|&store| Some(store) != self.current)
            .filter(|&store| self.stores.of(SegmentIndex::in_store(store, 0)).is_some())
            .min_by_key(|&store| self.retired == Some(store))
    }

    /// What is left to do before the backing that is to leave can.
    pub(crate) fn leave(&mut self) -> Leave {
        let Some(store) = self.leaving() else {
            return Leave::Done;
        };
        let segments = &self.space_mut(store).segments;
        if segments.iter().any(|segment| segment.in_flight > 0) {
            return Leave::Land;
        }
        // What was emptied needs no more than that.
        for at in 0..segments.len() as u32 {
            self.free_if_empty(SegmentIndex::in_store(store, at));
        }
        let segments = (0..).zip(&self.space_mut(store).segments);
        let mut left = segments
            .filter(|(_, segment)| segment.state != State::Free)
            .map(|(at, segment)| (SegmentIndex::in_store(store, at), segment.state));
        let next = left.clone().find(|(_, state)| *state == State::Sealed);
        match next.or_else(|| left.next()) {
            Some((segment, State::Sealed)) => Leave::Move(segment),
            Some(_) => Leave::Damaged,
            None => {
                *self.space_mut(store) = Space::default();
                self.stores.remove(store);
                self.retired.take_if(|retired| *retired == store);
                // There may be another.
                self.leave()
            }
        }
    }
}

/// A step of a backing's leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// Appends to it are under way.
    Land,
    /// This segment's live records have to move.
    Move(SegmentIndex),
    /// What is left cannot be moved: it is damaged.
    Damaged,
    /// It has left, or there was none.
    Done,
}
