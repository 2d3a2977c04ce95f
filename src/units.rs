//! The units that cross module borders: pages, and what a range of them holds.

/// Bytes in a page of the device and in a page frame of a pool.
pub const PAGE_SIZE: usize = 4096;

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;

/// The largest device: 16 TiB, so that a page's index fits in 32 bits.
pub const MAX_DEVICE_BYTES: u64 = 16 << 40;

/// The contents of one page.
pub type Page = [u8; PAGE_SIZE];

/// A page of the device, counted from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageIndex(pub u32);

/// What a page of the device holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PageState {
    /// Never written, or discarded, or a hole of the image: reads as zeroes and costs nothing.
    Empty,
    /// In the image that the device is of, and nowhere else.
    Absent,
    /// Written with zeroes: costs its slot only.
    Zero,
    /// One 32-bit pattern repeated: costs its slot only.
    SameFilled,
    /// Compressed in the pool.
    Resident,
    /// Compressed in the backing file.
    WrittenBack,
}

/// A run of bytes whose pages are all in the same state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte, from the start of the device.
    pub offset: u64,
    /// Bytes, never 0.
    pub len: u64,
    /// The state of each page that the run touches.
    pub state: PageState,
}
