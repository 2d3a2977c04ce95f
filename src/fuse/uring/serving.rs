//! The thread of a ring.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use crossbeam::channel::Sender;
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::dispatch::{dispatch, is_quick};
use super::offload::{Completions, Offloaded};
use super::ring::{Event, Ring, Slot};
use crate::fuse::SOURCE;
use crate::fuse::disk::Disk;
use crate::mounts;

/// How long a ring is quiet before it gives memory back.
const QUIET: Duration = Duration::from_secs(1);

/// Events between two submissions: whoever made a request hears of it, and may make the next one,
/// while others are still worked on.
const BATCH: usize = 8;

pub(super) struct RingThread {
    ring: Ring,
    disk: Arc<Disk>,
    workers: Sender<Offloaded>,
    back: Arc<Completions>,
    /// Whether large requests came since memory was given back.
    grown: bool,
}

impl RingThread {
    pub(super) fn new(
        ring: Ring,
        disk: &Arc<Disk>,
        workers: &Sender<Offloaded>,
    ) -> io::Result<Self> {
        Ok(Self {
            ring,
            disk: Arc::clone(disk),
            workers: workers.clone(),
            back: Arc::new(Completions::new()?),
            grown: false,
        })
    }

    /// Serves the ring until the connection ends; says through `opened` whether it could begin.
    /// Requests that nobody would answer any more are cut off.
    pub(super) fn run(
        mut self,
        device: BorrowedFd<'_>,
        dir: &Path,
        opened: &mpsc::Sender<io::Result<()>>,
    ) {
        let open = self.ring.open(device, self.back.wake());
        let is_open = open.is_ok();
        // Whoever waits for it does so for all threads.
        let _ = opened.send(open);
        if !is_open {
            return;
        }
        if let Err(error) = self.serve() {
            tracing::error!("{} cannot be served any more: {error}", dir.display());
            let is_ours = |mount: mounts::MountEntry| mount.source == Path::new(SOURCE);
            if mounts::at(dir).is_ok_and(|mount| mount.is_some_and(is_ours)) {
                // Forcing ends the connection.
                let _ = unmount(dir, UnmountFlags::FORCE | UnmountFlags::DETACH);
            }
        }
    }

    fn serve(&mut self) -> io::Result<()> {
        let (mut has_served, mut failure) = (false, None);
        while !self.ring.is_over() {
            if !self.ring.turn(self.grown.then_some(QUIET))? {
                self.ring.shrink();
                self.grown = false;
            }
            let mut handled = 0_usize;
            while let Some(event) = self.ring.next() {
                match event {
                    Event::Request(slot) => {
                        has_served = true;
                        self.take(slot);
                    }
                    Event::Woken => {
                        for slot in self.back.take() {
                            self.ring.commit(slot);
                        }
                    }
                    // The connection has ended.
                    Event::Lost(Errno::NOTCONN | Errno::CONNABORTED | Errno::NOENT) => {}
                    Event::Lost(errno) => failure = Some(errno),
                }
                handled += 1;
                if handled.is_multiple_of(BATCH) {
                    self.ring.submit()?;
                }
            }
        }
        match failure {
            Some(errno) if has_served => Err(errno.into()),
            Some(errno) => {
                // The kernel goes back to /dev/fuse by itself.
                tracing::warn!("the kernel refused the slots of a ring: {errno}");
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn take(&mut self, mut slot: Slot) {
        if is_quick(&self.disk, &slot) {
            dispatch(&self.disk, &mut slot);
            self.ring.commit(slot);
            return;
        }
        slot.grow();
        self.grown = true;
        let offloaded = Offloaded {
            slot,
            back: Arc::clone(&self.back),
        };
        // The workers go on as long as somebody can send to them.
        let _ = self.workers.send(offloaded);
    }
}
