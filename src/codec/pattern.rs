//! Pages that repeat a pattern.

use crate::units::Page;

/// The 32-bit pattern that `page` repeats, if it repeats one.
pub(crate) fn same_filled(page: &Page) -> Option<u32> {
    let (words, _) = page.as_chunks::<4>();
    // Most pages differ early from their last word, and are done here.
    let pattern = words[words.len() - 1];
    if words[0] != pattern || words[1] != pattern {
        return None;
    }
    let pattern = u32::from_ne_bytes(pattern);
    let wide = u128::from(pattern) * 0x0000_0001_0000_0001_0000_0001_0000_0001;
    let (blocks, _) = page.as_chunks::<64>();
    let same = blocks.iter().all(|block| {
        let (lanes, _) = block.as_chunks::<16>();
        lanes
            .iter()
            .fold(0, |diff, lane| diff | (u128::from_ne_bytes(*lane) ^ wide))
            == 0
    });
    same.then_some(pattern)
}

/// Fills `out`, which starts `offset` bytes into a page, with a repeated pattern.
pub(crate) fn fill(pattern: u32, offset: usize, out: &mut [u8]) {
    let mut bytes = pattern.to_ne_bytes();
    bytes.rotate_left(offset % 4);
    let (words, rest) = out.as_chunks_mut::<4>();
    words.fill(bytes);
    rest.copy_from_slice(&bytes[..rest.len()]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::PAGE_SIZE;

    #[test]
    fn same_filled_is_a_repeated_word() {
        let mut page = [0xab; PAGE_SIZE];
        assert_eq!(same_filled(&page), Some(0xabab_abab));
        for i in (0..PAGE_SIZE).step_by(5) {
            page[i] ^= 1;
            assert_eq!(same_filled(&page), None, "byte {i} differs");
            page[i] ^= 1;
        }
        let page: Page = std::array::from_fn(|i| [1, 2, 3, 4][i % 4]);
        let pattern = same_filled(&page).expect("a pattern");
        let mut back = [0; 4094];
        fill(pattern, 2, &mut back);
        assert!(back == page[2..]);
    }
}
