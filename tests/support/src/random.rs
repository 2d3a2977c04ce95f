//! Numbers and bytes that look random and follow from a seed.

use crate::{PAGE_SIZE, Page};

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "there is no end")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// The index of one of so many.
    pub fn index(&mut self, len: usize) -> usize {
        (self.next() % len as u64) as usize
    }

    /// A number from 0 to 1.
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Bytes of so many kinds, another number each time: some pages of them compress, and some do not.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let kinds = 1 + self.below(255) as u8;
        (0..len).map(|_| (self.next() as u8) % kinds).collect()
    }

    /// Fills `out` with what does not compress.
    pub fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            chunk.copy_from_slice(&self.next().to_le_bytes()[..chunk.len()]);
        }
    }
}

/// Bytes that do not compress, that differ from page to page and from seed to seed, and have no page of zeroes.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    Random(seed).fill(&mut bytes);
    bytes
}

/// A page that does not compress.
pub fn noise_page(seed: u64) -> Page {
    let mut page = [0; PAGE_SIZE];
    Random(seed).fill(&mut page);
    page
}
