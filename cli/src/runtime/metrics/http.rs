//! Metrics over HTTP.
//!
//! An address has a thread that accepts and one for each client, of whom there are [`MAX_CLIENTS`] at most;
//! one more takes the place of the one that came first. A client has [`TIMEOUT`] for all that it does.
//! The threads end with the process.
//!
//! Small HTTP servers (tiny_http) bound neither the time that a client takes nor how many there are; the head of a request is
//! read by the crate httparse.
//!
//! One lock for each address, on its clients; nothing is received or sent under it.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use parking_lot::Mutex;
use rustix::io::ioctl_fionbio;
use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;
use uzram::nbd::Address;
use uzram::{LogLimit, SocketFile, listen_unix};

use super::exposition::Format;
use super::source::Source;

/// How long a client may take to ask and to take the answer.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Clients at one time: a scrape is over in milliseconds.
const MAX_CLIENTS: usize = 16;

/// What a client's thread has, bytes; its answer is not there.
const STACK: usize = 256 << 10;

/// Bytes of a request that are looked at: what Prometheus and curl send has a few hundred.
const MAX_REQUEST: usize = 8 << 10;

/// What a client accepts that knows OpenMetrics.
const OPEN: &[u8] = b"application/openmetrics-text";

/// Listens there; a Unix socket's file goes with what is returned beside it.
///
/// # Errors
/// If the address cannot be had.
pub(super) fn listen(address: &Address) -> Result<(OwnedFd, Option<SocketFile>)> {
    match address {
        Address::Unix(path) => {
            let (socket, file) = listen_unix(path)?;
            Ok((socket, Some(file)))
        }
        Address::Tcp { host, port } => {
            let listener = TcpListener::bind((host.as_str(), *port));
            let listener = listener.context("cannot listen there")?;
            tracing::info!("metrics on http://{}/metrics", listener.local_addr()?);
            Ok((listener.into(), None))
        }
    }
}

/// Serves a socket that listens.
///
/// # Errors
/// Without a thread to be had.
pub(super) fn start(socket: OwnedFd, source: Arc<Source>) -> Result<()> {
    ioctl_fionbio(&socket, false)?;
    if socket_domain(&socket)? == AddressFamily::UNIX {
        let listener = UnixListener::from(socket);
        serve(move || listener.accept().map(|(client, _)| client), source)?;
    } else {
        let listener = TcpListener::from(socket);
        serve(move || listener.accept().map(|(client, _)| client), source)?;
    }
    Ok(())
}

/// A connection.
trait Connection: Read + Write + Send + Sized + 'static {
    /// Bounds the next call.
    fn set_timeout(&self, timeout: Duration) -> io::Result<()>;
    fn duplicate(&self) -> io::Result<Self>;
    fn end(&self);
}

macro_rules! connection {
    ($stream:ty) => {
        impl Connection for $stream {
            fn set_timeout(&self, timeout: Duration) -> io::Result<()> {
                self.set_read_timeout(Some(timeout))?;
                self.set_write_timeout(Some(timeout))
            }

            fn duplicate(&self) -> io::Result<Self> {
                self.try_clone()
            }

            fn end(&self) {
                // It fails if the client has gone, which is as good.
                let _ = self.shutdown(Shutdown::Both);
            }
        }
    };
}

connection!(TcpStream);
connection!(UnixStream);

/// A connection that ends at a time, however little each call waits.
struct Bounded<S> {
    stream: S,
    deadline: Instant,
}

impl<S: Connection> Bounded<S> {
    fn new(stream: S, timeout: Duration) -> Self {
        Self {
            stream,
            deadline: Instant::now() + timeout,
        }
    }

    fn bound(&self) -> io::Result<()> {
        match self.deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(ErrorKind::TimedOut.into()),
            left => self.stream.set_timeout(left),
        }
    }
}

impl<S: Connection> Read for Bounded<S> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.bound()?;
        self.stream.read(bytes)
    }
}

impl<S: Connection> Write for Bounded<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bound()?;
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// The clients of an address, the first to come first.
struct Clients<S> {
    there: Mutex<VecDeque<(u64, S)>>,
}

impl<S: Connection> Clients<S> {
    /// Notes one, whose place may be that of the first.
    fn add(&self, id: u64, stream: S) {
        let mut there = self.there.lock();
        if there.len() == MAX_CLIENTS
            && let Some((_, first)) = there.pop_front()
        {
            first.end();
        }
        there.push_back((id, stream));
    }

    fn remove(&self, id: u64) {
        self.there.lock().retain(|(there, _)| *there != id);
    }
}

/// Starts the thread that accepts.
fn serve<S: Connection>(
    accept: impl Fn() -> io::Result<S> + Send + 'static,
    source: Arc<Source>,
) -> io::Result<()> {
    let thread = thread::Builder::new().name("uzram-metrics".to_owned());
    thread.spawn(move || accept_all(accept, &source)).map(drop)
}

fn accept_all<S: Connection>(accept: impl Fn() -> io::Result<S>, source: &Arc<Source>) {
    let failures = LogLimit::of_states();
    let clients = Arc::new(Clients {
        there: Mutex::default(),
    });
    for id in 0.. {
        let admitted = accept().and_then(|stream| admit(id, stream, &clients, source));
        if let Err(error) = admitted {
            if let Some(end) = failures.admit() {
                tracing::warn!("cannot serve a client of the metrics: {error}{end}");
            }
            // Out of descriptors or threads, say.
            thread::sleep(Duration::from_millis(100));
        }
    }
}

fn admit<S: Connection>(
    id: u64,
    stream: S,
    clients: &Arc<Clients<S>>,
    source: &Arc<Source>,
) -> io::Result<()> {
    clients.add(id, stream.duplicate()?);
    let (theirs, source) = (Arc::clone(clients), Arc::clone(source));
    let thread = thread::Builder::new().name("uzram-scrape".to_owned());
    let started = thread.stack_size(STACK).spawn(move || {
        let mut stream = Bounded::new(stream, TIMEOUT);
        if let Err(error) = answer(&mut stream, &source) {
            tracing::debug!("a client of the metrics went away: {error}");
        }
        theirs.remove(id);
    });
    started.map(drop).inspect_err(|_| clients.remove(id))
}

fn answer(stream: &mut (impl Read + Write), source: &Source) -> io::Result<()> {
    let request = receive(stream)?;
    let (status, content_type, body) = response(&request, source);
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    if !request.starts_with(b"HEAD ") {
        stream.write_all(body.as_bytes())?;
    }
    stream.flush()
}

/// The head of a request, or what there is of it if it does not come to its end.
fn receive(stream: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut request = Vec::new();
    let mut chunk = [0; 1024];
    while request.len() < MAX_REQUEST {
        let len = stream.read(&mut chunk)?;
        request.extend_from_slice(&chunk[..len]);
        if len == 0 || request.windows(4).any(|end| end == b"\r\n\r\n") {
            break;
        }
    }
    Ok(request)
}

/// The status, the type of the content, and the content.
fn response(request: &[u8], source: &Source) -> (&'static str, &'static str, String) {
    const PLAIN: &str = "text/plain; charset=utf-8";
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut headers);
    let complete = parsed.parse(request).is_ok_and(|end| end.is_complete());
    let (method, path) = (parsed.method.unwrap_or(""), parsed.path.unwrap_or(""));
    if !complete {
        return ("400 Bad Request", PLAIN, "not an HTTP request\n".to_owned());
    }
    if !matches!(method, "GET" | "HEAD") {
        return ("405 Method Not Allowed", PLAIN, "use GET\n".to_owned());
    }
    if !matches!(path.split('?').next(), Some("/" | "/metrics")) {
        return ("404 Not Found", PLAIN, "see /metrics\n".to_owned());
    }
    let wants_open = parsed.headers.iter().any(|header| {
        header.name.eq_ignore_ascii_case("accept")
            && header.value.windows(OPEN.len()).any(|part| part == OPEN)
    });
    let format = match wants_open {
        true => Format::OpenMetrics,
        false => Format::Prometheus,
    };
    ("200 OK", format.content_type(), source.text(format))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_get_what_they_ask_for_and_nonsense_is_refused() {
        let (source, _device) = Source::of_a_device();
        let ask = |request: &str| {
            let (status, content_type, body) = response(request.as_bytes(), &source);
            (status.split_once(' ').unwrap().0, content_type, body)
        };
        let (status, content_type, body) = ask("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(
            (status, content_type),
            ("200", "text/plain; version=0.0.4; charset=utf-8")
        );
        assert!(
            body.contains("uzram_disk_bytes{device=\"a\"} 1048576\n"),
            "{body}"
        );
        let open = "GET / HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0\r\n\r\n";
        assert!(ask(open).2.ends_with("# EOF\n"));
        for (request, status) in [
            ("", "400"),
            ("GET /metrics HTTP/1.1\r\nHost: x", "400"),
            ("\u{16}\u{3}\r\n\r\n", "400"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("GET /etc/passwd HTTP/1.1\r\n\r\n", "404"),
        ] {
            assert_eq!(ask(request).0, status, "{request:?}");
        }
    }

    #[test]
    fn a_client_that_says_nothing_is_let_go() {
        let (near, far) = UnixStream::pair().unwrap();
        let mut far = Bounded::new(far, Duration::from_millis(10));
        assert!(receive(&mut far).is_err());
        // As one that does not stop to say something.
        for _ in 0..100 {
            (&near).write_all(b"x").unwrap();
        }
        assert_eq!(receive(&mut far).unwrap_err().kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn those_who_drip_keep_nobody_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (source, _device) = Source::of_a_device();
        let (socket, _file) = listen(&Address::Unix(path.clone())).unwrap();
        start(socket, Arc::new(source)).unwrap();
        let dripping: Vec<_> = (0..3 * MAX_CLIENTS)
            .map(|_| {
                let mut stream = UnixStream::connect(&path).unwrap();
                stream.write_all(b"GET ").unwrap();
                stream
            })
            .collect();
        // The first made room for the last, without having waited for the end of its time.
        assert_eq!((&dripping[0]).read(&mut [0]).unwrap(), 0);
        let mut scrape = UnixStream::connect(&path).unwrap();
        scrape.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = String::new();
        scrape.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("uzram_up{device=\"a\"} 1"), "{answer}");
        // Those that came last are still listened to.
        let mut last = dripping.last().unwrap();
        last.write_all(b"/ HTTP/1.1\r\n\r\n").unwrap();
    }
}
