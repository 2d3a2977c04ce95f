//! Tags: the first byte of an object whose slot cannot say how it was made.
//!
//! | bits | |
//! |------|---|
//! | 0..2 | priority of the algorithm that made it |
//! | 2..8 | method: 0 LZ4, 1 Zstandard, 2 Deflate, 3 + N Zstandard with dictionary N |

use super::dictionary::{DictionaryId, MAX_DICTIONARIES};
use crate::algorithm::Priority;

/// What follows the tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Lz4,
    Zstd,
    Deflate,
    ZstdWith(DictionaryId),
}

/// A tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) priority: Priority,
    pub(crate) method: Method,
}

const PRIORITY_BITS: u32 = 2;
const FIRST_DICTIONARY: u8 = 3;

const _: () = assert!(FIRST_DICTIONARY as usize + MAX_DICTIONARIES <= 1 << (8 - PRIORITY_BITS));

impl Tag {
    pub(crate) fn to_byte(self) -> u8 {
        let method = match self.method {
            Method::Lz4 => 0,
            Method::Zstd => 1,
            Method::Deflate => 2,
            Method::ZstdWith(id) => FIRST_DICTIONARY + id.index() as u8,
        };
        method << PRIORITY_BITS | self.priority.number()
    }

    /// The tag that is `byte`, if it is one.
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        let method = match byte >> PRIORITY_BITS {
            0 => Method::Lz4,
            1 => Method::Zstd,
            2 => Method::Deflate,
            id => Method::ZstdWith(DictionaryId::new(usize::from(id - FIRST_DICTIONARY))?),
        };
        Some(Self {
            priority: Self::priority(byte),
            method,
        })
    }

    /// The priority that a tag names.
    pub(super) fn priority(byte: u8) -> Priority {
        let number = byte & ((1 << PRIORITY_BITS) - 1);
        Priority::new(number).expect("two bits are a priority")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_one_tag_or_none() {
        let mut tags = 0;
        for byte in 0..=255 {
            if let Some(tag) = Tag::from_byte(byte) {
                assert_eq!(tag.to_byte(), byte);
                tags += 1;
            }
        }
        assert_eq!(tags, (3 + MAX_DICTIONARIES) * Priority::COUNT);
    }
}
