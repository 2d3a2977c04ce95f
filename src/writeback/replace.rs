//! A backing leaves while the device is in use: what is live in it moves to the one that took its
//! place, or to memory.
//!
//! One that cannot leave becomes current again, and the one that came in its place is to leave
//! itself. If that cannot either, for want of room, it stays beside the current one, is read, and
//! is tried again now and then, and when its place is asked for.

use std::time::Duration;

use rustix::io::Errno;

use super::{FREED_AT_ONCE, NewBacking, Writeback};
use crate::error::Error;
use crate::spill::{BlockBuf, Leave};
use crate::sync::atomic::Ordering::Relaxed;
use crate::sync::channel::Sender;
use crate::sync::time::Instant;

/// How long a guest rests that could not leave.
const GUEST_RESTS: Duration = Duration::from_secs(3);

/// Told when a backing has left that another was to take the place of, or why it cannot.
pub(super) type Done = Sender<Result<(), String>>;

/// A backing that is to leave, and what is to be done then.
pub(super) enum Leaving {
    /// It was current. Most bytes of the one in its place that may be used, and who waits.
    Replaced { size: Option<u64>, done: Done },
    /// It came and could not stay.
    Guest,
    /// The same, and its place is for another.
    GuestFor(NewBacking, Done),
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
        let _ = self.land_all();
        // A guest may have been emptied since it could not leave.
        self.log.free_emptied(FREED_AT_ONCE);
        match (backing, self.log.leave()) {
            (Some(new), leave) if leave != Leave::Done => {
                self.replaced = Some(Leaving::GuestFor(new, done));
            }
            (backing, _) => self.put_in_place(backing, done),
        }
        self.core.waker.wake();
    }

    fn put_in_place(&mut self, backing: Option<NewBacking>, done: Done) {
        let size = backing.as_ref().and_then(|new| new.size);
        match backing {
            None => self.log.retire(),
            Some(new) => {
                if let Err(reason) = self.attach(new) {
                    let _ = done.send(Err(reason));
                    return;
                }
            }
        }
        self.stuck_at = None;
        self.failing = false;
        self.replaced = Some(Leaving::Replaced { size, done });
    }

    fn attach(&mut self, new: NewBacking) -> Result<(), String> {
        self.prepare()?;
        let attached = self.log.attach(new.backing, new.capacity);
        attached.map_err(|_| "another backing is still leaving".to_owned())
    }

    /// Has what it takes to move records.
    pub(super) fn prepare(&mut self) -> Result<(), String> {
        self.core
            .segments
            .make()
            .map_err(|error| format!("no address space for its segments: {error}"))?;
        self.flights
            .prepare()
            .map_err(|error| format!("cannot start a thread to write it: {error}"))?;
        if self.segment.is_empty() {
            self.segment = BlockBuf::with_capacity(crate::spill::SEGMENT_BYTES as usize);
        }
        Ok(())
    }

    /// Moves some of what a leaving backing holds; returns false if more is to be done at once.
    pub(super) fn go_on_leaving(&mut self) -> bool {
        if self.replaced.is_none() && self.guest_rests() == Some(Duration::ZERO) {
            self.replaced = Some(Leaving::Guest);
        }
        if self.replaced.is_none() {
            return true;
        }
        if self.core.is_stopping() {
            self.give_up_leaving();
            return true;
        }
        let end = match self.leave_some() {
            Ok(false) => return false,
            Ok(true) => Ok(()),
            Err(reason) => Err(reason),
        };
        match (self.replaced.take(), end) {
            (Some(Leaving::Replaced { size, done }), Ok(())) => {
                self.core.backing_size.store(size.unwrap_or(0), Relaxed);
                let _ = done.send(Ok(()));
            }
            (Some(Leaving::Replaced { done, .. }), Err(reason)) => {
                // It serves on, and what came in its place goes.
                self.log.reinstate();
                self.failing = false;
                self.replaced = Some(Leaving::Guest);
                let _ = done.send(Err(reason.to_owned()));
            }
            (Some(Leaving::GuestFor(new, done)), Ok(())) => {
                self.guest_tried_at = None;
                self.put_in_place(Some(new), done);
            }
            (Some(Leaving::GuestFor(_, done)), Err(reason)) => {
                self.note_guest(reason);
                let reason = format!("a backing that came earlier still has to leave: {reason}");
                let _ = done.send(Err(reason));
            }
            (Some(Leaving::Guest), Err(reason)) => self.note_guest(reason),
            (Some(Leaving::Guest), Ok(())) => self.guest_tried_at = None,
            (None, _) => {}
        }
        self.replaced.is_none()
    }

    /// Notes that a guest cannot leave now.
    fn note_guest(&mut self, reason: &str) {
        if self.guest_tried_at.replace(Instant::now()).is_none() {
            tracing::warn!(
                "the backing that could not stay cannot leave yet, {reason}: it is read, and tried \
                 again until it can"
            );
        }
    }

    /// How long before a guest that could not leave is tried again, if there is one.
    pub(super) fn guest_rests(&self) -> Option<Duration> {
        let tried = self.guest_tried_at?.elapsed();
        Some(GUEST_RESTS.saturating_sub(tried))
    }

    /// Leaves things as they are; whoever waits learns by that that the device stops.
    fn give_up_leaving(&mut self) {
        self.replaced = None;
        self.guest_tried_at = None;
        if !self.core.stores.spills() {
            // Clients may still write.
            self.log.reinstate();
        }
    }

    /// Has the current backing hold at most `size` bytes, or all it can.
    ///
    /// # Errors
    /// Those of [`crate::Device::set_backing_size`].
    pub(super) fn resize(&mut self, size: Option<u64>) -> crate::Result<()> {
        let refuse = |reason: &str| {
            Err(Error::Refused {
                what: "backing_size",
                reason: reason.to_owned(),
                errno: Errno::BUSY,
            })
        };
        if self.replaced.is_some() {
            return refuse("a backing is still leaving");
        }
        let Some(backing) = self.core.stores.current() else {
            return refuse("there is no backing");
        };
        if !self.log.set_capacity(backing.capacity(size)?) {
            return refuse("what lies beyond that size is in use");
        }
        self.core.backing_size.store(size.unwrap_or(0), Relaxed);
        Ok(())
    }
}
