//! The server: one thread that accepts, and one for each connection.
//!
//! A slow, silent or dead client blocks its own thread and nothing else. [`Connections`] has the
//! only lock; it is not held while anything is sent, received or executed.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{Shutdown, SocketFlags, accept_with};
use serde::{Deserialize, Serialize};

use crate::block_device::BlockDevice;
use crate::error::{Error, Result};
use crate::log_limit::LogLimit;

use super::address::Address;
use super::connections::{Connections, Place};
use super::error::ConnectionError;
use super::export::Export;
use super::listen::{InheritedSocket, Listener, tune_tcp};
use super::negotiation::{Agreement, Handshake, Outcome, Security, greet};
use super::peer::Peer;
use super::reply::Growth;
use super::socket::{Socket, Stream};
use super::tls::{Tls, TlsStream};
use super::tls_config::TlsConfig;
use super::transmission::Service;
use super::wire::MAX_STRING;
use super::worker_pool::WorkerPool;

/// How long accepting pauses when the machine has no descriptors or memory for it.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a dropped server lets its connections finish.
const DROP_GRACE: Duration = Duration::from_millis(250);
/// How long connections may take to end once both directions are shut down. Only a request that
/// the device has not finished can take this long.
const LAST_GRACE: Duration = Duration::from_secs(1);
/// What is read and dropped of a client that is hung up on, so that it can read why.
const HANG_UP_BYTES: usize = 1 << 20;
const HANG_UP_TIME: Duration = Duration::from_secs(1);

/// What to serve, where, and to how many.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ServerConfig {
    /// The export's name, at most 4096 bytes; the empty name is always the same export.
    pub export: String,
    /// Where to listen, at least one.
    pub addresses: Vec<Address>,
    /// Most connections at once, at least 1. Those beyond are closed as soon as they are
    /// accepted, unless a connection that is still in its handshake can give way.
    pub max_connections: usize,
    /// How long a client may take from connecting until transmission begins.
    pub handshake_timeout: Duration,
    /// Whether everything that writes is refused.
    pub read_only: bool,
    /// TLS, if clients may or must use it.
    pub tls: Option<TlsConfig>,
    /// Whether to listen without TLS, or with TLS that clients may do without, where other machines
    /// can connect.
    pub insecure: bool,
}

impl ServerConfig {
    /// A server of `export` on `addresses` with every other setting at its default.
    pub fn new(export: impl Into<String>, addresses: Vec<Address>) -> Self {
        Self {
            export: export.into(),
            addresses,
            max_connections: 100,
            handshake_timeout: Duration::from_secs(10),
            read_only: false,
            tls: None,
            insecure: false,
        }
    }

    /// Checks all that can be checked without listening; [`Server::start`] does so itself.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`].
    pub fn validate(&self) -> Result<()> {
        let reason = if self.export.len() > MAX_STRING {
            "an export's name is at most 4096 bytes long"
        } else if self.export.contains('\0') {
            "an export's name has no NUL characters"
        } else if self.addresses.is_empty() {
            "a server needs an address to listen on"
        } else if self.max_connections == 0 {
            "a server needs room for at least one connection"
        } else {
            return self.check_tls();
        };
        Err(Error::InvalidConfig {
            option: "addresses",
            reason: reason.to_owned(),
        })
    }

    /// Whoever can connect without TLS can read along and write; beyond this machine that must be
    /// meant. And a certificate is only asked of those who use TLS.
    fn check_tls(&self) -> Result<()> {
        let required = self.tls.as_ref().is_some_and(|tls| tls.required);
        let verify_peer = self.tls.as_ref().is_some_and(|tls| tls.verify_peer);
        if verify_peer && !required {
            return Err(Error::InvalidConfig {
                option: "tls_verify_peer",
                reason: "clients without TLS would get in without a certificate: use `TlsConfig::required`"
                    .to_owned(),
            });
        }
        if required || self.insecure {
            return Ok(());
        }
        match self.addresses.iter().find(|address| address.is_exposed()) {
            Some(address) => Err(Error::InvalidConfig {
                option: "addresses",
                reason: format!(
                    "{address} is open to other machines without TLS: set `ServerConfig::tls` and \
                     `TlsConfig::required`, or `ServerConfig::insecure` if that is meant"
                ),
            }),
            None => Ok(()),
        }
    }
}

/// A running server. Dropped, it stops with a short grace.
pub struct Server {
    addresses: Vec<Address>,
    shared: Arc<Shared>,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

/// What the threads share.
struct Shared {
    export: Export,
    tls: Option<Tls>,
    workers: Arc<WorkerPool>,
    growth: Growth,
    handshake_timeout: Duration,
    connections: Arc<Connections>,
    max_connections: usize,
    /// Clients that are turned away, those that cannot be accepted, and those that fail at TLS.
    refusals: LogLimit,
    failures: LogLimit,
    tls_failures: LogLimit,
    stopping: Arc<AtomicBool>,
    /// Readable once the server stops.
    stop: OwnedFd,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("export", &self.shared.export.name)
            .field("addresses", &self.addresses)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Listens on all of the addresses and serves `device` there until it is shut down.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`]; [`Error::Unusable`] if a Unix socket is in use or something
    /// else is in its place, or a certificate is missing or of no use; [`Error::Io`] if an address cannot be had.
    pub fn start(config: ServerConfig, device: Arc<dyn BlockDevice>) -> Result<Self> {
        Self::start_on(Vec::new(), config, device)
    }

    /// As [`Server::start`], on sockets that listen already as well; an address of theirs is not
    /// listened on again.
    ///
    /// # Errors
    /// Those of [`Server::start`].
    pub fn start_on(
        inherited: Vec<InheritedSocket>,
        mut config: ServerConfig,
        device: Arc<dyn BlockDevice>,
    ) -> Result<Self> {
        let mut listeners: Vec<_> = inherited
            .into_iter()
            .map(InheritedSocket::into_listener)
            .collect();
        let there: Vec<_> = listeners.iter().map(|l| l.address().clone()).collect();
        config.addresses.retain(|address| !there.contains(address));
        let missing = config.addresses.clone();
        config.addresses.extend(there);
        config.validate()?;
        let tls = config.tls.as_ref().map(Tls::load).transpose()?;
        for address in &missing {
            listeners.extend(Listener::bind(address)?);
        }
        let stop = eventfd(0, EventfdFlags::CLOEXEC)
            .map_err(|error| Error::io("make an event descriptor", error))?;
        let workers = WorkerPool::start(&device)?;
        let shared = Arc::new(Shared {
            export: Export {
                name: config.export,
                device,
                read_only: config.read_only,
            },
            tls,
            workers,
            growth: Growth::new(),
            handshake_timeout: config.handshake_timeout,
            connections: Connections::new(config.max_connections),
            max_connections: config.max_connections,
            refusals: LogLimit::of_states(),
            failures: LogLimit::of_states(),
            tls_failures: LogLimit::of_states(),
            stopping: Arc::new(AtomicBool::new(false)),
            stop,
        });
        let addresses = listeners.iter().map(|l| l.address().clone()).collect();
        let acceptor = thread::Builder::new()
            .name("nbd-accept".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.accept_until_stopped(&listeners)
            })
            .map_err(|error| {
                // They have the device.
                shared.workers.stop();
                Error::io("start a thread", error)
            })?;
        Ok(Self {
            addresses,
            shared,
            acceptor: Mutex::new(Some(acceptor)),
        })
    }

    /// Where the server listens, with the ports that were really bound.
    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Stops accepting, removes the Unix sockets, and answers what was already received; after
    /// `grace` at the latest every connection is cut. Returns within `grace` and about a second,
    /// whatever the clients do. To shut down twice is to do nothing.
    pub fn shutdown(&self, grace: Duration) {
        let Some(acceptor) = self.acceptor.lock().take() else {
            return;
        };
        self.shared.stopping.store(true, Ordering::Release);
        if let Err(error) = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes()) {
            tracing::error!("cannot wake the accepting thread: {error}");
        }
        if acceptor.join().is_err() {
            tracing::error!("the accepting thread panicked");
        }
        let connections = &self.shared.connections;
        connections.shut_down(Shutdown::Read);
        let mut none = connections.wait_for_none(grace);
        if !none {
            connections.shut_down(Shutdown::Both);
            none = connections.wait_for_none(LAST_GRACE);
        }
        if none {
            self.shared.workers.stop();
        } else {
            tracing::warn!("connections are left waiting for the device");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown(DROP_GRACE);
    }
}

impl Shared {
    fn accept_until_stopped(self: &Arc<Self>, listeners: &[Listener]) {
        let mut descriptors = vec![PollFd::new(&self.stop, PollFlags::IN)];
        descriptors.extend(listeners.iter().map(|l| PollFd::new(l, PollFlags::IN)));
        loop {
            match poll(&mut descriptors, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    self.warn_of(format_args!("cannot wait for connections: {error}"));
                    self.pause();
                }
            }
            if self.stopping.load(Ordering::Acquire) {
                return;
            }
            for (listener, descriptor) in listeners.iter().zip(&descriptors[1..]) {
                if !descriptor.revents().is_empty() {
                    self.accept_from(listener);
                }
            }
        }
    }

    fn accept_from(self: &Arc<Self>, listener: &Listener) {
        match accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(fd) => self.open(fd, listener.address()),
            // Gone again before it was accepted, or another wake-up.
            Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
            Err(error) => {
                let address = listener.address();
                self.warn_of(format_args!("cannot accept on {address}: {error}"));
                self.pause();
            }
        }
    }

    /// Logs what this machine lacks: that may last, and clients come all the time.
    fn warn_of(&self, text: fmt::Arguments<'_>) {
        if let Some(end) = self.failures.admit() {
            tracing::warn!("{text}{end}");
        }
    }

    /// Waits a little, or until the server stops.
    fn pause(&self) {
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: ACCEPT_PAUSE.subsec_nanos().into(),
        };
        let mut stop = [PollFd::new(&self.stop, PollFlags::IN)];
        if poll(&mut stop, Some(&timeout)).is_err() {
            thread::sleep(ACCEPT_PAUSE);
        }
    }

    fn open(self: &Arc<Self>, fd: OwnedFd, address: &Address) {
        let fd = Arc::new(fd);
        let Some(place) = self.connections.admit(&fd) else {
            if let Some(end) = self.refusals.admit() {
                tracing::warn!(
                    "turned away a client on {address}: {} are connected, and \
                     `ServerConfig::max_connections` allows no more{end}",
                    self.max_connections
                );
            }
            return;
        };
        if matches!(address, Address::Tcp { .. })
            && let Err(error) = tune_tcp(&*fd)
        {
            tracing::debug!("connection {}: socket option: {error}", place.id());
        }
        tracing::debug!("connection {} opened on {address}", place.id());
        let shared = Arc::clone(self);
        let spawned = thread::Builder::new()
            .name(format!("nbd-{}", place.id()))
            .spawn(move || shared.serve(fd, &place));
        if let Err(error) = spawned {
            self.warn_of(format_args!(
                "closed a connection on {address}: cannot start a thread: {error}"
            ));
        }
    }

    /// Serves one connection to its end.
    fn serve(&self, fd: Arc<OwnedFd>, place: &Place) {
        let id = place.id();
        let mut socket = Socket::new(Arc::clone(&fd), Arc::clone(&self.stopping));
        socket.set_deadline(Some(Instant::now() + self.handshake_timeout));
        match self.converse(socket, place) {
            Ok(()) => tracing::debug!("connection {id} closed"),
            Err(error @ ConnectionError::Connection(_)) => {
                tracing::debug!("connection {id} closed: {error}");
            }
            Err(error) => {
                match &error {
                    ConnectionError::Device(_) => tracing::warn!("connection {id} closed: {error}"),
                    // No client can fill the log by its own faults.
                    _ => tracing::debug!("connection {id} closed: {error}"),
                }
                let mut socket = Socket::new(fd, Arc::clone(&self.stopping));
                socket.hang_up(HANG_UP_BYTES, HANG_UP_TIME);
            }
        }
    }

    fn converse(&self, mut socket: Socket, place: &Place) -> Result<(), ConnectionError> {
        let client = greet(&mut socket)?;
        let handshake = Handshake {
            export: &self.export,
            client,
            security: match &self.tls {
                None => Security::Unavailable,
                Some(tls) if tls.required => Security::Required,
                Some(_) => Security::Offered,
            },
            stopping: &self.stopping,
        };
        match (handshake.run(&mut socket)?, &self.tls) {
            (Outcome::Transmit(agreement), _) => {
                if !place.enter_transmission() {
                    return Ok(());
                }
                socket.set_deadline(None);
                self.transmit(&mut socket, agreement, place)
            }
            (Outcome::StartTls, Some(tls)) => {
                let mut stream = self.shake_hands(tls, socket)?;
                let ended = self.converse_in_private(&mut stream, handshake, place);
                // One that is gone already needs no goodbye.
                drop(stream.close());
                ended
            }
            (Outcome::StartTls | Outcome::GiveUp, _) => Ok(()),
        }
    }

    /// What fails here is for the administrator to know of: a client that is to come in and cannot, or one that
    /// is not to.
    fn shake_hands(&self, tls: &Tls, socket: Socket) -> Result<TlsStream, ConnectionError> {
        let peer = Peer::of(&socket);
        tls.accept(socket).map_err(|error| {
            if !self.stopping.load(Ordering::Acquire) {
                let said = format!("the TLS handshake with {peer} failed: {error}");
                match self.tls_failures.admit() {
                    Some(end) => tracing::warn!("{said}{end}"),
                    None => tracing::debug!("{said}"),
                }
            }
            match error.kind() {
                io::ErrorKind::InvalidData => ConnectionError::Tls(error),
                _ => ConnectionError::Connection(error),
            }
        })
    }

    /// What follows STARTTLS: all over again, but for the greeting.
    fn converse_in_private(
        &self,
        stream: &mut TlsStream,
        before: Handshake<'_>,
        place: &Place,
    ) -> Result<(), ConnectionError> {
        let handshake = Handshake {
            security: Security::Established,
            ..before
        };
        let Outcome::Transmit(agreement) = handshake.run(stream)? else {
            return Ok(());
        };
        if !place.enter_transmission() {
            return Ok(());
        }
        stream.socket_mut().set_deadline(None);
        self.transmit(stream, agreement, place)
    }

    fn transmit<S: Stream>(
        &self,
        stream: &mut S,
        agreement: Agreement,
        place: &Place,
    ) -> Result<(), ConnectionError> {
        let service = Service {
            export: &self.export,
            workers: Some(&self.workers),
            growth: self.growth.clone(),
            who: place.who(),
        };
        service.transmit(stream, agreement)
    }
}
