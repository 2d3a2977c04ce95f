//! Images whose checksums are right whatever else is: what fuzzers make of their input.

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::index::{Entry, Index};
use super::{END_MAGIC, End, Header, IndexHeader, MAGIC, VERSION};
use crate::spill::{BlockBuf, RECORD_ALIGN, Record, RecordFormat};
use crate::units::PAGE_SIZE;

const SEQUENCE: u64 = 7 << 16;

/// An image of a device of `size` bytes. The input is an index, again and again, and the records that it is
/// of; what it says of lengths and places is made to fit, and each record to be the one that it says.
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
    while let Ok((mut index, rest)) = IndexHeader::read_from_prefix(input) {
        let (body, rest) = rest.split_at(rest.len().min(index.len.get() as usize));
        index.len = (body.len() as u32).into();
        index.from = (image.len() as u64).into();
        index.previous = last.into();
        input = rest;
        if let Some(entries) = Index::new(&index, body) {
            pages += entries.pages();
            input = push_records(&mut image, &entries, rest);
        }
        last = image.len() as u64;
        indices += 1;
        index.checksum = index.checksum(SEQUENCE, last, body).into();
        image.extend_from_slice(index.as_bytes());
        image.extend_from_slice(body);
        image.resize(image.len().next_multiple_of(RECORD_ALIGN), 0);
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

/// Adds the records of an index, of objects from the input; returns the rest of that.
fn push_records<'a>(image: &mut Vec<u8>, index: &Index<'_>, mut input: &'a [u8]) -> &'a [u8] {
    for entry in index.entries().map_while(|entry| entry) {
        let (
            Entry::Record {
                page,
                address,
                len,
                codec,
            },
            _,
        ) = entry
        else {
            continue;
        };
        let (data, rest) = input.split_at(len.min(input.len()));
        input = rest;
        let mut object = data.to_vec();
        object.resize(len, 0);
        let data = &object[..];
        let mut record = BlockBuf::default();
        RecordFormat::Saved.encode(Record { page, codec, data }, &mut record);
        RecordFormat::Saved.seal(&mut record, len, address, SEQUENCE);
        image.resize(address.byte() as usize, 0);
        image.extend_from_slice(&record);
    }
    input
}
