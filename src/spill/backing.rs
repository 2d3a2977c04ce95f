//! What segments are written to.

use std::io;
use std::path::Path;

use super::stores::StoreSegment;
use crate::error::Result;

/// A store of segments of [`super::SEGMENT_BYTES`] each.
///
/// The implementation owes: what was written reads back until the segment is discarded or written
/// again; a failed write changes nothing outside the range it was given; calls on different
/// ranges may run at the same time.
///
/// The caller owes: ranges lie inside a segment; what is written starts and ends at multiples of
/// [`super::BLOCK`], in the segment and in memory; ranges that overlap are not in use at once.
pub(crate) trait Backing: Send + Sync {
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

    /// Fills `buf` from `offset` in a segment.
    ///
    /// # Errors
    /// The store's; `UnexpectedEof` if it ends before.
    fn read(&self, segment: StoreSegment, offset: u32, buf: &mut [u8]) -> io::Result<()>;

    /// Gives the space of a segment back. Advice: a store that cannot keeps it for the next use.
    fn discard(&self, segment: StoreSegment);

    /// The file behind it.
    fn path(&self) -> &Path;
}
