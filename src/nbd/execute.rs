//! What a request has the device do that has neither a payload nor a reply with one.

use super::wire::{Command, Request, cmd_flag};
use crate::block_device::BlockDevice;
use crate::error::Result;

/// Executes a request that has neither a payload nor a reply with one, and is no FLUSH.
pub(super) fn execute_plain(request: &Request, device: &dyn BlockDevice) -> Result<()> {
    let (offset, length) = (request.offset, u64::from(request.length));
    match request.command {
        Some(Command::Cache) => device.prefetch(request.range()),
        // Both only touch slots and the part pages at the ends, so FAST_ZERO holds for all.
        Some(Command::WriteZeroes) if request.has(cmd_flag::NO_HOLE) => {
            device.write_zeroes(offset, length)
        }
        Some(Command::Trim | Command::WriteZeroes) => device.discard(offset, length),
        Some(Command::Read | Command::Write | Command::Flush | Command::BlockStatus) | None => {
            Ok(())
        }
    }
}
