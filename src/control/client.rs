//! The asking side.

use std::io::{self, ErrorKind};
use std::mem;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{self, AddressFamily, SocketFlags, SocketType};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::line::LineStream;
use super::protocol::{Compacted, PagesDone, Reply, Request};
use crate::attributes::Attribute;
use crate::device::{BlockStates, PageMap, SaveProgress, Saved, Scrubbed};
use crate::error::{Error, Result};
use crate::handed_file::HandedFile;
use crate::latency::OperationLatencies;
use crate::stats::Stats;
use crate::unix_socket::address;
use crate::users::Who;

/// How long a client that was turned away rests before it comes again.
const REST: Duration = Duration::from_millis(20);

/// A connection to a running server. One that has to give way to other clients is made anew for the next
/// request.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    lines: LineStream,
    /// How long connecting may take, and waiting for a turn.
    connect_timeout: Duration,
    timeout: Duration,
    hang_up: Option<HangUp>,
}

/// Ends a connection from beside whoever waits for an answer on it. A save that was asked for on it
/// ends with it.
#[derive(Clone, Debug)]
pub struct HangUp(Arc<Mutex<Line>>);

/// The connection that there is now.
#[derive(Debug)]
enum Line {
    Open(UnixStream),
    HungUp,
}

impl HangUp {
    /// Ends it; one that has ended stays so.
    pub fn hang_up(&self) {
        if let Line::Open(stream) = mem::replace(&mut *self.0.lock(), Line::HungUp) {
            // It fails only if the server has gone.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Another connection has taken the place of the first, unless that was ended.
    fn move_to(&self, lines: &LineStream) -> io::Result<()> {
        match &mut *self.0.lock() {
            Line::Open(stream) => *stream = lines.stream().try_clone()?,
            Line::HungUp => return Err(ErrorKind::ConnectionAborted.into()),
        }
        Ok(())
    }
}

impl Client {
    /// Connects to the server whose control socket is `path`. Connecting and each answer may
    /// take `timeout`.
    ///
    /// # Errors
    /// [`Error::Unusable`] if nobody listens there; [`Error::Io`] for what the kernel says.
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            lines: connected(path, timeout)?,
            connect_timeout: timeout,
            timeout,
            hang_up: None,
        })
    }

    /// The same, but each answer may take `timeout`.
    #[must_use]
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// What ends this connection, for another thread.
    ///
    /// # Errors
    /// [`Error::Io`] without a descriptor to be had.
    pub fn hang_up(&mut self) -> Result<HangUp> {
        let stream = self.lines.stream().try_clone();
        let stream = stream.map_err(|error| self.failed(error))?;
        let hang_up = HangUp(Arc::new(Mutex::new(Line::Open(stream))));
        Ok(self.hang_up.insert(hang_up).clone())
    }

    /// Asks anything. Waits for a turn while the server has as many clients as it takes.
    ///
    /// # Errors
    /// [`Error::Remote`] if the server says no; [`Error::Io`] if it does not answer in time or
    /// not in the protocol.
    #[doc(hidden)]
    pub fn call(&mut self, request: &Request) -> Result<Value> {
        self.call_with(request, None)
    }

    fn call_with(&mut self, request: &Request, file: Option<BorrowedFd<'_>>) -> Result<Value> {
        let deadline = Instant::now() + self.connect_timeout;
        loop {
            let reply = self.call_once(request, file)?;
            if !reply.is_turned_away() || Instant::now() >= deadline {
                return reply.into_result();
            }
            thread::sleep(REST);
            self.lines = connected(&self.path, self.connect_timeout)?;
            if let Some(hang_up) = &self.hang_up {
                hang_up
                    .move_to(&self.lines)
                    .map_err(|error| self.failed(error))?;
            }
        }
    }

    fn failed(&self, error: impl Into<io::Error>) -> Error {
        Error::io(format!("talk to {}", self.path.display()), error)
    }

    fn call_once(&mut self, request: &Request, file: Option<BorrowedFd<'_>>) -> Result<Reply> {
        // A server that turns a client away answers before it closes, so look for that first.
        let sent = self.lines.send_with(request, file);
        let received = match self.lines.receive(self.timeout) {
            Ok(Some(line)) => Ok(line),
            Ok(None) => Err(io::Error::new(
                sent.map_or_else(|error| error.kind(), |()| ErrorKind::UnexpectedEof),
                "the server ended the connection before it answered: it may be stopping",
            )),
            Err(error) => Err(error),
        };
        let line = received.map_err(|error| self.failed(error))?;
        serde_json::from_slice(&line).map_err(|error| self.failed(error))
    }

    fn ask<T: DeserializeOwned>(&mut self, request: &Request) -> Result<T> {
        let value = self.call(request)?;
        serde_json::from_value(value).map_err(|error| self.failed(error))
    }

    fn ask_with<T: DeserializeOwned>(
        &mut self,
        request: &Request,
        file: BorrowedFd<'_>,
    ) -> Result<T> {
        let value = self.call_with(request, Some(file))?;
        serde_json::from_value(value).map_err(|error| self.failed(error))
    }

    /// The counters.
    ///
    /// # Errors
    /// Those of [`Client::call`], here and below.
    pub fn stat(&mut self) -> Result<Stats> {
        self.ask(&Request::Stat)
    }

    /// How long operations took.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub fn latencies(&mut self) -> Result<OperationLatencies> {
        self.ask(&Request::Latency)
    }

    /// The text of an attribute, with its newline.
    ///
    /// # Errors
    /// [`Error::Remote`]: ENOENT for no such attribute, EACCES for a write-only one.
    pub fn get(&mut self, attribute: &str) -> Result<String> {
        let attribute = attribute.to_owned();
        self.ask(&Request::Get { attribute })
    }

    /// Stores `value` in an attribute.
    ///
    /// # Errors
    /// [`Error::Remote`]: ENOENT for no such attribute, and what
    /// [`crate::Attribute::store`] says.
    pub fn set(&mut self, attribute: &str, value: &str) -> Result<()> {
        self.ask(&Request::Set {
            attribute: attribute.to_owned(),
            value: value.to_owned(),
            made: false,
        })
    }

    /// Stores `value` in the attribute `backing_dev`: the path of a `file` that this process has opened
    /// ([`crate::BackingConfig::hand`]), which the server need have no right to.
    ///
    /// # Errors
    /// Those of [`Client::set`].
    pub fn set_backing(&mut self, value: &str, file: &HandedFile) -> Result<()> {
        let request = Request::Set {
            attribute: Attribute::BackingDev.name().to_owned(),
            value: value.to_owned(),
            made: file.is_made(),
        };
        self.ask_with(&request, file.as_fd())
    }

    /// Resizes the device to so many `bytes`, and discards what is beyond its new end.
    ///
    /// # Errors
    /// [`Error::Remote`]: those of [`crate::Device::resize_discarding`].
    pub fn resize_discarding(&mut self, bytes: u64) -> Result<()> {
        self.ask(&Request::ResizeDiscarding { bytes })
    }

    /// Compacts the pool; returns the page frames freed.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub fn compact(&mut self) -> Result<u64> {
        let done: Compacted = self.ask(&Request::Compact)?;
        Ok(done.pages)
    }

    /// What pages from `first` on hold, in at most `cells` cells.
    ///
    /// # Errors
    /// [`Error::Remote`], EINVAL for more than [`crate::MAX_MAP_CELLS`].
    pub fn page_map(&mut self, first: u64, pages: u64, cells: u64) -> Result<PageMap> {
        self.ask(&Request::Map {
            first,
            pages,
            cells,
        })
    }

    /// Verifies some spilled pages, from page `from` on. To verify all, go on from what the answer
    /// says until it says no more.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub fn scrub(&mut self, from: u64) -> Result<Scrubbed> {
        self.ask(&Request::Scrub { from })
    }

    /// Marks pages as idle, `all` or those of an age in seconds; returns how many.
    ///
    /// # Errors
    /// [`Error::Remote`], EINVAL for anything else.
    pub fn mark_idle(&mut self, which: &str) -> Result<u64> {
        let which = which.to_owned();
        let done: PagesDone = self.ask(&Request::Idle { which })?;
        Ok(done.pages)
    }

    /// Writes pages back, those that [`crate::Selection::parse`] makes of `which`; returns how many
    /// have left memory. That takes as long as the backing does.
    ///
    /// # Errors
    /// [`Error::Remote`]: EINVAL and ERANGE for what is no selection, and those of
    /// [`crate::Device::write_back`].
    pub fn write_back(&mut self, which: &str) -> Result<u64> {
        let which = which.to_owned();
        let done: PagesDone = self.ask(&Request::Writeback { which })?;
        Ok(done.pages)
    }

    /// Recompresses pages, those that [`crate::Recompression::parse`] makes of `which`; returns how
    /// many have become smaller. That takes as long as the algorithm does.
    ///
    /// # Errors
    /// [`Error::Remote`]: EINVAL for what is nothing of the kind, and those of
    /// [`crate::Device::recompress`].
    pub fn recompress(&mut self, which: &str) -> Result<u64> {
        let which = which.to_owned();
        let done: PagesDone = self.ask(&Request::Recompress { which })?;
        Ok(done.pages)
    }

    /// Saves the device as it is now to a `file` that is empty, and has it stay as it is if that is the `last` that
    /// is done with it. That takes as long as the file does, which is on disk then; to put it at `path`, named
    /// from the root, is the caller's to do ([`crate::ImageFile`]).
    ///
    /// # Errors
    /// [`Error::Remote`]: those of [`crate::Device::save`] and [`crate::Device::save_last`].
    pub fn save(&mut self, file: impl AsFd, path: &Path, last: bool) -> Result<Saved> {
        let path = path.to_owned();
        self.ask_with(&Request::Save { path, last }, file.as_fd())
    }

    /// The lines of the attribute `block_state` of some pages, from page `from` on.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub fn block_states(&mut self, from: u64) -> Result<BlockStates> {
        self.ask(&Request::BlockState { from })
    }

    /// Makes a dictionary of at most `len` bytes of what is on the device, in a `file` that is empty and that the
    /// caller puts at `path`, named from the root.
    ///
    /// # Errors
    /// [`Error::Remote`]: those of [`crate::Device::train_dictionary`].
    pub fn train_dictionary(&mut self, file: impl AsFd, path: &Path, len: usize) -> Result<()> {
        let path = path.to_owned();
        self.ask_with(&Request::TrainDict { path, len }, file.as_fd())
    }

    /// Who uses the device, but for those who are just leaving.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub fn users(&mut self) -> Result<Vec<Who>> {
        self.ask(&Request::Users)
    }

    /// How far the device is saved, if it is being saved.
    ///
    /// # Errors
    /// Those of [`Client::call`].
    pub fn save_progress(&mut self) -> Result<Option<SaveProgress>> {
        self.ask(&Request::SaveProgress)
    }

    /// Has all that was written in the device's image, durably. That takes as long as the image does.
    ///
    /// # Errors
    /// [`Error::Remote`]: those of [`crate::Device::sync`]; EOPNOTSUPP where nothing is written to an
    /// image.
    pub fn sync(&mut self) -> Result<()> {
        self.ask(&Request::Sync)
    }

    /// Forgets all data.
    ///
    /// # Errors
    /// [`Error::Remote`], EBUSY while the device is in use.
    pub fn reset(&mut self) -> Result<()> {
        self.ask(&Request::Reset)
    }
}

/// A connection to the server whose control socket is `path`, within `timeout`.
fn connected(path: &Path, timeout: Duration) -> Result<LineStream> {
    let address = address(path)?;
    let failed = |errno: Errno| match errno {
        Errno::NOENT | Errno::CONNREFUSED => Error::Unusable {
            path: path.to_owned(),
            reason: "no server is listening there".to_owned(),
        },
        // A full backlog: how a Unix socket says that the time is up.
        Errno::AGAIN => Error::io(format!("connect to {}", path.display()), Errno::TIMEDOUT),
        errno => Error::io(format!("connect to {}", path.display()), errno),
    };
    let socket: OwnedFd = net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(failed)?;
    set_socket_timeout(&socket, Timeout::Send, Some(timeout)).map_err(failed)?;
    net::connect(&socket, &address).map_err(failed)?;
    Ok(LineStream::new(UnixStream::from(socket), timeout))
}
