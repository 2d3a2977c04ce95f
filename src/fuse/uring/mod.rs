//! FUSE over io_uring: requests on the data of `disk` come and are answered through rings, many
//! with one system call, where the kernel offers that (Linux 6.14 and later, with the module
//! parameter `enable_uring` of fuse set by its administrator).
//!
//! ```text
//!                                          ┌─ dispatched at once, in the slot ─ BlockDevice
//! kernel ═ queue of each CPU ═ ring thread ┤
//!    ║                                     └─ offloaded ─ worker ─┬─ BlockDevice
//!    ║                                                            └─ bridge ─ fuser ─ Frontend
//!    ╚═══ /dev/fuse: forgets, and all until the rings are there ═════════════ fuser ─ Frontend
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
//!
//! It is our own because fuser speaks `/dev/fuse` only. Once fuser has rings, this module goes.

mod bridge;
mod dispatch;
mod offer;
mod offload;
mod ring;
mod serving;
mod workers;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use fuser::Config;

use super::disk::Disk;
use super::filesystem::Frontend;
use bridge::Bridge;
use ring::Ring;
use serving::RingThread;
use workers::start_workers;

pub(super) use offer::Offer;

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
        let Some(rings) = offer.take() else {
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
        let (offloaded, workers) = start_workers(workers, disk, &self.bridge)?;
        self.workers = workers;
        let (open, opened) = mpsc::channel();
        for (index, ring) in rings.into_iter().enumerate() {
            let thread = RingThread::new(ring, disk, &offloaded)?;
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
