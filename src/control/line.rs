//! Lines of bounded length, in bounded time, over a Unix socket; with each may come an open file.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;

/// The longest line either side may send, bytes, its newline not counted.
pub const MAX_LINE_BYTES: usize = 64 << 10;

const CHUNK_BYTES: usize = 4096;

/// One end of a connection.
#[derive(Debug)]
pub(super) struct LineStream {
    stream: UnixStream,
    /// What was received and not yet handed out.
    received: Vec<u8>,
    /// The last file that came with it, likewise.
    file: Option<OwnedFd>,
    /// How long the peer may take to receive a line.
    write_timeout: Duration,
}

impl LineStream {
    /// The peer may take `write_timeout` to receive a line, however it does so.
    pub(super) fn new(stream: UnixStream, write_timeout: Duration) -> Self {
        Self {
            stream,
            received: Vec::new(),
            file: None,
            write_timeout,
        }
    }

    pub(super) fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Whether the peer is gone. One that has only said all that it has to say is not.
    pub(super) fn is_closed(&self) -> bool {
        let mut stream = [PollFd::new(&self.stream, PollFlags::empty())];
        poll(&mut stream, Some(&Timespec::default())).is_ok()
            && stream[0].revents().contains(PollFlags::HUP)
    }

    /// The next line without its newline; `None` if the peer has closed after a whole one.
    ///
    /// # Errors
    /// `TimedOut` (ETIMEDOUT) if the whole line is not there within `timeout`, `FileTooLarge` if it is too
    /// long, `UnexpectedEof` if the peer closes within it.
    pub(super) fn receive(&mut self, timeout: Duration) -> io::Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + timeout;
        let mut searched = 0;
        loop {
            let new = &self.received[searched..];
            if let Some(at) = new.iter().position(|&b| b == b'\n') {
                let mut line: Vec<u8> = self.received.drain(..=searched + at).collect();
                line.pop();
                return Ok(Some(line));
            }
            searched = self.received.len();
            if searched > MAX_LINE_BYTES {
                return Err(ErrorKind::FileTooLarge.into());
            }
            if self.fill(deadline)? == 0 {
                return match searched {
                    0 => Ok(None),
                    _ => Err(ErrorKind::UnexpectedEof.into()),
                };
            }
        }
    }

    /// The file that came with a line, once that was received.
    pub(super) fn take_file(&mut self) -> Option<OwnedFd> {
        self.file.take()
    }

    fn fill(&mut self, deadline: Instant) -> io::Result<usize> {
        let mut chunk = [0; CHUNK_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Errno::TIMEDOUT.into());
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut files = RecvAncillaryBuffer::new(&mut space);
            let parts = &mut [IoSliceMut::new(&mut chunk)];
            match recvmsg(&self.stream, parts, &mut files, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) => {
                    for message in files.drain() {
                        if let RecvAncillaryMessage::ScmRights(files) = message {
                            self.file = files.last().or(self.file.take());
                        }
                    }
                    self.received.extend_from_slice(&chunk[..received.bytes]);
                    return Ok(received.bytes);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Err(Errno::TIMEDOUT.into()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sends `message` as one line of JSON.
    ///
    /// # Errors
    /// `TimedOut` (ETIMEDOUT) if the peer has not received all of it in time.
    pub(super) fn send(&self, message: &impl Serialize) -> io::Result<()> {
        self.send_with(message, None)
    }

    /// The same, with a file.
    ///
    /// # Errors
    /// Those of [`LineStream::send`].
    pub(super) fn send_with(
        &self,
        message: &impl Serialize,
        mut file: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let mut line = serde_json::to_vec(message)?;
        line.push(b'\n');
        let deadline = Instant::now() + self.write_timeout;
        let mut rest = &line[..];
        while !rest.is_empty() {
            match self.send_some(rest, file.as_slice()) {
                Ok(sent) => {
                    rest = &rest[sent..];
                    file = None;
                }
                Err(Errno::AGAIN) => self.wait_for_room(deadline)?,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn send_some(&self, bytes: &[u8], files: &[BorrowedFd<'_>]) -> rustix::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(files)) {
            return Err(Errno::MSGSIZE);
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut ancillary, flags)
    }

    /// Waits until the peer has made some room, or has gone.
    fn wait_for_room(&self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Errno::TIMEDOUT.into());
        }
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        let mut stream = [PollFd::new(&self.stream, PollFlags::OUT)];
        match poll(&mut stream, Some(&left)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn pair() -> (UnixStream, LineStream) {
        let (near, far) = UnixStream::pair().expect("a pair");
        (near, LineStream::new(far, LONG))
    }

    #[test]
    fn lines_come_apart_however_they_arrive() {
        let (mut near, mut lines) = pair();
        near.write_all(b"one\n\ntw").expect("writes");
        assert_eq!(
            lines.receive(LONG).expect("line").as_deref(),
            Some(&b"one"[..])
        );
        assert_eq!(
            lines.receive(LONG).expect("line").as_deref(),
            Some(&b""[..])
        );
        near.write_all(b"o\nhalf").expect("writes");
        assert_eq!(
            lines.receive(LONG).expect("line").as_deref(),
            Some(&b"two"[..])
        );
        drop(near);
        let error = lines.receive(LONG).expect_err("cut off");
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_file_comes_with_its_line() {
        let (near, mut lines) = pair();
        let near = LineStream::new(near, LONG);
        let file = std::fs::File::open("/proc/self/comm").expect("there");
        let long = "x".repeat(CHUNK_BYTES);
        near.send_with(&long, Some(file.as_fd())).expect("sent");
        near.send(&7).expect("sent");
        lines.receive(LONG).expect("line").expect("a line");
        let mut comm = String::new();
        let came = lines.take_file().expect("a file");
        std::fs::File::from(came)
            .read_to_string(&mut comm)
            .expect("readable");
        assert!(!comm.is_empty());
        lines.receive(LONG).expect("line").expect("another");
        assert!(lines.take_file().is_none());
    }

    #[test]
    fn a_line_is_bounded_in_length_and_time() {
        let (mut near, mut lines) = pair();
        let waited = lines.receive(Duration::from_millis(10));
        assert_eq!(waited.expect_err("late").kind(), ErrorKind::TimedOut);
        let writer = std::thread::spawn(move || {
            let mut line = vec![b'x'; MAX_LINE_BYTES];
            line.push(b'\n');
            near.write_all(&line).expect("writes");
            line[MAX_LINE_BYTES] = b'x';
            line.resize(MAX_LINE_BYTES + CHUNK_BYTES, b'x');
            near.write_all(&line).expect("writes");
            near
        });
        let line = lines.receive(LONG).expect("as long as it may be");
        assert_eq!(line.map(|line| line.len()), Some(MAX_LINE_BYTES));
        let error = lines.receive(LONG).expect_err("too long");
        assert_eq!(error.kind(), ErrorKind::FileTooLarge);
        drop(writer.join().expect("wrote"));
    }

    #[test]
    fn a_reader_that_drips_has_no_more_time_than_one_that_reads_nothing() {
        let (near, far) = UnixStream::pair().expect("a pair");
        let lines = LineStream::new(far, Duration::from_millis(50));
        near.set_read_timeout(Some(LONG)).expect("set");
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // Each byte would have bought a wait of its own.
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    (&near).read_exact(&mut [0; 4096]).expect("there is more");
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
            let sent = lines.send(&"x".repeat(64 << 20));
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(sent.expect_err("too slow").kind(), ErrorKind::TimedOut);
        });
    }

    #[test]
    fn a_closed_peer_is_the_end() {
        let (mut near, mut lines) = pair();
        near.write_all(b"last\n").expect("writes");
        near.shutdown(std::net::Shutdown::Write).expect("open");
        assert!(!lines.is_closed());
        drop(near);
        assert!(lines.is_closed());
        let last = lines.receive(LONG).expect("line");
        assert_eq!(last.as_deref(), Some(&b"last"[..]));
        assert_eq!(lines.receive(LONG).expect("end"), None);
    }
}
