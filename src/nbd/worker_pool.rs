//! Requests that other threads work on, so that one that is large uses several cores and one that
//! waits, for the backing or for memory, holds up none behind it.
//!
//! ```text
//!  session ──submit──▶ jobs ──▶ workers, a few for each core, shared by all connections
//!     ▲                            │
//!     └── collect ◀── completed ◀──┘   and an eventfd that wakes the session
//! ```
//!
//! Only the session touches its stream: a worker never sends, so a client that does not read
//! stops its own connection and no worker. A job owns its buffer; there are [`BUFFERS`] of them
//! for all connections and [`MAX_JOBS`] for one. A job is made only when a worker is free to
//! begin it, so that none waits behind those of another connection, which may wait for long.
//! Where there is no buffer or no worker, the session does the work itself.
//!
//! Replies leave in the order in which requests finish, each after its request has taken effect,
//! so a FLUSH covers every write that was answered before it came. The only lock is on what is
//! free.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam::channel::{Receiver, SendError, Sender, unbounded};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

use crate::block_device::BlockDevice;
use crate::error::{Error, Result};

use super::execute::execute_plain;
use super::piece::{Piece, Runs};
use super::reply::Replies;
use super::wire::Request;

/// Buffers for the jobs of all connections.
const BUFFERS: usize = 32;
/// Jobs of one connection at once.
const MAX_JOBS: usize = 8;
/// Workers for each core: most of those that wait do so for the backing.
const WORKERS_PER_CORE: usize = 4;

/// A piece of work, and the buffer it is done in.
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) buffer: Replies,
    task: TaskId,
    completed: Sender<Completed>,
    wake: Arc<OwnedFd>,
}

#[derive(Clone, Copy)]
pub(super) enum Work {
    /// Store the first `length` bytes of the buffer at `offset`.
    Write { offset: u64, length: usize },
    /// Make part of a reply in the buffer.
    Read(Piece),
    /// Execute what has neither a payload nor a reply with one.
    Plain(Request),
    /// Flush the device.
    Flush,
}

/// What has become of a job.
pub(super) struct Completed {
    task: TaskId,
    /// For a read, with what is to be sent.
    pub(super) buffer: Replies,
    /// Where it failed, and why.
    pub(super) result: Result<(), (u64, Error)>,
}

/// The threads, and the buffers.
pub(super) struct WorkerPool {
    device: Arc<dyn BlockDevice>,
    jobs: Sender<Option<Job>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    free: Mutex<Free>,
}

/// What another job takes.
struct Free {
    buffers: Vec<Replies>,
    /// Workers with nothing to do.
    workers: usize,
}

impl Free {
    fn take_worker(&mut self) -> bool {
        let left = self.workers.checked_sub(1);
        self.workers = left.unwrap_or(0);
        left.is_some()
    }
}

impl WorkerPool {
    /// Starts them.
    ///
    /// # Errors
    /// [`Error::Io`] if there cannot be so many threads.
    pub(super) fn start(device: &Arc<dyn BlockDevice>) -> Result<Arc<Self>> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let count = cores * WORKERS_PER_CORE;
        let (jobs, receiver) = unbounded::<Option<Job>>();
        let pool = Arc::new(Self {
            device: Arc::clone(device),
            jobs,
            threads: Mutex::default(),
            free: Mutex::new(Free {
                buffers: (0..BUFFERS).map(|_| Replies::for_one_piece()).collect(),
                workers: count,
            }),
        });
        for number in 0..count {
            let (own, receiver) = (Arc::clone(&pool), receiver.clone());
            let thread = thread::Builder::new()
                .name(format!("nbd-work-{number}"))
                .spawn(move || own.work(&receiver));
            match thread {
                Ok(thread) => pool.threads.lock().push(thread),
                Err(error) => {
                    pool.stop();
                    return Err(Error::io("start a thread", error));
                }
            }
        }
        Ok(pool)
    }

    fn work(&self, jobs: &Receiver<Option<Job>>) {
        let mut runs = Runs::default();
        while let Ok(Some(job)) = jobs.recv() {
            // Free before anybody is told, who may have another job.
            job.run(&*self.device, &mut runs, || self.free.lock().workers += 1);
        }
    }

    /// Gives a job to a worker that is free, or else does it.
    fn take_on(&self, job: Job) {
        let unsent = if self.free.lock().take_worker() {
            let sent = self.jobs.send(Some(job));
            // They end after the last connection, so none should come back.
            sent.err().and_then(SendError::into_inner)
        } else {
            Some(job)
        };
        if let Some(job) = unsent {
            job.run(&*self.device, &mut Runs::default(), || {});
        }
    }

    /// Ends the threads, once they have done what they were given.
    pub(super) fn stop(&self) {
        let threads = std::mem::take(&mut *self.threads.lock());
        for _ in &threads {
            // Fails only if they are gone.
            drop(self.jobs.send(None));
        }
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a worker panicked");
            }
        }
    }
}

impl Job {
    /// Does it, calls `done` and tells its session.
    fn run(self, device: &dyn BlockDevice, runs: &mut Runs, done: impl FnOnce()) {
        let Self {
            work,
            mut buffer,
            task,
            completed,
            wake,
        } = self;
        let mut work_on = || match work {
            Work::Write { offset, length } => device
                .write(offset, &buffer.room()[..length])
                .map_err(|error| (offset, error)),
            Work::Read(piece) => piece.append(&mut buffer, runs, device),
            Work::Plain(request) => {
                execute_plain(&request, device).map_err(|error| (request.offset, error))
            }
            Work::Flush => device.flush().map_err(|error| (0, error)),
        };
        // A bug must not leave the session waiting for ever.
        let result = catch_unwind(AssertUnwindSafe(&mut work_on)).unwrap_or_else(|_| {
            let panicked = io::Error::other("the code that executes it panicked");
            Err((0, Error::io("execute the request", panicked)))
        });
        done();
        // A session collects all its jobs before it ends, so somebody is there to be told.
        drop(completed.send(Completed {
            task,
            buffer,
            result,
        }));
        if let Err(error) = rustix::io::write(&wake, &1u64.to_ne_bytes()) {
            tracing::error!("cannot wake a connection: {error}");
        }
    }
}

/// What jobs are for.
#[derive(Clone, Copy)]
pub(super) enum Task {
    /// To execute a request, or to make its reply.
    Execute(Request),
    /// To make a read's reply, but for its last chunk.
    MakeChunks(Request),
    /// To flush, for those that wait for it.
    Flush,
}

/// Which task of a connection.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TaskId(u64);

/// A task some of which is, or was, in the hands of workers.
pub(super) struct InFlight {
    pub(super) task: Task,
    /// The first failure of any part: where and why.
    pub(super) failure: Option<(u64, Error)>,
    parts: usize,
    /// Whether no more parts will be submitted.
    closed: bool,
}

/// One connection's way to the workers and back.
pub(super) struct PoolHandle {
    pool: Arc<WorkerPool>,
    complete: Sender<Completed>,
    completed: Receiver<Completed>,
    wake: Arc<OwnedFd>,
    running: usize,
    next_task: u64,
    in_flight: BTreeMap<TaskId, InFlight>,
}

impl PoolHandle {
    pub(super) fn new(pool: &Arc<WorkerPool>) -> io::Result<Self> {
        let (complete, completed) = unbounded();
        Ok(Self {
            pool: Arc::clone(pool),
            complete,
            completed,
            wake: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
            running: 0,
            next_task: 0,
            in_flight: BTreeMap::new(),
        })
    }

    /// Readable once a job has finished.
    pub(super) fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.running == 0
    }

    /// A buffer for another job, if this connection may have one and somebody is free to do it.
    pub(super) fn buffer(&self) -> Option<Replies> {
        if self.running == MAX_JOBS {
            return None;
        }
        let mut free = self.pool.free.lock();
        if free.workers == 0 {
            return None;
        }
        free.buffers.pop()
    }

    pub(super) fn give_back(&self, mut buffer: Replies) {
        buffer.clear();
        self.pool.free.lock().buffers.push(buffer);
    }

    /// Gives a task that is a single piece of work to a worker; returns whether it did. It does
    /// not where [`PoolHandle::buffer`] has none.
    pub(super) fn submit_whole(&mut self, task: Task, work: Work) -> bool {
        let Some(buffer) = self.buffer() else {
            return false;
        };
        let task = self.open(task);
        self.submit(task, work, buffer);
        self.close(task);
        true
    }

    /// Begins a task of several parts.
    pub(super) fn open(&mut self, task: Task) -> TaskId {
        self.next_task += 1;
        let id = TaskId(self.next_task);
        let opened = InFlight {
            task,
            failure: None,
            parts: 0,
            closed: false,
        };
        self.in_flight.insert(id, opened);
        id
    }

    /// Gives a job to a worker. If by now none is free, it is done here and now: a client that is
    /// slow to send a payload keeps a buffer, but no worker.
    pub(super) fn submit(&mut self, task: TaskId, work: Work, buffer: Replies) {
        let job = Job {
            work,
            buffer,
            task,
            completed: self.complete.clone(),
            wake: Arc::clone(&self.wake),
        };
        if let Some(task) = self.in_flight.get_mut(&task) {
            task.parts += 1;
        }
        self.running += 1;
        self.pool.take_on(job);
    }

    /// Notes what became of a part; the first failure is the task's.
    pub(super) fn note(&mut self, task: TaskId, result: Result<(), (u64, Error)>) {
        if let (Some(task), Err(failure)) = (self.in_flight.get_mut(&task), result) {
            task.failure.get_or_insert(failure);
        }
    }

    /// Declares that all parts are submitted; returns the task if all have finished.
    pub(super) fn close(&mut self, task: TaskId) -> Option<InFlight> {
        self.in_flight.get_mut(&task)?.closed = true;
        self.take_if_done(task)
    }

    fn take_if_done(&mut self, task: TaskId) -> Option<InFlight> {
        let state = self.in_flight.get(&task)?;
        let done = state.closed && state.parts == 0;
        done.then(|| self.in_flight.remove(&task)).flatten()
    }

    /// The next job that has finished, and its task if that has too; waits for it if told to.
    pub(super) fn next_completed(&mut self, wait: bool) -> Option<(Replies, Option<InFlight>)> {
        if self.running == 0 {
            return None;
        }
        let completed = if wait {
            self.completed.recv().ok()?
        } else {
            self.completed.try_recv().ok()?
        };
        self.running -= 1;
        if let Some(task) = self.in_flight.get_mut(&completed.task) {
            task.parts -= 1;
        }
        self.note(completed.task, completed.result);
        Some((completed.buffer, self.take_if_done(completed.task)))
    }

    /// Takes notice of having been woken.
    pub(super) fn woken(&self) {
        // Not readable is what it is most of the time.
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.wake, &mut count);
    }
}
