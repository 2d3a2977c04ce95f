//! Part of a reply to READ, made by whoever is free: from the device straight into the buffer that is sent.
//!
//! Whether a page is a hole is a snapshot, and so is the data of a read: a page seen empty was
//! zero at a moment within the request. Every page not seen empty or zero is sent as data.

use std::ops::{ControlFlow, Range};

use super::reply::{CHUNK_HEADER, PIECE, Replies, SIMPLE_HEADER};
use super::wire::chunk;
use crate::block_device::BlockDevice;
use crate::error::Error;
use crate::units::{PAGE_SIZE, PageState};

/// Shortest stretch of zeroes worth a chunk of its own, in bytes.
const HOLE_MIN: u64 = PAGE_SIZE as u64;
/// Room for the headers of a chunk for every page of a piece, in bytes.
pub(super) const CHUNK_HEADERS: usize = (PIECE / PAGE_SIZE + 2) * 32;

/// Length of the next piece of `offset..end`: it ends where a multiple of [`PIECE`] does.
pub(super) fn piece_at(offset: u64, end: u64) -> usize {
    let piece = PIECE as u64;
    let boundary = (offset / piece + 1).saturating_mul(piece);
    (end.min(boundary) - offset) as usize
}

/// Part of a read's reply.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: usize,
    pub(super) form: Form,
}

/// How a piece is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// As a simple reply: it is the whole of it.
    Simple,
    /// As one chunk.
    Chunk { done: bool },
    /// As chunks of data and of holes.
    Sparse { done: bool },
}

impl Piece {
    /// Appends the piece to `replies`, which has room for it, or nothing if it fails at the start;
    /// says where and why it failed.
    pub(super) fn append(
        self,
        replies: &mut Replies,
        runs: &mut Runs,
        device: &dyn BlockDevice,
    ) -> Result<(), (u64, Error)> {
        match self.form {
            Form::Simple => {
                let data = &mut replies.room()[SIMPLE_HEADER..][..self.length];
                device
                    .read(self.offset, data)
                    .map_err(|error| (self.offset, error))?;
                replies.simple(self.cookie, 0, self.length);
                Ok(())
            }
            Form::Chunk { done } => {
                self.data_chunk(replies, device, self.offset, self.length, done)
            }
            Form::Sparse { done } => self.sparse(replies, runs, device, done),
        }
    }

    fn sparse(
        self,
        replies: &mut Replies,
        runs: &mut Runs,
        device: &dyn BlockDevice,
        done: bool,
    ) -> Result<(), (u64, Error)> {
        let end = self.offset + self.length as u64;
        runs.find(device, self.offset..end);
        for run in &runs.0 {
            let length = run.end - run.offset;
            let last = done && run.end == end;
            if run.hole {
                let flags = if last { chunk::FLAG_DONE } else { 0 };
                replies.offset_hole(self.cookie, flags, run.offset, length as u32);
            } else {
                self.data_chunk(replies, device, run.offset, length as usize, last)?;
            }
        }
        Ok(())
    }

    fn data_chunk(
        self,
        replies: &mut Replies,
        device: &dyn BlockDevice,
        offset: u64,
        length: usize,
        done: bool,
    ) -> Result<(), (u64, Error)> {
        let data = &mut replies.room()[CHUNK_HEADER + 8..][..length];
        device.read(offset, data).map_err(|error| (offset, error))?;
        let flags = if done { chunk::FLAG_DONE } else { 0 };
        replies.offset_data(self.cookie, flags, offset, length);
        Ok(())
    }
}

/// The runs of data and of zeroes in a piece, in order and without gaps.
#[derive(Default)]
pub(super) struct Runs(Vec<Run>);

struct Run {
    offset: u64,
    end: u64,
    hole: bool,
}

impl Runs {
    fn find(&mut self, device: &dyn BlockDevice, piece: Range<u64>) {
        self.0.clear();
        let mut zero_from = None;
        device.extents(piece.clone(), &mut |extent| {
            match extent.state {
                PageState::Empty | PageState::Zero => {
                    zero_from.get_or_insert(extent.offset);
                }
                PageState::Absent
                | PageState::SameFilled
                | PageState::Resident
                | PageState::WrittenBack => {
                    if let Some(start) = zero_from.take() {
                        self.push_zeroes(start, extent.offset);
                    }
                    self.push(extent.offset, extent.offset + extent.len, false);
                }
            }
            ControlFlow::Continue(())
        });
        if let Some(start) = zero_from {
            self.push_zeroes(start, piece.end);
        }
    }

    fn push_zeroes(&mut self, offset: u64, end: u64) {
        self.push(offset, end, end - offset >= HOLE_MIN);
    }

    fn push(&mut self, offset: u64, end: u64, hole: bool) {
        match self.0.last_mut() {
            Some(run) if run.hole == hole => run.end = end,
            _ => self.0.push(Run { offset, end, hole }),
        }
    }
}
