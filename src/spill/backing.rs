//! What a device spills to, and reads back from: the traits of it.

use std::io;
use std::ops::Range;
use std::path::Path;

use super::address::{MIN_BYTES, SEGMENT_BYTES, SEGMENTS_PER_STORE};
use super::handover::Handover;
use crate::error::{Error, Result};
use crate::size::human_size;

/// What can be read, in segments of [`SEGMENT_BYTES`] each.
///
/// The implementation owes: what is in a segment reads back until the segment is discarded or written
/// again. It need not prove that: the device finds out, with a checksum for each page, when it is given
/// something else, and takes the page for lost rather than for that.
///
/// The caller owes: ranges lie inside a segment, and below what the store holds. They may start anywhere in
/// it and have any length.
pub trait Store: Send + Sync {
    /// Fills `buf` with the bytes from `offset` on.
    ///
    /// # Errors
    /// The store's; `UnexpectedEof` if it ends before, or never had what was asked for.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Says that nothing of a whole segment is needed any more. Advice: a store that can gives its space back.
    fn discard(&self, segment: Range<u64>);

    /// What stands for it in messages, and where the device's attributes name its backing: the file behind
    /// it, if there is one.
    fn path(&self) -> &Path;

    /// What another process goes on with it by, if that is possible. A device whose memory outlives the process takes
    /// no other.
    #[doc(hidden)]
    fn handover(&self) -> Option<Handover<'_>> {
        None
    }
}

/// A store that can be written, too: what a device spills to.
///
/// It is empty at first, and nobody reads what it holds when the device is gone: it owes no durability.
///
/// The implementation owes: a failed write changes nothing outside the range it was given; calls on different
/// ranges may run at the same time, from several threads. A call may take long, and pages wait for it; one that
/// never returns is a device that never stops.
///
/// The caller owes: what is written starts and ends at multiples of [`BLOCK`](super::BLOCK), in the segment and
/// in memory; ranges that overlap are not in use at once.
///
/// [`conformance::run`](super::conformance::run) tests an implementation.
pub trait Backing: Store {
    /// Bytes it can hold, at least two segments; more than [`MAX_BACKING_BYTES`](super::MAX_STORE_BYTES) are
    /// not used. A device asks when it comes to use it, and when its bound is changed.
    ///
    /// # Errors
    /// The store's: then it is not used.
    fn capacity(&self) -> io::Result<u64>;

    /// Writes all of `data` at `offset`.
    ///
    /// # Errors
    /// The store's; part of the range may have been written.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
}

/// Segments that a backing holds if at most `size` bytes of it are to be used, or all it has.
///
/// # Errors
/// [`Error::InvalidConfig`] if that size is too small to be of use; [`Error::Unusable`] if what it has is;
/// [`Error::Io`] if it cannot be asked.
pub(crate) fn segments_of(backing: &dyn Backing, size: Option<u64>) -> Result<u32> {
    check_size(size)?;
    let path = backing.path();
    let failed = |error| Error::io(format!("use {}", path.display()), error);
    let has = backing.capacity().map_err(failed)?;
    if has < MIN_BYTES {
        return Err(Error::Unusable {
            path: path.to_owned(),
            reason: format!(
                "it holds {}, and a backing needs {} at least",
                human_size(has),
                human_size(MIN_BYTES)
            ),
        });
    }
    let bytes = has.min(size.unwrap_or(u64::MAX));
    Ok((bytes / SEGMENT_BYTES).min(u64::from(SEGMENTS_PER_STORE)) as u32)
}

/// Checks how many bytes of a backing may be used.
///
/// # Errors
/// [`Error::InvalidConfig`] if they are too few to be of use.
pub(super) fn check_size(size: Option<u64>) -> Result<()> {
    if size.is_none_or(|size| size >= MIN_BYTES) {
        return Ok(());
    }
    Err(Error::InvalidConfig {
        option: "backing_size",
        reason: format!("must be at least {}M", MIN_BYTES >> 20),
    })
}
