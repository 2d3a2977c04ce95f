//! Requests on `disk` that are answered here, in the slot that they came in.

use std::panic::{AssertUnwindSafe, catch_unwind};

use fuser::Errno;
use zerocopy::IntoBytes;

use super::ring::{KEPT_BYTES, Slot};
use crate::fuse::disk::Disk;
use crate::fuse::node::Node;
use crate::fuse::wire::{AllocateIn, TransferIn, WriteOut, opcode};

/// Whether the thread of a ring may answer the request itself: it is soon done.
pub(super) fn is_quick(disk: &Disk, slot: &Slot) -> bool {
    // Whoever answers in its stead finds out what is wrong.
    catch_unwind(AssertUnwindSafe(|| looks_quick(disk, slot))).unwrap_or(false)
}

fn looks_quick(disk: &Disk, slot: &Slot) -> bool {
    let request = slot.request();
    if request.nodeid != Node::Disk.ino().0 {
        return false;
    }
    let TransferIn {
        offset,
        size,
        flags,
        ..
    } = slot.body();
    let is_small = size as usize <= KEPT_BYTES;
    match request.opcode {
        opcode::READ => is_small && !disk.read_would_wait(offset, size),
        opcode::WRITE => is_small && !disk.is_synced(flags) && !disk.write_would_wait(offset, size),
        _ => false,
    }
}

/// Answers the request if it is one on the data of `disk`; says whether it was.
pub(super) fn dispatch(disk: &Disk, slot: &mut Slot) -> bool {
    let request = slot.request();
    let answer = match request.opcode {
        _ if request.nodeid != Node::Disk.ino().0 => return false,
        opcode::READ => read,
        opcode::WRITE => write,
        opcode::FSYNC => flush,
        opcode::FALLOCATE => allocate,
        _ => return false,
    };
    // A thread that is gone would leave its requests without an answer.
    let answered = catch_unwind(AssertUnwindSafe(|| answer(disk, slot)));
    slot.complete(answered.unwrap_or(Err(Errno::EIO)));
    true
}

fn read(disk: &Disk, slot: &mut Slot) -> Result<usize, Errno> {
    let TransferIn { offset, size, .. } = slot.body();
    disk.read(offset, size, slot.payload_mut())
}

fn write(disk: &Disk, slot: &mut Slot) -> Result<usize, Errno> {
    let TransferIn { offset, flags, .. } = slot.body();
    let size = disk.write(offset, slot.received(), flags)?;
    let out = WriteOut { size, padding: 0 };
    slot.payload_mut()[..size_of::<WriteOut>()].copy_from_slice(out.as_bytes());
    Ok(size_of::<WriteOut>())
}

fn flush(disk: &Disk, _: &mut Slot) -> Result<usize, Errno> {
    disk.flush().map(|()| 0)
}

fn allocate(disk: &Disk, slot: &mut Slot) -> Result<usize, Errno> {
    let AllocateIn {
        offset, len, mode, ..
    } = slot.body();
    disk.allocate(offset, len, mode.cast_signed()).map(|()| 0)
}
