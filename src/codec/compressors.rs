//! The algorithms, and each thread's scratch for them.
//!
//! Nothing here is shared but dictionaries: looking one up takes its lock, for a moment.

use std::cell::RefCell;
use std::io;
use std::sync::Arc;

use libdeflater::{CompressionLvl, Compressor, Decompressor};
use zstd::zstd_safe::{CCtx, CParameter, DCtx};

use super::dictionary::{Dictionary, Prepared};
use super::{Codec, Compression, Dictionaries, Method, NotAPage, Tag};
use crate::algorithm::{Algorithm, Priority};
use crate::units::{PAGE_SIZE, Page};

/// Bytes that any algorithm here may write for a page, compressible or not.
pub(crate) const MAX_COMPRESSED_LEN: usize = PAGE_SIZE + PAGE_SIZE / 8;

struct Zstd {
    level: i8,
    compressor: zstd::bulk::Compressor<'static>,
    decompressor: zstd::bulk::Decompressor<'static>,
}

impl Zstd {
    fn new(level: i8) -> io::Result<Self> {
        let mut compressor = zstd::bulk::Compressor::new(level.into())?;
        // A page's size is known, and records have checksums of their own.
        compressor.include_contentsize(false)?;
        compressor.include_checksum(false)?;
        let decompressor = zstd::bulk::Decompressor::new()?;
        Ok(Self {
            level,
            compressor,
            decompressor,
        })
    }
}

/// zstd with a dictionary.
struct ZstdWith {
    compressor: CCtx<'static>,
    decompressor: DCtx<'static>,
    /// What the compressor refers to.
    dictionary: Option<Arc<Prepared>>,
}

impl ZstdWith {
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

    fn decompress(&mut self, data: &[u8], dictionary: &Dictionary, page: &mut Page) -> bool {
        let read = self.decompressor.decompress_using_ddict(
            &mut page[..],
            data,
            dictionary.decompressing(),
        );
        read == Ok(PAGE_SIZE)
    }
}

struct Deflate {
    level: i8,
    compressor: Compressor,
}

impl Deflate {
    fn new(level: i8) -> Option<Self> {
        let made = CompressionLvl::new(level.into()).ok()?;
        Some(Self {
            level,
            compressor: Compressor::new(made),
        })
    }
}

/// A thread's compressors. But for LZ4's they are large, and made when first needed.
struct Codecs {
    lz4: lz4_flex::block::CompressTable,
    zstd: Option<Zstd>,
    zstd_with: Option<ZstdWith>,
    deflate: Option<Deflate>,
    inflate: Option<Decompressor>,
}

// What is let go of in it gives its memory back to a budget, at which a scheduler may switch threads.
crate::sync::thread_local! {
    static CODECS: RefCell<Codecs> = RefCell::new(Codecs {
        lz4: lz4_flex::block::CompressTable::small(),
        zstd: None,
        zstd_with: None,
        deflate: None,
        inflate: None,
    });
}

impl Codecs {
    fn zstd(&mut self, level: Option<i8>) -> Option<&mut Zstd> {
        if let (Some(zstd), Some(level)) = (&mut self.zstd, level)
            && zstd.level != level
        {
            zstd.compressor.set_compression_level(level.into()).ok()?;
            zstd.level = level;
        }
        if self.zstd.is_none() {
            self.zstd = Some(Zstd::new(level.unwrap_or(1)).ok()?);
        }
        self.zstd.as_mut()
    }

    fn zstd_with(&mut self) -> Option<&mut ZstdWith> {
        if self.zstd_with.is_none() {
            self.zstd_with = ZstdWith::new();
        }
        self.zstd_with.as_mut()
    }

    fn deflate(&mut self, level: i8) -> Option<&mut Deflate> {
        if self.deflate.as_ref().is_none_or(|made| made.level != level) {
            self.deflate = Deflate::new(level);
        }
        self.deflate.as_mut()
    }

    /// Compresses a page into `out`, whatever the length; `None` if the algorithm failed.
    fn compress(
        &mut self,
        how: Compression,
        dictionary: Option<&Dictionary>,
        page: &Page,
        out: &mut [u8],
    ) -> Option<usize> {
        match how.algorithm {
            Algorithm::Lz4 => {
                lz4_flex::block::compress_into_with_table(page, out, &mut self.lz4).ok()
            }
            Algorithm::Lz4hc { level } => lzzzz::lz4_hc::compress(page, out, level.into()).ok(),
            Algorithm::Zstd { level } => match dictionary {
                Some(dictionary) => self.zstd_with()?.compress(page, dictionary, level, out),
                None => {
                    let zstd = self.zstd(Some(level))?;
                    zstd.compressor.compress_to_buffer(page, out).ok()
                }
            },
            Algorithm::Deflate { level } => {
                let deflate = self.deflate(level)?;
                deflate.compressor.deflate_compress(page, out).ok()
            }
        }
    }

    fn decompress(
        &mut self,
        method: Method,
        dictionaries: &Dictionaries,
        data: &[u8],
        page: &mut Page,
    ) -> Result<(), NotAPage> {
        let is_whole = match method {
            Method::Lz4 => {
                let read = lz4_flex::block::decompress_into(data, page);
                read.is_ok_and(|len| len == PAGE_SIZE)
            }
            Method::Zstd => {
                let zstd = self.zstd(None).ok_or(NotAPage)?;
                let read = zstd.decompressor.decompress_to_buffer(data, &mut page[..]);
                read.is_ok_and(|len| len == PAGE_SIZE)
            }
            Method::ZstdWith(id) => {
                let dictionary = dictionaries.get(id).ok_or(NotAPage)?;
                let zstd = self.zstd_with().ok_or(NotAPage)?;
                zstd.decompress(data, dictionary, page)
            }
            Method::Deflate => {
                let inflate = self.inflate.get_or_insert_with(Decompressor::new);
                inflate.deflate_decompress(data, page) == Ok(PAGE_SIZE)
            }
        };
        is_whole.then_some(()).ok_or(NotAPage)
    }
}

/// What stands before an object that such an algorithm makes, if anything has to.
fn tag(how: Compression, priority: Priority) -> (Codec, Option<Tag>) {
    let method = match (how.algorithm, how.dictionary) {
        (Algorithm::Lz4 | Algorithm::Lz4hc { .. }, _) => Method::Lz4,
        (Algorithm::Zstd { .. }, Some(id)) => Method::ZstdWith(id),
        (Algorithm::Zstd { .. }, None) => Method::Zstd,
        (Algorithm::Deflate { .. }, _) => Method::Deflate,
    };
    match (method, priority) {
        (Method::Lz4, Priority::PRIMARY) => (Codec::Lz4, None),
        (Method::Zstd, Priority::PRIMARY) => (Codec::Zstd, None),
        _ => (Codec::Tagged, Some(Tag { priority, method })),
    }
}

/// Compresses `page` into `out`, at least [`MAX_COMPRESSED_LEN`] bytes; returns the codec and the
/// length, or `None` if the result would be longer than `max_len`: the page is to be stored raw.
/// `priority` is that of the algorithm on the device.
pub(crate) fn compress(
    how: Compression,
    priority: Priority,
    dictionaries: &Dictionaries,
    page: &Page,
    out: &mut [u8],
    max_len: usize,
) -> Option<(Codec, usize)> {
    let dictionary = how.dictionary.and_then(|id| dictionaries.get(id));
    let (codec, tag) = tag(how, priority);
    let (start, rest) = out.split_at_mut(usize::from(tag.is_some()));
    if let (Some(first), Some(tag)) = (start.first_mut(), tag) {
        *first = tag.to_byte();
    }
    let made = CODECS.with(|codecs| {
        let codecs = &mut *codecs.borrow_mut();
        codecs.compress(how, dictionary, page, rest)
    })?;
    let len = start.len() + made;
    (len <= max_len).then_some((codec, len))
}

/// Fills `page` from an object's bytes. Any other bytes give some page or an error, never harm.
pub(crate) fn decompress(
    codec: Codec,
    data: &[u8],
    dictionaries: &Dictionaries,
    page: &mut Page,
) -> Result<(), NotAPage> {
    let (method, data) = match codec {
        Codec::Raw => {
            *page = data.try_into().map_err(|_| NotAPage)?;
            return Ok(());
        }
        Codec::Lz4 => (Method::Lz4, data),
        Codec::Zstd => (Method::Zstd, data),
        Codec::Tagged => {
            let (&first, data) = data.split_first().ok_or(NotAPage)?;
            (Tag::from_byte(first).ok_or(NotAPage)?.method, data)
        }
    };
    CODECS.with(|codecs| {
        let codecs = &mut *codecs.borrow_mut();
        codecs.decompress(method, dictionaries, data, page)
    })
}
