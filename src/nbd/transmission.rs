//! The transmission phase of one connection: requests in, replies out.
//!
//! As many requests as one receive brought are executed before their replies are sent together,
//! and no reply is held back while the connection waits for more. Written data goes to the
//! device straight out of the receive buffer and read data comes straight into the reply buffer;
//! and but for reads that cannot be sent in pieces neither buffer changes.
//!
//! A write larger than the receive buffer reaches the device in pieces that end on pages. If its
//! sender leaves half-way, the pages received so far may be new, the others are old: what any
//! disk does with a write that was never acknowledged. A smaller write takes effect whole or not
//! at all.
//!
//! Small requests are executed here and now, in order. What is large, or looks as if it will have
//! to wait, goes to the workers and is answered when it is done (see [`super::worker_pool`]). No lock is
//! held here.

use std::io;
use std::sync::Arc;

use crate::error::Result as DeviceResult;
use crate::units::PAGE_SIZE;
use crate::users::Who;

use super::block_status::{Descriptors, MAX_DESCRIPTORS};
use super::error::ConnectionError;
use super::execute::execute_plain;
use super::export::Export;
use super::flushes::Flushes;
use super::input::Input;
use super::negotiation::Agreement;
use super::piece::Runs;
use super::reply::{Growth, HEADERS, PIECE, Replies};
use super::session::{LARGE, Session};
use super::socket::Stream;
use super::validate::{Limits, Refusal, validate};
use super::wire::{Command, MAX_SERVED, Request, chunk, cmd_flag};
use super::worker_pool::{PoolHandle, Task, TaskId, Work, WorkerPool};

/// What a connection is served with.
pub(super) struct Service<'a> {
    pub(super) export: &'a Export,
    /// Without them a connection does everything itself.
    pub(super) workers: Option<&'a Arc<WorkerPool>>,
    pub(super) growth: Growth,
    /// The client.
    pub(super) who: Who,
}

impl<'a> Service<'a> {
    /// One connection on its own.
    pub(super) fn without_workers(export: &'a Export) -> Self {
        Self {
            export,
            workers: None,
            growth: Growth::new(),
            who: Who::default(),
        }
    }

    /// Serves requests until the client disconnects, in good order or not.
    pub(super) fn transmit<S: Stream>(
        &self,
        stream: &mut S,
        agreement: Agreement,
    ) -> Result<(), ConnectionError> {
        let _user = self.export.device.enter(self.who.clone());
        let mut session = Session {
            export: self.export,
            limits: Limits {
                size: self.export.device.size(),
                read_only: self.export.is_read_only(),
                structured: agreement.structured,
                has_contexts: !agreement.contexts.is_empty(),
            },
            contexts: agreement.contexts,
            stream,
            input: Input::new(),
            replies: Replies::new(self.growth.clone()),
            runs: Runs::default(),
            descriptors: Descriptors::default(),
            flushes: Flushes::default(),
            pool: self.workers.map(PoolHandle::new).transpose()?,
        };
        let ended = session.run();
        // What was executed is answered, even if what came after it made no sense.
        let answered = session.end();
        ended.and(answered)
    }
}

impl<S: Stream> Session<'_, S> {
    fn run(&mut self) -> Result<(), ConnectionError> {
        loop {
            while let Some(header) = self.input.take_header() {
                let request = Request::decode(&header)
                    .ok_or(ConnectionError::Protocol("a request without its magic"))?;
                if request.disconnects {
                    return Ok(());
                }
                self.serve(&request)?;
                self.replies.send_if_large(self.stream)?;
            }
            if self.receive()? == 0 {
                return if self.input.received().is_empty() {
                    Ok(())
                } else {
                    Err(cut_short())
                };
            }
        }
    }

    fn serve(&mut self, request: &Request) -> Result<(), ConnectionError> {
        self.replies.make_room(HEADERS, self.stream)?;
        match validate(request, &self.limits) {
            Ok(command) => self.execute(command, request),
            Err(refusal) => self.refuse(request, refusal),
        }
    }

    fn refuse(&mut self, request: &Request, refusal: Refusal) -> Result<(), ConnectionError> {
        let is_write = request.command == Some(Command::Write);
        // To read and drop it would find the next request, but hanging up is cheaper for both.
        if is_write && request.length > MAX_SERVED {
            self.fail(request, refusal.error, None, refusal.message);
            return Err(ConnectionError::Protocol("a payload over 64 MiB"));
        }
        if is_write {
            self.receive_payload(request, |_, _| {})?;
        }
        self.fail(request, refusal.error, None, refusal.message);
        Ok(())
    }

    fn execute(&mut self, command: Command, request: &Request) -> Result<(), ConnectionError> {
        let done = match command {
            Command::Read => return self.read(request),
            Command::BlockStatus => return self.block_status(request),
            Command::Write => match self.write(request)? {
                Some(written) => written,
                None => return Ok(()),
            },
            Command::Flush => return self.flush(request),
            _ if self.submit_plain(command, request) => return Ok(()),
            _ => execute_plain(request, &*self.export.device),
        };
        self.executed(request, done.as_ref().map(drop))
    }

    /// Gives a request without a payload to the workers, if it would wait.
    fn submit_plain(&mut self, command: Command, request: &Request) -> bool {
        let device = &*self.export.device;
        let would_wait = match command {
            Command::Cache => device.read_would_wait(request.range()),
            Command::Trim | Command::WriteZeroes => device.write_would_wait(request.range()),
            _ => false,
        };
        let pool = self.pool.as_mut().filter(|_| would_wait);
        pool.is_some_and(|pool| pool.submit_whole(Task::Execute(*request), Work::Plain(*request)))
    }

    /// Answers a BLOCK_STATUS.
    fn block_status(&mut self, request: &Request) -> Result<(), ConnectionError> {
        let range = request.offset..request.offset + u64::from(request.length);
        let most = if request.has(cmd_flag::REQ_ONE) {
            1
        } else {
            MAX_DESCRIPTORS
        };
        let mut contexts = self.contexts.iter().peekable();
        while let Some(context) = contexts.next() {
            let done = match contexts.peek() {
                Some(_) => 0,
                None => chunk::FLAG_DONE,
            };
            self.descriptors
                .find(&*self.export.device, range.clone(), context, most);
            let length = self.descriptors.len();
            self.replies.make_room(length + HEADERS, self.stream)?;
            self.replies
                .chunk(request.cookie, done, chunk::BLOCK_STATUS, length);
            self.descriptors.append(context, &mut self.replies);
        }
        Ok(())
    }

    /// Stores a write's payload; `None` if workers have a part in it and it is answered later.
    fn write(&mut self, request: &Request) -> Result<Option<DeviceResult<()>>, ConnectionError> {
        let large = request.length as usize >= LARGE;
        if let Some(pool) = &mut self.pool
            && (large || self.export.device.write_would_wait(request.range()))
        {
            let task = pool.open(Task::Execute(*request));
            self.submit_write(request, task)?;
            let done = self.pool.as_mut().and_then(|pool| pool.close(task));
            return Ok(done.map(|done| done.failure.map_or(Ok(()), |(_, error)| Err(error))));
        }
        let device = &*self.export.device;
        let mut written = Ok(());
        self.receive_payload(request, |offset, data| {
            if written.is_ok() {
                written = device.write(offset, data);
            }
        })?;
        Ok(Some(written))
    }

    /// Receives a write's payload in pieces, and gives each to a worker if there is a buffer for
    /// it.
    fn submit_write(&mut self, request: &Request, task: TaskId) -> Result<(), ConnectionError> {
        let mut offset = request.offset;
        let mut left = request.length as usize;
        while left > 0 {
            let length = piece_of_payload(offset, left);
            let buffer = self.pool.as_ref().and_then(PoolHandle::buffer);
            if let Some(mut buffer) = buffer {
                let received = self.receive_into(&mut buffer.room()[..length]);
                if let Some(pool) = &mut self.pool {
                    if received.is_err() {
                        pool.give_back(buffer);
                        return received;
                    }
                    pool.submit(task, Work::Write { offset, length }, buffer);
                }
            } else {
                self.await_payload(length)?;
                let data = &self.input.received()[..length];
                let written = self.export.device.write(offset, data);
                self.input.consume(length);
                if let Some(pool) = &mut self.pool {
                    pool.note(task, written.map_err(|error| (offset, error)));
                }
            }
            offset += length as u64;
            left -= length;
        }
        Ok(())
    }

    /// Receives exactly as much as `out` holds.
    fn receive_into(&mut self, out: &mut [u8]) -> Result<(), ConnectionError> {
        let there = self.input.received();
        let (head, mut rest) = out.split_at_mut(there.len().min(out.len()));
        head.copy_from_slice(&there[..head.len()]);
        self.input.consume(head.len());
        while !rest.is_empty() {
            self.await_input()?;
            match self.stream.read(rest)? {
                0 => return Err(cut_short()),
                count => rest = &mut rest[count..],
            }
        }
        Ok(())
    }

    /// Waits until `length` bytes, at most what the buffer holds, are there.
    fn await_payload(&mut self, length: usize) -> Result<(), ConnectionError> {
        while self.input.received().len() < length {
            if self.receive()? == 0 {
                return Err(cut_short());
            }
        }
        Ok(())
    }

    /// Receives a write's payload to its end and shows it to `visit`, whole or in pieces.
    fn receive_payload(
        &mut self,
        request: &Request,
        mut visit: impl FnMut(u64, &[u8]),
    ) -> Result<(), ConnectionError> {
        let mut offset = request.offset;
        let mut left = request.length as usize;
        while left > 0 {
            let piece = piece_of_payload(offset, left);
            self.await_payload(piece)?;
            visit(offset, &self.input.received()[..piece]);
            self.input.consume(piece);
            offset = offset.saturating_add(piece as u64);
            left -= piece;
        }
        self.replies.make_room(HEADERS, self.stream)?;
        Ok(())
    }
}

/// Length of the next piece of a payload: all but the last end on a page, so that no page is
/// written in two parts.
fn piece_of_payload(offset: u64, left: usize) -> usize {
    if left <= PIECE {
        return left;
    }
    let within = (offset % PAGE_SIZE as u64) as usize;
    PIECE - (within + PIECE) % PAGE_SIZE
}

fn cut_short() -> ConnectionError {
    ConnectionError::Connection(io::ErrorKind::UnexpectedEof.into())
}
