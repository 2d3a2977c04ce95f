//! A session of fuser's that takes one end of a pair of sockets for `/dev/fuse`: the way to what fuser alone can
//! answer, for whoever has the kernel's requests.
//!
//! A message is a request or a reply as it is on `/dev/fuse`, whole.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::thread::{self, JoinHandle};

use fuser::{Config, Session, SessionACL};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use zerocopy::IntoBytes;

use super::filesystem::Frontend;
use super::wire::{InHeader, InitIn, opcode};

/// The longest message to fuser, bytes; below what a socket takes in one piece. What is longer can only be nonsense
/// written to an attribute.
pub(super) const MOST_BYTES: usize = 128 << 10;

/// Threads that answer: an attribute that takes its time must leave others to be read.
const THREADS: usize = 2;

/// The protocol that fuser is told the kernel speaks, where it does not hear it from the kernel.
const VERSION: (u32, u32) = (7, 40);

/// Starts a session, which waits for its INIT; returns our end, and the thread that serves it.
pub(super) fn start(
    frontend: Frontend,
    mut config: Config,
) -> io::Result<(OwnedFd, JoinHandle<()>)> {
    let (near, far) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    config.n_threads = Some(THREADS);
    config.clone_fd = false;
    let serving = thread::Builder::new()
        .name("uzram-rare".to_owned())
        // It begins the session, too: in its own heap the buffer for that costs nothing.
        .spawn(move || {
            let session = Session::from_fd(frontend, far, SessionACL::Owner, config);
            if let Err(error) = session.and_then(Session::run) {
                tracing::warn!("serving what is rare ended: {error}");
            }
        })?;
    Ok((near, serving))
}

/// Begins a session in the kernel's stead.
///
/// # Errors
/// The socket's, or that the session did not begin.
pub(super) fn begin(socket: &OwnedFd) -> io::Result<()> {
    let init = InitIn {
        major: VERSION.0,
        minor: VERSION.1,
        max_readahead: 0,
        flags: [0; 2],
        unused: [0; 11],
    };
    send(socket, opcode::INIT, init.as_bytes())?;
    // Its answer, to nobody; or its end.
    match rustix::io::read(socket, &mut [0; 256])? {
        0 => Err(io::Error::other("fuser did not begin a session")),
        _ => Ok(()),
    }
}

/// Ends a session once it has answered what it has.
pub(super) fn end(socket: &OwnedFd) {
    for _ in 0..THREADS {
        // A thread that is gone needs no telling.
        let _ = send(socket, opcode::DESTROY, &[]);
    }
}

/// Sends a request of our own.
fn send(socket: &OwnedFd, opcode: u32, body: &[u8]) -> io::Result<()> {
    let request = InHeader {
        len: (size_of::<InHeader>() + body.len()) as u32,
        opcode,
        ..InHeader::default()
    };
    let parts = [IoSlice::new(request.as_bytes()), IoSlice::new(body)];
    rustix::io::writev(socket, &parts)?;
    Ok(())
}
