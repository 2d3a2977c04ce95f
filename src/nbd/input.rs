//! What a connection has received and not yet used: one fixed buffer.
//!
//! Invariant: `start <= end <= bytes.len()`, and `bytes[start..end]` is what was received next
//! on the stream. The buffer never grows: a payload that is larger than it is used in pieces, so
//! a client can make the server hold [`CAPACITY`] bytes of it and no more.

use std::io::{self, Read};

use crate::memory::{LazyTable, buffer};

use super::reply::PIECE;
use super::wire::Request;

/// Bytes of the buffer: a write of one piece with its header fits whole.
pub(super) const CAPACITY: usize = PIECE + 4096;

pub(super) struct Input {
    bytes: LazyTable<u8>,
    start: usize,
    end: usize,
}

impl Input {
    pub(super) fn new() -> Self {
        Self {
            bytes: buffer(CAPACITY),
            start: 0,
            end: 0,
        }
    }

    /// What is there.
    pub(super) fn received(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    /// Uses up the first `count` of the received bytes.
    pub(super) fn consume(&mut self, count: usize) {
        debug_assert!(count <= self.end - self.start);
        self.start += count;
    }

    /// Takes a request's header, if one is there whole.
    pub(super) fn take_header(&mut self) -> Option<[u8; Request::SIZE]> {
        let header = *self.received().first_chunk()?;
        self.consume(Request::SIZE);
        Some(header)
    }

    /// Receives once, as much as there is room for; returns how many bytes came, 0 at the end of
    /// the stream. What is left from before moves to the front: it is less than one request.
    pub(super) fn fill(&mut self, stream: &mut impl Read) -> io::Result<usize> {
        self.bytes.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        let count = stream.read(&mut self.bytes[self.end..])?;
        self.end += count;
        Ok(count)
    }
}
