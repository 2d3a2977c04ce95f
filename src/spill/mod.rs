//! The spill: what eviction wrote, in segments of a backing; and what is read like it, in a saved image.
//!
//! ```text
//! segment: | header | record | record | ...                 |  2 MiB
//! record:  | checksum page len codec | object | padding |      multiple of 16 bytes
//!    or    | tag len | page codec object padding, encrypted |
//! ```
//!
//! Only the writeback thread gives out places, through its [`SegmentLog`]; its helpers write
//! there, any thread reads. A reader holds no lock and pins nothing: a segment may be freed and
//! written anew under it. The checksum, which is bound to the record's place and to the segment's
//! sequence number, tells; so does the tag.
//!
//! Whoever has the file of an encrypted spill, and not this process's memory, learns from it how
//! many segments were written and how full each is, and from several copies of it when. Not which
//! pages are in it, where one ends, nor how well any compressed.

mod address;
mod backing;
mod blocks;
mod change;
mod claim;
mod config;
pub mod conformance;
mod direct;
#[cfg(test)]
mod faulty;
mod file;
mod handover;
mod log;
#[cfg(test)]
mod loop_disk;
mod memory;
#[cfg(not(feature = "encrypt"))]
mod no_seal;
mod noted;
mod record;
#[cfg(feature = "encrypt")]
mod seal;
mod segment;
mod signature;
mod sparse;
mod stores;
mod wipe;

#[cfg(not(feature = "encrypt"))]
use no_seal as seal;

pub use address::{MAX_STORE_BYTES, SEGMENT_BYTES};
pub(crate) use address::{RECORD_ALIGN, RecordAddress, SegmentIndex, StoreIndex};
pub(crate) use backing::segments_of;
pub use backing::{Backing, Store};
pub use blocks::BLOCK;
pub(crate) use blocks::BlockBuf;
pub(crate) use change::{Leave, NextOfImage};
pub(crate) use claim::block_device_size;
pub use claim::{not_spilled, wipe_spill};
pub use config::{BackingConfig, BackingKeep};
pub(crate) use direct::DirectFile;
#[cfg(test)]
pub(crate) use faulty::FaultyBacking;
#[cfg(all(test, shuttle))]
pub(crate) use faulty::{Chances, Faults, FaultyImage};
pub use file::FileBacking;
pub use handover::Handover;
pub(crate) use handover::{KeptStore, StoreNote};
pub(crate) use log::{Head, Imported, LogCounts, MIN_APPEND, SegmentLog, Target};
#[cfg(test)]
pub(crate) use loop_disk::LoopDisk;
pub use memory::MemoryBacking;
pub use noted::BackingNotes;
pub(crate) use noted::Opener;
pub(crate) use record::{
    MAX_RECORD_LEN, Record, RecordBuf, RecordFormat, RecordFormats, random_sequence,
};
pub(crate) use segment::{SegmentTable, UsedSegments};
pub(crate) use sparse::Reading;
pub(crate) use stores::{KeptStores, Stores, StoresRecord};
