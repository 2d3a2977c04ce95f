//! What a server is told of TLS.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub(super) const KEY: &str = "server-key.pem";

/// What a server offers by way of TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsConfig {
    /// The directory of the certificates.
    pub certificates: PathBuf,
    /// Whether clients without TLS are turned away.
    pub required: bool,
    /// Whether a client must show a certificate that `ca-cert.pem` vouches for.
    pub verify_peer: bool,
}

impl TlsConfig {
    /// The server's private key, if its mode lets every user of this machine read it.
    pub fn exposed_key(&self) -> Option<PathBuf> {
        let key = self.certificates.join(KEY);
        let mode = fs::metadata(&key).ok()?.mode();
        (mode & 0o004 != 0).then_some(key)
    }
}
