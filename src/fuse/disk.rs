//! `disk`: the file that behaves as a block device does.
//!
//! Its size is fixed, a read stops at the end, a write past it is ENOSPC, a hole punched is a
//! discard, and space is never set aside. Truncated, with `O_TRUNC` or to any size below its own, it
//! keeps its size and loses what is beyond, as if it was cut off and made as long again: who copies
//! an image there leaves out its holes, relying on that. But not under other users.
//!
//! One lock, for what opens, closes and truncates.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::ops::ControlFlow;
use std::sync::Arc;

use fuser::{Errno, FileHandle, ReplyData};
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, OFlags};

use super::errno;
use crate::block_device::{BlockDevice, check_range};
use crate::sync::time::since_boot;
use crate::units::PageState;
use crate::users::{Frontend, User, Who};

const SEEK_DATA: i32 = 3;
const SEEK_HOLE: i32 = 4;

thread_local! {
    /// Where a read is put together: zeroed when it grows, never again.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The device, and a user of it for each time its file is open.
pub(super) struct Disk {
    device: Arc<dyn BlockDevice>,
    openers: Mutex<Openers>,
}

#[derive(Default)]
struct Openers {
    last_handle: u64,
    open: HashMap<u64, Opener>,
}

/// Who has the file open.
struct Opener {
    /// The thread that opened it.
    thread: Thread,
    _user: User,
}

/// A thread, told from a later one that has its number: who has the file open may not be who opened it, and be
/// there longer.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Thread {
    id: u32,
    /// When it was started, in ticks of the machine's clock; `None` if it has ended.
    started: Option<u64>,
}

impl Thread {
    /// The one that has a number now. It waits for us.
    fn of(id: u32) -> Self {
        /// What of /proc/PID/stat is behind the name, in parentheses, and before the time.
        const FIELDS: usize = 19;
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let behind_name = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        let started = behind_name.split_whitespace().nth(FIELDS);
        Self {
            id,
            started: started.and_then(|ticks| ticks.parse().ok()),
        }
    }
}

impl Openers {
    /// How often the file is open for a `thread` that asks through `handle`, or by the file's path: it
    /// may have it open several times, as rsync does, and may be another than the one that opened it.
    /// One of another PID namespace has no number, and counts as one that has it open once. One that has it
    /// open nowhere, as truncate(2) by path, is nobody's: a mounted file system's least of all.
    fn of(&self, thread: Thread, handle: Option<FileHandle>) -> usize {
        let opener = handle.and_then(|handle| self.open.get(&handle.0));
        let threads = [Some(thread), opener.map(|opener| opener.thread)];
        let is_one = |it: &&Opener| it.thread.id != 0 && threads.contains(&Some(it.thread));
        let known = self.open.values().filter(is_one).count();
        match thread.id {
            0 => known.max(self.open.len().min(1)),
            _ => known,
        }
    }
}

impl Disk {
    pub(super) fn new(device: Arc<dyn BlockDevice>) -> Self {
        Self {
            device,
            openers: Mutex::default(),
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.device.size()
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.device.is_read_only()
    }

    pub(super) fn open(&self, thread: u32) -> FileHandle {
        let opener = Opener {
            thread: Thread::of(thread),
            _user: self.device.enter(Who::process(Frontend::Fuse, thread)),
        };
        let mut openers = self.openers.lock();
        // Other than those that a server before this one gave out over the same connection.
        let now = since_boot().as_nanos() as u64;
        openers.last_handle = now.max(openers.last_handle + 1);
        let handle = openers.last_handle;
        openers.open.insert(handle, opener);
        FileHandle(handle)
    }

    pub(super) fn close(&self, handle: FileHandle) {
        let opener = self.openers.lock().open.remove(&handle.0);
        drop(opener);
    }

    /// Discards all from `size` on, for one who writes the file anew. What outlives the device is not
    /// given up by the way: that is refused.
    ///
    /// With `O_TRUNC` the kernel opens first, and truncates then, by path.
    pub(super) fn truncate(
        &self,
        size: u64,
        thread: u32,
        handle: Option<FileHandle>,
    ) -> Result<(), Errno> {
        let beyond = self.size().checked_sub(size).ok_or(Errno::EFBIG)?;
        if self.is_read_only() {
            return Err(Errno::EROFS);
        }
        if beyond == 0 {
            return Ok(());
        }
        if self.device.outlives_the_device() {
            return Err(Errno::EPERM);
        }
        let user = self.device.enter(Who::default());
        let own = self.openers.lock().of(Thread::of(thread), handle);
        let done = user.while_at_most(own, || self.device.discard(size, beyond));
        done.ok_or(Errno::EBUSY)?.map_err(|error| errno(&error))
    }

    /// How many of `len` bytes at `offset` lie before the end.
    fn clip(&self, offset: u64, len: u64) -> u64 {
        self.size().saturating_sub(offset).min(len)
    }

    /// Reads into the beginning of `room` what there is of `size` bytes at `offset`; returns how
    /// much that is.
    pub(super) fn read(&self, offset: u64, size: u32, room: &mut [u8]) -> Result<usize, Errno> {
        // At most a u32's worth.
        let len = (self.clip(offset, size.into()) as usize).min(room.len());
        self.device
            .read(offset, &mut room[..len])
            .map_err(|error| errno(&error))?;
        Ok(len)
    }

    /// Answers with what there is of `size` bytes at `offset`.
    pub(super) fn reply_read(&self, offset: u64, size: u32, reply: ReplyData) {
        READ_BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size as usize {
                buffer.resize(size as usize, 0);
            }
            match self.read(offset, size, buffer) {
                Ok(len) => reply.data(&buffer[..len]),
                Err(errno) => reply.error(errno),
            }
        });
    }

    /// Whether reading would wait for something slower than memory, as it looks.
    pub(super) fn read_would_wait(&self, offset: u64, size: u32) -> bool {
        let len = self.clip(offset, size.into());
        len > 0 && self.device.read_would_wait(offset..offset + len)
    }

    /// The same of writing.
    pub(super) fn write_would_wait(&self, offset: u64, size: u32) -> bool {
        let len = self.clip(offset, size.into());
        len > 0 && self.device.write_would_wait(offset..offset + len)
    }

    /// Returns the bytes written, fewer than asked for at the end.
    ///
    /// `flags` are those of open(2).
    pub(super) fn write(&self, offset: u64, data: &[u8], flags: u32) -> Result<u32, Errno> {
        let len = self.clip(offset, data.len() as u64);
        if len == 0 && !data.is_empty() {
            return Err(Errno::ENOSPC);
        }
        self.device
            .write(offset, &data[..len as usize])
            .map_err(|error| errno(&error))?;
        if self.is_synced(flags) {
            self.flush()?;
        }
        // The kernel's requests have a u32 for their length.
        Ok(len as u32)
    }

    /// Whether a write by a file opened with these flags is to be flushed before it is answered.
    pub(super) fn is_synced(&self, flags: u32) -> bool {
        flags & OFlags::DSYNC.bits() != 0 && self.device.has_flush()
    }

    /// Flushes the device. One that has nothing to flush answers ENOSYS, by which FUSE servers tell
    /// the kernel to spare itself the question: it lets every later flush succeed by itself.
    pub(super) fn flush(&self) -> Result<(), Errno> {
        if !self.device.has_flush() {
            return Err(Errno::ENOSYS);
        }
        self.device.flush().map_err(|error| errno(&error))
    }

    /// Discards or zeroes `len` bytes, as fallocate(2) on a block device does.
    pub(super) fn allocate(&self, offset: u64, len: u64, mode: i32) -> Result<(), Errno> {
        const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);
        const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE;
        const ZERO_KEEP: FallocateFlags = ZERO.union(FallocateFlags::KEEP_SIZE);
        let clipped = self.clip(offset, len);
        match FallocateFlags::from_bits_retain(mode.cast_unsigned()) {
            // With the size kept, what lies past the end is not there to change.
            PUNCH | ZERO_KEEP if clipped == 0 => Ok(()),
            PUNCH => self.device.discard(offset, clipped),
            ZERO_KEEP => self.device.write_zeroes(offset, clipped),
            ZERO => check_range(offset, len, self.size())
                .and_then(|()| self.device.write_zeroes(offset, len)),
            // Space cannot be set aside in a device that is only as large as what it holds.
            _ => return Err(Errno::EOPNOTSUPP),
        }
        .map_err(|error| errno(&error))
    }

    /// The first byte from `offset` on that is data, or in a hole; the end counts as a hole.
    pub(super) fn seek(&self, offset: i64, whence: i32) -> Result<u64, Errno> {
        let wants_hole = match whence {
            SEEK_DATA => false,
            SEEK_HOLE => true,
            _ => return Err(Errno::EINVAL),
        };
        let size = self.size();
        let offset = u64::try_from(offset).map_err(|_| Errno::ENXIO)?;
        if offset >= size {
            return Err(Errno::ENXIO);
        }
        let mut found = wants_hole.then_some(size);
        self.device.extents(offset..size, &mut |extent| {
            if (extent.state == PageState::Empty) == wants_hole {
                found = Some(extent.offset);
                return ControlFlow::Break(());
            }
            ControlFlow::Continue(())
        });
        found.ok_or(Errno::ENXIO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_has_the_file_open_has_it_open() {
        let mut openers = Openers::default();
        let thread = |id, started| Thread {
            id,
            started: Some(started),
        };
        let opener = || Opener {
            thread: thread(5, 100),
            _user: User::uncounted(),
        };
        openers.open.extend([(1, opener()), (2, opener())]);
        assert_eq!(openers.of(thread(5, 100), None), 2);
        assert_eq!(
            openers.of(thread(5, 101), None),
            0,
            "a later one of its number"
        );
        assert_eq!(
            openers.of(thread(7, 1), Some(FileHandle(1))),
            2,
            "another thread"
        );
        assert_eq!(openers.of(thread(7, 1), None), 0, "by the file's path");
        assert_eq!(
            openers.of(thread(0, 1), None),
            1,
            "of another PID namespace"
        );
    }

    #[test]
    fn a_thread_is_told_from_others_of_its_number() {
        let ours = rustix::thread::gettid()
            .as_raw_nonzero()
            .get()
            .cast_unsigned();
        let started = Thread::of(ours).started;
        assert!(started.is_some());
        let later = std::thread::spawn(move || Thread::of(ours).started);
        assert_eq!(later.join().expect("it ends"), started);
        let first = Thread::of(1).started;
        assert!(first.is_some() && first < started);
    }
}
