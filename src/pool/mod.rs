//! Pools: where compressed pages live.
//!
//! A pool keeps *objects* of up to a page in *zspages*, runs of page frames that come and go as a
//! whole. It knows nothing of compression, of slots or of recency; the shard that owns it does.
//! It locks nothing: a shard's lock covers its pool.

mod buddies;
#[cfg(test)]
mod conformance;
#[cfg(any(test, fuzzing))]
pub(crate) mod harness;
mod kind;
mod zsmalloc;

use self::buddies::Buddies;
use self::zsmalloc::Zsmalloc;
pub use kind::PoolKind;
pub use zsmalloc::ClassStats;

use std::io;
use std::sync::Arc;

use crate::memory::{FrameBudget, IdleRuns, MemorySource};

/// Bytes that object addresses are multiples of, and size classes are apart
/// (`ZS_SIZE_CLASS_DELTA`).
pub(crate) const OBJECT_ALIGN: usize = 16;

/// How a pool finds an object: 41 bits. It changes only when compaction moves the object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ObjectAddress(pub(crate) u64);

/// Whose object it is: the index of its slot in the shard, below 2^31.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Owner(pub(crate) u32);

/// A zspage of a pool. Never 0, so that 0 can stand for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ZspageId(pub(crate) u32);

/// What [`Pool::store`] did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    pub(crate) object: ObjectAddress,
    pub(crate) zspage: ZspageId,
}

/// An object that somebody refers to, in memory that outlived a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FoundObject {
    pub(crate) object: ObjectAddress,
    /// Its bytes, as it was stored.
    pub(crate) len: usize,
    pub(crate) owner: Owner,
}

/// What a step of compaction did.
#[derive(Clone, Debug)]
pub(crate) struct Compacted {
    /// The zspage that was emptied and freed.
    pub(crate) zspage: ZspageId,
    /// Those that its objects moved to. The last one is new, if others had no room for all.
    pub(crate) into: Vec<ZspageId>,
    /// Page frames that this freed; none, if other zspages grew by as many.
    pub(crate) frames: u64,
}

/// Told of each object that compaction moves: its owner, the old and the new address.
pub(crate) type Moved<'a> = &'a mut dyn FnMut(Owner, ObjectAddress, ObjectAddress);

/// Why a page cannot be stored now. A pool only knows of the first two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// It takes a zspage, and the budget has none left.
    OverLimit,
    /// It takes a zspage, and the kernel has no memory or addresses for one.
    NoMemory,
    /// Its slot takes a page frame of a table, and the tables may have no more.
    TableLimit,
    /// Its slot is in a page frame of a table that is on its way back to the kernel.
    TableBusy,
}

/// An empty pool with addresses for `address_frames` frames, fewer than 2^32, which are of `memory`.
///
/// # Errors
/// The kernel's, if there is not enough address space.
pub(crate) fn new(
    kind: PoolKind,
    address_frames: usize,
    budget: Arc<FrameBudget>,
    memory: &MemorySource,
) -> io::Result<Box<dyn Pool>> {
    match kind {
        PoolKind::Zsmalloc => Ok(Box::new(Zsmalloc::new(address_frames, budget, memory)?)),
        PoolKind::Zbud => Ok(Box::new(Buddies::zbud(address_frames, budget, memory)?)),
        PoolKind::Z3fold => Ok(Box::new(Buddies::z3fold(address_frames, budget, memory)?)),
    }
}

/// Page frames at most, beyond one for each object, that a pool holds once compaction finds nothing to do.
pub(crate) fn most_waste(kind: PoolKind) -> u64 {
    match kind {
        PoolKind::Zsmalloc => zsmalloc::most_waste(),
        // Objects share frames or have one each.
        PoolKind::Zbud | PoolKind::Z3fold => 0,
    }
}

/// An allocator of objects.
///
/// In memory that outlives the process an object's bytes, and who owns it, stand there before [`Pool::store`] returns,
/// and until [`Pool::free`] is called; compaction gives the old ones up after `moved` was called.
///
/// The pool owes: an object's bytes stay as stored until it is freed; a zspage that is isolated
/// gets no new object, is not compacted and is not freed until it is put back; frames are taken
/// from the shared [`FrameBudget`] before they are used and given back after.
///
/// The owner owes: it frees each object once; it learns from [`Stored`], the answer of `free` and
/// `put_back`, and [`Compacted`] which zspages exist; it puts back what it isolates.
pub(crate) trait Pool: Send {
    /// An upper bound of the zspages' ids.
    fn max_zspages(&self) -> usize;

    /// The longest object that is worth storing as it is; a longer one takes as much memory as
    /// the raw page, which is faster to read.
    fn max_compressed_len(&self) -> usize;

    /// Bytes that an object of `len` bytes takes in its zspage.
    fn object_size(&self, len: usize) -> usize;

    /// Stores `data`, at most [`Pool::max_compressed_len`] bytes or exactly a page.
    ///
    /// # Errors
    /// [`NoRoom`]; nothing has changed.
    fn store(&mut self, owner: Owner, data: &[u8]) -> Result<Stored, NoRoom>;

    /// The first `len` bytes of an object.
    fn bytes(&self, object: ObjectAddress, len: usize) -> &[u8];

    /// Says that the object's first `len` bytes are going to be looked at soon; a hint.
    fn prefetch(&self, object: ObjectAddress, len: usize);

    /// Frees an object; returns its zspage if that is freed with it.
    fn free(&mut self, object: ObjectAddress) -> Option<ZspageId>;

    /// Takes a zspage out of allocation and compaction; returns the number of page frames it holds.
    fn isolate(&mut self, zspage: ZspageId) -> u64;

    /// Ends isolation; returns whether the zspage was empty and is freed.
    fn put_back(&mut self, zspage: ZspageId) -> bool;

    /// Visits the objects of a zspage.
    fn objects(&self, zspage: ZspageId, visit: &mut dyn FnMut(ObjectAddress, Owner));

    /// Empties one sparse zspage into others and frees it, where most frames can be freed that
    /// way. `None` if none can.
    fn compact(&mut self, moved: Moved<'_>) -> Option<Compacted>;

    /// Page frames that zspages hold.
    fn frames_in_use(&self) -> u64;

    /// Those of them that compaction could free.
    fn frames_freeable(&self) -> u64;

    /// Freed frames whose memory is still held.
    fn warm_frames(&self) -> usize;

    /// Takes freed frames out, all but `keep`, to be released without the lock and returned with
    /// [`Pool::accept_idle`].
    fn take_idle(&mut self, keep: usize) -> IdleRuns;

    /// Takes released frames back, or those that could not be.
    fn accept_idle(&mut self, idle: IdleRuns);

    /// Usage by size class, for pools that have them.
    fn class_stats(&self) -> Vec<ClassStats>;

    /// Has these objects, and no others, be in the pool, which is empty but for the memory that they were found in;
    /// returns the zspage of each. Nothing is said to move by it.
    ///
    /// # Errors
    /// The kernel's; [`io::ErrorKind::InvalidData`] if they cannot all be there.
    fn adopt(&mut self, objects: &[FoundObject]) -> io::Result<Vec<ZspageId>>;

    /// Asserts that the pool's accounting adds up; slow, for tests. No frames may be out for
    /// release.
    fn check(&self);
}
