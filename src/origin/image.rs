//! What pages are destaged to.

use std::io;
use std::ops::Range;
use std::path::Path;

/// An image: it has every page, each at its own place.
///
/// The implementation owes: a read gives what was last written or discarded there, also by a call
/// that ended in this instant; a failed write may have changed any part of its range and nothing
/// else; after [`Image::sync`] all that ended before it is durable; calls on different ranges may
/// run at the same time.
///
/// The caller owes: ranges are of whole pages inside the image; ranges that overlap are not written
/// at once.
pub(crate) trait Image: Send + Sync {
    /// Fills `buf` from a byte on.
    ///
    /// # Errors
    /// The image's; `UnexpectedEof` if it has become shorter.
    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data` at a byte.
    ///
    /// # Errors
    /// The image's.
    fn write(&self, at: u64, data: &[u8]) -> io::Result<()>;

    /// Makes a range read as zeroes, and gives its space back where that can be done.
    ///
    /// # Errors
    /// The image's.
    fn discard(&self, at: u64, len: u64) -> io::Result<()>;

    /// Makes what was written and discarded durable.
    ///
    /// # Errors
    /// The image's: then nothing is known of what was written since the last success.
    fn sync(&self) -> io::Result<()>;

    /// The first stretch of data from a byte on, of whole pages as far as they are from there on: what
    /// lies before it is a hole, which reads as zeroes. Empty, at the image's end, if only a hole is
    /// left. What cannot be told from data is data.
    fn next_data(&self, at: u64) -> Range<u64>;

    /// The file behind it.
    fn path(&self) -> &Path;
}
