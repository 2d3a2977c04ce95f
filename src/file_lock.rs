//! Files and block devices that one device has to itself, or several share to read.

use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::{self, Errno};

/// How long udev may look at a block device that has come or changed; it holds a lock meanwhile.
const LOOKED_AT: Duration = Duration::from_secs(2);

/// Locks a file, as flock(2) does without waiting; of a block device, waits for who only looks at it.
///
/// # Errors
/// The kernel's: EWOULDBLOCK if another has it locked.
pub(crate) fn lock(
    file: &File,
    operation: FlockOperation,
    is_block_device: bool,
) -> io::Result<()> {
    let began = Instant::now();
    loop {
        match flock(file, operation) {
            Err(Errno::WOULDBLOCK) if is_block_device && began.elapsed() < LOOKED_AT => {
                thread::sleep(Duration::from_millis(20));
            }
            end => return end,
        }
    }
}
