//! What a server is told of TLS.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(super) const KEY: &str = "server-key.pem";

/// What a server offers by way of TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TlsConfig {
    /// The directory of the certificates.
    pub certificates: PathBuf,
    /// Whether clients without TLS are turned away.
    pub required: bool,
    /// Whether a client must show a certificate that `ca-cert.pem` vouches for.
    pub verify_peer: bool,
}

impl TlsConfig {
    /// TLS with the certificates of a directory, that clients may do without, and need no certificate for.
    pub fn new(certificates: impl Into<PathBuf>) -> Self {
        Self {
            certificates: certificates.into(),
            required: false,
            verify_peer: false,
        }
    }

    /// Sets whether clients without TLS are turned away.
    #[must_use]
    pub fn required(mut self, required: bool) -> Self {
        self.required = required;
        self
    }

    /// Sets whether a client must show a certificate that `ca-cert.pem` vouches for.
    #[must_use]
    pub fn verify_peer(mut self, verify_peer: bool) -> Self {
        self.verify_peer = verify_peer;
        self
    }

    /// The server's private key, if its mode lets every user of this machine read it.
    pub fn exposed_key(&self) -> Option<PathBuf> {
        let key = self.certificates.join(KEY);
        let mode = fs::metadata(&key).ok()?.mode();
        (mode & 0o004 != 0).then_some(key)
    }
}
