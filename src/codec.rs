//! Compression of pages: the algorithms, and each thread's scratch for them.
//!
//! Nothing here is shared, so nothing locks.

use std::cell::RefCell;
use std::io;

use crate::config::Algorithm;
use crate::units::{PAGE_SIZE, Page};

/// How an object's bytes were made from a page. Stored with each object, so a device may change
/// its algorithm while it holds objects of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    /// The page itself: compression did not pay.
    Raw = 0,
    /// An LZ4 block.
    Lz4 = 1,
    /// A Zstandard frame.
    Zstd = 2,
}

impl Codec {
    /// The codec of a number that [`Codec`] was cast to.
    pub(crate) fn from_bits(bits: u8) -> Option<Self> {
        [Self::Raw, Self::Lz4, Self::Zstd]
            .into_iter()
            .find(|&codec| codec as u8 == bits)
    }
}

/// The bytes are not a compressed page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotAPage;

/// Bytes that any algorithm here may write for a page, compressible or not.
pub(crate) const MAX_COMPRESSED_LEN: usize = PAGE_SIZE + PAGE_SIZE / 8;

/// One way to compress a page, with the scratch memory it needs.
trait Compressor {
    /// Compresses `page` into `out`, at least [`MAX_COMPRESSED_LEN`] bytes; returns the length, or
    /// `None` if the algorithm failed and the page must stay raw.
    fn compress(&mut self, page: &Page, out: &mut [u8]) -> Option<usize>;

    /// Fills `page` from what [`Compressor::compress`] wrote. Any other bytes give some page or an
    /// error, never harm.
    fn decompress(&mut self, data: &[u8], page: &mut Page) -> Result<(), NotAPage>;
}

struct Lz4 {
    table: lz4_flex::block::CompressTable,
}

impl Compressor for Lz4 {
    fn compress(&mut self, page: &Page, out: &mut [u8]) -> Option<usize> {
        lz4_flex::block::compress_into_with_table(page, out, &mut self.table).ok()
    }

    fn decompress(&mut self, data: &[u8], page: &mut Page) -> Result<(), NotAPage> {
        match lz4_flex::block::decompress_into(data, page) {
            Ok(PAGE_SIZE) => Ok(()),
            _ => Err(NotAPage),
        }
    }
}

struct Zstd {
    level: i32,
    compressor: zstd::bulk::Compressor<'static>,
    decompressor: zstd::bulk::Decompressor<'static>,
}

impl Zstd {
    fn new(level: i32) -> io::Result<Self> {
        let mut compressor = zstd::bulk::Compressor::new(level)?;
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

impl Compressor for Zstd {
    fn compress(&mut self, page: &Page, out: &mut [u8]) -> Option<usize> {
        self.compressor.compress_to_buffer(page, out).ok()
    }

    fn decompress(&mut self, data: &[u8], page: &mut Page) -> Result<(), NotAPage> {
        match self.decompressor.decompress_to_buffer(data, &mut page[..]) {
            Ok(PAGE_SIZE) => Ok(()),
            _ => Err(NotAPage),
        }
    }
}

/// A thread's compressors; zstd's contexts are large, so they are made when first needed.
struct Codecs {
    lz4: Lz4,
    zstd: Option<Zstd>,
}

thread_local! {
    static CODECS: RefCell<Codecs> = RefCell::new(Codecs {
        lz4: Lz4 { table: lz4_flex::block::CompressTable::small() },
        zstd: None,
    });
}

impl Codecs {
    fn zstd(&mut self, level: Option<i32>) -> Option<&mut Zstd> {
        if let (Some(zstd), Some(level)) = (&mut self.zstd, level)
            && zstd.level != level
        {
            zstd.compressor.set_compression_level(level).ok()?;
            zstd.level = level;
        }
        if self.zstd.is_none() {
            self.zstd = Some(Zstd::new(level.unwrap_or(Algorithm::DEFAULT_ZSTD_LEVEL)).ok()?);
        }
        self.zstd.as_mut()
    }
}

/// Compresses `page` into `out`, at least [`MAX_COMPRESSED_LEN`] bytes; returns the codec and the
/// length, or `None` if the result would be longer than `max_len`: the page is to be stored raw.
pub(crate) fn compress(
    algorithm: Algorithm,
    page: &Page,
    out: &mut [u8],
    max_len: usize,
) -> Option<(Codec, usize)> {
    CODECS.with_borrow_mut(|codecs| {
        let (codec, len) = match algorithm {
            Algorithm::Lz4 => (Codec::Lz4, codecs.lz4.compress(page, out)?),
            Algorithm::Zstd { level } => {
                (Codec::Zstd, codecs.zstd(Some(level))?.compress(page, out)?)
            }
        };
        (len <= max_len).then_some((codec, len))
    })
}

/// Fills `page` from an object's bytes.
pub(crate) fn decompress(codec: Codec, data: &[u8], page: &mut Page) -> Result<(), NotAPage> {
    CODECS.with_borrow_mut(|codecs| match codec {
        Codec::Raw => {
            *page = data.try_into().map_err(|_| NotAPage)?;
            Ok(())
        }
        Codec::Lz4 => codecs.lz4.decompress(data, page),
        Codec::Zstd => codecs.zstd(None).ok_or(NotAPage)?.decompress(data, page),
    })
}

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

    fn text_page(seed: usize) -> Page {
        std::array::from_fn(|i| b"static int zs_compact(struct zs_pool *pool)\n"[(i * seed) % 44])
    }

    #[test]
    fn round_trips_with_every_algorithm() {
        let mut out = [0; MAX_COMPRESSED_LEN];
        let algorithms = [
            Algorithm::Lz4,
            Algorithm::Zstd { level: 1 },
            Algorithm::Zstd { level: 9 },
        ];
        for algorithm in algorithms {
            for seed in 1..20 {
                let page = text_page(seed);
                let (codec, len) = compress(algorithm, &page, &mut out, 3000).expect("text");
                let mut back = [0xee; PAGE_SIZE];
                assert_eq!(decompress(codec, &out[..len], &mut back), Ok(()));
                assert!(back == page);
            }
        }
    }

    #[test]
    fn noise_stays_raw() {
        let mut state = 1u64;
        let page: Page = std::array::from_fn(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(99);
            (state >> 56) as u8
        });
        let mut out = [0; MAX_COMPRESSED_LEN];
        for algorithm in [Algorithm::Lz4, Algorithm::Zstd { level: 3 }] {
            assert_eq!(compress(algorithm, &page, &mut out, 3600), None);
        }
        let mut back = [0; PAGE_SIZE];
        assert_eq!(decompress(Codec::Raw, &page, &mut back), Ok(()));
        assert!(back == page);
    }

    #[test]
    fn damaged_objects_are_refused_or_give_some_page() {
        let mut out = [0; MAX_COMPRESSED_LEN];
        let mut back = [0; PAGE_SIZE];
        for algorithm in [Algorithm::Lz4, Algorithm::Zstd { level: 1 }] {
            let (codec, len) = compress(algorithm, &text_page(7), &mut out, 3000).expect("text");
            assert_eq!(decompress(codec, &out[..len / 2], &mut back), Err(NotAPage));
            assert_eq!(decompress(codec, &[], &mut back), Err(NotAPage));
            for i in 0..len {
                let mut damaged = out[..len].to_vec();
                damaged[i] ^= 0x5a;
                let _ = decompress(codec, &damaged, &mut back);
            }
        }
        assert_eq!(
            decompress(Codec::Raw, &out[..100], &mut back),
            Err(NotAPage)
        );
    }

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
