//! What segments are written to.

use std::io;
use std::path::Path;

use super::segment::SegmentIndex;

/// A store of segments of [`super::SEGMENT_BYTES`] each.
///
/// The implementation owes: what was written reads back until the segment is discarded or written
/// again; a failed write changes nothing outside the range it was given; calls on different
/// ranges may run at the same time.
///
/// The caller owes: ranges lie inside a segment; one thread writes.
pub(crate) trait Backing: Send + Sync {
    /// Segments it may hold.
    fn segments(&self) -> u32;

    /// Writes all of `data` at `offset` in a segment.
    ///
    /// # Errors
    /// The store's; part of the range may have been written.
    fn write(&self, segment: SegmentIndex, offset: u32, data: &[u8]) -> io::Result<()>;

    /// Fills `buf` from `offset` in a segment.
    ///
    /// # Errors
    /// The store's; `UnexpectedEof` if it ends before.
    fn read(&self, segment: SegmentIndex, offset: u32, buf: &mut [u8]) -> io::Result<()>;

    /// Gives the space of a segment back. Advice: a store that cannot keeps it for the next use.
    fn discard(&self, segment: SegmentIndex);

    /// The file behind it.
    fn path(&self) -> &Path;
}
