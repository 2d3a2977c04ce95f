//! What segments are written to, and read from.

use std::io;
use std::path::Path;

use super::address::StoreSegment;
use crate::error::Result;

/// A store of segments of [`super::SEGMENT_BYTES`] each, that can be read.
///
/// The implementation owes: what is in a segment reads back until the segment is discarded or written
/// again. The caller owes: ranges lie inside a segment.
pub(crate) trait SegmentStore: Send + Sync {
    /// Fills `buf` from `offset` in a segment.
    ///
    /// # Errors
    /// The store's; `UnexpectedEof` if it ends before.
    fn read(&self, segment: StoreSegment, offset: u32, buf: &mut [u8]) -> io::Result<()>;

    /// Says that nothing of a segment is needed any more. Advice: a store that can gives its space back.
    fn discard(&self, segment: StoreSegment);

    /// The file behind it.
    fn path(&self) -> &Path;
}

/// A store that can be written, too.
///
/// The implementation owes: a failed write changes nothing outside the range it was given; calls on different
/// ranges may run at the same time.
///
/// The caller owes: what is written starts and ends at multiples of [`super::BLOCK`], in the segment and
/// in memory; ranges that overlap are not in use at once.
pub(crate) trait Backing: SegmentStore {
    /// Segments it holds if at most `size` bytes of it are to be used, or all it has; at most
    /// [`super::SEGMENTS_PER_STORE`].
    ///
    /// # Errors
    /// [`crate::Error::InvalidConfig`] if that is too small to be of use; [`crate::Error::Io`] if
    /// the store cannot be asked.
    fn capacity(&self, size: Option<u64>) -> Result<u32>;

    /// Writes all of `data` at `offset` in a segment.
    ///
    /// # Errors
    /// The store's; part of the range may have been written.
    fn write(&self, segment: StoreSegment, offset: u32, data: &[u8]) -> io::Result<()>;
}
