//! The threads that do what those of the rings leave to them.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam::channel::{Receiver, Sender, unbounded};

use super::answer::answer;
use super::bridge::Bridge;
use super::errand::Errand;
use crate::fuse::disk::Disk;

/// Starts `count` threads that do errands until nobody can send any.
pub(super) fn start_workers(
    count: usize,
    disk: &Arc<Disk>,
    bridge: &Arc<Bridge>,
) -> io::Result<(Sender<Errand>, Vec<JoinHandle<()>>)> {
    let (sender, errands) = unbounded();
    let spawn = |index| {
        let (errands, disk, bridge) = (
            Receiver::clone(&errands),
            Arc::clone(disk),
            Arc::clone(bridge),
        );
        let name = format!("uzram-errand-{index}");
        thread::Builder::new()
            .name(name)
            .spawn(move || work(&errands, &disk, &bridge))
    };
    let threads = (0..count).map(spawn).collect::<io::Result<_>>()?;
    Ok((sender, threads))
}

fn work(errands: &Receiver<Errand>, disk: &Disk, bridge: &Bridge) {
    for mut errand in errands {
        if answer(disk, &mut errand.slot) {
            errand.finish();
        } else {
            bridge.carry(errand);
        }
    }
}
