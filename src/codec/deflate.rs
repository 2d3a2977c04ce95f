//! Deflate without a header.

use libdeflater::{CompressionLvl, Compressor, Decompressor};

use crate::units::{PAGE_SIZE, Page};

/// A thread's scratch: large, and made when first needed.
#[derive(Default)]
pub(super) struct Deflate {
    /// With its level.
    compressor: Option<(i8, Compressor)>,
    decompressor: Option<Decompressor>,
}

impl Deflate {
    pub(super) fn compress(&mut self, page: &Page, level: i8, out: &mut [u8]) -> Option<usize> {
        let made = self.compressor.as_ref();
        if made.is_none_or(|(made, _)| *made != level) {
            let level_of_its_own = CompressionLvl::new(level.into()).ok()?;
            self.compressor = Some((level, Compressor::new(level_of_its_own)));
        }
        let (_, compressor) = self.compressor.as_mut()?;
        compressor.deflate_compress(page, out).ok()
    }

    /// Whether `data` is a page.
    pub(super) fn decompress(&mut self, data: &[u8], page: &mut Page) -> bool {
        let decompressor = self.decompressor.get_or_insert_with(Decompressor::new);
        decompressor.deflate_decompress(data, page) == Ok(PAGE_SIZE)
    }
}
