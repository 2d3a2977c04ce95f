//! Requests that the thread of a ring leaves to other threads: those that are large, so that they
//! use several cores; those that may wait, for the backing or for memory; and those that only
//! fuser can answer. A slot that was answered goes back to its ring's thread, which alone may
//! commit it.
//!
//! One lock a ring, on the list of slots that are on their way back.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use super::ring::Slot;

/// A request to answer, and where its slot is to go then.
pub(super) struct Offloaded {
    pub(super) slot: Slot,
    pub(super) back: Arc<Completions>,
}

impl Offloaded {
    /// Sends the slot back, answered.
    pub(super) fn finish(self) {
        self.back.put(self.slot);
    }
}

/// The way back to a ring.
pub(super) struct Completions {
    slots: Mutex<Vec<Slot>>,
    wake: OwnedFd,
}

impl Completions {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            slots: Mutex::default(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        })
    }

    /// Readable while there are slots to [take](Completions::take).
    pub(super) fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    fn put(&self, slot: Slot) {
        let mut slots = self.slots.lock();
        slots.push(slot);
        // Later ones are taken with the first.
        if slots.len() == 1 {
            // It fails only if 2^64 - 1 wake-ups are pending.
            let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        }
    }

    pub(super) fn take(&self) -> Vec<Slot> {
        let mut slots = self.slots.lock();
        // Nothing to read is fine.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        std::mem::take(&mut slots)
    }
}
