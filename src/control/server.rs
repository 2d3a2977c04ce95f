//! The answering side: one thread that accepts, one for each client.
//!
//! Invariants:
//! 1. Only the accepting thread knows the clients; when it ends it has joined them all.
//! 2. A client is let go when it is idle for [`IDLE_TIMEOUT`], when it has been idle for longest
//!    and a new one needs its place, when it sends what is not a line, or when the server shuts
//!    down; a request that was received is answered first. One that must give way is told so, and
//!    that what it may have sent since was not looked at.
//! 3. New clients wait in the socket's backlog, in the order in which they came, until there is a place.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;
use serde_json::Value;

use super::clients::{Activity, Clients, MAX_CLIENTS, Room};
use super::line::{LineStream, MAX_LINE_BYTES};
use super::protocol::{Compacted, PagesDone, Reply, Request};
use crate::attributes::{Attribute, parse_idle};
use crate::block_device::BlockDevice;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::handed_file::HandedFile;
use crate::log_limit::LogLimit;
use crate::recompression::Recompression;
use crate::selection::Selection;
use crate::unix_socket::{self, SocketFile};

/// How long a client may take to send a whole request.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a client may take to receive a whole answer.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// A control socket being served, until this is dropped.
#[derive(Debug)]
pub struct Server {
    /// Closing it wakes the accepting thread for the last time.
    wake: Option<UnixStream>,
    acceptor: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `device` at `path`. What a killed server left there is replaced.
    ///
    /// # Errors
    /// [`Error::Unusable`] if another server listens there, or something else than a socket is
    /// there; [`Error::Io`] for what the kernel says.
    pub fn start(path: &Path, device: Arc<Device>) -> Result<Self> {
        let (listener, file) = unix_socket::listen(path)?;
        Self::serve(listener, Some(file), device)
    }

    /// The same, at a socket that listens already. Its file is somebody else's to remove.
    ///
    /// # Errors
    /// [`Error::Io`] without a thread or a descriptor to be had.
    pub fn start_on(listener: OwnedFd, device: Arc<Device>) -> Result<Self> {
        Self::serve(listener, None, device)
    }

    fn serve(listener: OwnedFd, file: Option<SocketFile>, device: Arc<Device>) -> Result<Self> {
        let failed = |error| Error::io("serve the control socket", error);
        let (wake, woken) = UnixStream::pair().map_err(failed)?;
        let clients = Clients::new().map_err(|errno| failed(errno.into()))?;
        let acceptor = Acceptor {
            listener: listener.into(),
            woken,
            device,
            clients,
            failures: LogLimit::of_states(),
        };
        let acceptor = thread::Builder::new()
            .name("uzram-control".to_owned())
            .spawn(move || acceptor.run(file))
            .map_err(failed)?;
        Ok(Self {
            wake: Some(wake),
            acceptor: Some(acceptor),
        })
    }

    /// Stops accepting, answers the requests that were received, closes every connection and
    /// removes the socket. Waits for an operation under way.
    pub fn shutdown(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.wake.take());
        if let Some(acceptor) = self.acceptor.take()
            && acceptor.join().is_err()
        {
            tracing::error!("the control server's thread panicked");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// The accepting thread.
struct Acceptor {
    listener: UnixListener,
    woken: UnixStream,
    device: Arc<Device>,
    clients: Clients,
    failures: LogLimit,
}

impl Acceptor {
    fn run(mut self, file: Option<SocketFile>) {
        while self.wait_for(self.listener.as_fd(), None) {
            let room = match self.clients.make_room(Instant::now()) {
                Room::Wait(time) => {
                    if !self.wait_for(self.clients.changed(), Some(time)) {
                        break;
                    }
                    continue;
                }
                Room::Free => true,
                Room::None => false,
            };
            match self.listener.accept() {
                Ok((stream, _)) => {
                    if let Err(error) = self.receive(stream, room) {
                        self.warn_of(format_args!("cannot serve a control client: {error}"));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => {
                    // Out of descriptors, say: the client stays in the backlog meanwhile.
                    self.warn_of(format_args!("cannot accept a control client: {error}"));
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
        drop((file, self.listener));
        self.clients.join();
    }

    /// Logs what this machine lacks: that may last, and clients come all the time.
    fn warn_of(&self, text: fmt::Arguments<'_>) {
        if let Some(end) = self.failures.admit() {
            tracing::warn!("{text}{end}");
        }
    }

    /// Waits for `fd`, at most for that `time`; false when the server shuts down.
    fn wait_for(&self, fd: BorrowedFd<'_>, time: Option<Duration>) -> bool {
        let mut fds = [
            PollFd::from_borrowed_fd(self.woken.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(fd, PollFlags::IN),
        ];
        let time = time.and_then(|time| Timespec::try_from(time).ok());
        loop {
            match poll(&mut fds, time.as_ref()) {
                Ok(_) => return fds[0].revents().is_empty(),
                Err(Errno::INTR) => {}
                Err(errno) => {
                    tracing::error!("the control server ends: cannot wait for clients: {errno}");
                    return false;
                }
            }
        }
    }

    /// Has a new client served, or turns it away for want of room.
    fn receive(&mut self, stream: UnixStream, room: bool) -> io::Result<()> {
        let mut lines = LineStream::new(stream.try_clone()?, WRITE_TIMEOUT);
        if !room {
            let reason = format!("{MAX_CLIENTS} clients are busy already; try again");
            return lines.send(&turned_away(reason));
        }
        let device = Arc::clone(&self.device);
        let activity = self.clients.activity();
        let noted = Arc::clone(&activity);
        let thread = thread::Builder::new()
            .name("uzram-control-client".to_owned())
            .spawn(move || {
                serve(&mut lines, &device, &noted);
                if noted.is_sent_away() {
                    // It may have gone by itself.
                    let reason = format!("more than {MAX_CLIENTS} clients; connect again");
                    let _ = lines.send(&turned_away(reason));
                }
                // The acceptor keeps a duplicate, so closing ours would not tell the client.
                let _ = lines.stream().shutdown(Shutdown::Both);
                noted.ended();
            });
        match thread {
            Ok(thread) => self.clients.add(stream, thread, activity),
            Err(error) => {
                let reason = format!("the server cannot start a thread: {error}");
                LineStream::new(stream, WRITE_TIMEOUT).send(&turned_away(reason))?;
            }
        }
        Ok(())
    }
}

/// What a client is told whose requests, from here on, are not looked at.
fn turned_away(reason: String) -> Reply {
    Reply::from_error(&refused("control", Errno::AGAIN, reason)).turned_away()
}

/// Answers one client until it goes or must go.
fn serve(lines: &mut LineStream, device: &Device, activity: &Activity) {
    loop {
        let line = match lines.receive(IDLE_TIMEOUT) {
            Ok(Some(line)) => line,
            Err(error) if error.kind() == ErrorKind::FileTooLarge => {
                let reason = format!("a request has at most {MAX_LINE_BYTES} bytes");
                let refusal = Reply::from_error(&refused("control", Errno::TOOBIG, reason));
                // Where the next request starts is unknown, so this is the last answer.
                let _ = lines.send(&refusal);
                return;
            }
            Ok(None) | Err(_) => return,
        };
        activity.busy();
        let reply = match serde_json::from_slice(&line) {
            Ok(request) => {
                let file = lines.take_file();
                handle(&request, file, device, lines)
            }
            Err(error) => Err(refused("request", Errno::INVAL, error.to_string())),
        };
        let reply = match reply {
            Ok(ok) => Reply::Ok { ok },
            Err(error) => Reply::from_error(&error),
        };
        // Before a client knows of its answer, so that it is idle when it is seen to be.
        activity.idle();
        if lines.send(&reply).is_err() {
            return;
        }
    }
}

/// Does what a client asks, with the file that came with it. A save ends when the client has gone.
fn handle(
    request: &Request,
    file: Option<OwnedFd>,
    device: &Device,
    client: &LineStream,
) -> Result<Value> {
    match request {
        Request::Stat => answer(&device.stats()),
        Request::Latency => answer(&device.latencies()),
        Request::Get { attribute } => match named(attribute)? {
            Attribute::BlockState => {
                let reason = "it is read in parts: block_state from a page on".to_owned();
                Err(refused("block_state", Errno::FBIG, reason))
            }
            attribute => answer(&attribute.show(device)?),
        },
        Request::Set {
            attribute,
            value,
            made,
        } => {
            let handed = file.map(|file| HandedFile::new(file, *made));
            named(attribute)?.store_with(device, value, handed)?;
            Ok(Value::Null)
        }
        &Request::Map {
            first,
            pages,
            cells,
        } => answer(&device.page_map(first..first.saturating_add(pages), cells)?),
        Request::Compact => {
            let pages = device.compact();
            answer(&Compacted { pages })
        }
        Request::Scrub { from } => answer(&device.scrub(*from)),
        Request::Idle { which } => {
            let pages = device.mark_idle(parse_idle(which)?);
            answer(&PagesDone { pages })
        }
        Request::Writeback { which } => {
            let pages = device.write_back(Selection::parse(which, device.pages())?)?;
            answer(&PagesDone { pages })
        }
        Request::Recompress { which } => {
            let pages = device.recompress(&Recompression::parse(which)?)?;
            answer(&PagesDone { pages })
        }
        Request::Sync => {
            check_home(device)?;
            device.sync()?;
            Ok(Value::Null)
        }
        Request::Reset => {
            device.reset()?;
            Ok(Value::Null)
        }
        Request::Save { path, .. } if !path.is_absolute() => {
            let reason = format!("{}: a path from the root is needed", path.display());
            Err(refused("save", Errno::INVAL, reason))
        }
        Request::Save { path, last } => {
            let wanted = || !client.is_closed();
            let handed = file.map(|file| HandedFile::new(file, true));
            let saved = match (handed, last) {
                (None, true) => device.save_last(path, &wanted),
                (None, false) => device.save_while(path, &wanted),
                (Some(file), true) => device.save_last_handed(&file, path, &wanted),
                (Some(file), false) => device.save_handed(&file, path, &wanted),
            };
            answer(&saved.inspect_err(|error| {
                if client.is_closed() {
                    tracing::warn!("{}: {error}", path.display());
                }
            })?)
        }
        Request::ResizeDiscarding { bytes } => {
            device.resize_discarding(*bytes)?;
            Ok(Value::Null)
        }
        Request::BlockState { from } => answer(&device.block_states(*from)),
        Request::TrainDict { path, len } => {
            if !path.is_absolute() {
                let reason = format!("{}: a path from the root is needed", path.display());
                return Err(refused("train-dict", Errno::INVAL, reason));
            }
            match file {
                None => device.train_dictionary(path, *len)?,
                Some(file) => {
                    let dictionary = device.dictionary(*len)?;
                    let written = File::from(file).write_all(&dictionary);
                    let action = || format!("write {}", path.display());
                    written.map_err(|error| Error::io(action(), error))?;
                }
            }
            Ok(Value::Null)
        }
        Request::Users => answer(&device.users()),
        Request::SaveProgress => answer(&device.save_progress()),
    }
}

/// Whoever asks for a sync means to keep something.
fn check_home(device: &Device) -> Result<()> {
    if device.outlives_the_device() {
        return Ok(());
    }
    let reason = match device.origin_path() {
        Some(_) => "a snapshot never writes to its image",
        None => {
            "there is no image: without `DeviceConfig::origin` the data lives as long as the server"
        }
    };
    Err(refused("sync", Errno::OPNOTSUPP, reason.to_owned()))
}

fn named(attribute: &str) -> Result<Attribute> {
    Attribute::from_name(attribute).ok_or_else(|| {
        let names: Vec<_> = Attribute::ALL.iter().map(|a| a.name()).collect();
        let reason = format!("no {attribute:?}; there are {}", names.join(" "));
        refused("attribute", Errno::NOENT, reason)
    })
}

fn refused(what: &'static str, errno: Errno, reason: String) -> Error {
    Error::Refused {
        what,
        reason,
        errno: errno.into(),
    }
}

fn answer(message: &impl Serialize) -> Result<Value> {
    serde_json::to_value(message).map_err(|error| Error::io("put an answer together", error))
}
