//! The way to fuser for what it alone can answer: a session of its own, which takes one end of a
//! pair of sockets for `/dev/fuse`.
//!
//! ```text
//! request ──carry──▶ socket ══▶ fuser's threads ── Frontend
//!    ▲                                   │
//!    └── slot ◀──carry_back── socket ◀═══┘
//! ```
//!
//! One lock, on the requests that are with fuser; never held while anything is sent.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use fuser::{Config, Errno, Session, SessionACL};
use parking_lot::Mutex;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use zerocopy::{FromBytes, IntoBytes};

use super::offload::Offloaded;
use super::ring::PAYLOAD_BYTES;
use super::wire::{InHeader, InitIn, OutHeader, opcode};
use crate::fuse::filesystem::Frontend;

/// The longest request that is carried, bytes; below what a socket takes in one piece. What is
/// longer can only be nonsense written to an attribute.
const MOST_BYTES: usize = 128 << 10;

/// Threads that answer: an attribute that takes its time must leave others to be read.
const THREADS: usize = 2;

/// The protocol that fuser is told the kernel speaks.
const VERSION: (u32, u32) = (7, 40);

/// The session's end of things.
pub(super) struct Bridge {
    socket: OwnedFd,
    /// By the kernel's number for the request.
    under_way: Mutex<HashMap<u64, Offloaded>>,
}

impl Bridge {
    /// Starts the session, and the threads that it is served by.
    pub(super) fn start(
        frontend: Frontend,
        mut config: Config,
    ) -> io::Result<(Arc<Self>, Vec<JoinHandle<()>>)> {
        let (near, far) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let bridge = Arc::new(Self {
            socket: near,
            under_way: Mutex::default(),
        });
        let init = InitIn {
            major: VERSION.0,
            minor: VERSION.1,
            max_readahead: 0,
            flags: [0; 2],
            unused: [0; 11],
        };
        bridge.send(opcode::INIT, init.as_bytes())?;
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
        // Its answer, to nobody; or its end.
        if rustix::io::read(&bridge.socket, &mut [0; 256])? == 0 {
            return Err(io::Error::other("fuser did not begin a session"));
        }
        let answers = Arc::clone(&bridge);
        let answering = thread::Builder::new()
            .name("uzram-replies".to_owned())
            .spawn(move || answers.carry_back())?;
        Ok((bridge, vec![serving, answering]))
    }

    /// Ends the session once it has answered what it has.
    pub(super) fn close(&self) {
        for _ in 0..THREADS {
            // A thread that is gone needs no telling.
            let _ = self.send(opcode::DESTROY, &[]);
        }
    }

    /// Sends a request of our own.
    fn send(&self, opcode: u32, body: &[u8]) -> io::Result<()> {
        let request = InHeader {
            len: (size_of::<InHeader>() + body.len()) as u32,
            opcode,
            ..InHeader::default()
        };
        let parts = [IoSlice::new(request.as_bytes()), IoSlice::new(body)];
        rustix::io::writev(&self.socket, &parts)?;
        Ok(())
    }

    /// Has fuser answer the request; the slot goes back by itself.
    pub(super) fn carry(&self, offloaded: Offloaded) {
        let request = offloaded.slot.request();
        let message = message(&offloaded);
        self.under_way.lock().insert(request.unique, offloaded);
        let sent = match message {
            Some(message) => rustix::io::write(&self.socket, &message).is_ok(),
            None => false,
        };
        if !sent && let Some(mut offloaded) = self.under_way.lock().remove(&request.unique) {
            offloaded.slot.complete(Err(Errno::EINVAL));
            offloaded.finish();
        }
    }

    /// Brings answers to their slots until the session ends.
    fn carry_back(&self) {
        let mut message = vec![0; size_of::<OutHeader>() + PAYLOAD_BYTES];
        loop {
            let len = match rustix::io::read(&self.socket, &mut message) {
                Err(rustix::io::Errno::INTR) => continue,
                Ok(len) => len,
                Err(_) => return,
            };
            let Ok((reply, payload)) = OutHeader::read_from_prefix(&message[..len]) else {
                return;
            };
            let Some(mut offloaded) = self.under_way.lock().remove(&reply.unique) else {
                continue;
            };
            offloaded.slot.payload_mut()[..payload.len()].copy_from_slice(payload);
            offloaded.slot.complete(match reply.error {
                0 => Ok(payload.len()),
                error => Err(Errno::from_i32(-error)),
            });
            offloaded.finish();
        }
    }
}

/// The request as it would have come through `/dev/fuse`, unless it is too long.
fn message(offloaded: &Offloaded) -> Option<Vec<u8>> {
    let slot = &offloaded.slot;
    let (mut request, payload) = (slot.request(), slot.received());
    // The kernel counts a body that it does not send.
    let parts_len = size_of::<InHeader>() + payload.len();
    let body_len = (request.len as usize).checked_sub(parts_len)?;
    let body = slot.header().body.get(..body_len)?;
    request.len = (parts_len + body_len) as u32;
    let message = [request.as_bytes(), body, payload].concat();
    (message.len() <= MOST_BYTES).then_some(message)
}
