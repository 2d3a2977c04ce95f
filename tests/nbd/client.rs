//! A client that says exactly what it is told to, and a server to say it to.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use support::{HANG, eventually};
use tempfile::TempDir;
use uzram::BlockDevice;
use uzram::nbd::{Address, Server, ServerConfig};

use crate::device::MemoryDevice;

pub(crate) const NAME: &str = "disk";

pub(crate) const EXPORT_NAME: u32 = 1;
pub(crate) const ABORT: u32 = 2;
pub(crate) const LIST: u32 = 3;
pub(crate) const STARTTLS: u32 = 5;
pub(crate) const INFO: u32 = 6;
pub(crate) const GO: u32 = 7;
pub(crate) const STRUCTURED_REPLY: u32 = 8;
pub(crate) const LIST_META_CONTEXT: u32 = 9;
pub(crate) const SET_META_CONTEXT: u32 = 10;

pub(crate) const REP_ACK: u32 = 1;
pub(crate) const REP_SERVER: u32 = 2;
pub(crate) const REP_INFO: u32 = 3;
pub(crate) const REP_META_CONTEXT: u32 = 4;
pub(crate) const REP_ERR_UNSUP: u32 = 0x8000_0001;
pub(crate) const REP_ERR_POLICY: u32 = 0x8000_0002;
pub(crate) const REP_ERR_INVALID: u32 = 0x8000_0003;
pub(crate) const REP_ERR_TLS_REQD: u32 = 0x8000_0005;
pub(crate) const REP_ERR_UNKNOWN: u32 = 0x8000_0006;
pub(crate) const REP_ERR_TOO_BIG: u32 = 0x8000_0009;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const BLOCK_STATUS: u16 = 7;

pub(crate) const FUA: u16 = 1;
pub(crate) const NO_HOLE: u16 = 2;
pub(crate) const DF: u16 = 4;
pub(crate) const REQ_ONE: u16 = 8;
pub(crate) const FAST_ZERO: u16 = 16;

pub(crate) const EPERM: u32 = 1;
pub(crate) const EIO: u32 = 5;
pub(crate) const EINVAL: u32 = 22;
pub(crate) const ENOSPC: u32 = 28;
pub(crate) const EOVERFLOW: u32 = 75;

/// A server of a [`MemoryDevice`] on a Unix socket of its own.
pub(crate) struct Fixture {
    pub(crate) server: Server,
    pub(crate) device: Arc<MemoryDevice>,
    pub(crate) socket: PathBuf,
    _dir: TempDir,
}

pub(crate) fn serve() -> Fixture {
    serve_with(|_| {})
}

pub(crate) fn serve_with(configure: impl FnOnce(&mut ServerConfig)) -> Fixture {
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("nbd.sock");
    let mut config = ServerConfig::new(NAME, vec![Address::Unix(socket.clone())]);
    // That a shutdown waits for a silent client shows.
    config.handshake_timeout = HANG;
    configure(&mut config);
    let device = Arc::new(MemoryDevice::new());
    let served: Arc<dyn BlockDevice> = Arc::clone(&device) as _;
    let server = Server::start(config, served).expect("the server starts");
    Fixture {
        server,
        device,
        socket,
        _dir: dir,
    }
}

impl Fixture {
    /// A client that has said nothing yet.
    pub(crate) fn connect(&self) -> Client<UnixStream> {
        let stream = UnixStream::connect(&self.socket).expect("the server listens");
        stream.set_read_timeout(Some(HANG)).expect("a timeout");
        stream.set_write_timeout(Some(HANG)).expect("a timeout");
        Client::new(stream)
    }

    /// A client in transmission with simple replies.
    pub(crate) fn simple(&self) -> Client<UnixStream> {
        let mut client = self.connect();
        client.greet(3);
        client.go(NAME);
        client
    }

    /// A client in transmission with structured replies and every metadata context.
    pub(crate) fn structured(&self) -> Client<UnixStream> {
        let mut client = self.connect();
        client.greet(3);
        client.structure();
        let data = queries(NAME, &["base:allocation", "uzram:state"]);
        assert_eq!(client.option(SET_META_CONTEXT, &data).len(), 3);
        client.go(NAME);
        client
    }

    /// Shows that another client is served at once.
    pub(crate) fn assert_serves(&self) {
        self.assert_serves_on(self.simple());
    }

    /// Shows that another client is served before long: those that are sent away to make room keep their
    /// threads for a moment, of which there are twice as many as clients at most.
    pub(crate) fn assert_has_room(&self) {
        let mut client = self.connect();
        eventually("served", || {
            let is_greeted = client.stream.read_exact(&mut [0; 18]).is_ok();
            if !is_greeted {
                client = self.connect();
            }
            is_greeted
        });
        client.send(&3_u32.to_be_bytes());
        client.go(NAME);
        self.assert_serves_on(client);
    }

    fn assert_serves_on(&self, mut client: Client<UnixStream>) {
        client.request(READ, 0, 8192, 4096, &[]);
        assert_eq!(client.simple_reply(4096).0, 0);
        client.request(DISC, 0, 0, 0, &[]);
        client.assert_closed();
    }
}

/// A TCP client that has said nothing yet.
pub(crate) fn connect_tcp(address: &Address) -> Client<TcpStream> {
    let Address::Tcp { host, port } = address else {
        panic!("{address} is not TCP")
    };
    let stream = TcpStream::connect((host.as_str(), *port)).expect("the server listens");
    stream.set_read_timeout(Some(HANG)).expect("a timeout");
    stream.set_write_timeout(Some(HANG)).expect("a timeout");
    Client::new(stream)
}

/// One chunk of a structured reply.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) done: bool,
    pub(crate) kind: u16,
    pub(crate) payload: Vec<u8>,
}

pub(crate) const CHUNK_NONE: u16 = 0;
pub(crate) const CHUNK_DATA: u16 = 1;
pub(crate) const CHUNK_HOLE: u16 = 2;
pub(crate) const CHUNK_STATUS: u16 = 5;
pub(crate) const CHUNK_ERROR: u16 = 0x8001;
pub(crate) const CHUNK_ERROR_OFFSET: u16 = 0x8002;

impl Chunk {
    pub(crate) fn be32(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("4 bytes"))
    }

    pub(crate) fn be64(&self, at: usize) -> u64 {
        u64::from_be_bytes(self.payload[at..at + 8].try_into().expect("8 bytes"))
    }
}

pub(crate) struct Client<S> {
    pub(crate) stream: S,
    cookie: u64,
}

impl<S: Read + Write> Client<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            cookie: 0xfeed_0000_0000_0000,
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the server receives");
    }

    pub(crate) fn receive(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.stream
            .read_exact(&mut bytes)
            .expect("the server answers");
        bytes
    }

    pub(crate) fn be16(&mut self) -> u16 {
        u16::from_be_bytes(self.receive(2).try_into().expect("2 bytes"))
    }

    pub(crate) fn be32(&mut self) -> u32 {
        u32::from_be_bytes(self.receive(4).try_into().expect("4 bytes"))
    }

    pub(crate) fn be64(&mut self) -> u64 {
        u64::from_be_bytes(self.receive(8).try_into().expect("8 bytes"))
    }

    /// Shows that the server has hung up and left nothing unread.
    pub(crate) fn assert_closed(&mut self) {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => assert_eq!(rest, b"", "the server had more to say"),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}"),
        }
    }

    /// Reads the greeting and answers it with `flags`.
    pub(crate) fn greet(&mut self, flags: u32) {
        assert_eq!(self.receive(16), b"NBDMAGICIHAVEOPT");
        assert_eq!(self.be16(), 3, "FIXED_NEWSTYLE and NO_ZEROES");
        self.send(&flags.to_be_bytes());
    }

    pub(crate) fn send_option(&mut self, option: u32, data: &[u8]) {
        self.send_option_header(option, data.len() as u32);
        self.send(data);
    }

    pub(crate) fn send_option_header(&mut self, option: u32, length: u32) {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(option.to_be_bytes());
        bytes.extend(length.to_be_bytes());
        self.send(&bytes);
    }

    /// Sends an option and returns the types and data of all replies to it.
    pub(crate) fn option(&mut self, option: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send_option(option, data);
        self.option_replies(option)
    }

    pub(crate) fn option_replies(&mut self, option: u32) -> Vec<(u32, Vec<u8>)> {
        let mut replies = Vec::new();
        loop {
            assert_eq!(self.be64(), 0x0003_e889_0455_65a9);
            assert_eq!(self.be32(), option);
            let kind = self.be32();
            let length = self.be32() as usize;
            replies.push((kind, self.receive(length)));
            if kind == REP_ACK || kind >= 1 << 31 {
                return replies;
            }
        }
    }

    /// The last reply's type.
    pub(crate) fn verdict(&mut self, option: u32, data: &[u8]) -> u32 {
        self.option(option, data).last().expect("a reply").0
    }

    pub(crate) fn structure(&mut self) {
        assert_eq!(self.verdict(STRUCTURED_REPLY, &[]), REP_ACK);
    }

    /// Enters transmission and returns the transmission flags.
    pub(crate) fn go(&mut self, name: &str) -> u16 {
        let replies = self.option(GO, &info_request(name, &[]));
        let [(REP_INFO, export), (REP_ACK, _)] = &replies[..] else {
            panic!("{replies:?}")
        };
        assert_eq!(export[..2], [0, 0]);
        u16::from_be_bytes([export[10], export[11]])
    }

    /// Sends a request, and returns its cookie.
    pub(crate) fn request(
        &mut self,
        command: u16,
        flags: u16,
        offset: u64,
        length: u32,
        payload: &[u8],
    ) -> u64 {
        self.cookie += 1;
        let mut bytes = request_bytes(command, flags, self.cookie, offset, length);
        bytes.extend(payload);
        self.send(&bytes);
        self.cookie
    }

    /// Reads a simple reply to the last request: its error and, if that is 0, `length` bytes.
    pub(crate) fn simple_reply(&mut self, length: usize) -> (u32, Vec<u8>) {
        assert_eq!(self.be32(), 0x6744_6698);
        let error = self.be32();
        assert_eq!(self.be64(), self.cookie);
        let data = if error == 0 { length } else { 0 };
        (error, self.receive(data))
    }

    /// Reads a whole structured reply to the last request.
    pub(crate) fn structured_reply(&mut self) -> Vec<Chunk> {
        let mut chunks = Vec::new();
        loop {
            assert_eq!(self.be32(), 0x668e_33ef);
            let flags = self.be16();
            let kind = self.be16();
            assert_eq!(self.be64(), self.cookie);
            let length = self.be32() as usize;
            let payload = self.receive(length);
            let done = flags == 1;
            chunks.push(Chunk {
                done,
                kind,
                payload,
            });
            if done {
                return chunks;
            }
        }
    }

    /// Reads the one chunk of a structured reply that failed; its error and message.
    pub(crate) fn structured_error(&mut self) -> (u32, String) {
        let chunks = self.structured_reply();
        let [chunk] = &chunks[..] else {
            panic!("{chunks:?}")
        };
        assert_eq!(chunk.kind, CHUNK_ERROR);
        let message = String::from_utf8(chunk.payload[6..].to_vec()).expect("UTF-8");
        assert_eq!(chunk.payload[4..6], (message.len() as u16).to_be_bytes());
        (chunk.be32(0), message)
    }

    /// Reads a structured reply to a READ of `length` bytes at `offset` and puts it together.
    pub(crate) fn assemble(&mut self, offset: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0xee; length];
        let mut covered = 0;
        for chunk in self.structured_reply() {
            if chunk.kind == CHUNK_NONE {
                continue;
            }
            let at = (chunk.be64(0) - offset) as usize;
            let part = match chunk.kind {
                CHUNK_DATA => chunk.payload[8..].to_vec(),
                CHUNK_HOLE => vec![0; chunk.be32(8) as usize],
                kind => panic!("chunk of type {kind}"),
            };
            data[at..at + part.len()].copy_from_slice(&part);
            covered += part.len();
        }
        assert_eq!(covered, length);
        data
    }
}

pub(crate) fn request_bytes(
    command: u16,
    flags: u16,
    cookie: u64,
    offset: u64,
    length: u32,
) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes
}

/// The data of INFO and GO.
pub(crate) fn info_request(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((kinds.len() as u16).to_be_bytes());
    data.extend(kinds.iter().flat_map(|kind| kind.to_be_bytes()));
    data
}

/// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(crate) fn queries(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = string(name);
    data.extend((queries.len() as u32).to_be_bytes());
    data.extend(queries.iter().flat_map(|query| string(query)));
    data
}

pub(crate) fn string(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u32).to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}
