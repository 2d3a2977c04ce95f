//! An NBD server: a [`BlockDevice`](crate::BlockDevice) over Unix sockets and TCP.
//!
//! ```text
//!  listen ── server ──┬─ socket ── negotiation ── transmission ──┬─ input      requests
//!           accepts   │  a thread for each connection            ├─ validate   once
//!        connections ─┘     └─ busy_poll                         ├─ read, block_status
//!       places, limits           how to wait                      ├─ worker_pool
//!                                                                ├─ flushes    who waits for one
//!                                                                └─ reply      replies
//! ```
//!
//! ```
#![doc = include_str!("../../examples/serve_nbd.rs")]
//! ```
//!
//! The protocol is fixed newstyle as the specification has it (NetworkBlockDevice/nbd,
//! `doc/proto.md`): EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED_REPLY,
//! LIST_META_CONTEXT and SET_META_CONTEXT; READ, WRITE, DISC, FLUSH, TRIM, CACHE, WRITE_ZEROES and BLOCK_STATUS, with
//! FUA, NO_HOLE, FAST_ZERO, DF and REQ_ONE. The metadata contexts are `base:allocation` and
//! `uzram:state`. The minimum block is 1 byte, the preferred one 4096; clients are
//! told to send payloads of at most 32 MiB, and up to 64 MiB are served, in pieces.
//!
//! What a client can make the server hold: a thread, at most 64 KiB during the handshake, and then
//! two buffers of 132 KiB and 64 KiB of requests that wait for a flush, with TLS another 400 KiB.
//! All clients together: 32 buffers of 132 KiB for what workers do, and 8 of 1284 KiB for reads that
//! cannot be sent in pieces, which a client has only until its replies are sent.

mod address;
mod block_status;
mod busy_poll;
mod connections;
mod error;
mod execute;
mod export;
mod flushes;
mod input;
mod listen;
mod negotiation;
#[cfg(not(feature = "tls"))]
mod no_tls;
mod peer;
mod piece;
mod read;
mod reply;
mod server;
mod session;
mod socket;
#[cfg(feature = "tls")]
mod tls;
mod tls_config;
mod transmission;
mod validate;
mod wire;
mod worker_pool;

use std::io::{Read, Write};
use std::sync::atomic::AtomicBool;

use negotiation::{Handshake, Outcome, Security};
#[cfg(not(feature = "tls"))]
use no_tls as tls;
use socket::Bare;
use transmission::Service;

pub use address::Address;
pub use error::ConnectionError;
pub use export::Export;
pub use listen::InheritedSocket;
pub use server::{Server, ServerConfig};
pub use tls_config::TlsConfig;

/// Serves one client over any stream, from the greeting to the disconnect, on this thread, without
/// TLS.
///
/// [`Server`] does this for each connection it accepts, with a bound on the time and a way to
/// stop. Here both are the stream's own business.
///
/// # Errors
/// Whatever ended the connection, but for the client's leave.
pub fn serve_stream<S: Read + Write>(
    stream: &mut S,
    export: &Export,
) -> Result<(), ConnectionError> {
    let client = negotiation::greet(stream)?;
    let handshake = Handshake {
        export,
        client,
        security: Security::Unavailable,
        stopping: &AtomicBool::new(false),
    };
    match handshake.run(stream)? {
        Outcome::Transmit(agreement) => {
            Service::without_workers(export).transmit(&mut Bare(stream), agreement)
        }
        Outcome::StartTls | Outcome::GiveUp => Ok(()),
    }
}
