//! TLS, as STARTTLS brings it into a connection: certificates from a directory, and the stream
//! that speaks it over a socket.
//!
//! The directory has the layout that the other NBD servers and clients use: `server-cert.pem` and
//! `server-key.pem`, and to check clients' certificates `ca-cert.pem` and, if there is one,
//! `ca-crl.pem`. Versions 1.2 and 1.3, without session resumption: nothing of one connection
//! outlives it.
//!
//! A file that is there and of no use stops the start: nobody is let in because a file that should keep them out
//! cannot be read. A file that changes later is read again before the next handshake; if it is of no use by then,
//! all stays as it was. One lock, on what is in force; it is not held while files are read.

mod clients;
mod der;
mod files;
mod own;
mod private_key;
mod revocation;
mod stream;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;

use crate::error::{Error, Result};

use super::socket::Socket;
use super::tls_config::{KEY, TlsConfig};

pub(super) use stream::TlsStream;

const CERTIFICATE: &str = "server-cert.pem";

/// Certificates and key, read and checked, and again when one of the files has changed.
pub(super) struct Tls {
    settings: TlsConfig,
    current: Mutex<Current>,
    pub(super) required: bool,
}

struct Current {
    config: Arc<ServerConfig>,
    /// The files as they were before they were last read, of use or not.
    seen: Versions,
}

impl Tls {
    /// Reads what `settings` names.
    ///
    /// # Errors
    /// [`Error::Io`] for a file that cannot be read; [`Error::Unusable`] for one that is not PEM or does not
    /// fit the others.
    pub(super) fn load(settings: &TlsConfig) -> Result<Self> {
        let seen = Versions::of(&settings.certificates);
        let config = read(settings)?;
        Ok(Self {
            settings: settings.clone(),
            current: Mutex::new(Current { config, seen }),
            required: settings.required,
        })
    }

    /// Takes a socket over from the byte on which the client begins its handshake.
    ///
    /// # Errors
    /// Of kind [`io::ErrorKind::InvalidData`] if the two sides do not come to terms; those of the socket.
    pub(super) fn accept(&self, socket: Socket) -> io::Result<TlsStream> {
        TlsStream::accept(&self.current(), socket)
    }

    /// What is in force. Files that have changed and are of no use leave what was before: whom it keeps out, it
    /// goes on keeping out.
    fn current(&self) -> Arc<ServerConfig> {
        let seen = Versions::of(&self.settings.certificates);
        let mut current = self.current.lock();
        if current.seen == seen {
            return Arc::clone(&current.config);
        }
        // Others use what was before, and do not wait for files.
        current.seen = seen.clone();
        drop(current);
        let read = read(&self.settings);
        let mut current = self.current.lock();
        let shown = self.settings.certificates.display();
        match read {
            // Another may have seen a later change, and read that.
            Ok(config) if current.seen == seen => {
                tracing::info!("read {shown} again: its files have changed");
                current.config = config;
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(
                    "{error}; the certificates, key and list that were read before stay in force"
                );
                // What the machine could not do now it may do for the next client.
                if let Error::Io { .. } = error {
                    current.seen = Versions::default();
                }
            }
        }
        Arc::clone(&current.config)
    }
}

/// The files of a directory of certificates, as far as it tells whether one has changed; none where there is none.
#[derive(Clone, Default, PartialEq, Eq)]
struct Versions([Option<Version>; 4]);

/// Which file it is, its length, and when it and its entry were changed, in seconds and nanoseconds.
#[derive(Clone, PartialEq, Eq)]
struct Version {
    file: (u64, u64),
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Versions {
    const FILES: [&str; 4] = [CERTIFICATE, KEY, clients::AUTHORITIES, clients::LISTS];

    fn of(directory: &Path) -> Self {
        Self(Self::FILES.map(|name| {
            let file = fs::metadata(directory.join(name)).ok()?;
            Some(Version {
                file: (file.dev(), file.ino()),
                len: file.len(),
                modified: (file.mtime(), file.mtime_nsec()),
                changed: (file.ctime(), file.ctime_nsec()),
            })
        }))
    }
}

fn read(settings: &TlsConfig) -> Result<Arc<ServerConfig>> {
    let provider = Arc::new(default_provider());
    let directory = &settings.certificates;
    let certified = own::read(&directory.join(CERTIFICATE), &directory.join(KEY))?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::io("set up TLS", io::Error::other(error)))?;
    let builder = if settings.verify_peer {
        builder.with_client_cert_verifier(clients::verifier(directory, &provider)?)
    } else {
        builder.with_no_client_auth()
    };
    let own = Arc::new(SingleCertAndKey::from(certified));
    let mut server = builder.with_cert_resolver(own);
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok(Arc::new(server))
}
