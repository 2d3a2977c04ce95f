//! A server's own metrics: served over HTTP, and written to files.
//!
//! An address has one thread that answers one client after the other, each in bounded time; what
//! it serves is small and asked for a few times a minute. The threads end with the process.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use uzram::nbd::Address;
use uzram::{Device, SocketFile, listen_unix};

use super::exposition::{Format, Observed, exposition};
use super::sink::Sink;
use crate::name::Name;

/// How often a file is written: as often as most scrape.
const EVERY: Duration = Duration::from_secs(15);

/// How long a client may take to ask, and to take the answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Bytes of a request that are looked at: what Prometheus and curl send has a few hundred.
const MAX_REQUEST: usize = 8 << 10;

/// What is exported. The threads outlive the device, which is not theirs to keep.
struct Source {
    name: Name,
    device: Weak<Device>,
}

impl Source {
    fn text(&self, format: Format) -> String {
        let device = self.device.upgrade();
        let observed = Observed {
            name: self.name.to_string(),
            seen: device.map(|device| (device.stats(), device.latencies())),
        };
        exposition(&[observed], format)
    }
}

/// The sinks of a server. Dropping it removes their sockets and files.
pub(crate) struct Exporter {
    _sockets: Vec<SocketFile>,
    _files: Vec<FileWriter>,
}

impl Exporter {
    /// Starts to serve `sinks`.
    pub(crate) fn start(sinks: &[Sink], name: &Name, device: &Arc<Device>) -> Result<Self> {
        let mut exporter = Self {
            _sockets: Vec::new(),
            _files: Vec::new(),
        };
        let source = Arc::new(Source {
            name: name.clone(),
            device: Arc::downgrade(device),
        });
        for sink in sinks {
            let source = Arc::clone(&source);
            let started = match sink {
                Sink::Http(Address::Unix(path)) => serve_unix(path, source).map(|socket| {
                    exporter._sockets.push(socket);
                }),
                Sink::Http(Address::Tcp { host, port }) => serve_tcp(host, *port, source),
                Sink::File(path) => FileWriter::start(path, source).map(|file| {
                    exporter._files.push(file);
                }),
            };
            started.with_context(|| format!("--metrics {sink}"))?;
        }
        Ok(exporter)
    }
}

fn serve_unix(path: &Path, source: Arc<Source>) -> Result<SocketFile> {
    let (socket, file) = listen_unix(path)?;
    let listener = UnixListener::from(socket);
    listener.set_nonblocking(false)?;
    spawn(move || serve(|| listener.accept().map(|(stream, _)| stream), &source))?;
    Ok(file)
}

fn serve_tcp(host: &str, port: u16, source: Arc<Source>) -> Result<()> {
    let listener = TcpListener::bind((host, port)).context("cannot listen there")?;
    tracing::info!("metrics on http://{}/metrics", listener.local_addr()?);
    spawn(move || serve(|| listener.accept().map(|(stream, _)| stream), &source))?;
    Ok(())
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let thread = thread::Builder::new().name("uzram-metrics".to_owned());
    thread.spawn(work)
}

/// A connection whose calls take bounded time.
trait Connection: Read + Write {
    fn bound(&self, patience: Duration) -> io::Result<()>;
}

impl Connection for TcpStream {
    fn bound(&self, patience: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(patience))?;
        self.set_write_timeout(Some(patience))
    }
}

impl Connection for UnixStream {
    fn bound(&self, patience: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(patience))?;
        self.set_write_timeout(Some(patience))
    }
}

fn serve<S: Connection>(accept: impl Fn() -> io::Result<S>, source: &Source) {
    loop {
        let answered = match accept() {
            Ok(mut stream) => answer(&mut stream, source),
            Err(error) => {
                tracing::warn!("cannot accept a client of the metrics: {error}");
                // Out of descriptors, say.
                thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if let Err(error) = answered {
            tracing::debug!("a client of the metrics went away: {error}");
        }
    }
}

fn answer(stream: &mut impl Connection, source: &Source) -> io::Result<()> {
    stream.bound(PATIENCE)?;
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
    // A head in ever smaller pieces would otherwise keep the thread for long.
    for _ in 0..MAX_REQUEST / 1024 {
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

/// What a client accepts that knows OpenMetrics.
const OPEN: &[u8] = b"application/openmetrics-text";

/// A file that is written from time to time, and removed at the end so that nobody takes its
/// figures for those of a device that lives.
struct FileWriter {
    path: PathBuf,
    name: Name,
    /// Dropped to stop it.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FileWriter {
    fn start(path: &Path, source: Arc<Source>) -> Result<Self> {
        check_replaceable(path)?;
        replace(path, &source.text(Format::Prometheus))?;
        let name = source.name.clone();
        let (stop, stopped) = mpsc::channel();
        let written = path.to_owned();
        let thread = spawn(move || {
            while stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout) {
                if let Err(error) = replace(&written, &source.text(Format::Prometheus)) {
                    tracing::warn!("{error:#}");
                }
            }
        })?;
        Ok(Self {
            path: path.to_owned(),
            name,
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // It has no end but the one just asked for.
            let _ = thread.join();
        }
        if let Err(error) = remove_stale(&self.path, &self.name) {
            tracing::warn!("{error:#}");
        }
    }
}

/// Fails if something is there that is no file of metrics of ours, nor empty.
fn check_replaceable(path: &Path) -> Result<()> {
    match fs::read(path) {
        Ok(bytes) if bytes.is_empty() || bytes.starts_with(b"# HELP uzram_") => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Ok(_) => bail!(
            "{} holds something else: remove it, or give another path",
            path.display()
        ),
        Err(error) => Err(error).with_context(|| format!("cannot use {}", path.display())),
    }
}

/// Puts `text` in the place of the file `path`, for others to see all of it or nothing. They may be
/// other users, and the directory theirs.
fn replace(path: &Path, text: &str) -> Result<()> {
    Ok(uzram::write_whole(path, text.as_bytes(), 0o644)?)
}

/// Removes the file that a server of `name` has written to; any other's stays.
///
/// # Errors
/// If it is there and cannot be removed.
pub(crate) fn remove_stale(path: &Path, name: &Name) -> Result<()> {
    let theirs = format!("uzram_up{{device=\"{name}\"}}");
    match fs::read_to_string(path) {
        Ok(text) if text.contains(&theirs) => {
            fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use uzram::DeviceConfig;

    use super::*;

    /// And its device, which must be kept.
    fn source() -> (Source, Arc<Device>) {
        let device = Arc::new(Device::new(&DeviceConfig::new(1 << 20)).unwrap());
        let source = Source {
            name: "a".parse().unwrap(),
            device: Arc::downgrade(&device),
        };
        (source, device)
    }

    #[test]
    fn requests_get_what_they_ask_for_and_nonsense_is_refused() {
        let (source, _device) = source();
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
        let (near, mut far) = UnixStream::pair().unwrap();
        far.bound(Duration::from_millis(10)).unwrap();
        assert!(receive(&mut far).is_err());
        drop(near);
    }

    #[test]
    fn a_file_is_there_from_the_start_and_gone_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("uzram.prom");
        let (source, _device) = source();
        // Where others can write they plant links, to have us write elsewhere.
        let (elsewhere, planted) = (
            dir.path().join("elsewhere"),
            dir.path().join("uzram.prom.new"),
        );
        fs::write(&elsewhere, "precious").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &planted).unwrap();
        let writer = FileWriter::start(&path, Arc::new(source)).unwrap();
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "precious");
        fs::remove_file(&planted).unwrap();
        fs::remove_file(&elsewhere).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o444, 0o444, "{mode:o}");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("uzram_up{device=\"a\"} 1\n"), "{text}");
        drop(writer);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_file_of_somebody_else_is_neither_replaced_nor_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes");
        let (source, _device) = source();
        let source = Arc::new(source);
        fs::write(&path, "precious").unwrap();
        let error = FileWriter::start(&path, Arc::clone(&source)).err().unwrap();
        assert!(error.to_string().contains("remove it"), "{error}");
        // As mktemp makes them.
        fs::write(&path, "").unwrap();
        let writer = FileWriter::start(&path, source).unwrap();
        fs::write(&path, "precious").unwrap();
        drop(writer);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }
}
