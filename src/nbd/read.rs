//! Replies to READ: simple ones, and structured ones that leave out what is known to be zero.
//!
//! Whether a page is a hole is a snapshot, and so is the data of a read: a page seen empty was
//! zero at a moment within the request. Every page not seen empty or zero is sent as data.

use std::io::{Read, Write};
use std::ops::{ControlFlow, Range};

use crate::block_device::BlockDevice;
use crate::units::{PAGE_SIZE, PageState};

use super::fault::Fault;
use super::reply::{CHUNK_HEADER, MAX_DATA, NbdError, SIMPLE_HEADER};
use super::transmission::{HEADERS, Session};
use super::wire::{Request, chunk, cmd_flag};

/// Bytes of data in a chunk: what the processor's cache keeps between reading and sending.
const PIECE: u64 = 256 << 10;
/// Shortest read for which looking for holes pays, in bytes.
const SPARSE_MIN: u32 = 32 << 10;
/// Shortest stretch of zeroes worth a chunk of its own, in bytes.
const HOLE_MIN: u64 = PAGE_SIZE as u64;
/// Room for a chunk's headers for every page of a piece, and for what ends the reply, in bytes.
const PIECE_HEADERS: usize = (PIECE as usize / PAGE_SIZE + 2) * 32 + HEADERS;

/// Length of the next piece of `offset..end`: it ends where a multiple of [`PIECE`] does.
pub(super) fn piece_at(offset: u64, end: u64) -> usize {
    let boundary = (offset / PIECE + 1).saturating_mul(PIECE);
    (end.min(boundary) - offset) as usize
}

impl<S: Read + Write> Session<'_, S> {
    /// Answers a READ.
    pub(super) fn read(&mut self, request: &Request) -> Result<(), Fault> {
        if !self.structured() {
            return self.read_simple(request);
        }
        if request.length == 0 {
            self.replies
                .chunk(request.cookie, chunk::FLAG_DONE, chunk::NONE, 0);
            return Ok(());
        }
        let (start, end) = (request.offset, request.offset + u64::from(request.length));
        let mut offset = start;
        while offset < end {
            let length = if request.has(cmd_flag::DF) {
                request.length as usize
            } else {
                piece_at(offset, end)
            };
            let piece_end = offset + length as u64;
            self.replies
                .make_room(length + PIECE_HEADERS, self.stream)?;
            if self.read_piece(request, offset..piece_end, end).is_break() {
                break;
            }
            self.replies.send_if_large(self.stream)?;
            offset = piece_end;
        }
        Ok(())
    }

    /// Appends chunks for `piece`; breaks once the reply is complete, or has failed.
    fn read_piece(&mut self, request: &Request, piece: Range<u64>, end: u64) -> ControlFlow<()> {
        if request.length < SPARSE_MIN || request.has(cmd_flag::DF) {
            let length = (piece.end - piece.start) as usize;
            return self.data_chunk(request, piece.start, length, piece.end == end);
        }
        // Taken out for the time it is walked through; its memory comes back with it.
        let mut runs = std::mem::take(&mut self.runs);
        runs.find(&*self.export.device, piece);
        let mut flow = ControlFlow::Continue(());
        for run in &runs.0 {
            let length = run.end - run.offset;
            let last = run.end == end;
            if !run.hole {
                flow = self.data_chunk(request, run.offset, length as usize, last);
            } else {
                let flags = if last { chunk::FLAG_DONE } else { 0 };
                self.replies
                    .offset_hole(request.cookie, flags, run.offset, length as u32);
            }
            if flow.is_break() {
                break;
            }
        }
        self.runs = runs;
        flow
    }

    /// Appends one chunk of data, or the error chunk that ends the reply.
    fn data_chunk(
        &mut self,
        request: &Request,
        offset: u64,
        length: usize,
        last: bool,
    ) -> ControlFlow<()> {
        let data = &mut self.replies.room()[CHUNK_HEADER + 8..][..length];
        match self.export.device.read(offset, data) {
            Ok(()) => {
                let flags = if last { chunk::FLAG_DONE } else { 0 };
                self.replies
                    .offset_data(request.cookie, flags, offset, length);
                ControlFlow::Continue(())
            }
            Err(error) => {
                let code = NbdError::from(&error);
                self.fail(request, code, Some(offset), &error.to_string());
                ControlFlow::Break(())
            }
        }
    }

    /// A simple reply says whether it succeeded before its data, so up to [`MAX_DATA`] is read
    /// first; of a longer one, a failure further on can only be told by hanging up.
    fn read_simple(&mut self, request: &Request) -> Result<(), Fault> {
        let mut left = request.length as usize;
        let first = left.min(MAX_DATA);
        self.replies.make_room(first + HEADERS, self.stream)?;
        let data = &mut self.replies.room()[SIMPLE_HEADER..][..first];
        if let Err(error) = self.export.device.read(request.offset, data) {
            self.fail(request, NbdError::from(&error), None, "");
            return Ok(());
        }
        self.replies.simple(request.cookie, 0, first);
        left -= first;

        let end = request.offset + u64::from(request.length);
        while left > 0 {
            self.replies.send(self.stream)?;
            let piece = left.min(PIECE as usize);
            let data = &mut self.replies.room()[..piece];
            self.export
                .device
                .read(end - left as u64, data)
                .map_err(Fault::Device)?;
            self.replies.advance(piece);
            left -= piece;
        }
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
                PageState::SameFilled | PageState::Resident | PageState::WrittenBack => {
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
