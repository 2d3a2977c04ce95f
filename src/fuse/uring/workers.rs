//! The threads that do what those of the rings leave to them.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam::channel::{Receiver, Sender, unbounded};

use super::bridge::Bridge;
use super::dispatch::dispatch;
use super::offload::Offloaded;
use crate::fuse::disk::Disk;

/// Starts `count` threads that answer what is offloaded, until nobody can send any.
pub(super) fn start_workers(
    count: usize,
    disk: &Arc<Disk>,
    bridge: &Arc<Bridge>,
) -> io::Result<(Sender<Offloaded>, Vec<JoinHandle<()>>)> {
    let (sender, requests) = unbounded();
    let spawn = |index| {
        let (requests, disk, bridge) = (
            Receiver::clone(&requests),
            Arc::clone(disk),
            Arc::clone(bridge),
        );
        let name = format!("uzram-worker-{index}");
        thread::Builder::new()
            .name(name)
            .spawn(move || work(&requests, &disk, &bridge))
    };
    let threads = (0..count).map(spawn).collect::<io::Result<_>>()?;
    Ok((sender, threads))
}

fn work(requests: &Receiver<Offloaded>, disk: &Disk, bridge: &Bridge) {
    for mut offloaded in requests {
        if dispatch(disk, &mut offloaded.slot) {
            offloaded.finish();
        } else {
            bridge.carry(offloaded);
        }
    }
}
