//! Buffers that direct I/O takes: their memory, and their length once padded, are whole blocks. They are
//! mapped, so that what is in them is part of no core dump.

use std::ops::{Deref, DerefMut};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::memory::{LazyTable, buffer};

/// Bytes that direct I/O is aligned to: no device here asks for more.
pub const BLOCK: usize = 4096;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, align(4096))]
struct Block([u8; BLOCK]);

/// A growing buffer of bytes that starts at a multiple of [`BLOCK`]. What is behind its length is
/// not cleared: it holds older contents, or zeroes.
#[derive(Default)]
pub(crate) struct BlockBuf {
    /// None until there is something to hold.
    blocks: Option<LazyTable<Block>>,
    len: usize,
}

impl BlockBuf {
    /// An empty buffer that takes `bytes` without more memory.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        let mut buf = Self::default();
        buf.resize(bytes);
        buf.clear();
        buf
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// Sets the length; bytes gained have any value that was there.
    pub(crate) fn resize(&mut self, len: usize) {
        let (blocks, had) = (len.div_ceil(BLOCK), self.blocks().len());
        if blocks > had {
            // Twice as many, so that growing bit by bit does not copy it all each time.
            let mut grown = buffer(blocks.max(2 * had));
            grown[..had].copy_from_slice(self.blocks());
            self.blocks = Some(grown);
        }
        self.len = len;
    }

    fn blocks(&self) -> &[Block] {
        self.blocks.as_deref().unwrap_or_default()
    }

    /// Appends zeroes up to a length.
    pub(crate) fn pad_to(&mut self, len: usize) {
        let from = self.len;
        self.resize(len);
        self[from..].fill(0);
    }

    pub(crate) fn extend_from_slice(&mut self, bytes: &[u8]) {
        let from = self.len;
        self.resize(from + bytes.len());
        self[from..].copy_from_slice(bytes);
    }
}

impl Deref for BlockBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.blocks().as_bytes()[..self.len]
    }
}

impl DerefMut for BlockBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        let blocks = self.blocks.as_deref_mut().unwrap_or_default();
        &mut blocks.as_mut_bytes()[..self.len]
    }
}

/// Whether direct I/O takes a transfer between this memory and that place in a file.
pub(super) fn is_aligned(memory: &[u8], at: u64) -> bool {
    memory.as_ptr().addr().is_multiple_of(BLOCK)
        && memory.len().is_multiple_of(BLOCK)
        && at.is_multiple_of(BLOCK as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_aligned_and_pads_with_zeroes() {
        let mut buf = BlockBuf::with_capacity(BLOCK);
        buf.extend_from_slice(&[7; BLOCK]);
        buf.clear();
        buf.extend_from_slice(b"abc");
        buf.pad_to(10);
        assert_eq!(&buf[..], b"abc\0\0\0\0\0\0\0");
        buf.extend_from_slice(&[1; 2 * BLOCK]);
        assert_eq!((buf.len(), buf[10], buf[9]), (2 * BLOCK + 10, 1, 0));
        assert!(!is_aligned(&buf, 0));
        buf.pad_to(3 * BLOCK);
        assert!(is_aligned(&buf, 0) && !is_aligned(&buf, 512) && !is_aligned(&buf[1..], 0));
    }
}
