//! Threads that write the parts of a batch beside one another: pages that are evicted are often
//! scattered, and one write after the other would leave a disk idle.

use std::io;
use std::sync::Arc;

use crate::origin::Image;
use crate::spill::BlockBuf;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use crate::sync::channel::{self, Receiver, Sender};

/// Threads beside the one whose batch it is.
const HELPERS: usize = 7;

/// A part of a batch: pages of the image that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Byte of the image.
    pub(super) at: u64,
    pub(super) len: u64,
    /// Where its bytes are in the batch; `None` for a hole.
    pub(super) data: Option<usize>,
}

/// A batch on its way.
struct Work {
    image: Arc<dyn Image>,
    parts: Vec<Part>,
    bytes: BlockBuf,
    next: AtomicUsize,
    failed: Mutex<Vec<(usize, io::Error)>>,
    done: AtomicUsize,
}

impl Work {
    /// Writes parts until none is left.
    fn go_on(&self) {
        loop {
            let at = self.next.fetch_add(1, Relaxed);
            let Some(part) = self.parts.get(at) else {
                return;
            };
            let written = match part.data {
                None => self.image.discard(part.at, part.len),
                Some(start) => {
                    let bytes = &self.bytes[start..start + part.len as usize];
                    self.image.write(part.at, bytes)
                }
            };
            if let Err(error) = written {
                self.failed.lock().push((at, error));
            }
            self.done.fetch_add(1, Relaxed);
        }
    }
}

/// What a helper is given. The work is let go of first, so that it is ours again once nobody is
/// left to say that he is done.
struct Job {
    work: Arc<Work>,
    _done: Sender<()>,
}

fn go_on_for_ever(taken: &Receiver<Job>) {
    while let Ok(job) = taken.recv() {
        job.work.go_on();
    }
}

/// The threads; none until the first batch of several parts.
pub(super) struct Writers {
    jobs: Sender<Job>,
    taken: Receiver<Job>,
    threads: usize,
}

impl Writers {
    pub(super) fn new() -> Self {
        let (jobs, taken) = channel::unbounded();
        Self {
            jobs,
            taken,
            threads: 0,
        }
    }

    /// Writes parts, whose data is in `bytes`; returns those that failed, with the reason.
    pub(super) fn write(
        &mut self,
        image: &Arc<dyn Image>,
        parts: Vec<Part>,
        bytes: &mut BlockBuf,
    ) -> (Vec<Part>, Vec<(usize, io::Error)>) {
        let helpers = self.prepare(parts.len().saturating_sub(1).min(HELPERS));
        let work = Arc::new(Work {
            image: Arc::clone(image),
            parts,
            bytes: std::mem::take(bytes),
            next: AtomicUsize::new(0),
            failed: Mutex::default(),
            done: AtomicUsize::new(0),
        });
        let (done, finished) = channel::bounded::<()>(0);
        for _ in 0..helpers {
            // We hold a receiver, so it is never closed.
            let _ = self.jobs.send(Job {
                work: Arc::clone(&work),
                _done: done.clone(),
            });
        }
        drop(done);
        work.go_on();
        // Nobody is needed any more who has not come.
        while let Ok(job) = self.taken.try_recv() {
            drop(job);
        }
        // Ends when the last has let go, however that came.
        let _ = finished.recv();
        let Some(work) = Arc::into_inner(work) else {
            unreachable!("whoever had the work has let go of it");
        };
        *bytes = work.bytes;
        let mut failed = std::mem::take(&mut *work.failed.lock());
        if work.done.load(Relaxed) < work.parts.len() {
            let panicked = || io::Error::other("a thread that writes panicked");
            failed = (0..work.parts.len()).map(|at| (at, panicked())).collect();
        }
        (work.parts, failed)
    }

    /// Starts threads, as far as there are fewer than wanted; returns how many there are of those.
    fn prepare(&mut self, wanted: usize) -> usize {
        while self.threads < wanted {
            let taken = self.taken.clone();
            let thread = crate::sync::thread::Builder::new()
                .name(format!("uzram-destage-{}", self.threads))
                .spawn(move || go_on_for_ever(&taken));
            if let Err(error) = thread {
                tracing::debug!("writing with {} threads: {error}", self.threads + 1);
                break;
            }
            self.threads += 1;
        }
        self.threads.min(wanted)
    }
}
