//! Where the memory of a device comes from.

use std::io;
use std::sync::Arc;

use super::device_memory::DeviceMemory;
use super::mapping::Mapped;

/// Where memory comes from.
#[derive(Clone, Debug)]
pub(crate) enum MemorySource {
    /// Anonymous memory, which ends with the process.
    Process,
    /// The regions of a memory that outlives it, one after the other.
    Device(DeviceMemory),
}

/// How far the regions of a memory have been made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RegionMark(u64);

impl MemorySource {
    /// So many bytes of it: those of the next region.
    ///
    /// # Errors
    /// The kernel's, if the memory cannot be so long.
    pub(super) fn take(&self, len: usize) -> io::Result<Mapped> {
        Ok(match self {
            Self::Process => Mapped::Anonymous,
            Self::Device(memory) => Mapped::Region {
                start: memory.add_region(len)?,
                file: Arc::clone(memory.file()),
            },
        })
    }

    /// Where the next region starts.
    pub(crate) fn mark(&self) -> RegionMark {
        match self {
            Self::Process => RegionMark(0),
            Self::Device(memory) => RegionMark(memory.regions_end()),
        }
    }

    /// Makes the regions from there on anew, whose mappings are gone.
    pub(crate) fn rewind(&self, RegionMark(end): RegionMark) {
        if let Self::Device(memory) = self {
            memory.rewind_regions(end);
        }
    }
}
