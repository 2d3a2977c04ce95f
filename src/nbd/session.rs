//! One connection in its transmission phase: what it has, and how what is done is answered.
//!
//! Replies are gathered while there are requests to execute, and sent before the session waits for more. What
//! workers do is answered when it is done (see [`super::worker_pool`]). No lock is held here.

use super::block_status::Descriptors;
use super::error::ConnectionError;
use super::export::{Export, MetaContexts};
use super::flushes::Flushes;
use super::input::Input;
use super::piece::Runs;
use super::reply::{HEADERS, NbdError, Replies};
use super::socket::Stream;
use super::validate::Limits;
use super::wire::{Command, Request, chunk, cmd_flag};
use super::worker_pool::{InFlight, PoolHandle, Task, Work};
use crate::error::Error;

/// Length from which a request goes to the workers, in bytes: what compressing it takes is well
/// above what waking them costs.
pub(super) const LARGE: usize = 128 << 10;
/// Replies of workers up to this length are gathered with others rather than sent alone.
const SMALL: usize = 16 << 10;

/// What one connection has while it sends requests.
pub(super) struct Session<'a, S> {
    pub(super) export: &'a Export,
    pub(super) limits: Limits,
    pub(super) contexts: MetaContexts,
    pub(super) stream: &'a mut S,
    pub(super) input: Input,
    pub(super) replies: Replies,
    /// Of the read at hand; kept for its memory.
    pub(super) runs: Runs,
    /// Of the block status at hand; kept for its memory.
    pub(super) descriptors: Descriptors,
    pub(super) flushes: Flushes,
    /// The way to the workers.
    pub(super) pool: Option<PoolHandle>,
}

impl<S: Stream> Session<'_, S> {
    /// Waits for more input, with nothing left unsaid.
    pub(super) fn receive(&mut self) -> Result<usize, ConnectionError> {
        self.await_input()?;
        Ok(self.input.fill(self.stream)?)
    }

    /// Returns when a read will not block, or nothing but a read is left to wait for.
    pub(super) fn await_input(&mut self) -> Result<(), ConnectionError> {
        loop {
            self.collect(false)?;
            self.replies.send(self.stream)?;
            self.replies.shrink();
            match &self.pool {
                Some(pool) if !pool.is_idle() => {
                    if self.stream.wait_readable(pool.wake())? {
                        return Ok(());
                    }
                    pool.woken();
                }
                _ => return Ok(()),
            }
        }
    }

    /// Sends the last replies, those of requests that are still in the workers' hands as well.
    pub(super) fn end(&mut self) -> Result<(), ConnectionError> {
        let mut ended = self.collect(true);
        // Whatever happens, no job outlives its connection.
        while ended.is_err() && self.pool.as_ref().is_some_and(|pool| !pool.is_idle()) {
            drop(self.collect(true));
        }
        if ended.is_ok() {
            ended = self
                .replies
                .send(self.stream)
                .map_err(ConnectionError::from);
        }
        ended
    }

    /// Takes in what workers have finished; with `all`, waits until they have finished all.
    pub(super) fn collect(&mut self, all: bool) -> Result<(), ConnectionError> {
        loop {
            let Some(pool) = &mut self.pool else {
                return Ok(());
            };
            let Some((buffer, done)) = pool.next_completed(all) else {
                return Ok(());
            };
            let sent = self.pass_on(&buffer);
            if let Some(pool) = &self.pool {
                pool.give_back(buffer);
            }
            sent?;
            if let Some(done) = done {
                self.finish(&done)?;
            }
        }
    }

    /// Sends what a worker prepared.
    fn pass_on(&mut self, prepared: &Replies) -> Result<(), ConnectionError> {
        let bytes = prepared.gathered();
        self.replies
            .make_room(bytes.len().min(SMALL) + HEADERS, self.stream)?;
        if bytes.len() <= SMALL {
            self.replies.append(bytes);
            return Ok(());
        }
        self.replies.send(self.stream)?;
        Ok(self.stream.write_all(bytes)?)
    }

    /// Appends what is left of the reply, or replies, to what workers had a part in.
    pub(super) fn finish(&mut self, finished: &InFlight) -> Result<(), ConnectionError> {
        let failure = finished.failure.as_ref();
        let done = failure.map_or(Ok(()), |(_, error)| Err(error));
        let request = match finished.task {
            Task::Flush => return self.flushed(done),
            Task::Execute(request) if request.command != Some(Command::Read) => {
                return self.executed(&request, done);
            }
            Task::Execute(request) | Task::MakeChunks(request) => request,
        };
        self.replies.make_room(HEADERS, self.stream)?;
        if let Some((at, error)) = failure {
            let code = NbdError::from(error);
            self.fail(&request, code, Some(*at), &error.to_string());
        } else if let Task::MakeChunks(_) = finished.task {
            self.replies
                .chunk(request.cookie, chunk::FLAG_DONE, chunk::NONE, 0);
        }
        Ok(())
    }

    /// Answers a request whose reply has no payload; one with FUA once it is durable.
    pub(super) fn executed(
        &mut self,
        request: &Request,
        done: Result<(), &Error>,
    ) -> Result<(), ConnectionError> {
        let changes = matches!(
            request.command,
            Some(Command::Write | Command::Trim | Command::WriteZeroes)
        );
        if done.is_ok() && changes && request.has(cmd_flag::FUA) {
            return self.flush(request);
        }
        self.done(request, done)
    }

    /// Answers a request once what took effect before is durable.
    pub(super) fn flush(&mut self, request: &Request) -> Result<(), ConnectionError> {
        let device = &*self.export.device;
        if device.has_flush() && self.pool.is_some() && self.flushes.wait(*request) {
            return self.begin_flush();
        }
        let flushed = device.flush();
        self.done(request, flushed.as_ref().map(drop))
    }

    /// Flushes for those that wait for it, unless a flush is under way.
    fn begin_flush(&mut self) -> Result<(), ConnectionError> {
        let Some(pool) = &mut self.pool else {
            return Ok(());
        };
        if !self.flushes.begin() || pool.submit_whole(Task::Flush, Work::Flush) {
            return Ok(());
        }
        let flushed = self.export.device.flush();
        self.flushed(flushed.as_ref().map(drop))
    }

    /// Answers those for whom a flush was.
    fn flushed(&mut self, done: Result<(), &Error>) -> Result<(), ConnectionError> {
        for request in self.flushes.end() {
            self.done(&request, done)?;
        }
        self.begin_flush()
    }

    fn done(&mut self, request: &Request, done: Result<(), &Error>) -> Result<(), ConnectionError> {
        self.replies.make_room(HEADERS, self.stream)?;
        match done {
            Ok(()) => self.replies.simple(request.cookie, 0, 0),
            Err(error) => self.fail(request, NbdError::from(error), None, &error.to_string()),
        }
        Ok(())
    }

    /// Appends the reply of a request that failed, at `offset` where a read knows it. The room is
    /// there: every caller left [`HEADERS`].
    pub(super) fn fail(
        &mut self,
        request: &Request,
        error: NbdError,
        offset: Option<u64>,
        message: &str,
    ) {
        if self.limits.structured {
            self.replies
                .error_chunk(request.cookie, error, offset, message);
        } else {
            self.replies.simple(request.cookie, error as u32, 0);
        }
    }

    /// Whether replies with a payload are structured.
    pub(super) fn structured(&self) -> bool {
        self.limits.structured
    }
}
