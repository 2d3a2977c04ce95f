//! Memory taken from the kernel by address range rather than from the heap: the pool's page
//! frames, and tables that cost nothing until they are written.
//!
//! All `unsafe` code of the library is in this module. Nothing here locks; whoever owns an
//! [`Arena`] or a [`LazyTable`] guards it.

mod arena;
mod mapping;
mod table;

pub(crate) use arena::{Arena, ChainLen, FrameIndex, IdleRuns};
pub(crate) use table::LazyTable;
