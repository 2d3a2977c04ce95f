//! FUSE over io_uring: requests on the data of `disk` come and are answered through rings, many
//! with one system call, where the kernel offers that (Linux 6.14 and later, with the module
//! parameter `enable_uring` of fuse set by its administrator).
//!
//! ```text
//!                                          ┌─ answered at once, in the slot ─ BlockDevice
//! kernel ═ queue of each CPU ═ ring thread ┤
//!    ║                                     └─ errand ─ worker ─┬─ BlockDevice
//!    ║                                                         └─ bridge ─ fuser ─ Frontend
//!    ╚═══ /dev/fuse: forgets, and all until the rings are there ══════════ fuser ─ Frontend
//! ```
//!
//! The kernel has a queue for each CPU that it could have, and puts a request in that of the CPU
//! it is made on. There is a ring, and a thread, for each CPU that we may use. A slot is a request
//! and the room for its reply; it belongs to a ring and is offered to a queue. Its memory is ours,
//! and the kernel copies into it and out of it. A queue has slots of two rings, so that two threads
//! share what one CPU asks: a loop device asks everything from one.
//!
//! Invariants:
//! 1. Rings are agreed on only once they exist, so that a kernel or a sandbox which forbids them
//!    is served through `/dev/fuse`, as is one that does not offer them.
//! 2. The thread of a ring never waits for anything but its ring.
//! 3. When the kernel ends the connection it gives up all slots; that ends the threads.

mod answer;
mod bridge;
mod errand;
mod ring;
mod serving;
mod wire;

use std::fs;
use std::io;
use std::iter::repeat_n;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use fuser::Config;
use parking_lot::Mutex;

use super::disk::Disk;
use super::filesystem::Frontend;
use bridge::Bridge;
use errand::start_workers;
use ring::Ring;
use serving::RingThread;

/// The CPUs that the kernel could have.
const POSSIBLE_CPUS: &str = "/sys/devices/system/cpu/possible";

/// Slots of all queues together, as far as each has some. A payload takes memory once a large
/// request was in it, and keeps little.
const SLOTS: usize = 128;
const SLOTS_OF_A_QUEUE: std::ops::RangeInclusive<usize> = 4..=32;

/// More queues than this would take more memory than they are worth.
const MOST_QUEUES: usize = 1024;
const MOST_RINGS: usize = 16;

/// The rings that were agreed on with the kernel, if any were.
#[derive(Clone, Default)]
pub(super) struct Offer(Arc<Mutex<Option<Vec<Ring>>>>);

impl Offer {
    /// Makes rings, for a kernel that has offered to use them; says whether there are any.
    pub(super) fn accept(&self) -> bool {
        match make_rings() {
            Ok(rings) => {
                *self.0.lock() = Some(rings);
                true
            }
            Err(error) => {
                tracing::debug!("no rings, so all goes through /dev/fuse: {error}");
                false
            }
        }
    }
}

fn make_rings() -> io::Result<Vec<Ring>> {
    let queues = parse_cpus(&fs::read_to_string(POSSIBLE_CPUS)?)
        .filter(|queues| (1..=MOST_QUEUES).contains(queues))
        .ok_or_else(|| io::Error::other("too many CPUs, or an unknown number"))?;
    let depth = (SLOTS / queues).clamp(*SLOTS_OF_A_QUEUE.start(), *SLOTS_OF_A_QUEUE.end());
    let usable = thread::available_parallelism().map_or(1, usize::from);
    let rings = usable.min(queues).min(MOST_RINGS);
    let ring = |index: usize| Ring::new(&queues_of(index, rings, queues, depth));
    (0..rings).map(ring).collect()
}

/// The queue of each slot of a ring, with half of a queue's `depth` slots in one ring and half in
/// another, if there is another.
fn queues_of(ring: usize, rings: usize, queues: usize, depth: usize) -> Vec<u16> {
    let halves = |queue: usize| {
        let has = |offset: usize| usize::from((queue + offset) % rings == ring);
        has(0) + has(1)
    };
    (0..queues)
        // A queue's number is that of its CPU, below `MOST_QUEUES`.
        .flat_map(|queue| repeat_n(queue as u16, halves(queue) * depth / 2))
        .collect()
}

/// How many CPUs a list such as `0-3,8` names.
fn parse_cpus(list: &str) -> Option<usize> {
    let mut count = 0;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        count += last.checked_sub(first)? + 1;
    }
    Some(count)
}

/// The threads that serve rings.
pub(super) struct Transport {
    rings: Vec<JoinHandle<()>>,
    workers: Vec<JoinHandle<()>>,
    bridge: Arc<Bridge>,
    bridge_threads: Vec<JoinHandle<()>>,
}

impl Transport {
    /// Serves the rings of `offer`, if there are any, for the mount on `dir`, whose connection
    /// `device` is, with so many `workers`. The kernel counts on them: if they cannot be served,
    /// the mount must be given up.
    pub(super) fn start(
        offer: &Offer,
        device: BorrowedFd<'_>,
        dir: &Path,
        frontend: Frontend,
        config: Config,
        workers: usize,
    ) -> io::Result<Option<Self>> {
        let Some(rings) = offer.0.lock().take() else {
            return Ok(None);
        };
        let disk: Arc<Disk> = frontend.disk();
        let (bridge, bridge_threads) = Bridge::start(frontend, config)?;
        let mut transport = Self {
            rings: Vec::with_capacity(rings.len()),
            workers: Vec::new(),
            bridge,
            bridge_threads,
        };
        match transport.start_threads(rings, device, dir, &disk, workers) {
            Ok(()) => Ok(Some(transport)),
            Err(error) => {
                // The others end with the connection, which is the caller's to end.
                transport.bridge.close();
                Err(error)
            }
        }
    }

    fn start_threads(
        &mut self,
        rings: Vec<Ring>,
        device: BorrowedFd<'_>,
        dir: &Path,
        disk: &Arc<Disk>,
        workers: usize,
    ) -> io::Result<()> {
        let (errands, workers) = start_workers(workers, disk, &self.bridge)?;
        self.workers = workers;
        let (open, opened) = mpsc::channel();
        for (index, ring) in rings.into_iter().enumerate() {
            let thread = RingThread::new(ring, disk, &errands)?;
            let (device, dir, open) = (device.try_clone_to_owned()?, dir.to_owned(), open.clone());
            let spawned = thread::Builder::new()
                .name(format!("uzram-ring-{index}"))
                .spawn(move || thread.run(device.as_fd(), &dir, &open))?;
            self.rings.push(spawned);
        }
        drop(open);
        for _ in &self.rings {
            let end = || Err(io::Error::other("the thread of a ring ended"));
            opened.recv().unwrap_or_else(|_| end())?;
        }
        tracing::info!("{} is served over io_uring", dir.display());
        Ok(())
    }

    /// Waits for the threads to end, as they do once the kernel has ended the connection.
    pub(super) fn join(self) {
        let join = |threads: Vec<JoinHandle<()>>| {
            for thread in threads {
                // A panic was reported where it happened.
                let _ = thread.join();
            }
        };
        // The rings hold the only way to send the workers anything.
        join(self.rings);
        join(self.workers);
        self.bridge.close();
        join(self.bridge_threads);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_queue_has_all_its_slots_in_two_rings() {
        for (rings, queues, depth) in [(1, 1, 32), (1, 2, 32), (2, 2, 32), (3, 8, 16), (16, 64, 4)]
        {
            let all: Vec<_> = (0..rings)
                .map(|ring| queues_of(ring, rings, queues, depth))
                .collect();
            for queue in 0..queues as u16 {
                let of_ring = |ring: &Vec<u16>| ring.iter().filter(|&&q| q == queue).count();
                let counts = all.iter().map(of_ring).filter(|&count| count > 0);
                let counts: Vec<_> = counts.collect();
                assert_eq!(counts.len(), rings.min(2), "{rings} {queues}");
                assert_eq!(counts.iter().sum::<usize>(), depth);
            }
        }
    }

    #[test]
    fn a_list_of_cpus_is_counted() {
        for (list, count) in [
            ("0\n", Some(1)),
            ("0-1\n", Some(2)),
            ("0-3,8,10-11", Some(7)),
            ("", None),
            ("3-1", None),
            ("all", None),
        ] {
            assert_eq!(parse_cpus(list), count, "{list:?}");
        }
    }
}
