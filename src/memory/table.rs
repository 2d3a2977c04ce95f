//! Tables that are zero at first and cost memory only where they were written.
#![expect(unsafe_code, reason = "views a mapping as a slice")]

use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use zerocopy::FromZeros;

use super::mapping::Mapping;

/// A fixed-length slice of `T`, zero until written. Growing a `Vec` would copy it, under a lock,
/// at the worst moment; this only costs page faults.
pub(crate) struct LazyTable<T> {
    mapping: Mapping,
    len: usize,
    elements: PhantomData<T>,
}

impl<T: FromZeros> LazyTable<T> {
    /// A table of `len` zero elements.
    ///
    /// # Errors
    /// The kernel's, if it has no such address range to give.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        const { assert!(!std::mem::needs_drop::<T>() && align_of::<T>() <= 4096) };
        let bytes = len
            .checked_mul(size_of::<T>())
            .ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            mapping: Mapping::zeroed(bytes)?,
            len,
            elements: PhantomData,
        })
    }
}

/// A buffer for data of a device, which on the heap would be part of a core dump.
///
/// # Panics
/// Without memory for it, where one on the heap would end the process.
pub(crate) fn buffer<T: FromZeros>(len: usize) -> LazyTable<T> {
    LazyTable::new(len).expect("there is memory for a buffer")
}

impl<T> Deref for LazyTable<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the mapping is page-aligned, readable, `len` elements long and was zero at
        // first, which `FromZeros` makes a valid `T`; writes go through `deref_mut` or atomics.
        unsafe { std::slice::from_raw_parts(self.mapping.base().as_ptr().cast(), self.len) }
    }
}

impl<T> DerefMut for LazyTable<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.base().as_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_zero_and_keeps_what_is_written() {
        let mut table = LazyTable::<u64>::new(1 << 30).expect("8 GiB of addresses");
        assert_eq!((table[0], table[(1 << 30) - 1]), (0, 0));
        table[123_456_789] = 7;
        assert_eq!(table[123_456_789], 7);
        assert_eq!(LazyTable::<u32>::new(0).expect("empty").len(), 0);
    }
}
