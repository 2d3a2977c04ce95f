//! Why a connection ends otherwise than by the client's leave.

use std::io;

use crate::error::Error;

/// What ended a connection. None of it concerns another connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// The client broke a rule of the protocol in a way that leaves no next message to read.
    #[error("the client broke the protocol: {0}")]
    Protocol(&'static str),

    /// The two sides cannot agree on TLS, or one does not trust the other's certificate.
    #[error("the TLS handshake failed: {0}")]
    Tls(io::Error),

    /// The connection failed, or the client left in the middle of a message or was too slow.
    #[error(transparent)]
    Connection(#[from] io::Error),

    /// A read failed when part of its simple reply was sent: only hanging up can tell the client.
    #[error("a read failed after its reply had begun: {0}")]
    Device(Error),
}
