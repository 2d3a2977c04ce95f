//! Changes of the backing while it is in use.

use std::ops::Range;
use std::sync::Arc;

use super::address::{BACKINGS, SEGMENT_BYTES, SegmentIndex, StoreIndex};
use super::backing::Backing;
use super::log::{Imported, Segment, SegmentLog, Space, State};

impl SegmentLog {
    /// Appends to `backing` from here on.
    ///
    /// # Errors
    /// Why it cannot: an earlier one has not left yet, say.
    pub(crate) fn attach(
        &mut self,
        backing: Arc<dyn Backing>,
        capacity: u32,
    ) -> Result<(), String> {
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

    /// Knows of an image's segments from here on, to which slots refer.
    pub(crate) fn import(&mut self, Imported(segments): Imported) {
        let segments: Vec<Segment> = segments.into_iter().map(Segment::of_image).collect();
        let free = (0..).zip(&segments).filter(|(_, s)| s.state == State::Free);
        *self.space_mut(StoreIndex::IMAGE) = Space {
            capacity: segments.len() as u32,
            free: free.map(|(at, _)| SegmentIndex::in_image(at)).collect(),
            segments,
        };
    }

    /// Knows again of a backing, in whose place slots refer to records, and of its segments that have been used; those
    /// to which none refers are freed later. Nothing is appended to a segment that was open.
    pub(crate) fn adopt(
        &mut self,
        store: StoreIndex,
        backing: Arc<dyn Backing>,
        capacity: u32,
        used: &[SegmentIndex],
        Imported(mut records): Imported,
    ) {
        self.stores.put_back(store, backing);
        let of_store = used.iter().filter(|segment| segment.store() == store);
        let count = of_store.map(|segment| segment.within_store().0 + 1).max();
        let count = count.unwrap_or(0).min(capacity);
        records.resize(count as usize, Vec::new());
        for (at, records) in (0..).zip(&records) {
            if records.is_empty() {
                self.table.note_emptied(SegmentIndex::in_store(store, at));
            }
        }
        let segments = records.into_iter().map(Segment::full).collect();
        self.add_used(u64::from(count) * SEGMENT_BYTES);
        *self.space_mut(store) = Space {
            segments,
            capacity,
            ..Space::default()
        };
    }

    /// Appends to the backing in a place, which was adopted, from here on; the other one, if there is one, is to leave.
    pub(crate) fn adopt_current(&mut self, store: StoreIndex) {
        self.current = Some(store);
        self.stores.set_current(self.current);
    }

    /// The place of a backing that is to leave; the one that might come back is the last.
    fn leaving(&self) -> Option<StoreIndex> {
        let stores = (0..BACKINGS as u8).map(StoreIndex);
        stores
            .filter(|&store| Some(store) != self.current)
            .filter(|&store| self.stores.of(SegmentIndex::in_store(store, 0)).is_some())
            .min_by_key(|&store| self.retired == Some(store))
    }

    /// What is left to do before the backing that is to leave can.
    pub(crate) fn leave(&mut self) -> Leave {
        while let Some(store) = self.leaving() {
            match self.leave_from(store) {
                // There may be another.
                Leave::Done => self.retired.take_if(|retired| *retired == store),
                step => return step,
            };
        }
        Leave::Done
    }

    /// What is to be done next for the image to be needed no more.
    pub(crate) fn next_of_image(&mut self) -> NextOfImage {
        let count = self.space_mut(StoreIndex::IMAGE).segments.len() as u32;
        let mut next = NextOfImage::Done;
        for _ in 0..count {
            let segment = SegmentIndex::in_image(self.image_cursor % count);
            self.free_if_empty(segment);
            match self.segment(segment).state {
                State::Free => {}
                State::Sealed if self.is_to_read(segment) => return NextOfImage::Move(segment),
                State::Sealed => next = NextOfImage::Later,
                _ if next == NextOfImage::Done => next = NextOfImage::Damaged,
                _ => {}
            }
            // Those that are gone are not looked at for each of the others.
            self.image_cursor = (self.image_cursor + 1) % count;
        }
        if next == NextOfImage::Done {
            *self.space_mut(StoreIndex::IMAGE) = Space::default();
            self.stores.remove(StoreIndex::IMAGE);
        }
        next
    }

    /// Free segments that are not for what an image has: it has it already, and what is evicted, and
    /// what cleaning moves, has nowhere else to go.
    pub(crate) fn kept_from_image(&self) -> u32 {
        let capacity = |store: StoreIndex| self.spaces[usize::from(store.0)].capacity;
        self.current.map_or(0, |store| capacity(store) / 4 + 2)
    }

    fn leave_from(&mut self, store: StoreIndex) -> Leave {
        let count = self.space_mut(store).segments.len() as u32;
        let all = || (0..count).map(|at| SegmentIndex::in_store(store, at));
        if all().any(|segment| self.segment(segment).in_flight > 0) {
            return Leave::Complete;
        }
        // What was emptied needs no more than that.
        all().for_each(|segment| self.free_if_empty(segment));
        if all().all(|segment| self.segment(segment).state == State::Free) {
            *self.space_mut(store) = Space::default();
            self.stores.remove(store);
            return Leave::Done;
        }
        let sealed = all().filter(|&segment| self.segment(segment).state == State::Sealed);
        // One that could not be read just now comes last.
        let next = sealed.min_by_key(|&segment| !self.is_to_read(segment));
        next.map_or(Leave::Damaged, Leave::Move)
    }
}

impl Segment {
    /// A segment of an image, with records in these places.
    fn of_image(records: Vec<Range<u32>>) -> Self {
        if records.is_empty() {
            return Self::FREE;
        }
        Self::full(records)
    }

    /// A segment that nothing can be appended to, with records in these places.
    fn full(records: Vec<Range<u32>>) -> Self {
        Self {
            state: State::Sealed,
            end: SEGMENT_BYTES as u32,
            used: SEGMENT_BYTES as u32,
            written: records,
            ..Self::FREE
        }
    }
}

/// A step of emptying an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextOfImage {
    /// This segment's live records are to move.
    Move(SegmentIndex),
    /// What is left could not be read lately.
    Later,
    /// What is left cannot be moved: it is damaged.
    Damaged,
    /// It is needed no more, or there was none.
    Done,
}

/// A step of a backing's leaving.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leave {
    /// Appends to it are under way.
    Complete,
    /// This segment's live records have to move.
    Move(SegmentIndex),
    /// What is left cannot be moved: it is damaged.
    Damaged,
    /// It has left, or there was none.
    Done,
}

#[cfg(test)]
mod tests;
