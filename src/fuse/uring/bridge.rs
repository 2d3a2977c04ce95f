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
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use fuser::{Config, Errno};
use parking_lot::Mutex;
use zerocopy::{FromBytes, IntoBytes};

use super::offload::Offloaded;
use super::ring::PAYLOAD_BYTES;
use crate::fuse::filesystem::Frontend;
use crate::fuse::inner;
use crate::fuse::wire::{InHeader, OutHeader};

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
        config: Config,
    ) -> io::Result<(Arc<Self>, Vec<JoinHandle<()>>)> {
        let (socket, serving) = inner::start(frontend, config)?;
        inner::begin(&socket)?;
        let bridge = Arc::new(Self {
            socket,
            under_way: Mutex::default(),
        });
        let answers = Arc::clone(&bridge);
        let answering = thread::Builder::new()
            .name("uzram-replies".to_owned())
            .spawn(move || answers.carry_back())?;
        Ok((bridge, vec![serving, answering]))
    }

    /// Ends the session once it has answered what it has.
    pub(super) fn close(&self) {
        inner::end(&self.socket);
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
    (message.len() <= inner::MOST_BYTES).then_some(message)
}
