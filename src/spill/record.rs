//! Records: one spilled object each, that can be told from anything else.
//!
//! Checked, they can be read by whoever has the file:
//!
//! | bytes  | little-endian field                                                 |
//! |--------|---------------------------------------------------------------------|
//! | 0..4   | CRC-32C over the sequence number, the address, and all that follows |
//! | 4..8   | page                                                                |
//! | 8..10  | bytes of the object, less one                                       |
//! | 10     | codec                                                               |
//! | 11..   | the object; zeroes up to a multiple of 16                           |
//!
//! Sealed, they look random, down to where one ends and the next begins:
//!
//! | bytes  | little-endian field                                                 |
//! |--------|---------------------------------------------------------------------|
//! | 0..16  | AES-256-GCM tag over the length, the address, and all that follows  |
//! | 16..18 | bytes of the object, less one, masked                               |
//! | 18..22 | page, encrypted like all that follows                               |
//! | 22     | codec                                                               |
//! | 23..   | the object; zeroes up to a multiple of 16                           |
//!
//! In a saved image they are checked, and their addresses are counted from the image's start.
//!
//! The sequence number that the place was given out under and the record's address go into the
//! checksum, and into the nonce and what the tag covers, but not into the record: one that is read
//! back from the wrong place, or that an earlier use of the segment or an append that failed left
//! there, does not verify. A log starts with a random sequence number ([`random_sequence`]), so nor does one that another
//! device left.

use std::fmt;
use std::sync::Arc;

use rustix::rand::{GetRandomFlags, getrandom};

use super::address::{RECORD_ALIGN, RecordAddress, SegmentIndex};
use super::blocks::BlockBuf;
use super::seal::{NotSealed, SealKey, TAG_LEN};
use crate::codec::Codec;
use crate::error::{Error, Result};
use crate::memory::DeviceMemory;
use crate::units::{PAGE_SIZE, PageIndex};

const CHECKED_HEADER_LEN: usize = 11;
const SEALED_HEADER_LEN: usize = 23;
/// Where the encrypted part of a sealed record starts.
const ENCRYPTED: usize = TAG_LEN + 2;

/// The longest record: of a raw page, sealed.
pub(crate) const MAX_RECORD_LEN: usize =
    (SEALED_HEADER_LEN + PAGE_SIZE).next_multiple_of(RECORD_ALIGN);

/// Room for any record.
pub(crate) type RecordBuf = [u8; MAX_RECORD_LEN];

/// The bytes are not the record that should be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DamagedRecord;

/// A record, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) page: PageIndex,
    pub(crate) codec: Codec,
    pub(crate) data: &'a [u8],
}

/// How records are written: a device's own in one way for its life, and a saved image's in another.
#[derive(Clone, Default)]
pub(crate) enum RecordFormat {
    /// With a checksum.
    #[default]
    Checked,
    /// The same, in an image: its place among the device's backings is no part of it.
    Saved,
    /// Encrypted and authenticated.
    Sealed(Arc<SealKey>),
}

impl fmt::Debug for RecordFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Checked => "Checked",
            Self::Saved => "Saved",
            Self::Sealed(_) => "Sealed",
        })
    }
}

impl RecordFormat {
    /// A format that only this device can read, under a new key, or the one in memory that outlives the process.
    ///
    /// # Errors
    /// [`Error::Io`] if no memory can be locked for the key.
    pub(crate) fn sealed(memory: Option<&DeviceMemory>) -> Result<Self> {
        SealKey::new(memory).map(|key| Self::Sealed(Arc::new(key)))
    }

    fn header_len(&self) -> usize {
        match self {
            Self::Checked | Self::Saved => CHECKED_HEADER_LEN,
            Self::Sealed(_) => SEALED_HEADER_LEN,
        }
    }

    /// Bytes of the record of an object of `len` bytes.
    pub(crate) fn record_len(&self, len: usize) -> usize {
        (self.header_len() + len).next_multiple_of(RECORD_ALIGN)
    }

    /// Appends a record to `out`; it is to be sealed with [`RecordFormat::seal`] once its place is
    /// known.
    pub(crate) fn encode(&self, record: Record<'_>, out: &mut BlockBuf) {
        let Record { page, codec, data } = record;
        let end = out.len() + self.record_len(data.len());
        let len = (data.len() as u16 - 1).to_le_bytes();
        match self {
            Self::Checked | Self::Saved => {
                out.extend_from_slice(&[0; 4]);
                out.extend_from_slice(&page.0.to_le_bytes());
                out.extend_from_slice(&len);
                out.extend_from_slice(&[codec as u8]);
            }
            Self::Sealed(_) => {
                out.extend_from_slice(&[0; TAG_LEN]);
                out.extend_from_slice(&len);
                out.extend_from_slice(&page.0.to_le_bytes());
                out.extend_from_slice(&[codec as u8]);
            }
        }
        out.extend_from_slice(data);
        out.pad_to(end);
    }

    /// Reads the record that starts `bytes` and that [`RecordFormat::encode`] wrote there: one that
    /// is still in memory, unproved and not sealed.
    ///
    /// # Errors
    /// [`DamagedRecord`] if it cannot be a record.
    pub(crate) fn parse<'a>(&self, bytes: &'a [u8]) -> Result<Record<'a>, DamagedRecord> {
        let (header, rest) = bytes
            .split_at_checked(self.header_len())
            .ok_or(DamagedRecord)?;
        let (page, len, codec) = match (self, header) {
            (Self::Checked | Self::Saved, &[_, _, _, _, p0, p1, p2, p3, l0, l1, codec]) => {
                ([p0, p1, p2, p3], [l0, l1], codec)
            }
            (Self::Sealed(_), &[.., l0, l1, p0, p1, p2, p3, codec]) => {
                ([p0, p1, p2, p3], [l0, l1], codec)
            }
            _ => return Err(DamagedRecord),
        };
        let len = usize::from(u16::from_le_bytes(len)) + 1;
        Ok(Record {
            page: PageIndex(u32::from_le_bytes(page)),
            codec: Codec::from_bits(codec).ok_or(DamagedRecord)?,
            data: rest
                .get(..len)
                .filter(|_| len <= PAGE_SIZE)
                .ok_or(DamagedRecord)?,
        })
    }

    /// Makes the encoded record of an object of `len` bytes that starts `bytes` the record at `at`,
    /// written under the number `sequence`. With one address and number this is done once.
    pub(crate) fn seal(&self, bytes: &mut [u8], len: usize, at: RecordAddress, sequence: u64) {
        let bytes = &mut bytes[..self.record_len(len)];
        match self {
            Self::Checked | Self::Saved => {
                let at = self.bound_to(at);
                let checksum = checksum(&bytes[4..CHECKED_HEADER_LEN + len], at, sequence);
                bytes[..4].copy_from_slice(&checksum.to_le_bytes());
            }
            Self::Sealed(key) => {
                let len = len as u16 - 1;
                let (header, encrypted) = bytes.split_at_mut(ENCRYPTED);
                let tag = key.seal(encrypted, len, at, sequence);
                header[..TAG_LEN].copy_from_slice(&tag);
                let masked = len ^ key.mask(at, sequence);
                header[TAG_LEN..].copy_from_slice(&masked.to_le_bytes());
            }
        }
    }

    /// Reads the record that starts `bytes`, which may go on after it; `scratch` is for one that
    /// is encrypted.
    ///
    /// # Errors
    /// [`DamagedRecord`] if it is not one that was written at `at` under the number `sequence`.
    pub(crate) fn open<'a>(
        &self,
        bytes: &'a [u8],
        scratch: &'a mut RecordBuf,
        at: RecordAddress,
        sequence: u64,
    ) -> Result<Record<'a>, DamagedRecord> {
        match self {
            Self::Checked | Self::Saved => {
                let record = self.parse(bytes)?;
                let covered = &bytes[4..CHECKED_HEADER_LEN + record.data.len()];
                let expected = checksum(covered, self.bound_to(at), sequence).to_le_bytes();
                (bytes[..4] == expected)
                    .then_some(record)
                    .ok_or(DamagedRecord)
            }
            Self::Sealed(key) => {
                self.decrypt(key, bytes, scratch, at, sequence)?;
                self.parse(scratch)
            }
        }
    }

    /// The object, of `len` bytes, of the record that was opened from `bytes` with `scratch`.
    pub(crate) fn data<'a>(&self, bytes: &'a [u8], scratch: &'a RecordBuf, len: usize) -> &'a [u8] {
        let encoded = match self {
            Self::Checked | Self::Saved => bytes,
            Self::Sealed(_) => scratch,
        };
        &encoded[self.header_len()..][..len]
    }

    /// What a record at an address is bound to.
    fn bound_to(&self, at: RecordAddress) -> RecordAddress {
        match self {
            Self::Saved => at.within_store(),
            Self::Checked | Self::Sealed(_) => at,
        }
    }

    /// Makes `scratch` start with the encoded form of a sealed record.
    fn decrypt(
        &self,
        key: &SealKey,
        bytes: &[u8],
        scratch: &mut RecordBuf,
        at: RecordAddress,
        sequence: u64,
    ) -> Result<(), DamagedRecord> {
        let (header, _) = bytes
            .split_first_chunk::<SEALED_HEADER_LEN>()
            .ok_or(DamagedRecord)?;
        let [tag @ .., l0, l1, _, _, _, _, _] = *header;
        let len = u16::from_le_bytes([l0, l1]) ^ key.mask(at, sequence);
        let sealed = (usize::from(len) < PAGE_SIZE)
            .then(|| bytes.get(..self.record_len(usize::from(len) + 1)))
            .flatten()
            .ok_or(DamagedRecord)?;
        let opened = &mut scratch[..sealed.len()];
        opened.copy_from_slice(sealed);
        key.open(tag, &mut opened[ENCRYPTED..], len, at, sequence)
            .map_err(|NotSealed| DamagedRecord)?;
        opened[TAG_LEN..TAG_LEN + 2].copy_from_slice(&len.to_le_bytes());
        Ok(())
    }
}

/// How the records of a device are written, by where they are.
#[derive(Clone, Debug, Default)]
pub(crate) struct RecordFormats {
    /// In its backings.
    pub(crate) spilled: RecordFormat,
}

impl RecordFormats {
    /// The format of the record at an address.
    pub(crate) fn at(&self, record: RecordAddress) -> &RecordFormat {
        static SAVED: RecordFormat = RecordFormat::Saved;
        match SegmentIndex::of(record).is_in_image() {
            true => &SAVED,
            false => &self.spilled,
        }
    }
}

fn checksum(covered: &[u8], at: RecordAddress, sequence: u64) -> u32 {
    let mut place = [0; 16];
    place[..8].copy_from_slice(&sequence.to_le_bytes());
    place[8..].copy_from_slice(&at.0.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&place), covered)
}

/// The number before a log's first: 47 random bits over 16 zeroes. So what an earlier device left
/// in a backing is of other sequence numbers than any that this one comes to use there.
///
/// # Errors
/// [`Error::Io`] if the kernel has no randomness.
pub(crate) fn random_sequence() -> Result<u64> {
    let mut bytes = [0; 8];
    // So few bytes come at once.
    getrandom(&mut bytes[2..], GetRandomFlags::empty())
        .map_err(|error| Error::io("number the segments", error))?;
    // Room to count upwards for ever.
    Ok(u64::from_le_bytes(bytes) >> 1 & !0xffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: RecordAddress = RecordAddress(77);

    fn formats() -> [RecordFormat; 2] {
        let sealed = RecordFormat::sealed(None).expect("a page can be locked");
        [RecordFormat::Checked, sealed]
    }

    fn record(data: &[u8]) -> Record<'_> {
        Record {
            page: PageIndex(0xfedc_ba98),
            codec: Codec::Lz4,
            data,
        }
    }

    fn sealed(format: &RecordFormat, data: &[u8]) -> Vec<u8> {
        sealed_at(format, data, AT, 5)
    }

    fn sealed_at(format: &RecordFormat, data: &[u8], at: RecordAddress, sequence: u64) -> Vec<u8> {
        let mut bytes = BlockBuf::default();
        format.encode(record(data), &mut bytes);
        assert_eq!(bytes.len(), format.record_len(data.len()));
        assert_eq!(format.parse(&bytes), Ok(record(data)));
        format.seal(&mut bytes, data.len(), at, sequence);
        let mut scratch = [0; MAX_RECORD_LEN];
        let opened = format.open(&bytes, &mut scratch, at, sequence);
        assert_eq!(opened, Ok(record(data)));
        bytes.to_vec()
    }

    fn is_refused(format: &RecordFormat, bytes: &[u8], at: RecordAddress, sequence: u64) -> bool {
        let mut scratch = [0; MAX_RECORD_LEN];
        format.open(bytes, &mut scratch, at, sequence) == Err(DamagedRecord)
    }

    #[test]
    fn round_trips_at_every_length() {
        let data: Vec<u8> = (0..PAGE_SIZE).map(|i| (i * 7) as u8).collect();
        for format in formats() {
            for len in 1..=PAGE_SIZE {
                let record_len = sealed(&format, &data[..len]).len();
                assert!(record_len.is_multiple_of(RECORD_ALIGN) && record_len <= MAX_RECORD_LEN);
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let data: Vec<u8> = (0..100).collect();
        for format in formats() {
            let good = sealed(&format, &data);
            for bit in 0..(format.header_len() + data.len()) * 8 {
                let mut bytes = good.clone();
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert!(is_refused(&format, &bytes, AT, 5), "{format:?}: bit {bit}");
            }
        }
    }

    #[test]
    fn a_record_from_elsewhere_or_earlier_is_found() {
        for format in formats() {
            let bytes = sealed(&format, b"data");
            assert!(is_refused(&format, &bytes, AT, 6));
            assert!(is_refused(&format, &bytes, RecordAddress(78), 5));
            // The same offset in the next segment.
            let next = RecordAddress(AT.0 + super::super::SEGMENT_BYTES / 16);
            assert!(is_refused(&format, &bytes, next, 5));
            for len in 0..format.header_len() + 4 {
                assert!(is_refused(&format, &bytes[..len], AT, 5));
            }
        }
    }

    #[test]
    fn a_sealed_record_is_of_one_key_and_shows_nothing() {
        let [_, ours] = formats();
        let [_, other] = formats();
        let data = [0x55; 512];
        let bytes = sealed(&ours, &data);
        assert!(is_refused(&other, &bytes, AT, 5));
        assert!(is_refused(&RecordFormat::Checked, &bytes, AT, 5));
        // Neither the object, nor the page, nor a run of padding.
        let shown = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        assert!(!shown(&data[..8]) && !shown(&0xfedc_ba98u32.to_le_bytes()) && !shown(&[0; 6]));
    }

    #[test]
    fn the_same_object_is_another_ciphertext_in_each_place() {
        let [_, format] = formats();
        let mut seen = std::collections::HashSet::new();
        for (at, sequence) in [(77, 5), (78, 5), (77, 6), (77, 260)] {
            let bytes = sealed_at(&format, &[9; 64], RecordAddress(at), sequence);
            let (header, encrypted) = bytes.split_at(ENCRYPTED);
            assert!(seen.insert(encrypted.to_vec()) && seen.insert(header.to_vec()));
        }
    }

    #[test]
    fn a_log_starts_anywhere_and_with_room_to_count() {
        let starts: Vec<u64> = (0..4)
            .map(|_| random_sequence().expect("randomness"))
            .collect();
        assert!(
            starts
                .iter()
                .all(|start| start.is_multiple_of(1 << 16) && *start < 1 << 63)
        );
        assert!(starts.windows(2).all(|pair| pair[0] != pair[1]));
    }
}
