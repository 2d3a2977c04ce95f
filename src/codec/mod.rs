//! Compression of pages: what an object's bytes mean, and making them.
//!
//! An object says how to read it: its slot has its [`Codec`], and for all that two bits cannot tell,
//! the object starts with a [`Tag`]. So a device may change its algorithms while it holds objects of
//! others, and an object of the most usual kinds has no byte more than its algorithm made.

mod compressors;
#[cfg(feature = "deflate")]
mod deflate;
mod dictionary;
mod left_out;
#[cfg(feature = "lz4hc")]
mod lz4hc;
mod pattern;
mod tag;
#[cfg(test)]
mod tests;
#[cfg(feature = "zstd")]
mod zstd;

#[cfg(not(feature = "deflate"))]
use self::left_out::deflate;
#[cfg(not(feature = "lz4hc"))]
use self::left_out::lz4hc;
#[cfg(not(feature = "zstd"))]
use self::left_out::zstd;

pub(crate) use self::compressors::{MAX_COMPRESSED_LEN, compress, decompress};
pub(crate) use self::dictionary::{Dictionaries, DictionaryId};
pub use self::dictionary::{MAX_DICTIONARY_LEN, train_dictionary};
pub(crate) use self::pattern::{fill, same_filled};
pub(crate) use self::tag::{Method, Tag};

use crate::algorithm::{Algorithm, Priority};

/// How an object's bytes were made from a page, as far as its slot tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    /// The page itself: compression did not pay.
    Raw = 0,
    /// An LZ4 block, of the primary algorithm.
    Lz4 = 1,
    /// A Zstandard frame, of the primary algorithm.
    Zstd = 2,
    /// A [`Tag`] that says what follows.
    Tagged = 3,
}

impl Codec {
    /// The codec of a number that [`Codec`] was cast to.
    pub(crate) fn from_bits(bits: u8) -> Option<Self> {
        [Self::Raw, Self::Lz4, Self::Zstd, Self::Tagged]
            .into_iter()
            .find(|&codec| codec as u8 == bits)
    }

    /// The dictionary that an object needs, if it needs one.
    pub(crate) fn dictionary(self, object: &[u8]) -> Option<DictionaryId> {
        let first = *object.first().filter(|_| self == Self::Tagged)?;
        match Tag::from_byte(first)?.method {
            Method::ZstdWith(id) => Some(id),
            Method::Lz4 | Method::Zstd | Method::Deflate => None,
        }
    }

    /// Whether this build reads all objects of it, whatever algorithm a tag names.
    pub(crate) fn is_readable(self) -> bool {
        let (zstd, deflate) = (cfg!(feature = "zstd"), cfg!(feature = "deflate"));
        match self {
            Self::Raw | Self::Lz4 => true,
            Self::Zstd => zstd,
            Self::Tagged => zstd && deflate,
        }
    }

    /// The priority of the algorithm that made an object that starts with `first`.
    pub(crate) fn priority(self, first: u8) -> Priority {
        match self {
            Self::Tagged => Tag::priority(first),
            Self::Raw | Self::Lz4 | Self::Zstd => Priority::PRIMARY,
        }
    }
}

/// An algorithm with all that it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(4))]
pub(crate) struct Compression {
    pub(crate) algorithm: Algorithm,
    /// Of zstd alone.
    pub(crate) dictionary: Option<DictionaryId>,
}

impl From<Algorithm> for Compression {
    fn from(algorithm: Algorithm) -> Self {
        Self {
            algorithm,
            dictionary: None,
        }
    }
}

// So that loading it takes no lock.
const _: () = assert!(size_of::<Option<Compression>>() == 4);

/// The bytes are not a compressed page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotAPage;
