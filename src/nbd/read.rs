//! Replies to READ: simple ones, and structured ones that leave out what is known to be zero.
//!
//! Whether a page is a hole is a snapshot, and so is the data of a read: a page seen empty was
//! zero at a moment within the request. Every page not seen empty or zero is sent as data.

use std::ops::{ControlFlow, Range};

use crate::block_device::BlockDevice;
use crate::error::Error;
use crate::units::{PAGE_SIZE, PageState};

use super::fault::Fault;
use super::lane::{Task, Work};
use super::reply::{CHUNK_HEADER, HEADERS, NbdError, PIECE, Replies, SIMPLE_HEADER};
use super::socket::Stream;
use super::transmission::{LARGE, Session};
use super::wire::{Request, chunk, cmd_flag};

/// Shortest read for which looking for holes pays, in bytes.
const SPARSE_MIN: u32 = 32 << 10;
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

impl<S: Stream> Session<'_, S> {
    /// Answers a READ, or sees to it that it will be answered.
    pub(super) fn read(&mut self, request: &Request) -> Result<(), Fault> {
        let length = request.length as usize;
        let whole = length <= PIECE || request.has(cmd_flag::DF) || !self.structured();
        if length == 0 && self.structured() {
            self.replies
                .chunk(request.cookie, chunk::FLAG_DONE, chunk::NONE, 0);
            return Ok(());
        }
        match (whole, length <= PIECE) {
            (true, true) if self.hand_out_read(request) => Ok(()),
            (true, _) => self.read_whole(request),
            (false, _) => self.read_in_pieces(request),
        }
    }

    /// A request of one piece, in the form that its reply takes.
    fn only_piece(&self, request: &Request) -> Piece {
        let form = if !self.structured() {
            Form::Simple
        } else if request.length < SPARSE_MIN || request.has(cmd_flag::DF) {
            Form::Chunk { done: true }
        } else {
            Form::Sparse { done: true }
        };
        Piece {
            cookie: request.cookie,
            offset: request.offset,
            length: request.length as usize,
            form,
        }
    }

    /// Gives a read of one piece to the workers, if it is large or has to wait for the backing.
    fn hand_out_read(&mut self, request: &Request) -> bool {
        let piece = self.only_piece(request);
        let Some(lane) = &mut self.lane else {
            return false;
        };
        if piece.length < LARGE && !self.export.device.read_would_wait(request.range()) {
            return false;
        }
        lane.hand_out_whole(Task::Execute(*request), Work::Read(piece))
    }

    /// Answers with a simple reply, one chunk, or chunks for one piece.
    fn read_whole(&mut self, request: &Request) -> Result<(), Fault> {
        if !self.structured() {
            return self.read_simple(request);
        }
        let piece = self.only_piece(request);
        let room = piece.length + CHUNK_HEADERS + HEADERS;
        if !self.replies.try_to_hold(room) {
            let message = "too much for one chunk while so many clients ask for so much";
            self.fail(request, NbdError::Overflow, None, message);
            return Ok(());
        }
        self.replies.make_room(room, self.stream)?;
        let appended = piece.append(&mut self.replies, &mut self.runs, &*self.export.device);
        if let Err((offset, error)) = appended {
            let code = NbdError::from(&error);
            self.fail(request, code, Some(offset), &error.to_string());
        }
        Ok(())
    }

    /// Answers with the chunks of several pieces, as they come from whoever is free.
    fn read_in_pieces(&mut self, request: &Request) -> Result<(), Fault> {
        let end = request.offset + u64::from(request.length);
        let mut ticket = self
            .lane
            .as_mut()
            .map(|lane| lane.open(Task::MakeChunks(*request)));
        let mut offset = request.offset;
        while offset < end {
            let length = piece_at(offset, end);
            let next = offset + length as u64;
            // The end is a chunk of its own where pieces may come in any order.
            let done = ticket.is_none() && next == end;
            let piece = Piece {
                cookie: request.cookie,
                offset,
                length,
                form: Form::Sparse { done },
            };
            offset = next;
            if let (Some(lane), Some(ticket)) = (&mut self.lane, ticket)
                && let Some(buffer) = lane.buffer()
            {
                lane.hand_out(ticket, Work::Read(piece), buffer);
                continue;
            }
            let room = length + CHUNK_HEADERS + HEADERS;
            self.replies.make_room(room, self.stream)?;
            let result = piece.append(&mut self.replies, &mut self.runs, &*self.export.device);
            self.replies.send_if_large(self.stream)?;
            match (result, &mut self.lane, ticket) {
                (result, Some(lane), Some(ticket)) => lane.note(ticket, result),
                (Err((at, error)), _, _) => {
                    let code = NbdError::from(&error);
                    self.fail(request, code, Some(at), &error.to_string());
                    return Ok(());
                }
                (Ok(()), _, _) => {}
            }
            self.collect(false)?;
        }
        let done = match (&mut self.lane, ticket.take()) {
            (Some(lane), Some(ticket)) => lane.close(ticket),
            _ => None,
        };
        done.map_or(Ok(()), |done| self.finish(&done))
    }

    /// A simple reply says whether it succeeded before its data, so as much as fits is read first;
    /// of a longer one, a failure further on can only be told by hanging up. Nothing may come in
    /// between, so workers' replies wait, as they do for whatever the session does.
    fn read_simple(&mut self, request: &Request) -> Result<(), Fault> {
        let mut left = request.length as usize;
        self.replies.try_to_hold(left + HEADERS);
        let first = left.min(self.replies.capacity() - HEADERS);
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
            let piece = left.min(PIECE);
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
