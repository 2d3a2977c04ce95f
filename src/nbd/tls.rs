//! TLS, as STARTTLS brings it into a connection: certificates from a directory, and the stream
//! that speaks it over a socket.
//!
//! The directory has the layout that the other NBD servers and clients use: `server-cert.pem` and
//! `server-key.pem`, and to check clients' certificates `ca-cert.pem` and, if there is one,
//! `ca-crl.pem`. Versions 1.2 and 1.3, without session resumption: nothing of one connection
//! outlives it. Nothing locks.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{RootCertStore, ServerConnection};

use crate::error::{Error, Result};

use super::fault::Fault;
use super::private_key::PrivateKey;
use super::socket::{Socket, Stream};

/// Bytes received at once: a good many records, each at most 16 KiB of data.
const RECEIVE: usize = 128 << 10;
/// Most encrypted bytes that wait to be sent.
const SEND: usize = 256 << 10;

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

/// Certificates and key, read and checked.
pub(super) struct Tls {
    config: Arc<rustls::ServerConfig>,
    pub(super) required: bool,
}

impl Tls {
    /// Reads what `config` names.
    ///
    /// # Errors
    /// [`Error::Unusable`] for a file that is missing, is not PEM or does not fit the others.
    pub(super) fn load(config: &TlsConfig) -> Result<Self> {
        let certificate = config.certificates.join("server-cert.pem");
        let key_path = config.certificates.join("server-key.pem");
        let chain: Vec<CertificateDer<'static>> = read_all(&certificate)?;
        if chain.is_empty() {
            return Err(unusable(&certificate, "there is no certificate in it"));
        }
        let text = fs::read(&key_path).map_err(|error| unusable(&key_path, &error.to_string()))?;
        let key = PrivateKey::from_pem(text).map_err(|reason| unusable(&key_path, &reason))?;

        let provider = Arc::new(default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::io("set up TLS", io::Error::other(error)))?;
        let builder = if config.verify_peer {
            builder.with_client_cert_verifier(client_verifier(&config.certificates, provider)?)
        } else {
            builder.with_no_client_auth()
        };
        let certified = key
            .certify(chain)
            .map_err(|error| unusable(&certificate, &with_key(&error)))?;
        let mut server = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        Ok(Self {
            config: Arc::new(server),
            required: config.required,
        })
    }

    /// Takes a socket over from the byte on which the client begins its handshake.
    pub(super) fn accept(&self, socket: Socket) -> Result<TlsStream, Fault> {
        let mut connection = ServerConnection::new(Arc::clone(&self.config))
            .map_err(|error| Fault::Tls(io::Error::other(error)))?;
        connection.set_buffer_limit(Some(SEND));
        let mut stream = TlsStream {
            connection,
            socket: BufReader::with_capacity(RECEIVE, socket),
        };
        match stream.shake_hands() {
            Ok(()) => Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(Fault::Tls(error)),
            Err(error) => Err(Fault::Connection(error)),
        }
    }
}

/// Checks clients' certificates against `ca-cert.pem`, and against `ca-crl.pem` if it is there.
fn client_verifier(
    directory: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>> {
    let path = directory.join("ca-cert.pem");
    let mut roots = RootCertStore::empty();
    for certificate in read_all::<CertificateDer<'static>>(&path)? {
        roots
            .add(certificate)
            .map_err(|error| unusable(&path, &error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(unusable(&path, "there is no certificate in it"));
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let revoked = directory.join("ca-crl.pem");
    if revoked.exists() {
        let lists = read_all::<CertificateRevocationListDer<'static>>(&revoked)?;
        builder = builder
            .with_crls(lists)
            .only_check_end_entity_revocation()
            .allow_unknown_revocation_status();
    }
    builder
        .build()
        .map_err(|error| unusable(&path, &error.to_string()))
}

fn read_all<T: PemObject>(path: &Path) -> Result<Vec<T>> {
    let nothing = "there is nothing of use in it";
    T::pem_file_iter(path)
        .map_err(|error| unreadable(path, error, nothing))?
        .collect::<std::result::Result<_, _>>()
        .map_err(|error| unreadable(path, error, nothing))
}

/// A file that the kernel or PEM's rules refuse; `nothing` is said of one without the item sought.
fn unreadable(path: &Path, error: pem::Error, nothing: &str) -> Error {
    match error {
        pem::Error::Io(error) => unusable(path, &error.to_string()),
        pem::Error::NoItemsFound => unusable(path, nothing),
        error => unusable(path, &format!("it is not valid PEM: {error}")),
    }
}

fn with_key(error: &rustls::Error) -> String {
    format!("it cannot be used with server-key.pem: {error}")
}

fn unusable(path: &Path, reason: &str) -> Error {
    Error::Unusable {
        path: path.to_owned(),
        reason: reason.to_owned(),
    }
}

/// A socket with TLS on it.
///
/// Sending and receiving never interleave: what is written is sent whole before `write` returns.
pub(super) struct TlsStream {
    connection: ServerConnection,
    socket: BufReader<Socket>,
}

impl TlsStream {
    /// The socket beneath, for its deadline.
    pub(super) fn socket_mut(&mut self) -> &mut Socket {
        self.socket.get_mut()
    }

    /// Tells the client that nothing will follow.
    pub(super) fn close(&mut self) -> io::Result<()> {
        self.connection.send_close_notify();
        self.send()
    }

    fn shake_hands(&mut self) -> io::Result<()> {
        while self.connection.is_handshaking() {
            self.send()?;
            self.receive()?;
        }
        self.send()
    }

    /// Receives and decrypts what has come, or waits for it.
    fn receive(&mut self) -> io::Result<()> {
        if self.connection.read_tls(&mut self.socket)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Err(error) = self.connection.process_new_packets() {
            // The client is told what it did wrong, if it still listens.
            drop(self.send());
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        Ok(())
    }

    fn send(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(self.socket.get_mut())?;
        }
        Ok(())
    }
}

impl Stream for TlsStream {
    fn wait_readable(&mut self, other: BorrowedFd<'_>) -> io::Result<bool> {
        // An end or a failure is not worth waiting for either.
        let decrypted = !matches!(
            self.connection.reader().fill_buf(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock
        );
        if decrypted || !self.socket.buffer().is_empty() {
            return Ok(true);
        }
        self.socket_mut().wait_readable(other)
    }
}

impl Read for TlsStream {
    /// At least one byte, and all else that has been received; 0 once the client has taken its
    /// leave. An end without leave is an error: it may have been cut.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.connection.reader().read(&mut buf[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Err(_) if filled > 0 && self.socket.buffer().is_empty() => break,
                Err(_) => self.receive()?,
            }
        }
        Ok(filled)
    }
}

impl Write for TlsStream {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let count = self.connection.writer().write(buf)?;
        self.send()?;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send()
    }
}
