//! The spill: what eviction wrote, in segments of a backing.
//!
//! ```text
//! segment: | header | record | record | ...                 |  2 MiB
//! record:  | checksum page len codec | object | padding |      multiple of 16 bytes
//! ```
//!
//! Only the writeback thread gives out places, through its [`SegmentLog`]; its helpers write
//! there, any thread reads. A reader holds no lock and pins nothing: a segment may be freed and
//! written anew under it. The checksum, which is bound to the record's place and to the segment's
//! sequence number, tells.

mod backing;
mod blocks;
mod change;
mod direct;
#[cfg(test)]
mod faulty;
mod file;
mod log;
mod record;
mod segment;
mod stores;

pub(crate) use backing::Backing;
pub(crate) use blocks::{BLOCK, BlockBuf};
pub(crate) use change::Leave;
#[cfg(test)]
pub(crate) use faulty::FaultyBacking;
pub(crate) use file::FileBacking;
pub(crate) use log::{Head, LogCounts, LogFull, MIN_APPEND, SegmentLog, Target};
pub(crate) use record::{DamagedRecord, MAX_RECORD_LEN, Record, RecordAddress, record_len};
pub(crate) use segment::{SEGMENT_BYTES, SegmentIndex, SegmentTable};
pub(crate) use stores::Stores;
