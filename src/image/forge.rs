//! Images whose checksums are right whatever else is: what fuzzers make of their input.

use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::{
    END_LEN, End, HEADER_LEN, Header, Kind, MAGIC, SEGMENT_HEADER_LEN, SegmentHeader, VERSION,
};
use crate::units::PAGE_SIZE;

/// An image of a device of `size` bytes with `input` for segments: their lengths are made to fit,
/// their numbers and checksums to be right.
pub(crate) fn forge(size: u64, input: &[u8]) -> Vec<u8> {
    let mut header = Header::new_zeroed();
    header.magic = MAGIC;
    header.version = VERSION.into();
    header.page_size = (PAGE_SIZE as u32).into();
    header.size = size.into();
    header.checksum = header.checksum().into();
    let mut image = [header.as_bytes(), input].concat();
    let (mut at, mut segments, mut pages) = (HEADER_LEN, 0, 0);
    while let Ok((mut segment, rest)) = SegmentHeader::read_from_prefix(&image[at..]) {
        let len = (segment.len.get() as usize).min(rest.len());
        segment.len = (len as u32).into();
        segment.number = segments.into();
        pages += u64::from(segment.records.get());
        let checksum = segment.checksum(&header.identity, at as u64, &rest[..len]);
        segment.checksum = checksum.into();
        image[at..at + SEGMENT_HEADER_LEN].copy_from_slice(segment.as_bytes());
        at += SEGMENT_HEADER_LEN + len;
        segments += 1;
    }
    image.truncate(at);
    let end = End {
        pages: pages.into(),
        segments: segments.into(),
        bytes: (at as u64).into(),
    };
    let mut segment = SegmentHeader::new_zeroed();
    segment.kind = (Kind::End as u32).into();
    segment.len = (size_of::<End>() as u32).into();
    segment.number = segments.into();
    segment.checksum = segment
        .checksum(&header.identity, at as u64, end.as_bytes())
        .into();
    image.extend_from_slice(segment.as_bytes());
    image.extend_from_slice(end.as_bytes());
    debug_assert_eq!(image.len(), at + END_LEN);
    image
}
