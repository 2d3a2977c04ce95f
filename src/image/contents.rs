//! All that is in an image, for tests.

use std::path::Path;

use super::{Entry, ImageReader, Part};
use crate::codec::Codec;
use crate::error::Result;
use crate::spill::{MAX_RECORD_LEN, RecordAddress, RecordFormat, SegmentIndex, Store};
use crate::units::PageIndex;

/// What an image is read as, in its order but for the indices', of which the last comes first.
#[derive(Default, PartialEq)]
pub(crate) struct Contents {
    /// Pages, and their objects.
    pub(crate) objects: Vec<(u32, (Codec, Vec<u8>))>,
    pub(crate) patterns: Vec<u32>,
    /// Pages whose records do not verify.
    pub(crate) damaged: Vec<u32>,
}

impl Contents {
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let mut reader = ImageReader::open(path)?;
        let (mut contents, mut buffer) = (Self::default(), Vec::new());
        let (store, sequence) = (reader.store()?, reader.sequence());
        while let Some(part) = reader.next(&mut buffer)? {
            let Part::Pages(index) = part else {
                continue;
            };
            for (entry, _) in index.entries().flatten() {
                match entry {
                    Entry::Pattern { pattern, .. } => contents.patterns.push(pattern),
                    Entry::Record {
                        page,
                        address,
                        len,
                        codec,
                    } => match object(&store, (address, sequence), page, codec, len) {
                        Some(object) => contents.objects.push((page.0, (codec, object))),
                        None => contents.damaged.push(page.0),
                    },
                }
            }
        }
        let pages = contents.objects.len() + contents.patterns.len() + contents.damaged.len();
        assert_eq!(pages as u64, reader.pages());
        Ok(contents)
    }
}

/// The object of a page, if its record verifies.
fn object(
    store: &dyn Store,
    (at, sequence): (RecordAddress, u64),
    page: PageIndex,
    codec: Codec,
    len: usize,
) -> Option<Vec<u8>> {
    let segment = SegmentIndex::of(at);
    let from = at.byte() - segment.byte();
    let (mut bytes, mut scratch) = ([0; MAX_RECORD_LEN], [0; MAX_RECORD_LEN]);
    let bytes = &mut bytes[..RecordFormat::Saved.record_len(len)];
    store
        .read_at(segment.within_store().byte() + from, bytes)
        .expect("there");
    let record = RecordFormat::Saved.open(bytes, &mut scratch, at, sequence);
    let record = record.ok()?;
    let is_it = (record.page, record.codec, record.data.len()) == (page, codec, len);
    is_it.then(|| record.data.to_vec())
}
