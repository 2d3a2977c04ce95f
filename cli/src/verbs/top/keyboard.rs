//! Keys and other events of the terminal that `uzram top` runs in.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ratatui::crossterm::event::{self, Event};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::termios::{self, OptionalActions};

use crate::base::undo::{Interrupt, Interrupted};

/// How often is looked whether a signal has come, or the terminal has another size.
const OFTEN: Duration = Duration::from_millis(100);

/// Where events come from.
trait Source {
    /// What has come already, if anything.
    ///
    /// # Errors
    /// Once the terminal is gone.
    fn take(&mut self) -> Result<Option<Event>>;

    /// Waits until something can be taken, at most so long; sooner if a signal comes.
    fn wait(&mut self, timeout: Duration) -> Result<()>;
}

/// What happens next, or nothing until `then`.
///
/// # Errors
/// Once a signal has come, or the terminal is gone.
fn next(
    source: &mut impl Source,
    then: Instant,
    check: impl Fn() -> Result<()>,
) -> Result<Option<Event>> {
    loop {
        check()?;
        let left = then.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        // Several keys may have come at once: a source that waits has to have nothing more.
        if let Some(event) = source.take()? {
            return Ok(Some(event));
        }
        source.wait(left.min(OFTEN))?;
    }
}

/// What crossterm reads.
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
    pub(super) fn next(&mut self, then: Instant, interrupt: &Interrupt) -> Result<Option<Event>> {
        next(self, then, || interrupt.check())
    }

    /// What can be said of the terminal at once, or comes to be in so long.
    fn poll(&self, timeout: Duration) -> Result<PollFlags> {
        let mut fds = [PollFd::from_borrowed_fd(self.descriptor(), PollFlags::IN)];
        let timeout = Timespec {
            tv_sec: timeout.as_secs().try_into()?,
            tv_nsec: timeout.subsec_nanos().into(),
        };
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) => Ok(fds[0].revents()),
            Err(Errno::INTR) => Ok(PollFlags::empty()),
            Err(error) => Err(error).context("cannot wait for the terminal"),
        }
    }

    /// Has crossterm look at what it left unread. It is told once of what comes, and forgets that where it
    /// cannot read all of it at once, or another event comes with it.
    fn announce_again(&self) -> Result<()> {
        // A terminal wakes its readers when it is set, if only to what it was.
        let tty = self.descriptor();
        termios::tcgetattr(tty)
            .and_then(|as_it_is| termios::tcsetattr(tty, OptionalActions::Now, &as_it_is))
            .context("cannot set the terminal")
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        match &self.tty {
            Some(tty) => tty.as_fd(),
            None => self.stdin.as_fd(),
        }
    }
}

impl Source for Keyboard {
    fn take(&mut self) -> Result<Option<Event>> {
        let ready = self.poll(Duration::ZERO)?;
        // Crossterm reads what has hung up for ever.
        if ready.intersects(PollFlags::HUP | PollFlags::ERR) {
            return Err(Interrupted::error("interrupted: the terminal is gone"));
        }
        // It reads many keys at once: those that it keeps cannot be seen at the descriptor.
        if event::poll(Duration::ZERO)? {
            return Ok(Some(event::read()?));
        }
        if ready.contains(PollFlags::IN) {
            self.announce_again()?;
        }
        Ok(None)
    }

    fn wait(&mut self, timeout: Duration) -> Result<()> {
        self.poll(timeout).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use anyhow::bail;
    use ratatui::crossterm::event::KeyCode;

    use super::*;

    /// Keys that come while it is waited for them, several at once.
    struct Bursts {
        came: VecDeque<Event>,
        to_come: VecDeque<usize>,
        waits: usize,
    }

    impl Bursts {
        fn new<const N: usize>(to_come: [usize; N]) -> Self {
            Self {
                came: VecDeque::new(),
                to_come: to_come.into(),
                waits: 0,
            }
        }
    }

    impl Source for Bursts {
        fn take(&mut self) -> Result<Option<Event>> {
            Ok(self.came.pop_front())
        }

        fn wait(&mut self, timeout: Duration) -> Result<()> {
            assert!(!timeout.is_zero() && timeout <= OFTEN);
            self.waits += 1;
            let Some(keys) = self.to_come.pop_front() else {
                bail!("nothing comes any more");
            };
            let key = Event::Key(KeyCode::Down.into());
            self.came.extend(std::iter::repeat_n(key, keys));
            Ok(())
        }
    }

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(3600)
    }

    #[test]
    fn keys_that_came_at_once_are_not_waited_for_one_by_one() {
        let mut source = Bursts::new([30, 0, 2]);
        for key in 0..32 {
            let event = next(&mut source, later(), || Ok(())).expect("a key");
            assert!(event.is_some(), "{key}");
            assert_eq!(source.waits, if key < 30 { 1 } else { 3 }, "{key}");
        }
        next(&mut source, later(), || Ok(())).expect_err("no more");
    }

    #[test]
    fn what_interrupts_a_wait_is_looked_at_before_the_next() {
        let mut source = Bursts::new([0, 0]);
        let looks = std::cell::Cell::new(0);
        let interrupted = next(&mut source, later(), || {
            looks.set(looks.get() + 1);
            match looks.get() {
                2 => bail!("a signal"),
                _ => Ok(()),
            }
        });
        assert_eq!(interrupted.expect_err("it came").to_string(), "a signal");
        assert_eq!(source.waits, 1);
    }

    #[test]
    fn time_is_up_though_keys_keep_coming() {
        let mut source = Bursts::new([]);
        source.came.push_back(Event::FocusGained);
        let event = next(&mut source, Instant::now(), || Ok(())).expect("no error");
        assert_eq!((event, source.waits), (None, 0));
    }
}
