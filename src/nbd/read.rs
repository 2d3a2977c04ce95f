//! READ: answered with simple replies, or with structured ones that leave out what is known to be zero; in
//! pieces, by the session or by workers.

use super::error::ConnectionError;
use super::piece::{CHUNK_HEADERS, Form, Piece, piece_at};
use super::reply::{HEADERS, NbdError, PIECE, SIMPLE_HEADER};
use super::session::{LARGE, Session};
use super::socket::Stream;
use super::wire::{Request, chunk, cmd_flag};
use super::worker_pool::{Task, Work};

/// Shortest read for which looking for holes pays, in bytes.
const SPARSE_MIN: u32 = 32 << 10;
impl<S: Stream> Session<'_, S> {
    /// Answers a READ, or sees to it that it will be answered.
    pub(super) fn read(&mut self, request: &Request) -> Result<(), ConnectionError> {
        let length = request.length as usize;
        let whole = length <= PIECE || request.has(cmd_flag::DF) || !self.structured();
        if length == 0 && self.structured() {
            self.replies
                .chunk(request.cookie, chunk::FLAG_DONE, chunk::NONE, 0);
            return Ok(());
        }
        match (whole, length <= PIECE) {
            (true, true) if self.submit_read(request) => Ok(()),
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
    fn submit_read(&mut self, request: &Request) -> bool {
        let piece = self.only_piece(request);
        let Some(pool) = &mut self.pool else {
            return false;
        };
        if piece.length < LARGE && !self.export.device.read_would_wait(request.range()) {
            return false;
        }
        pool.submit_whole(Task::Execute(*request), Work::Read(piece))
    }

    /// Answers with a simple reply, one chunk, or chunks for one piece.
    fn read_whole(&mut self, request: &Request) -> Result<(), ConnectionError> {
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
    fn read_in_pieces(&mut self, request: &Request) -> Result<(), ConnectionError> {
        let end = request.offset + u64::from(request.length);
        let mut task = self
            .pool
            .as_mut()
            .map(|pool| pool.open(Task::MakeChunks(*request)));
        let mut offset = request.offset;
        while offset < end {
            let length = piece_at(offset, end);
            let next = offset + length as u64;
            // The end is a chunk of its own where pieces may come in any order.
            let done = task.is_none() && next == end;
            let piece = Piece {
                cookie: request.cookie,
                offset,
                length,
                form: Form::Sparse { done },
            };
            offset = next;
            if let (Some(pool), Some(task)) = (&mut self.pool, task)
                && let Some(buffer) = pool.buffer()
            {
                pool.submit(task, Work::Read(piece), buffer);
                continue;
            }
            let room = length + CHUNK_HEADERS + HEADERS;
            self.replies.make_room(room, self.stream)?;
            let result = piece.append(&mut self.replies, &mut self.runs, &*self.export.device);
            self.replies.send_if_large(self.stream)?;
            match (result, &mut self.pool, task) {
                (result, Some(pool), Some(task)) => pool.note(task, result),
                (Err((at, error)), _, _) => {
                    let code = NbdError::from(&error);
                    self.fail(request, code, Some(at), &error.to_string());
                    return Ok(());
                }
                (Ok(()), _, _) => {}
            }
            self.collect(false)?;
        }
        let done = match (&mut self.pool, task.take()) {
            (Some(pool), Some(task)) => pool.close(task),
            _ => None,
        };
        done.map_or(Ok(()), |done| self.finish(&done))
    }

    /// A simple reply says whether it succeeded before its data, so as much as fits is read first;
    /// of a longer one, a failure further on can only be told by hanging up. Nothing may come in
    /// between, so workers' replies wait, as they do for whatever the session does.
    fn read_simple(&mut self, request: &Request) -> Result<(), ConnectionError> {
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
                .map_err(ConnectionError::Device)?;
            self.replies.advance(piece);
            left -= piece;
        }
        Ok(())
    }
}
