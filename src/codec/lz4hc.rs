//! LZ4, compressed well.

use crate::units::Page;

pub(super) fn compress(page: &Page, level: i8, out: &mut [u8]) -> Option<usize> {
    lzzzz::lz4_hc::compress(page, out, level.into()).ok()
}
