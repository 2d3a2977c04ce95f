//! A connection that outlives its server: what is served over it goes on when another process serves it.
//!
//! ```text
//!                           ┌─ READ, WRITE, FSYNC, FALLOCATE of `disk` ── BlockDevice
//! kernel ═ /dev/fuse ═ reader
//!             ▲             └─ all else ─▶ socket ─▶ fuser ── Frontend
//!             └───────── carried back ◀── socket ◀────┘
//! ```
//!
//! Whoever keeps the connection keeps it open; the kernel keeps what the dead server had taken and not answered,
//! and gives it to the next one again when that asks (`FUSE_NOTIFY_RESEND`, Linux 6.9). Each request may so be done
//! twice, which changes nothing: none here depends on what was before it.
//!
//! Invariants:
//! 1. Only the one descriptor that is kept is read: the kernel gives up what was taken through one that is closed.
//! 2. The kernel copies requests and replies from and to memory that is there. Where it has to wait for a page and
//!    the process is killed meanwhile, it gives the request up. So buffers are made once, written to, and locked.
//!
//! It is our own because fuser begins with an INIT, which a kept connection has behind it, and reads to buffers of
//! its own.

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use fuser::{Config, Errno};
use rustix::io::Errno as KernelErrno;
use zerocopy::{FromBytes, IntoBytes};

use super::disk::Disk;
use super::filesystem::Frontend;
use super::node::Node;
use super::wire::{AllocateIn, InHeader, NOTIFY_RESEND, OutHeader, TransferIn, WriteOut, opcode};
use super::{MAX_REQUEST_BYTES, inner};
use crate::memory::{LazyTable, resident_buffer};

/// Bytes of the longest request or reply.
const MESSAGE_BYTES: usize = MAX_REQUEST_BYTES as usize + 4096;

/// The threads that serve a connection.
pub(super) struct Relay {
    readers: Vec<JoinHandle<io::Result<()>>>,
    rare: Arc<OwnedFd>,
    rare_threads: Vec<JoinHandle<()>>,
}

/// What a reader has.
struct Reader {
    connection: Arc<OwnedFd>,
    rare: Arc<OwnedFd>,
    disk: Arc<Disk>,
    request: LazyTable<u8>,
    reply: LazyTable<u8>,
}

impl Relay {
    /// Serves a connection with so many threads: a new one, or one that another process has `begun` to serve.
    ///
    /// # Errors
    /// The kernel's: EINVAL if it cannot give again what another process has taken, before Linux 6.9.
    pub(super) fn start(
        connection: OwnedFd,
        begun: bool,
        frontend: Frontend,
        config: Config,
        readers: usize,
    ) -> io::Result<Self> {
        let (connection, disk) = (Arc::new(connection), frontend.disk());
        let (rare, serving) = inner::start(frontend, config)?;
        if begun {
            inner::begin(&rare)?;
            resend(&connection)?;
        }
        let rare = Arc::new(rare);
        let (socket, device) = (Arc::clone(&rare), Arc::clone(&connection));
        let carrying = thread::Builder::new()
            .name("uzram-replies".to_owned())
            .spawn(move || carry_back(&socket, &device))?;
        let mut relay = Self {
            readers: Vec::with_capacity(readers),
            rare,
            rare_threads: vec![serving, carrying],
        };
        for index in 0..readers {
            let reader = Reader {
                connection: Arc::clone(&connection),
                rare: Arc::clone(&relay.rare),
                disk: Arc::clone(&disk),
                request: resident_buffer(MESSAGE_BYTES),
                reply: resident_buffer(MESSAGE_BYTES),
            };
            let thread = thread::Builder::new()
                .name(format!("uzram-fuse-{index}"))
                .spawn(move || reader.serve())?;
            relay.readers.push(thread);
        }
        Ok(relay)
    }

    /// Waits for the end of the connection; returns how it ended.
    pub(super) fn join(self) -> io::Result<()> {
        let mut ended = Ok(());
        for reader in self.readers {
            let panicked = |_| Err(io::Error::other("a serving thread panicked"));
            ended = ended.and(reader.join().unwrap_or_else(panicked));
        }
        inner::end(&self.rare);
        for thread in self.rare_threads {
            // A panic was reported where it happened.
            let _ = thread.join();
        }
        ended
    }
}

/// Has the kernel give again what another process has taken and not answered.
fn resend(connection: &OwnedFd) -> io::Result<()> {
    let notice = OutHeader {
        len: size_of::<OutHeader>() as u32,
        error: NOTIFY_RESEND,
        unique: 0,
    };
    rustix::io::write(connection, notice.as_bytes())?;
    Ok(())
}

/// Brings fuser's replies to the kernel until the session ends.
fn carry_back(rare: &OwnedFd, connection: &OwnedFd) {
    let mut message = resident_buffer::<u8>(MESSAGE_BYTES);
    loop {
        match rustix::io::read(rare, &mut message[..]) {
            Ok(0) => return,
            Ok(len) => reply(connection, &message[..len]),
            Err(KernelErrno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// Answers a request.
fn reply(connection: &OwnedFd, message: &[u8]) {
    match rustix::io::write(connection, message) {
        // Nobody waits for it any more: it was interrupted, or the connection has ended.
        Ok(_) | Err(KernelErrno::NOENT | KernelErrno::NODEV) => {}
        Err(error) => tracing::debug!("a request was not answered: {error}"),
    }
}

impl Reader {
    /// Serves requests until the connection ends.
    fn serve(mut self) -> io::Result<()> {
        loop {
            match rustix::io::read(&self.connection, &mut self.request[..]) {
                Ok(0) | Err(KernelErrno::NODEV) => return Ok(()),
                Ok(len) => self.handle(len),
                // The request was withdrawn, or we were interrupted.
                Err(KernelErrno::NOENT | KernelErrno::INTR | KernelErrno::AGAIN) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Handles a request of so many bytes.
    fn handle(&mut self, len: usize) {
        let Ok((request, _)) = InHeader::read_from_prefix(&self.request[..len]) else {
            return;
        };
        // A thread that is gone would leave its requests without an answer.
        let answered = catch_unwind(AssertUnwindSafe(|| self.answer(&request, len)));
        if let Some(answer) = answered.unwrap_or(Some(Err(Errno::EIO))) {
            self.reply(request.unique, answer);
        } else if len > inner::MOST_BYTES {
            self.reply(request.unique, Err(Errno::EINVAL));
        } else if rustix::io::write(&self.rare, &self.request[..len]).is_err() {
            self.reply(request.unique, Err(Errno::EIO));
        }
    }

    /// Does a request on the data of `disk`; returns the bytes of its answer. `None` for any other.
    fn answer(&mut self, request: &InHeader, len: usize) -> Option<Result<usize, Errno>> {
        if request.nodeid != Node::Disk.ino().0 {
            return None;
        }
        let body = &self.request[size_of::<InHeader>()..len];
        let payload = &mut self.reply[size_of::<OutHeader>()..];
        let disk = &self.disk;
        Some(match request.opcode {
            opcode::READ => body_of::<TransferIn>(body)
                .and_then(|(read, _)| disk.read(read.offset, read.size, payload)),
            opcode::WRITE => body_of::<TransferIn>(body).and_then(|(write, data)| {
                let data = data.get(..write.size as usize).ok_or(Errno::EINVAL)?;
                let size = disk.write(write.offset, data, write.flags)?;
                let out = WriteOut { size, padding: 0 };
                payload[..size_of::<WriteOut>()].copy_from_slice(out.as_bytes());
                Ok(size_of::<WriteOut>())
            }),
            opcode::FSYNC => disk.flush().map(|()| 0),
            opcode::FALLOCATE => body_of::<AllocateIn>(body).and_then(|(allocate, _)| {
                let AllocateIn {
                    offset, len, mode, ..
                } = allocate;
                disk.allocate(offset, len, mode.cast_signed()).map(|()| 0)
            }),
            _ => return None,
        })
    }

    fn reply(&mut self, unique: u64, answer: Result<usize, Errno>) {
        let (error, len) = match answer {
            Ok(len) => (0, len),
            Err(errno) => (-errno.code(), 0),
        };
        let len = size_of::<OutHeader>() + len;
        let header = OutHeader {
            len: len as u32,
            error,
            unique,
        };
        self.reply[..size_of::<OutHeader>()].copy_from_slice(header.as_bytes());
        reply(&self.connection, &self.reply[..len]);
    }
}

/// What a request begins with, and what follows.
fn body_of<T: FromBytes>(body: &[u8]) -> Result<(T, &[u8]), Errno> {
    T::read_from_prefix(body).map_err(|_| Errno::EINVAL)
}
