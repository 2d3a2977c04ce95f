//! The algorithms, and each thread's scratch for them.
//!
//! Nothing here is shared but dictionaries: looking one up takes its lock, for a moment.

use std::cell::RefCell;

use super::deflate::Deflate;
use super::dictionary::Dictionary;
use super::zstd::Zstd;
use super::{Codec, Compression, Dictionaries, Method, NotAPage, Tag, lz4hc};
use crate::algorithm::{Algorithm, Priority};
use crate::units::{PAGE_SIZE, Page};

/// Bytes that any algorithm here may write for a page, compressible or not.
pub(crate) const MAX_COMPRESSED_LEN: usize = PAGE_SIZE + PAGE_SIZE / 8;

/// A thread's scratch.
struct Codecs {
    lz4: lz4_flex::block::CompressTable,
    zstd: Zstd,
    deflate: Deflate,
}

// What is let go of in it gives its memory back to a budget, at which a scheduler may switch threads.
crate::sync::thread_local! {
    static CODECS: RefCell<Codecs> = RefCell::new(Codecs {
        lz4: lz4_flex::block::CompressTable::small(),
        zstd: Zstd::default(),
        deflate: Deflate::default(),
    });
}

impl Codecs {
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
            Algorithm::Lz4hc { level } => lz4hc::compress(page, level, out),
            Algorithm::Zstd { level } => self.zstd.compress(page, dictionary, level, out),
            Algorithm::Deflate { level } => self.deflate.compress(page, level, out),
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
            Method::Zstd => self.zstd.decompress(data, None, page),
            Method::ZstdWith(id) => {
                let dictionary = dictionaries.get(id).ok_or(NotAPage)?;
                self.zstd.decompress(data, Some(dictionary), page)
            }
            Method::Deflate => self.deflate.decompress(data, page),
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
