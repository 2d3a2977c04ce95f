//! A backing leaves while the device is in use: what is live in it moves to the one that took its
//! place, or to memory.

use super::{NewBacking, Writeback};
use crate::spill::BlockBuf;
use crate::sync::channel::Sender;

/// A backing that is to leave.
pub(super) struct Leaving {
    /// Who waits for it; nobody for one that came and could not stay.
    done: Option<Sender<Result<(), String>>>,
}

impl Writeback {
    /// Spills to `backing` from here on; `done` is told when the backing before it has left, or
    /// why it cannot.
    pub(super) fn replace(
        &mut self,
        backing: Option<NewBacking>,
        done: Sender<Result<(), String>>,
    ) {
        // Whoever asked may have gone, here and below.
        if self.replaced.is_some() {
            let _ = done.send(Err("another backing is still leaving".to_owned()));
            return;
        }
        // What failed is logged, and its data is still in memory.
        let _ = self.land_all();
        // One that could not leave earlier may have been emptied since.
        self.log.free_emptied();
        let _ = self.log.leave();
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
        self.replaced = Some(Leaving { done: Some(done) });
        self.core.waker.wake();
    }

    fn attach(&mut self, new: NewBacking) -> Result<(), String> {
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
        let attached = self.log.attach(new.backing, new.capacity);
        attached.map_err(|_| "another backing is still leaving".to_owned())
    }

    /// Moves some of what a leaving backing holds; returns false if more is to be done at once.
    pub(super) fn go_on_leaving(&mut self) -> bool {
        if self.replaced.is_none() {
            return true;
        }
        if self.core.is_stopping() {
            // Whoever waits learns it by that.
            self.replaced = None;
            return true;
        }
        let end = match self.leave_some() {
            Ok(false) => return false,
            Ok(true) => Ok(()),
            Err(reason) => Err(reason.to_owned()),
        };
        let done = self.replaced.take().and_then(|leaving| leaving.done);
        let returns = end.is_err() && done.is_some();
        if returns {
            // It serves on, and what came in its place goes.
            self.log.reinstate();
            self.failing = false;
            self.replaced = Some(Leaving { done: None });
        }
        if let Some(done) = done {
            let _ = done.send(end);
        }
        !returns
    }
}
