//! What a child process says on stdout and stderr, read as it comes by the thread that waits for it: a
//! thread for each pipe might not be had.

use std::io;
use std::process::Child;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::io::{Errno, ioctl_fionbio};

/// What has been said so far.
pub(crate) struct ChildOutput {
    stdout: Pipe,
    stderr: Pipe,
}

struct Pipe {
    /// `None` once nobody can write to it any more.
    open: Option<OwnedFd>,
    bytes: Vec<u8>,
}

impl ChildOutput {
    /// Takes the pipes of `child`.
    pub(crate) fn take(child: &mut Child) -> io::Result<Self> {
        Ok(Self {
            stdout: Pipe::new(child.stdout.take().map(OwnedFd::from))?,
            stderr: Pipe::new(child.stderr.take().map(OwnedFd::from))?,
        })
    }

    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout.bytes).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr.bytes).into_owned()
    }

    /// Whether all has been said.
    pub(crate) fn is_complete(&self) -> bool {
        self.stdout.open.is_none() && self.stderr.open.is_none()
    }

    /// Reads what has been said; waits for some, or for the end, for at most `timeout`.
    pub(crate) fn read(&mut self, timeout: Duration) -> io::Result<()> {
        let timeout = Timespec::try_from(timeout).map_err(io::Error::other)?;
        let open = [&self.stdout, &self.stderr];
        let mut open: Vec<_> = open
            .iter()
            .filter_map(|pipe| Some(PollFd::new(pipe.open.as_ref()?, PollFlags::IN)))
            .collect();
        match poll(&mut open, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        self.stdout.read()?;
        self.stderr.read()
    }
}

impl Pipe {
    fn new(open: Option<OwnedFd>) -> io::Result<Self> {
        if let Some(fd) = &open {
            ioctl_fionbio(fd, true)?;
        }
        Ok(Self {
            open,
            bytes: Vec::new(),
        })
    }

    fn read(&mut self) -> io::Result<()> {
        let mut chunk = [0; 4096];
        while let Some(fd) = &self.open {
            match rustix::io::read(fd, &mut chunk) {
                Ok(0) => self.open = None,
                Ok(len) => self.bytes.extend_from_slice(&chunk[..len]),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}
