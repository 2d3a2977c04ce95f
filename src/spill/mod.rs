//! The spill: what eviction wrote, in segments of a backing.
//!
//! ```text
//! segment: | header | record | record | ...                 |  2 MiB
//! record:  | checksum page len codec | object | padding |      multiple of 16 bytes
//! ```
//!
//! Only the writeback thread writes, through its [`SegmentLog`]; any thread reads. A reader holds
//! no lock and pins nothing: a segment may be freed and written anew under it. The checksum, which
//! is bound to the record's place and to the segment's sequence number, tells.

mod backing;
#[cfg(test)]
mod faulty;
mod file;
mod log;
mod record;
mod segment;

pub(crate) use backing::Backing;
#[cfg(test)]
pub(crate) use faulty::FaultyBacking;
pub(crate) use file::FileBacking;
pub(crate) use log::{LogCounts, LogFull, MIN_APPEND, SEGMENT_HEADER_LEN, SegmentLog, Target};
pub(crate) use record::{MAX_RECORD_LEN, Record, RecordAddress, record_len};
pub(crate) use segment::{SEGMENT_BYTES, SegmentIndex, SegmentTable};
