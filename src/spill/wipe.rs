//! Overwriting what a backing holds with zeroes.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::time::Instant;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::address::SEGMENT_BYTES;
use super::blocks::{BLOCK, BlockBuf};
use super::direct::DirectFile;

/// Bytes of zeroes that are written at once.
const CHUNK: u64 = 1 << 20;

/// Bytes after which they are waited for, where they go through the page cache.
const SYNC_EVERY: u64 = 32 << 20;

/// Bytes of a block device that are zeroed at once.
const DEVICE_CHUNK: u64 = 64 << 20;

/// Overwrites the parts of a range of a file that hold data, as long as it `may_go_on`; returns whether that was
/// all. What is overwritten has reached the disk then.
///
/// It goes backwards, and the start of each segment goes last of it: as long as there is data in the file, it begins
/// with the start of a segment, by which it is known for a spill.
///
/// # Errors
/// The file system's.
pub(super) fn wipe_file(
    file: &DirectFile,
    range: Range<u64>,
    mut may_go_on: impl FnMut() -> bool,
) -> io::Result<bool> {
    let mut overwriting = Overwriting::new(file);
    let first = range.start / SEGMENT_BYTES;
    for segment in (first..range.end.div_ceil(SEGMENT_BYTES)).rev() {
        let start = (segment * SEGMENT_BYTES).max(range.start);
        let end = (segment * SEGMENT_BYTES + SEGMENT_BYTES).min(range.end);
        let body = (start + BLOCK as u64).min(end);
        for part in [body..end, start..body] {
            if !overwriting.overwrite(part, &mut may_go_on)? {
                return Ok(false);
            }
        }
    }
    rustix::fs::fdatasync(file.file())?;
    Ok(true)
}

/// Zeroes on their way to a file.
struct Overwriting<'a> {
    file: &'a DirectFile,
    zeroes: BlockBuf,
    /// Bytes since all before were waited for.
    since_sync: u64,
}

impl<'a> Overwriting<'a> {
    fn new(file: &'a DirectFile) -> Self {
        let mut zeroes = BlockBuf::default();
        zeroes.pad_to(CHUNK as usize);
        Self {
            file,
            zeroes,
            since_sync: 0,
        }
    }

    /// What of a range holds data; returns whether it went on to the end.
    fn overwrite(
        &mut self,
        range: Range<u64>,
        may_go_on: &mut impl FnMut() -> bool,
    ) -> io::Result<bool> {
        let file = self.file.file();
        let mut at = range.start;
        while at < range.end {
            let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
                Ok(start) => start.min(range.end),
                Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let hole = rustix::fs::seek(file, SeekFrom::Hole(start))?;
            let end = hole.min(range.end);
            for from in (start..end).step_by(CHUNK as usize) {
                if !may_go_on() {
                    return Ok(false);
                }
                let len = (end - from).min(CHUNK);
                self.file.write_all(&self.zeroes[..len as usize], from)?;
                self.since_sync += len;
                if self.since_sync >= SYNC_EVERY {
                    rustix::fs::fdatasync(file)?;
                    self.since_sync = 0;
                }
            }
            at = end;
        }
        Ok(true)
    }
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
