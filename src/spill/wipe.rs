//! Overwriting what a backing holds with zeroes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::time::Instant;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::blocks::BlockBuf;
use super::direct::DirectFile;

/// Bytes of zeroes that are written at once.
const CHUNK: u64 = 1 << 20;

/// Bytes after which they are waited for, where they go through the page cache.
const SYNC_EVERY: u64 = 32 << 20;

/// Bytes of a block device that are zeroed at once.
const DEVICE_CHUNK: u64 = 64 << 20;

/// Overwrites the parts of a range of a file that hold data, until `deadline`, if there is one;
/// returns whether that was all. What is overwritten has reached the disk then.
///
/// # Errors
/// The file system's.
pub(super) fn wipe_file(
    file: &DirectFile,
    range: Range<u64>,
    deadline: Option<Instant>,
) -> io::Result<bool> {
    let mut zeroes = BlockBuf::default();
    zeroes.pad_to(CHUNK as usize);
    let mut at = range.start;
    let mut since_sync = 0;
    while at < range.end {
        let start = match rustix::fs::seek(file.file(), SeekFrom::Data(at)) {
            Ok(start) => start.min(range.end),
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(file.file(), SeekFrom::Hole(start))?;
        let end = hole.min(range.end);
        for from in (start..end).step_by(CHUNK as usize) {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(false);
            }
            let len = (end - from).min(CHUNK);
            file.write_all(&zeroes[..len as usize], from)?;
            since_sync += len;
            if since_sync >= SYNC_EVERY {
                rustix::fs::fdatasync(file.file())?;
                since_sync = 0;
            }
        }
        at = end;
    }
    rustix::fs::fdatasync(file.file())?;
    Ok(true)
}

/// Has a block device zero a range of itself, until `deadline`; returns whether that was all.
///
/// # Errors
/// The device's.
pub(super) fn wipe_device(
    device: &File,
    range: Range<u64>,
    deadline: Option<Instant>,
) -> io::Result<bool> {
    let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
    for from in range.clone().step_by(DEVICE_CHUNK as usize) {
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Ok(false);
        }
        let len = (range.end - from).min(DEVICE_CHUNK);
        rustix::fs::fallocate(device, zero, from, len)?;
    }
    rustix::fs::fdatasync(device)?;
    Ok(true)
}
