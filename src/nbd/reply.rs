//! Replies on their way out: one buffer in which whole replies gather until they are sent
//! together. Read data is produced in place, behind the room for its header.
//!
//! Invariant: `bytes[..end]` is whole replies, or whole pieces of one too large for the buffer.
//! Whoever appends makes room first. The buffer has room for a piece; for a read that cannot be sent
//! in pieces it is exchanged for a large one, of which all connections together have
//! [`LARGE_BUFFERS`], until that is sent and the connection waits for input.

use std::io::{self, Write};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::error::Error;
use crate::memory::{LazyTable, buffer};

use super::wire::{SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk};

/// Bytes of data in a piece of a large request: what the processor's cache keeps between two
/// looks at it, and what one worker takes at a time.
pub(super) const PIECE: usize = 128 << 10;
/// Most bytes of read data that are sent in one chunk: 1280 KiB, the largest request that Linux
/// makes of a block device by default.
pub(super) const MAX_DATA: usize = 1280 << 10;
/// Room that every reply leaves for headers and an error chunk, in bytes.
pub(super) const HEADERS: usize = 512;
/// Beyond this many bytes replies are worth sending though more requests wait.
const SEND_AT: usize = PIECE;
/// Bytes of a buffer.
const CAPACITY: usize = PIECE + 4096;
/// Bytes of a large one.
const LARGE_CAPACITY: usize = MAX_DATA + 4096;
/// Buffers of that size at once.
const LARGE_BUFFERS: usize = 8;
/// Bytes of a simple reply's header.
pub(super) const SIMPLE_HEADER: usize = 16;
/// Bytes of a structured reply chunk's header.
pub(super) const CHUNK_HEADER: usize = 20;
/// Longest message sent with an error, in bytes.
const MAX_MESSAGE: usize = 256;

/// An error value that the protocol allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum NbdError {
    Perm = 1,
    Io = 5,
    NoMem = 12,
    Inval = 22,
    NoSpc = 28,
    Overflow = 75,
}

impl From<&Error> for NbdError {
    /// EOVERFLOW and ENOTSUP mean something else to a client than to a file system, so they are
    /// not passed on.
    fn from(error: &Error) -> Self {
        match error.errno().into() {
            Errno::PERM | Errno::ACCESS | Errno::ROFS => Self::Perm,
            Errno::NOMEM => Self::NoMem,
            Errno::INVAL => Self::Inval,
            Errno::NOSPC | Errno::DQUOT | Errno::FBIG => Self::NoSpc,
            _ => Self::Io,
        }
    }
}

/// The large buffers, which all connections share. The lock is held to take one or to give one back.
#[derive(Clone)]
pub(super) struct Growth(Arc<Mutex<LargeBuffers>>);

/// Invariant: `taken + spare.len() <= LARGE_BUFFERS`.
#[derive(Default)]
struct LargeBuffers {
    taken: usize,
    spare: Vec<LazyTable<u8>>,
}

impl Growth {
    pub(super) fn new() -> Self {
        Self(Arc::default())
    }

    fn take(&self) -> Option<LazyTable<u8>> {
        let mut buffers = self.0.lock();
        if buffers.taken == LARGE_BUFFERS {
            return None;
        }
        buffers.taken += 1;
        let spare = buffers.spare.pop();
        drop(buffers);
        Some(spare.unwrap_or_else(|| buffer(LARGE_CAPACITY)))
    }

    fn give_back(&self, buffer: LazyTable<u8>) {
        let mut buffers = self.0.lock();
        buffers.taken -= 1;
        buffers.spare.push(buffer);
    }

    /// Frees a spare one: no more are kept than there are connections that may want one.
    fn free_spare(&self) {
        let spare = self.0.lock().spare.pop();
        drop(spare);
    }
}

pub(super) struct Replies {
    bytes: LazyTable<u8>,
    end: usize,
    /// The buffer of a piece, while `bytes` is a large one.
    small: Option<LazyTable<u8>>,
    /// `None` for one that never grows.
    growth: Option<Growth>,
}

impl Drop for Replies {
    fn drop(&mut self) {
        self.clear();
        self.shrink();
        if let Some(growth) = &self.growth {
            growth.free_spare();
        }
    }
}

impl Replies {
    pub(super) fn new(growth: Growth) -> Self {
        let mut replies = Self::for_one_piece();
        replies.growth = Some(growth);
        replies
    }

    /// One that holds a piece and its headers.
    pub(super) fn for_one_piece() -> Self {
        Self {
            bytes: buffer(CAPACITY),
            end: 0,
            small: None,
            growth: None,
        }
    }

    pub(super) fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Grows if need be and if it may; says whether it can hold `count` bytes, headers included.
    pub(super) fn try_to_hold(&mut self, count: usize) -> bool {
        if count > self.bytes.len()
            && self.small.is_none()
            && let Some(mut large) = self.growth.as_ref().and_then(Growth::take)
        {
            large[..self.end].copy_from_slice(&self.bytes[..self.end]);
            self.small = Some(std::mem::replace(&mut self.bytes, large));
        }
        count <= self.bytes.len()
    }

    /// Leaves a large buffer, all of which was sent, to others.
    pub(super) fn shrink(&mut self) {
        debug_assert_eq!(self.end, 0);
        if let Some(growth) = &self.growth
            && let Some(small) = self.small.take()
        {
            growth.give_back(std::mem::replace(&mut self.bytes, small));
        }
    }

    /// What has gathered.
    pub(super) fn gathered(&self) -> &[u8] {
        &self.bytes[..self.end]
    }

    /// Forgets what has gathered.
    pub(super) fn clear(&mut self) {
        self.end = 0;
    }

    /// Sends all that has gathered.
    pub(super) fn send(&mut self, stream: &mut impl Write) -> io::Result<()> {
        // Emptied first, so that a failure leaves nothing to be sent twice.
        let end = std::mem::take(&mut self.end);
        stream.write_all(&self.bytes[..end])
    }

    /// Sends what has gathered if it is much.
    pub(super) fn send_if_large(&mut self, stream: &mut impl Write) -> io::Result<()> {
        if self.end >= SEND_AT {
            self.send(stream)?;
        }
        Ok(())
    }

    /// Makes room for `count` more bytes, at most what it can hold.
    pub(super) fn make_room(&mut self, count: usize, stream: &mut impl Write) -> io::Result<()> {
        debug_assert!(count <= self.bytes.len());
        if self.bytes.len() - self.end < count {
            self.send(stream)?;
        }
        Ok(())
    }

    /// The room left: scratch until [`Replies::append`] and its like cover it.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.bytes[self.end..]
    }

    /// Appends `length` bytes already in the room.
    pub(super) fn advance(&mut self, length: usize) {
        self.end += length;
    }

    /// Appends `bytes`.
    pub(super) fn append(&mut self, bytes: &[u8]) {
        self.room()[..bytes.len()].copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Appends a simple reply's header and, behind it, `length` bytes already in the room there.
    pub(super) fn simple(&mut self, cookie: u64, error: u32, length: usize) {
        self.append(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        self.append(&error.to_be_bytes());
        self.append(&cookie.to_be_bytes());
        self.advance(length);
    }

    /// Appends a chunk's header; `length` bytes of payload are to follow.
    pub(super) fn chunk(&mut self, cookie: u64, flags: u16, kind: u16, length: usize) {
        self.append(&STRUCTURED_REPLY_MAGIC.to_be_bytes());
        self.append(&flags.to_be_bytes());
        self.append(&kind.to_be_bytes());
        self.append(&cookie.to_be_bytes());
        self.append(&(length as u32).to_be_bytes());
    }

    /// Appends an OFFSET_DATA chunk whose `length` bytes are already in the room, behind
    /// [`CHUNK_HEADER`] and the eight bytes of the offset.
    pub(super) fn offset_data(&mut self, cookie: u64, flags: u16, offset: u64, length: usize) {
        self.chunk(cookie, flags, chunk::OFFSET_DATA, length + 8);
        self.append(&offset.to_be_bytes());
        self.advance(length);
    }

    /// Appends an OFFSET_HOLE chunk.
    pub(super) fn offset_hole(&mut self, cookie: u64, flags: u16, offset: u64, length: u32) {
        self.chunk(cookie, flags, chunk::OFFSET_HOLE, 12);
        self.append(&offset.to_be_bytes());
        self.append(&length.to_be_bytes());
    }

    /// Appends the final chunk of a reply that failed, at `offset` if that is known.
    pub(super) fn error_chunk(
        &mut self,
        cookie: u64,
        error: NbdError,
        offset: Option<u64>,
        message: &str,
    ) {
        let message = &message.as_bytes()[..message.floor_char_boundary(MAX_MESSAGE)];
        let (kind, tail) = match offset {
            Some(_) => (chunk::ERROR_OFFSET, 8),
            None => (chunk::ERROR, 0),
        };
        self.chunk(cookie, chunk::FLAG_DONE, kind, 6 + message.len() + tail);
        self.append(&(error as u32).to_be_bytes());
        self.append(&(message.len() as u16).to_be_bytes());
        self.append(message);
        if let Some(offset) = offset {
            self.append(&offset.to_be_bytes());
        }
    }
}
