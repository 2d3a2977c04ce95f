//! The transmission phase of one connection: requests in, replies out, in order.
//!
//! As many requests as one receive brought are executed before their replies are sent together,
//! and no reply is held back while the connection waits for more. Written data goes to the
//! device straight out of the receive buffer and read data comes straight into the reply buffer;
//! neither buffer grows, and no request allocates.
//!
//! A write larger than the receive buffer reaches the device in pieces that end on pages. If its
//! sender leaves half-way, the pages received so far may be new, the others are old: what any
//! disk does with a write that was never acknowledged. A smaller write takes effect whole or not
//! at all.
//!
//! No lock is held here. Workers that execute requests out of order would stand between
//! [`Session::execute`] and [`Replies`]: nothing else knows that replies come in order.

use std::io::{self, Read, Write};

use crate::error::Result as DeviceResult;
use crate::units::PAGE_SIZE;

use super::block_status::Descriptors;
use super::export::{Export, MetaContexts};
use super::fault::Fault;
use super::input::{CAPACITY, Input};
use super::negotiation::Agreement;
use super::read::Runs;
use super::reply::{NbdError, Replies};
use super::validate::{Limits, Refusal, validate};
use super::wire::{Command, Request, cmd_flag};

/// Largest refused payload that is read and dropped to find the next request; beyond it, hanging
/// up is cheaper for both.
const MAX_DRAINED: u32 = 64 << 20;

/// Room that every reply leaves for headers and an error chunk, in bytes.
pub(super) const HEADERS: usize = 512;

/// Serves requests until the client disconnects, in good order or not.
pub(super) fn transmit<S: Read + Write>(
    stream: &mut S,
    export: &Export,
    agreement: Agreement,
) -> Result<(), Fault> {
    let _user = export.device.enter();
    let mut session = Session {
        export,
        limits: Limits {
            size: export.device.size(),
            read_only: export.read_only,
            structured: agreement.structured,
            has_contexts: !agreement.contexts.is_empty(),
        },
        contexts: agreement.contexts,
        stream,
        input: Input::new(),
        replies: Replies::new(),
        runs: Runs::default(),
        descriptors: Descriptors::default(),
    };
    let ended = session.run();
    // What was executed is answered, even if what came after it made no sense.
    let sent = session.replies.send(session.stream);
    ended.and(sent.map_err(Fault::from))
}

pub(super) struct Session<'a, S> {
    pub(super) export: &'a Export,
    limits: Limits,
    pub(super) contexts: MetaContexts,
    pub(super) stream: &'a mut S,
    input: Input,
    pub(super) replies: Replies,
    /// Of the read at hand; kept for its memory.
    pub(super) runs: Runs,
    /// Of the block status at hand; kept for its memory.
    pub(super) descriptors: Descriptors,
}

impl<S: Read + Write> Session<'_, S> {
    fn run(&mut self) -> Result<(), Fault> {
        loop {
            while let Some(header) = self.input.take_header() {
                let request = Request::decode(&header)
                    .ok_or(Fault::Protocol("a request without its magic"))?;
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

    /// Waits for more input, with nothing left unsaid.
    fn receive(&mut self) -> io::Result<usize> {
        self.replies.send(self.stream)?;
        self.input.fill(self.stream)
    }

    fn serve(&mut self, request: &Request) -> Result<(), Fault> {
        self.replies.make_room(HEADERS, self.stream)?;
        match validate(request, &self.limits) {
            Ok(command) => self.execute(command, request),
            Err(refusal) => self.refuse(request, refusal),
        }
    }

    fn refuse(&mut self, request: &Request, refusal: Refusal) -> Result<(), Fault> {
        let is_write = request.command == Some(Command::Write);
        if is_write && request.length > MAX_DRAINED {
            self.fail(request, refusal.error, None, refusal.message);
            return Err(Fault::Protocol("a payload over 64 MiB"));
        }
        if is_write {
            self.receive_payload(request, |_, _| {})?;
        }
        self.fail(request, refusal.error, None, refusal.message);
        Ok(())
    }

    fn execute(&mut self, command: Command, request: &Request) -> Result<(), Fault> {
        let device = &*self.export.device;
        let (offset, length) = (request.offset, u64::from(request.length));
        let done = match command {
            Command::Read => return self.read(request),
            Command::BlockStatus => return self.block_status(request),
            Command::Write => self.write(request)?,
            Command::Flush => device.flush(),
            Command::Trim => device.discard(offset, length),
            Command::Cache => self.cache(request)?,
            // Both only touch slots and the part pages at the ends, so FAST_ZERO holds for all.
            Command::WriteZeroes if request.has(cmd_flag::NO_HOLE) => {
                device.write_zeroes(offset, length)
            }
            Command::WriteZeroes => device.discard(offset, length),
        };
        let writes = matches!(
            command,
            Command::Write | Command::Trim | Command::WriteZeroes
        );
        let done = match done {
            Ok(()) if writes && request.has(cmd_flag::FUA) => device.flush(),
            done => done,
        };
        match done {
            Ok(()) => self.replies.simple(request.cookie, 0, 0),
            Err(error) => self.fail(request, NbdError::from(&error), None, &error.to_string()),
        }
        Ok(())
    }

    fn write(&mut self, request: &Request) -> Result<DeviceResult<()>, Fault> {
        let device = &*self.export.device;
        let mut written = Ok(());
        self.receive_payload(request, |offset, data| {
            if written.is_ok() {
                written = device.write(offset, data);
            }
        })?;
        Ok(written)
    }

    /// Receives a write's payload to its end and shows it to `visit`, whole or in pieces.
    fn receive_payload(
        &mut self,
        request: &Request,
        mut visit: impl FnMut(u64, &[u8]),
    ) -> Result<(), Fault> {
        let mut offset = request.offset;
        let mut left = request.length as usize;
        while left > 0 {
            let wanted = left.min(CAPACITY);
            while self.input.received().len() < wanted {
                if self.receive()? == 0 {
                    return Err(cut_short());
                }
            }
            // All but the last piece end on a page, so that no page is written in two parts.
            let within = (offset % PAGE_SIZE as u64) as usize;
            let piece = match wanted {
                whole if whole == left => whole,
                part => part - (within + part) % PAGE_SIZE,
            };
            visit(offset, &self.input.received()[..piece]);
            self.input.consume(piece);
            offset = offset.saturating_add(piece as u64);
            left -= piece;
        }
        self.replies.make_room(HEADERS, self.stream)?;
        Ok(())
    }

    /// Reads and drops: what a spilled page's own promotion makes of a read is all there is to
    /// gain, and there is no reply to hold the data.
    fn cache(&mut self, request: &Request) -> Result<DeviceResult<()>, Fault> {
        let mut offset = request.offset;
        let end = request.offset + u64::from(request.length);
        while offset < end {
            let piece = super::read::piece_at(offset, end);
            self.replies.make_room(piece + HEADERS, self.stream)?;
            let scratch = &mut self.replies.room()[..piece];
            if let Err(error) = self.export.device.read(offset, scratch) {
                return Ok(Err(error));
            }
            offset += piece as u64;
        }
        Ok(Ok(()))
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

fn cut_short() -> Fault {
    Fault::Connection(io::ErrorKind::UnexpectedEof.into())
}
