//! A backing in memory, for tests, and to begin with one of one's own.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::Path;

use super::address::{SEGMENT_BYTES, StoreSegment};
use super::backing::{Backing, Store};
use crate::sync::Mutex;

/// A backing in this process's memory, which spilling to it does not save. One lock.
#[derive(Debug)]
pub struct MemoryBacking {
    segments: u32,
    /// Those that were written to.
    pub(super) contents: Mutex<HashMap<StoreSegment, Vec<u8>>>,
}

impl MemoryBacking {
    /// An empty one of so many segments of [`SEGMENT_BYTES`].
    pub fn new(segments: u32) -> Self {
        Self {
            segments,
            contents: Mutex::default(),
        }
    }

    /// Segments that it may hold.
    #[cfg(test)]
    pub(super) fn segments(&self) -> u32 {
        self.segments
    }

    /// Segments that hold data.
    pub fn segments_in_use(&self) -> usize {
        self.contents.lock().len()
    }
}

impl Store for MemoryBacking {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let (segment, at) = StoreSegment::at(offset);
        let contents = self.contents.lock();
        let bytes = contents.get(&segment);
        let bytes = bytes.and_then(|bytes| bytes.get(at..at + buf.len()));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn discard(&self, segment: Range<u64>) {
        let (segment, _) = StoreSegment::at(segment.start);
        self.contents.lock().remove(&segment);
    }

    fn path(&self) -> &Path {
        Path::new("memory")
    }
}

impl Backing for MemoryBacking {
    fn capacity(&self) -> io::Result<u64> {
        Ok(u64::from(self.segments) * SEGMENT_BYTES)
    }

    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (segment, at) = StoreSegment::at(offset);
        if segment.0 >= self.segments {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut contents = self.contents.lock();
        let bytes = contents
            .entry(segment)
            .or_insert_with(|| vec![0; SEGMENT_BYTES as usize]);
        let range = bytes.get_mut(at..at + data.len());
        range
            .ok_or(io::ErrorKind::InvalidInput)?
            .copy_from_slice(data);
        Ok(())
    }
}
