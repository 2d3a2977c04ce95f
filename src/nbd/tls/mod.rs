//! TLS, as STARTTLS brings it into a connection: certificates from a directory, and the stream
//! that speaks it over a socket.
//!
//! The directory has the layout that the other NBD servers and clients use: `server-cert.pem` and
//! `server-key.pem`, and to check clients' certificates `ca-cert.pem` and, if there is one,
//! `ca-crl.pem`. Versions 1.2 and 1.3, without session resumption: nothing of one connection
//! outlives it. A file that is there and of no use stops the start: nobody is let in because a file
//! that should keep them out cannot be read. Nothing locks.

mod clients;
mod files;
mod revocation;
mod stream;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;

use crate::error::{Error, Result};

use super::private_key::PrivateKey;
use super::socket::Socket;
use files::{read_file, read_items, unusable};

pub(super) use stream::TlsStream;

/// What a server offers by way of TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
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
        let key = self.key();
        let mode = fs::metadata(&key).ok()?.mode();
        (mode & 0o004 != 0).then_some(key)
    }

    fn key(&self) -> PathBuf {
        self.certificates.join("server-key.pem")
    }
}

/// Certificates and key, read and checked.
pub(super) struct Tls {
    config: Arc<ServerConfig>,
    pub(super) required: bool,
}

impl Tls {
    /// Reads what `config` names.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be read; [`Error::Unusable`] for one that is not PEM or does not
    /// fit the others.
    pub(super) fn load(config: &TlsConfig) -> Result<Self> {
        let certificate = config.certificates.join("server-cert.pem");
        let chain: Vec<CertificateDer<'static>> = read_items(&certificate, "certificate")?;
        let key_path = config.key();
        let key = PrivateKey::from_pem(read_file(&key_path)?)
            .map_err(|reason| unusable(&key_path, reason))?;

        let provider = Arc::new(default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::io("set up TLS", io::Error::other(error)))?;
        let builder = if config.verify_peer {
            builder.with_client_cert_verifier(clients::verifier(&config.certificates, &provider)?)
        } else {
            builder.with_no_client_auth()
        };
        let certified = key.certify(chain).map_err(|error| {
            unusable(
                &certificate,
                format!("it cannot be used with server-key.pem: {error}"),
            )
        })?;
        let mut server = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self {
            config: Arc::new(server),
            required: config.required,
        })
    }

    /// Takes a socket over from the byte on which the client begins its handshake.
    ///
    /// # Errors
    /// Of kind [`io::ErrorKind::InvalidData`] if the two sides do not come to terms; those of the socket.
    pub(super) fn accept(&self, socket: Socket) -> io::Result<TlsStream> {
        TlsStream::accept(&self.config, socket)
    }
}
