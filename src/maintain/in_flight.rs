//! Appends in flight: several at once, so that the next batch is collected, and checksums are
//! made, while others are being written.
//!
//! A few threads write; one call a megabyte, so that what another way to submit them would save is
//! nothing beside the write. The writeback thread alone submits and completes. Locks nothing.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::Batch;
use super::append::Payload;
use crate::spill::{Backing, RecordFormat, Target};
use crate::sync::channel::{self, Receiver, Sender};
use crate::sync::thread;

/// Appends that may be in flight at once, each with a thread and a batch.
const MAX_IN_FLIGHT: usize = 4;

/// An append in flight.
pub(super) struct Append {
    pub(super) target: Target,
    pub(super) backing: Arc<dyn Backing>,
    pub(super) batch: Batch,
    pub(super) payload: Payload,
    pub(super) started: Instant,
}

/// An append that has ended.
pub(super) struct Completed {
    pub(super) append: Append,
    pub(super) written: io::Result<()>,
}

/// The threads and batches; none until there is a backing.
pub(super) struct InFlight {
    format: RecordFormat,
    /// Batches that are not in flight.
    idle: Vec<Batch>,
    count: usize,
    threads: usize,
    jobs: (Sender<Append>, Receiver<Append>),
    completed: (Sender<Completed>, Receiver<Completed>),
}

impl InFlight {
    /// None yet, for records of `format`.
    pub(super) fn new(format: RecordFormat) -> Self {
        Self {
            format,
            idle: Vec::new(),
            count: 0,
            threads: 0,
            jobs: channel::unbounded(),
            completed: channel::unbounded(),
        }
    }

    /// Makes batches and starts threads, as far as there are none yet.
    ///
    /// # Errors
    /// The kernel's, if it does not give one thread.
    pub(super) fn prepare(&mut self) -> io::Result<()> {
        while self.threads < MAX_IN_FLIGHT {
            let (jobs, completed) = (self.jobs.1.clone(), self.completed.0.clone());
            let thread = thread::Builder::new()
                .name(format!("uzram-spill-{}", self.threads))
                .spawn(move || write_all(&jobs, &completed));
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

    /// A batch to fill, if not all are in flight; it comes back by [`InFlight::submit`] or
    /// [`InFlight::give_back`].
    pub(super) fn take_batch(&mut self) -> Option<Batch> {
        let mut batch = self.idle.pop()?;
        batch.clear();
        Some(batch)
    }

    pub(super) fn give_back(&mut self, batch: Batch) {
        self.idle.push(batch);
    }

    /// Whether a batch can be taken.
    pub(super) fn can_submit(&self) -> bool {
        !self.idle.is_empty()
    }

    /// Whether there is nothing to be gained by completing one first.
    pub(super) fn is_open(&self) -> bool {
        self.can_submit() || self.count == 0
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn submit(&mut self, append: Append) {
        self.count += 1;
        // We hold a receiver, so it is never closed.
        let _ = self.jobs.0.send(append);
    }

    /// Waits for an append to end; `None` if none is in flight.
    pub(super) fn complete(&mut self) -> Option<Completed> {
        if self.count == 0 {
            return None;
        }
        let completed = self.completed.1.recv().ok()?;
        self.count -= 1;
        Some(completed)
    }
}

/// A thread: writes until the device is gone.
fn write_all(jobs: &Receiver<Append>, completed: &Sender<Completed>) {
    for mut append in jobs {
        let write = || {
            let bytes = append.batch.lay_out(&append.target);
            append.target.write(&*append.backing, bytes)
        };
        // A bug here must not leave the writeback thread waiting for ever.
        let written = catch_unwind(AssertUnwindSafe(write))
            .unwrap_or_else(|_| Err(io::Error::other("the thread that writes panicked")));
        if completed.send(Completed { append, written }).is_err() {
            return;
        }
    }
}
