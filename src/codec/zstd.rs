//! Zstandard, with a dictionary and without one.

use std::sync::Arc;

use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{self, CCtx, CParameter, DCtx};

use super::dictionary::{Dictionary, Prepared};
use crate::units::{PAGE_SIZE, Page};

/// What compressing with a dictionary takes.
pub(super) type CDict = zstd_safe::CDict<'static>;

/// What decompressing with one takes.
pub(super) type DDict = zstd_safe::DDict<'static>;

/// A thread's scratch: large, and made when first needed.
#[derive(Default)]
pub(super) struct Zstd {
    plain: Option<Plain>,
    with: Option<With>,
}

impl Zstd {
    pub(super) fn compress(
        &mut self,
        page: &Page,
        dictionary: Option<&Dictionary>,
        level: i8,
        out: &mut [u8],
    ) -> Option<usize> {
        let Some(dictionary) = dictionary else {
            let plain = self.plain(level)?;
            plain.set_level(level)?;
            return plain.compressor.compress_to_buffer(page, out).ok();
        };
        self.with()?.compress(page, dictionary, level, out)
    }

    /// Whether `data` is a page.
    pub(super) fn decompress(
        &mut self,
        data: &[u8],
        dictionary: Option<&Dictionary>,
        page: &mut Page,
    ) -> bool {
        let len = match dictionary {
            None => self.plain(1).and_then(|plain| {
                let read = plain.decompressor.decompress_to_buffer(data, &mut page[..]);
                read.ok()
            }),
            Some(dictionary) => self
                .with()
                .and_then(|with| with.decompress(data, dictionary, page)),
        };
        len == Some(PAGE_SIZE)
    }

    fn plain(&mut self, level: i8) -> Option<&mut Plain> {
        if self.plain.is_none() {
            self.plain = Plain::new(level);
        }
        self.plain.as_mut()
    }

    fn with(&mut self) -> Option<&mut With> {
        if self.with.is_none() {
            self.with = With::new();
        }
        self.with.as_mut()
    }
}

struct Plain {
    level: i8,
    compressor: Compressor<'static>,
    decompressor: Decompressor<'static>,
}

impl Plain {
    fn new(level: i8) -> Option<Self> {
        let mut compressor = Compressor::new(level.into()).ok()?;
        // A page's size is known, and records have checksums of their own.
        compressor.include_contentsize(false).ok()?;
        compressor.include_checksum(false).ok()?;
        Some(Self {
            level,
            compressor,
            decompressor: Decompressor::new().ok()?,
        })
    }

    fn set_level(&mut self, level: i8) -> Option<()> {
        if self.level != level {
            self.compressor.set_compression_level(level.into()).ok()?;
            self.level = level;
        }
        Some(())
    }
}

struct With {
    compressor: CCtx<'static>,
    decompressor: DCtx<'static>,
    /// What the compressor refers to.
    dictionary: Option<Arc<Prepared>>,
}

impl With {
    fn new() -> Option<Self> {
        let mut compressor = CCtx::try_create()?;
        for parameter in [
            CParameter::ContentSizeFlag(false),
            CParameter::ChecksumFlag(false),
            CParameter::DictIdFlag(false),
        ] {
            compressor.set_parameter(parameter).ok()?;
        }
        Some(Self {
            compressor,
            decompressor: DCtx::try_create()?,
            dictionary: None,
        })
    }

    fn compress(
        &mut self,
        page: &Page,
        dictionary: &Dictionary,
        level: i8,
        out: &mut [u8],
    ) -> Option<usize> {
        let prepared = dictionary.compressing(level)?;
        self.compressor.ref_cdict(&prepared.dictionary).ok()?;
        // The one before is let go of once nothing refers to it.
        self.dictionary = Some(prepared);
        self.compressor.compress2(out, page).ok()
    }

    fn decompress(
        &mut self,
        data: &[u8],
        dictionary: &Dictionary,
        page: &mut Page,
    ) -> Option<usize> {
        let dictionary = dictionary.decompressing();
        self.decompressor
            .decompress_using_ddict(&mut page[..], data, dictionary)
            .ok()
    }
}

/// A dictionary of at most `len` bytes for pages that are like these.
///
/// # Errors
/// Why there is none.
pub(super) fn train(pages: &[Page], len: usize) -> Result<Vec<u8>, String> {
    let sizes = vec![PAGE_SIZE; pages.len()];
    zstd::dict::from_continuous(pages.as_flattened(), &sizes, len)
        .map_err(|error| error.to_string())
}
