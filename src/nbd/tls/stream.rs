//! The stream that speaks TLS over a socket.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustls::{ServerConfig, ServerConnection};

use crate::nbd::socket::{Socket, Stream};

/// Bytes received at once: a good many records, each at most 16 KiB of data.
const RECEIVE: usize = 128 << 10;
/// Said of a client that hangs up instead of saying what it dislikes, as GnuTLS does.
const LEFT: &str = "the client left before it was over; perhaps it does not trust our certificate";
/// Most encrypted bytes that wait to be sent.
const SEND: usize = 256 << 10;

/// A socket with TLS on it.
///
/// Sending and receiving never interleave: what is written is sent whole before `write` returns.
pub(in crate::nbd) struct TlsStream {
    connection: ServerConnection,
    socket: BufReader<Socket>,
}

impl TlsStream {
    /// Takes a socket over from the byte on which the client begins its handshake, and shakes hands.
    pub(super) fn accept(config: &Arc<ServerConfig>, socket: Socket) -> io::Result<Self> {
        let mut connection = ServerConnection::new(Arc::clone(config)).map_err(io::Error::other)?;
        connection.set_buffer_limit(Some(SEND));
        let mut stream = Self {
            connection,
            socket: BufReader::with_capacity(RECEIVE, socket),
        };
        match stream.shake_hands() {
            Ok(()) => Ok(stream),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(io::Error::new(error.kind(), LEFT))
            }
            Err(error) => Err(error),
        }
    }

    /// The socket beneath, for its deadline.
    pub(in crate::nbd) fn socket_mut(&mut self) -> &mut Socket {
        self.socket.get_mut()
    }

    /// Tells the client that nothing will follow.
    pub(in crate::nbd) fn close(&mut self) -> io::Result<()> {
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
