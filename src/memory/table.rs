//! Tables that are zero at first and cost memory only where they were written.
#![expect(unsafe_code, reason = "views a mapping as a slice")]

use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;

use zerocopy::FromZeros;

use super::mapping::Mapping;
use super::source::MemorySource;
use crate::units::PAGE_SIZE;

/// A fixed-length slice of `T`, zero until written. Growing a `Vec` would copy it, under a lock,
/// at the worst moment; this only costs page faults.
///
/// Invariant: `base` is the start of the mapping, which holds `len` elements.
pub(crate) struct LazyTable<T> {
    mapping: Arc<Mapping>,
    base: NonNull<T>,
    len: usize,
    elements: PhantomData<T>,
}

// SAFETY: the memory is only this table's, as that of a `Box<[T]>` would be; who releases pages of
// it never looks at it ([`IdlePages`]).
unsafe impl<T: Send> Send for LazyTable<T> {}
// SAFETY: as above; `&LazyTable<T>` gives nothing but `&[T]`.
unsafe impl<T: Sync> Sync for LazyTable<T> {}

impl<T: FromZeros> LazyTable<T> {
    /// A table of `len` zero elements.
    ///
    /// # Errors
    /// The kernel's, if it has no such address range to give.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        Self::new_in(len, &MemorySource::Process)
    }

    /// The same, in memory that may outlive the process: it holds what it held.
    ///
    /// # Errors
    /// Those of [`LazyTable::new`].
    pub(crate) fn new_in(len: usize, source: &MemorySource) -> io::Result<Self> {
        const { assert!(!std::mem::needs_drop::<T>() && align_of::<T>() <= 4096) };
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Mapping::zeroed_of(bytes, source.take(bytes)?)?;
        Ok(Self {
            base: mapping.base().cast(),
            mapping: Arc::new(mapping),
            len,
            elements: PhantomData,
        })
    }

    /// The elements of which some may not be zero, in parts; a part may reach into elements that are.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn data_ranges(&self) -> io::Result<Vec<Range<usize>>> {
        let ranges = self.mapping.data_ranges()?.into_iter();
        let elements = |bytes: Range<usize>| {
            let end = bytes.end.div_ceil(size_of::<T>()).min(self.len);
            bytes.start / size_of::<T>()..end
        };
        Ok(ranges
            .map(elements)
            .filter(|range| !range.is_empty())
            .collect())
    }

    /// Page frames of the table, by their number, to be given back to the kernel. All of their
    /// elements are zero, and none is written until this has ended.
    pub(crate) fn lend_out(&self, pages: Vec<u32>) -> IdlePages {
        IdlePages {
            mapping: Arc::clone(&self.mapping),
            pages,
            released: false,
        }
    }
}

/// A buffer for data of a device, which on the heap would be part of a core dump.
///
/// # Panics
/// Without memory for it, where one on the heap would end the process.
pub(crate) fn buffer<T: FromZeros>(len: usize) -> LazyTable<T> {
    LazyTable::new(len).expect("there is memory for a buffer")
}

/// A buffer whose memory is there from the start, and not swapped out as far as this process may have that.
///
/// # Panics
/// As [`buffer`].
#[cfg(feature = "fuse")]
pub(crate) fn resident_buffer<T: FromZeros + Copy>(len: usize) -> LazyTable<T> {
    let mut buffer = buffer::<T>(len);
    // There is a limit for those who are not root (RLIMIT_MEMLOCK).
    let _ = buffer.mapping.lock();
    buffer.fill(T::new_zeroed());
    buffer
}

impl<T> Deref for LazyTable<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping is page-aligned, readable, `len` elements long and was zero at
        // first, which `FromZeros` makes a valid `T`; writes go through `deref_mut` or atomics.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for LazyTable<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.len) }
    }
}

/// Page frames of a [`LazyTable`] that are all zeroes, whose memory can be given to the kernel
/// without holding a lock: until it is back nobody writes there, and a reader finds zeroes before
/// and after.
#[must_use = "page frames that are not returned to their table stay out"]
pub(crate) struct IdlePages {
    mapping: Arc<Mapping>,
    pages: Vec<u32>,
    released: bool,
}

impl IdlePages {
    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Gives the memory of all of them to the kernel, in as few calls as their addresses allow.
    ///
    /// # Errors
    /// The kernel's; not all are released.
    pub(crate) fn release(&mut self) -> io::Result<()> {
        self.pages.sort_unstable();
        for neighbours in self.pages.chunk_by(|a, b| a + 1 == *b) {
            if let [first, .., last] | [first @ last] = neighbours {
                let start = *first as usize * PAGE_SIZE;
                let end = (*last as usize + 1) * PAGE_SIZE;
                self.mapping.release(start..end.min(self.mapping.len()))?;
            }
        }
        self.released = true;
        Ok(())
    }

    /// Whether the kernel has all of them.
    pub(crate) fn is_released(&self) -> bool {
        self.released
    }

    pub(crate) fn into_pages(self) -> Vec<u32> {
        self.pages
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn is_zero_and_keeps_what_is_written() {
        let mut table = LazyTable::<u64>::new(1 << 30).expect("8 GiB of addresses");
        assert_eq!((table[0], table[(1 << 30) - 1]), (0, 0));
        table[123_456_789] = 7;
        assert_eq!(table[123_456_789], 7);
        assert_eq!(LazyTable::<u32>::new(0).expect("empty").len(), 0);
    }

    /// How many page frames of a table are in memory (proc(5), pagemap).
    fn resident(table: &LazyTable<u64>) -> usize {
        const IN_MEMORY: u64 = 1 << 63;
        let map = std::fs::File::open("/proc/self/pagemap").expect("readable");
        let mut entries = vec![0; size_of_val(&**table).div_ceil(PAGE_SIZE) * 8];
        let first = table.as_ptr().addr() / PAGE_SIZE;
        map.read_exact_at(&mut entries, first as u64 * 8)
            .expect("readable");
        let entries = entries.as_chunks().0.iter().copied();
        let is_resident = |&entry: &u64| entry & IN_MEMORY != 0;
        entries.map(u64::from_le_bytes).filter(is_resident).count()
    }

    #[test]
    fn page_frames_go_back_and_read_as_zeroes() {
        // Its last page frame is not full.
        const PAGES: usize = 1000;
        let len = PAGES * 512 - 100;
        let mut table = LazyTable::<u64>::new(len).expect("addresses");
        for page in 0..PAGES {
            table[page * 512] = 7;
        }
        assert_eq!(resident(&table), PAGES);
        for page in (0..PAGES).filter(|&page| page != 3) {
            table[page * 512] = 0;
        }
        let pages = (0..PAGES as u32).filter(|&page| page != 3);
        let mut idle = table.lend_out(pages.rev().collect());
        idle.release().expect("madvise");
        assert!(idle.is_released() && idle.into_pages().len() == PAGES - 1);
        assert_eq!(resident(&table), 1);
        assert_eq!((table[3 * 512], table[4 * 512], table[len - 1]), (7, 0, 0));
    }
}
