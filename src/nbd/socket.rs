//! A connected stream socket, Unix or TCP, as `Read` and `Write`.
//!
//! Two things end a read that the client would not end: the deadline, and the server's stop.
//! After the stop exactly those bytes are still read that had already arrived, so what a client
//! was told nothing about yet is answered and what it goes on sending is not. No locks.

use std::cell::RefCell;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, sendmsg, shutdown};

use super::busy_poll::BusyPoll;

/// What a connection talks over.
pub(super) trait Stream: Read + Write {
    /// Waits until a read would not block or `other` is readable; says whether it is the former.
    ///
    /// # Errors
    /// What the kernel says.
    fn wait_readable(&mut self, other: BorrowedFd<'_>) -> io::Result<bool>;
}

/// A stream that cannot be waited for: its reads wait.
pub(super) struct Bare<'a, S>(pub(super) &'a mut S);

impl<S: Read> Read for Bare<'_, S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl<S: Write> Write for Bare<'_, S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<S: Read + Write> Stream for Bare<'_, S> {
    fn wait_readable(&mut self, _other: BorrowedFd<'_>) -> io::Result<bool> {
        Ok(true)
    }
}

pub(super) struct Socket {
    /// Shared with whoever may shut it down from outside.
    fd: Arc<OwnedFd>,
    stopping: Arc<AtomicBool>,
    deadline: Option<Instant>,
    /// Bytes that may still be read, once the server is stopping.
    leftover: Option<u64>,
    busy_poll: BusyPoll,
}

impl Socket {
    pub(super) fn new(fd: Arc<OwnedFd>, stopping: Arc<AtomicBool>) -> Self {
        Self {
            fd,
            stopping,
            deadline: None,
            leftover: None,
            busy_poll: BusyPoll::new(),
        }
    }

    /// From now on, reads and writes fail at `deadline`; without one they wait for ever.
    pub(super) fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// Hangs up such that the client can still read its last reply: closing a socket with unread
    /// data would take that reply away. Reads and drops at most `count` bytes for at most `time`.
    pub(super) fn hang_up(&mut self, mut count: usize, time: Duration) {
        self.deadline = Some(Instant::now() + time);
        if shutdown(&self.fd, Shutdown::Write).is_err() {
            return;
        }
        let mut scratch = [0; 4096];
        while count > 0 {
            match self.read(&mut scratch) {
                Ok(0) | Err(_) => return,
                Ok(read) => count = count.saturating_sub(read),
            }
        }
    }

    /// How many of `wanted` bytes may be read.
    fn allowed(&mut self, wanted: usize) -> io::Result<usize> {
        if !self.stopping.load(Ordering::Acquire) {
            return Ok(wanted);
        }
        let leftover = match self.leftover {
            Some(leftover) => leftover,
            None => *self.leftover.insert(ioctl_fionread(&self.fd)?),
        };
        Ok(usize::try_from(leftover).map_or(wanted, |leftover| leftover.min(wanted)))
    }

    /// Receives once; without a deadline, waits for it.
    fn receive(&mut self, buf: &mut [u8]) -> Result<(usize, usize), Errno> {
        let fd = &*self.fd;
        if self.deadline.is_some() {
            return recv(fd, buf, RecvFlags::DONTWAIT);
        }
        let buf = RefCell::new(buf);
        let receive = |flags| recv(fd, &mut **buf.borrow_mut(), flags);
        self.busy_poll.wait(
            || match receive(RecvFlags::DONTWAIT) {
                Err(Errno::AGAIN) => None,
                received => Some(received),
            },
            || receive(RecvFlags::empty()),
        )
    }

    /// Waits for `events`, if there is a deadline to wait for as well.
    fn wait(&self, events: PollFlags) -> io::Result<()> {
        let Some(deadline) = self.deadline else {
            return Ok(());
        };
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&*self.fd, events)], Some(&timeout)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Stream for Socket {
    fn wait_readable(&mut self, other: BorrowedFd<'_>) -> io::Result<bool> {
        let mut both = [
            PollFd::new(&*self.fd, PollFlags::IN),
            PollFd::from_borrowed_fd(other, PollFlags::IN),
        ];
        loop {
            match poll(&mut both, None) {
                Ok(_) => return Ok(!both[0].revents().is_empty()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let allowed = self.allowed(buf.len())?;
        if allowed == 0 {
            return Ok(0);
        }
        loop {
            self.wait(PollFlags::IN)?;
            match self.receive(&mut buf[..allowed]) {
                Ok((count, _)) => {
                    if let Some(leftover) = &mut self.leftover {
                        *leftover = leftover.saturating_sub(count as u64);
                    }
                    return Ok(count);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.deadline.is_some() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(buf)])
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = match self.deadline {
            Some(_) => SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
            None => SendFlags::NOSIGNAL,
        };
        loop {
            self.wait(PollFlags::OUT)?;
            match sendmsg(&self.fd, bufs, &mut SendAncillaryBuffer::default(), flags) {
                Ok(count) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) if self.deadline.is_some() => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
