//! Appends under way: several at once, so that the next batch is collected, and checksums are
//! made, while others are being written.
//!
//! A few threads write; one call a megabyte, so that what another way to submit them would save is
//! nothing beside the write. The writeback thread alone launches and lands. Locks nothing.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::Batch;
use super::evictor::Cargo;
use crate::spill::{Backing, RecordFormat, Target};
use crate::sync::channel::{self, Receiver, Sender};
use crate::sync::thread;

/// Appends that may be under way at once, each with a thread and a batch.
const MAX_FLIGHTS: usize = 4;

/// An append under way.
pub(super) struct Flight {
    pub(super) target: Target,
    pub(super) backing: Arc<dyn Backing>,
    pub(super) batch: Batch,
    pub(super) cargo: Cargo,
    pub(super) started: Instant,
}

/// An append that has ended.
pub(super) struct Landed {
    pub(super) flight: Flight,
    pub(super) written: io::Result<()>,
}

/// The threads and batches; none until there is a backing.
pub(super) struct Flights {
    format: RecordFormat,
    /// Batches that are not under way.
    idle: Vec<Batch>,
    under_way: usize,
    threads: usize,
    jobs: (Sender<Flight>, Receiver<Flight>),
    landed: (Sender<Landed>, Receiver<Landed>),
}

impl Flights {
    /// None yet, for records of `format`.
    pub(super) fn new(format: RecordFormat) -> Self {
        Self {
            format,
            idle: Vec::new(),
            under_way: 0,
            threads: 0,
            jobs: channel::unbounded(),
            landed: channel::unbounded(),
        }
    }

    /// Makes batches and starts threads, as far as there are none yet.
    ///
    /// # Errors
    /// The kernel's, if it does not give one thread.
    pub(super) fn prepare(&mut self) -> io::Result<()> {
        while self.threads < MAX_FLIGHTS {
            let (jobs, landed) = (self.jobs.1.clone(), self.landed.0.clone());
            let thread = thread::Builder::new()
                .name(format!("uzram-spill-{}", self.threads))
                .spawn(move || write_all(&jobs, &landed));
            match thread {
                Ok(_) => {}
                Err(error) if self.threads == 0 => return Err(error),
                Err(error) => {
                    tracing::warn!("spilling with {} threads: {error}", self.threads);
                    break;
                }
            }
            self.threads += 1;
            self.idle.push(Batch::new(self.format.clone()));
        }
        Ok(())
    }

    /// A batch to fill, if not all are under way; it comes back by [`Flights::launch`] or
    /// [`Flights::give_back`].
    pub(super) fn take_batch(&mut self) -> Option<Batch> {
        let mut batch = self.idle.pop()?;
        batch.clear();
        Some(batch)
    }

    pub(super) fn give_back(&mut self, batch: Batch) {
        self.idle.push(batch);
    }

    /// Whether a batch can be taken.
    pub(super) fn can_launch(&self) -> bool {
        !self.idle.is_empty()
    }

    /// Whether there is nothing to be gained by landing one first.
    pub(super) fn is_open(&self) -> bool {
        self.can_launch() || self.under_way == 0
    }

    pub(super) fn under_way(&self) -> usize {
        self.under_way
    }

    pub(super) fn launch(&mut self, flight: Flight) {
        self.under_way += 1;
        // We hold a receiver, so it is never closed.
        let _ = self.jobs.0.send(flight);
    }

    /// Waits for an append to end; `None` if none is under way.
    pub(super) fn land(&mut self) -> Option<Landed> {
        if self.under_way == 0 {
            return None;
        }
        let landed = self.landed.1.recv().ok()?;
        self.under_way -= 1;
        Some(landed)
    }
}

/// A thread: writes until the device is gone.
fn write_all(jobs: &Receiver<Flight>, landed: &Sender<Landed>) {
    for mut flight in jobs {
        let write = || {
            let append = flight.batch.lay_out(&flight.target);
            flight.target.write(&*flight.backing, append)
        };
        // A bug here must not leave the writeback thread waiting for ever.
        let written = catch_unwind(AssertUnwindSafe(write))
            .unwrap_or_else(|_| Err(io::Error::other("the thread that writes panicked")));
        if landed.send(Landed { flight, written }).is_err() {
            return;
        }
    }
}
