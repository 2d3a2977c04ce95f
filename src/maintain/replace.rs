//! A backing leaves while the device is in use: what is live in it moves to the one that took its
//! place, or to memory.
//!
//! One that cannot leave becomes current again, and the one that came in its place is to leave
//! itself. If that cannot either, for want of room, it stays beside the current one, is read, and
//! is tried again now and then, and when its place is asked for.

use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::{FREED_AT_ONCE, NewBacking, Progress, Writeback};
use crate::engine::Adopted;
use crate::error::Error;
use crate::spill::{BlockBuf, Leave, Store, StoreIndex, segments_of};
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::channel::Sender;
use crate::sync::time::Instant;

/// How long a draining backing rests that could not leave.
const DRAINING_RESTS: Duration = Duration::from_secs(3);

/// The stores of a device in memory that outlived its process.
#[derive(Default)]
pub(crate) struct AdoptedStores {
    /// By place.
    pub(crate) backings: Vec<Option<NewBacking>>,
    /// The place of the one that was written to.
    pub(crate) current: Option<usize>,
    pub(crate) image: Option<Arc<dyn Store>>,
}

/// Told when a backing has left that another was to take the place of, or why it cannot.
pub(super) type Done = Sender<Result<(), String>>;

/// A backing that is to leave, and what is to be done then.
pub(super) enum Leaving {
    /// It was current. Most bytes of the one in its place that may be used, and who waits.
    Replaced { size: Option<u64>, done: Done },
    /// It came and could not stay.
    Draining,
    /// The same, and its place is for another.
    DrainingFor(NewBacking, Done),
}

impl Writeback {
    /// Spills to `backing` from here on; `done` is told when the backing before it has left, or
    /// why it cannot.
    pub(super) fn replace(&mut self, backing: Option<NewBacking>, done: Done) {
        // Whoever asked may have gone, here and below.
        if self.replaced.is_some() {
            let _ = done.send(Err("another backing is still leaving".to_owned()));
            return;
        }
        // What failed is logged, and its data is still in memory.
        let _ = self.appender.complete_all();
        // A draining one may have been emptied since it could not leave.
        self.appender.log.free_emptied(FREED_AT_ONCE);
        match (backing, self.appender.log.leave()) {
            (Some(new), leave) if leave != Leave::Done => {
                self.replaced = Some(Leaving::DrainingFor(new, done));
            }
            (backing, _) => self.put_in_place(backing, done),
        }
        self.engine.waker.wake();
    }

    fn put_in_place(&mut self, backing: Option<NewBacking>, done: Done) {
        let size = backing.as_ref().and_then(|new| new.size);
        match backing {
            None => self.appender.log.retire(),
            Some(new) => {
                if let Err(reason) = self.attach(new) {
                    let _ = done.send(Err(reason));
                    return;
                }
            }
        }
        self.stuck_at = None;
        self.appender.failing = false;
        self.replaced = Some(Leaving::Replaced { size, done });
    }

    fn attach(&mut self, new: NewBacking) -> Result<(), String> {
        self.prepare()?;
        self.appender.log.attach(new.backing, new.capacity)?;
        // Before anything is written there.
        self.engine.remember().map_err(|error| error.to_string())
    }

    /// Goes on with the stores that were found of a device in memory that outlived its process.
    ///
    /// # Errors
    /// Why it cannot.
    pub(crate) fn adopt(&mut self, stores: AdoptedStores, found: Adopted) -> Result<(), String> {
        let AdoptedStores {
            backings,
            current,
            image,
        } = stores;
        let used = &found.used.segments;
        let mut records = found.records.into_iter();
        let mut there = Vec::new();
        for ((place, backing), records) in StoreIndex::all().zip(backings).zip(&mut records) {
            if backing.is_none() && !records.is_empty() {
                return Err("pages were spilled to what is not there any more".to_owned());
            }
            if let Some(NewBacking {
                backing, capacity, ..
            }) = backing
            {
                self.prepare()?;
                let log = &mut self.appender.log;
                log.adopt(place, backing, capacity, used, records);
                there.push(place);
            }
        }
        // One that was leaving, and nothing in its place, stays.
        let is_current = |place: &&StoreIndex| current == Some(place.number());
        let current = there.iter().find(is_current).or(there.first());
        if let Some(&current) = current {
            self.appender.log.adopt_current(current);
        }
        if there.len() > 1 {
            self.replaced = Some(Leaving::Draining);
        }
        if let Some(image) = image {
            let records = records.next().unwrap_or_default();
            self.engine.spilled.stores.add_image(image)?;
            self.restore(records)?;
        }
        Ok(())
    }

    /// Has what it takes to move records.
    pub(super) fn prepare(&mut self) -> Result<(), String> {
        self.appender.prepare()?;
        if self.segment.is_empty() {
            self.segment = BlockBuf::with_capacity(crate::spill::SEGMENT_BYTES as usize);
        }
        Ok(())
    }

    /// Moves some of what a leaving backing holds.
    pub(super) fn go_on_leaving(&mut self) -> Progress {
        if self.replaced.is_none() && self.draining_rests() == Some(Duration::ZERO) {
            self.replaced = Some(Leaving::Draining);
        }
        if self.replaced.is_none() {
            return Progress::Idle;
        }
        if self.engine.is_stopping() {
            self.give_up_leaving();
            return Progress::Idle;
        }
        let end = match self.drain_some() {
            Ok(Progress::More) => return Progress::More,
            Ok(Progress::Idle) => Ok(()),
            Err(reason) => Err(reason),
        };
        match (self.replaced.take(), end) {
            (Some(Leaving::Replaced { size, done }), Ok(())) => {
                self.engine
                    .spilled
                    .backing_size
                    .store(size.unwrap_or(0), Relaxed);
                self.engine.note_changes();
                let _ = done.send(Ok(()));
            }
            (Some(Leaving::Replaced { done, .. }), Err(reason)) => {
                // It serves on, and what came in its place goes.
                self.appender.log.reinstate();
                self.appender.failing = false;
                self.replaced = Some(Leaving::Draining);
                let _ = done.send(Err(reason.to_owned()));
            }
            (Some(Leaving::DrainingFor(new, done)), Ok(())) => {
                self.draining_tried_at = None;
                self.put_in_place(Some(new), done);
            }
            (Some(Leaving::DrainingFor(_, done)), Err(reason)) => {
                self.note_draining(reason);
                let reason = format!("a backing that came earlier still has to leave: {reason}");
                let _ = done.send(Err(reason));
            }
            (Some(Leaving::Draining), Err(reason)) => self.note_draining(reason),
            (Some(Leaving::Draining), Ok(())) => self.draining_tried_at = None,
            (None, _) => {}
        }
        match self.replaced {
            Some(_) => Progress::More,
            None => Progress::Idle,
        }
    }

    /// Notes that a draining backing cannot leave now.
    fn note_draining(&mut self, reason: &str) {
        if self.draining_tried_at.replace(Instant::now()).is_none() {
            tracing::warn!(
                "the backing that could not stay cannot leave yet, {reason}: it is read, and tried \
                 again until it can"
            );
        }
    }

    /// How long before a draining backing that could not leave is tried again, if there is one.
    pub(super) fn draining_rests(&self) -> Option<Duration> {
        let tried = self.draining_tried_at?.elapsed();
        Some(DRAINING_RESTS.saturating_sub(tried))
    }

    /// Leaves things as they are; whoever waits learns by that that the device stops.
    fn give_up_leaving(&mut self) {
        self.replaced = None;
        self.draining_tried_at = None;
        if !self.engine.spilled.stores.spills() {
            // Clients may still write.
            self.appender.log.reinstate();
        }
    }

    /// Has the current backing hold at most `size` bytes, or all it can.
    ///
    /// # Errors
    /// Those of [`crate::Device::set_backing_size`].
    pub(super) fn resize(&mut self, size: Option<u64>) -> crate::error::Result<()> {
        let refuse = |reason: &str| {
            Err(Error::Refused {
                what: "backing_size",
                reason: reason.to_owned(),
                errno: Errno::BUSY.into(),
            })
        };
        if self.replaced.is_some() {
            return refuse("a backing is still leaving");
        }
        let Some(backing) = self.engine.spilled.stores.current() else {
            return refuse("there is no backing");
        };
        let capacity = segments_of(&*backing, size)?;
        if !self.appender.log.set_capacity(capacity) {
            return refuse("what lies beyond that size is in use");
        }
        self.engine
            .spilled
            .backing_size
            .store(size.unwrap_or(0), Relaxed);
        Ok(())
    }
}
