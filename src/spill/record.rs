//! Records: one spilled object each, with a checksum.
//!
//! | bytes  | little-endian field                                                 |
//! |--------|---------------------------------------------------------------------|
//! | 0..4   | CRC-32C over the sequence number, the address, and all that follows |
//! | 4..8   | page                                                                |
//! | 8..10  | bytes of the object, less one                                       |
//! | 10     | codec                                                               |
//! | 11     | attempt to write here in this use of the segment                    |
//! | 12..   | the object; zeroes up to a multiple of 16                           |
//!
//! The sequence number of the segment, plus the attempt, and the record's address go into the checksum but not into
//! the record: one that is read back from the wrong place, or that an earlier use of the segment
//! left there, does not verify.

use super::blocks::BlockBuf;
use crate::codec::Codec;
use crate::units::{PAGE_SIZE, PageIndex};

/// Bytes that record addresses and lengths are multiples of.
const RECORD_ALIGN: usize = 16;
const HEADER_LEN: usize = 12;
const ATTEMPT: usize = 11;

/// The longest record, of a raw page.
pub(crate) const MAX_RECORD_LEN: usize = record_len(PAGE_SIZE);

/// Where a record starts in the backing, in units of 16 bytes; below 2^41.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RecordAddress(pub(crate) u64);

impl RecordAddress {
    pub(crate) fn from_byte(byte: u64) -> Self {
        debug_assert!(byte.is_multiple_of(RECORD_ALIGN as u64));
        Self(byte / RECORD_ALIGN as u64)
    }

    pub(crate) fn byte(self) -> u64 {
        self.0 * RECORD_ALIGN as u64
    }
}

/// Bytes of the record of an object of `len` bytes.
pub(crate) const fn record_len(len: usize) -> usize {
    (HEADER_LEN + len).next_multiple_of(RECORD_ALIGN)
}

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

impl<'a> Record<'a> {
    /// Appends the record to `out`; its checksum comes later, with [`seal`].
    pub(crate) fn encode(&self, out: &mut BlockBuf) {
        let end = out.len() + record_len(self.data.len());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.page.0.to_le_bytes());
        out.extend_from_slice(&(self.data.len() as u16 - 1).to_le_bytes());
        out.extend_from_slice(&[self.codec as u8, 0]);
        out.extend_from_slice(self.data);
        out.pad_to(end);
    }

    /// Reads the record that starts `bytes`, which may go on after it.
    ///
    /// # Errors
    /// [`DamagedRecord`] if it is not one that was written at `at` in segment use `sequence`.
    pub(crate) fn decode(
        bytes: &'a [u8],
        at: RecordAddress,
        sequence: u64,
    ) -> Result<Self, DamagedRecord> {
        let record = Self::parse(bytes)?;
        let covered = &bytes[4..HEADER_LEN + record.data.len()];
        let sequence = sequence + u64::from(bytes[ATTEMPT]);
        if bytes[..4] == checksum(covered, at, sequence).to_le_bytes() {
            Ok(record)
        } else {
            Err(DamagedRecord)
        }
    }

    /// The object, of `len` bytes, of the record that starts `bytes` and has been proved.
    pub(crate) fn data(bytes: &[u8], len: usize) -> &[u8] {
        &bytes[HEADER_LEN..][..len]
    }

    /// Reads the record that starts `bytes`, unproved: one that is still in memory.
    ///
    /// # Errors
    /// [`DamagedRecord`] if it cannot be a record.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, DamagedRecord> {
        let (header, rest) = bytes
            .split_first_chunk::<HEADER_LEN>()
            .ok_or(DamagedRecord)?;
        let [_, _, _, _, p0, p1, p2, p3, l0, l1, codec, _] = *header;
        let len = usize::from(u16::from_le_bytes([l0, l1])) + 1;
        let data = rest
            .get(..len)
            .filter(|_| len <= PAGE_SIZE)
            .ok_or(DamagedRecord)?;
        Ok(Self {
            page: PageIndex(u32::from_le_bytes([p0, p1, p2, p3])),
            codec: Codec::from_bits(codec).ok_or(DamagedRecord)?,
            data,
        })
    }

    /// Bytes from the start of this record to the start of the next.
    pub(crate) fn len(&self) -> usize {
        record_len(self.data.len())
    }
}

/// Writes the checksum of the record of an object of `len` bytes that starts `bytes`.
pub(super) fn seal(bytes: &mut [u8], len: usize, at: RecordAddress, sequence: u64, attempt: u8) {
    bytes[ATTEMPT] = attempt;
    let sequence = sequence + u64::from(attempt);
    let checksum = checksum(&bytes[4..HEADER_LEN + len], at, sequence);
    bytes[..4].copy_from_slice(&checksum.to_le_bytes());
}

fn checksum(covered: &[u8], at: RecordAddress, sequence: u64) -> u32 {
    let mut place = [0; 16];
    place[..8].copy_from_slice(&sequence.to_le_bytes());
    place[8..].copy_from_slice(&at.0.to_le_bytes());
    crc32c::crc32c_append(crc32c::crc32c(&place), covered)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: RecordAddress = RecordAddress(77);

    fn sealed(data: &[u8]) -> Vec<u8> {
        let record = Record {
            page: PageIndex(0xfedc_ba98),
            codec: Codec::Lz4,
            data,
        };
        let mut bytes = BlockBuf::default();
        record.encode(&mut bytes);
        assert_eq!(bytes.len(), record.len());
        seal(&mut bytes, data.len(), AT, 5, 0);
        assert_eq!(Record::decode(&bytes, AT, 5), Ok(record));
        bytes.to_vec()
    }

    #[test]
    fn round_trips_at_every_length() {
        let data: Vec<u8> = (0..PAGE_SIZE).map(|i| (i * 7) as u8).collect();
        for len in 1..=PAGE_SIZE {
            assert_eq!(sealed(&data[..len]).len() % RECORD_ALIGN, 0);
        }
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let data: Vec<u8> = (0..100).collect();
        let good = sealed(&data);
        for bit in 0..(HEADER_LEN + data.len()) * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                Record::decode(&bytes, AT, 5),
                Err(DamagedRecord),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn a_record_from_elsewhere_or_earlier_is_found() {
        let bytes = sealed(b"data");
        assert_eq!(Record::decode(&bytes, AT, 6), Err(DamagedRecord));
        assert_eq!(
            Record::decode(&bytes, RecordAddress(78), 5),
            Err(DamagedRecord)
        );
        for len in 0..bytes.len().min(HEADER_LEN + 4) {
            assert_eq!(Record::decode(&bytes[..len], AT, 5), Err(DamagedRecord));
        }
    }
}
