//! Images whose checksums are right whatever else is: what fuzzers make of their input.

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::index::{Entry, Index};
use super::{END_MAGIC, End, HEADER_LEN, Header, INDEX_HEADER_LEN, IndexHeader, MAGIC, VERSION};
use crate::spill::{RECORD_ALIGN, Record, RecordFormat};
use crate::units::PAGE_SIZE;

const SEQUENCE: u64 = 7 << 16;

/// An image of a device of `size` bytes. The input is, again and again, how many bytes of records there
/// are (2), these, and an index; what it says of lengths and places is made to fit, and each record
/// that has a place to be the one that the index says.
pub(crate) fn forge(size: u64, mut input: &[u8]) -> Vec<u8> {
    let mut header = Header::new_zeroed();
    header.magic = MAGIC;
    header.version = VERSION.into();
    header.page_size = (PAGE_SIZE as u32).into();
    header.size = size.into();
    header.sequence = SEQUENCE.into();
    header.checksum = header.checksum().into();
    let mut image = header.as_bytes().to_vec();
    let (mut last, mut indices, mut pages) = (0, 0u64, 0);
    while let Some((len, rest)) = input.split_first_chunk::<2>() {
        let from = image.len();
        debug_assert!(from >= HEADER_LEN);
        let (records, rest) = rest.split_at(rest.len().min(u16::from_le_bytes(*len).into()));
        image.extend_from_slice(records);
        image.resize(image.len().next_multiple_of(RECORD_ALIGN), 0);
        let Ok((mut index, rest)) = IndexHeader::read_from_prefix(rest) else {
            break;
        };
        let (body, rest) = rest.split_at(rest.len().min(index.len.get() as usize));
        let at = image.len();
        index.len = (body.len() as u32).into();
        index.from = (from as u64).into();
        index.previous = last.into();
        index.checksum = index.checksum(SEQUENCE, at as u64, body).into();
        if let Some(entries) = Index::new(&index, body) {
            pages += entries.pages();
            seal_records(&mut image, &entries);
        }
        image.extend_from_slice(index.as_bytes());
        image.extend_from_slice(body);
        debug_assert_eq!(image.len(), at + INDEX_HEADER_LEN + body.len());
        image.resize(image.len().next_multiple_of(RECORD_ALIGN), 0);
        (last, indices, input) = (at as u64, indices + 1, rest);
    }
    let mut end = End {
        magic: END_MAGIC,
        pages: pages.into(),
        last: last.into(),
        indices: indices.into(),
        bytes: (image.len() as u64).into(),
        zeroes: 0.into(),
        checksum: 0.into(),
    };
    end.checksum = end.checksum(SEQUENCE).into();
    image.extend_from_slice(end.as_bytes());
    image
}

/// Makes the records what the index says, around the objects that are there.
fn seal_records(image: &mut [u8], index: &Index<'_>) {
    for entry in index.entries().map_while(|entry| entry) {
        let (
            Entry::Record {
                page,
                address,
                len,
                codec,
            },
            end,
        ) = entry
        else {
            continue;
        };
        let Some(bytes) = image.get_mut(address.byte() as usize..end as usize) else {
            return;
        };
        let object = RecordFormat::Saved.data(bytes, &[0; _], len).to_vec();
        let data = &object[..];
        let mut record = crate::spill::BlockBuf::default();
        RecordFormat::Saved.encode(Record { page, codec, data }, &mut record);
        bytes.copy_from_slice(&record);
        RecordFormat::Saved.seal(bytes, len, address, SEQUENCE);
    }
}
