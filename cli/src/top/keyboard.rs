//! Keys and other events of the terminal that `uzram top` runs in.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ratatui::crossterm::event::{self, Event};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::undo::{Interrupt, Interrupted};

/// How often is looked whether a signal has come, or the terminal has another size.
const OFTEN: Duration = Duration::from_millis(100);

/// Where keys come from: what crossterm reads.
pub(super) struct Keyboard {
    stdin: io::Stdin,
    /// If stdin is no terminal.
    tty: Option<File>,
}

impl Keyboard {
    pub(super) fn open() -> Result<Self> {
        let stdin = io::stdin();
        let tty = match stdin.is_terminal() {
            true => None,
            false => Some(File::open("/dev/tty").context("cannot open the terminal")?),
        };
        Ok(Self { stdin, tty })
    }

    /// What happens next, or nothing until `then`.
    ///
    /// # Errors
    /// Once a signal has come, or the terminal is gone.
    pub(super) fn next(&self, then: Instant, interrupt: &Interrupt) -> Result<Option<Event>> {
        loop {
            interrupt.check()?;
            let left = then.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.wait(left.min(OFTEN))?;
            if event::poll(Duration::ZERO)? {
                return Ok(Some(event::read()?));
            }
        }
    }

    /// Waits for a key, at most so long. Crossterm reads what has hung up for ever.
    fn wait(&self, patience: Duration) -> Result<()> {
        let mut fds = [PollFd::from_borrowed_fd(self.descriptor(), PollFlags::IN)];
        let timeout = Timespec {
            tv_sec: patience.as_secs().try_into()?,
            tv_nsec: patience.subsec_nanos().into(),
        };
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot wait for the terminal"),
        }
        match fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
            true => Err(Interrupted::error("interrupted: the terminal is gone")),
            false => Ok(()),
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        match &self.tty {
            Some(tty) => tty.as_fd(),
            None => self.stdin.as_fd(),
        }
    }
}
