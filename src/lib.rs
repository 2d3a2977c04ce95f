//! zram in userspace: a compressed RAM block device that spills its coldest memory to a file.
//!
//! ```
#![doc = include_str!("../examples/embed.rs")]
//! ```
//!
//! [`nbd`] serves it to others, [`fuse`] as a file; [`backing`] has what it spills to. What is in the library, and what
//! stands on what:
//!
//! ```text
//!  nbd  fuse  (your code)          control, attributes: the same device, in words
//!        │                              │
//!        └──────── device ──────────────┘      Device, a BlockDevice
//!               ┌────┴─────┐
//!               io      maintain               requests; evict, clean, compact, recompress, destage
//!               └────┬─────┘
//!                 engine                       Engine: shards, limit, codecs, what is spilled, ages
//!               ┌────┴─────┐
//!             shard      origin                slots, pool and LRU under one lock; the image beneath
//!         ┌──────┼───────┐
//!       pool   spill   image                   page frames; segments of a backing; saved images
//! ```
//!
//! Imports go down this picture, never up: `scripts/layers.sh` says which module is in which layer, and
//! fails on an import that goes up; `scripts/circles.py` fails on files that import each other in a circle of more
//! than two. `docs/architecture.md` follows a write, a read, an eviction and others through
//! the files.
//!
//! # Cargo features
//!
//! All are on by default. Without them the library is the engine with LZ4, and is built without a C compiler.
//!
//! | feature | what it adds |
//! |---|---|
//! | `zstd`, `lz4hc`, `deflate` | the algorithms; zstd's dictionaries |
//! | `encrypt` | backings under a key that ends with the process |
//! | `nbd` | the NBD server |
//! | `tls` | TLS in it |
//! | `fuse` | the device as a file |
//!
//! # What happens to a page
//!
//! - **Written**, it is compressed into scratch memory of the calling thread; then, under its
//!   shard's lock, copied to an object in the pool, and its slot points there. One that repeats a
//!   pattern is the pattern, in its slot. One that does not compress is stored raw. One that is
//!   written in part is decompressed, changed and compressed under the lock, as in zram.
//! - **Read**, its object is copied out under the lock and decompressed after it; the slot
//!   remembers that it was accessed.
//! - **Evicted**, when memory is above the high watermark: the writeback thread isolates the zspage
//!   whose last allocation was longest ago, spares the objects that were accessed since, appends
//!   the others to a segment of the backing, and points their slots there, unless they changed.
//! - **Recompressed**, when that is asked for, or when it has not been accessed for long: marked and
//!   copied under the lock, compressed again with a stronger algorithm without it, and replaced if
//!   the mark is still there. What churn leaves sparse is packed by the writeback thread.
//! - **Destaged**, over an image, by eviction or a flush: copied under the lock, with its dirty
//!   neighbours, and written to the image without it; if it has not changed by then it is clean, and
//!   leaves memory or may do so. Its slot is then empty, which means that the image has it
//!   (`maintain::destage`).
//! - **Saved**, in an image of the device as it is at one time: by a thread that goes over all pages, or
//!   by whoever is about to change one that is not saved yet (`engine::copy_before_write`).
//! - **Restored**, its slot points at its record in a saved image, which is read like a backing, and
//!   emptied in the background.
//! - **Discarded**, it costs nothing again. A segment whose records are all gone is given back; the
//!   records of one that is mostly dead are moved together.
//!
//! # What is promised
//!
//! - A page is always some whole write of it, whatever happens beside it, and a read that begins
//!   after a write has ended sees that write or a later one.
//! - What the pool holds never exceeds the limit. At the limit a write waits for the writeback
//!   thread; it fails (ENOSPC) only if nothing can be spilled.
//! - A page that cannot be read back as it was written fails (EIO), and no other does.
//! - The data lives as long as the process. A flush promises nothing beyond that, unless there is an
//!   image beneath, to which it is destaged: then all that was acknowledged before it is there, durably.
//!
//! # Words
//!
//! A page is 4 KiB of the device, a page frame 4 KiB of the pool's memory. All other words are the kernel's
//! (`Documentation/admin-guide/blockdev/zram.rst`, `mm/zsmalloc.c`, `mm/workingset.c`) or those of block layers and
//! caches (destage, copy-before-write, dirty map), but for these:
//!
//! | word | meaning |
//! |---|---|
//! | shard | a slice of the slot table with its own pool and its own lock |
//! | segment | 2 MiB of the backing, appended to and freed as a whole |
//! | record | an object in a segment, with a header and a checksum |
//! | absent | of a page: in the image beneath only |

mod algorithm;
mod attributes;
mod block_device;
mod codec;
mod config;
pub mod control;
mod device;
mod engine;
mod error;
mod file_lock;
#[cfg(feature = "fuse")]
pub mod fuse;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod handed_file;
mod image;
mod io;
mod latency;
mod log_limit;
mod maintain;
mod memory;
#[doc(hidden)]
pub mod mounts;
mod named_file;
#[cfg(feature = "nbd")]
pub mod nbd;
mod origin;
mod pool;
mod recompression;
mod sector_size;
mod selection;
mod shard;
mod size;
mod spill;
mod stats;
mod sync;
mod time;
mod units;
mod unix_socket;
mod users;
mod waker;

/// Where pages are spilled to: a file, memory, or what a program brings ([`DeviceBuilder::spill_to`]).
///
/// A [`Backing`](backing::Backing) is bytes in segments of 2 MiB, each appended to, read, and discarded as a whole.
///
/// ```
#[doc = include_str!("../examples/own_backing.rs")]
/// ```
pub mod backing {
    #[doc(hidden)]
    pub use crate::spill::Handover;
    pub use crate::spill::{
        BLOCK, Backing, FileBacking, MAX_STORE_BYTES as MAX_BACKING_BYTES, MemoryBacking,
        SEGMENT_BYTES, Store, conformance,
    };
}

pub use algorithm::{Algorithm, Priority};
pub use attributes::Attribute;
pub use block_device::{BlockDevice, check_range};
pub use codec::{MAX_DICTIONARY_LEN, train_dictionary};
pub use config::{DeviceConfig, check_mem_limit};
pub use device::{
    BlockStates, Device, DeviceBuilder, MAX_MAP_CELLS, MapCell, PageMap, PlaceCheck, SaveProgress,
    Saved, Scrubbed, saved_size,
};
pub use error::{Errno, Error, Result};
pub use latency::{Latency, OperationLatencies};
pub use memory::{DeviceMemory, FileKeeper};
pub use origin::{OriginConfig, OriginFormat, OriginUse, SyncPolicy};
pub use pool::{ClassStats, PoolKind};
pub use recompression::Recompression;
pub use sector_size::SectorSize;
pub use selection::Selection;
pub use spill::{BackingConfig, BackingKeep};
pub use stats::Stats;
pub use units::{Extent, MAX_DEVICE_BYTES, PAGE_SHIFT, PAGE_SIZE, Page, PageIndex, PageState};
pub use users::{Frontend, User, Who};

// What the `uzram` command shares with the library. It is no part of what is promised.
#[doc(hidden)]
pub use handed_file::HandedFile;
#[doc(hidden)]
pub use image::{ImageFile, write_whole};
#[doc(hidden)]
pub use log_limit::LogLimit;
#[doc(hidden)]
pub use named_file::{Links, follow_links, open_named_file, read_named_file};
#[doc(hidden)]
pub use size::{ParseSizeError, human_size, parse_size};
#[doc(hidden)]
pub use spill::{BackingNotes, not_spilled, wipe_spill};
#[doc(hidden)]
pub use unix_socket::{MAX_SOCKET_PATH, SocketFile, listen as listen_unix, remove_dead_socket};
