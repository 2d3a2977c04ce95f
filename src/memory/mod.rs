//! Memory taken from the kernel by address range rather than from the heap: the pool's page
//! frames, tables and buffers that cost nothing until they are written, and the page that a key is in. None of it is
//! part of a core dump. How much of it may be taken is counted here, too.
//!
//! All `unsafe` code of the library is in this module, and in the ring of the FUSE frontend, whose
//! memory the kernel writes to. Nothing here takes a mutex; whoever owns an [`Arena`]
//! or a [`LazyTable`] guards it.

mod arena;
mod available;
mod budget;
mod device_memory;
#[cfg(feature = "encrypt")]
mod locked;
mod mapping;
mod publish;
mod source;
mod table;

pub(crate) use arena::{Arena, ChainLen, FrameIndex, IdleRuns};
pub(crate) use available::available;
pub(crate) use budget::FrameBudget;
pub(crate) use device_memory::Shape;
pub use device_memory::{DeviceMemory, FileKeeper};
#[cfg(feature = "encrypt")]
pub(crate) use locked::Locked;
#[cfg(feature = "fuse")]
pub(crate) use mapping::Mapping;
#[cfg(test)]
pub(crate) use publish::at_crash_points;
pub(crate) use publish::{Publish, Word, crash_point};
pub(crate) use source::MemorySource;
#[cfg(feature = "fuse")]
pub(crate) use table::resident_buffer;
pub(crate) use table::{IdlePages, LazyTable, buffer};
