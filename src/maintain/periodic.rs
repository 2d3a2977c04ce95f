//! A thread that does something once in each period.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::sync::channel::{self, Receiver, RecvTimeoutError, Sender};
use crate::sync::thread::{self, JoinHandle};

/// The thread; it ends when this is dropped, after a round that is under way.
pub(crate) struct Periodic {
    running: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
    name: &'static str,
}

/// The rounds of a thread: each comes a period after the last.
pub(super) struct Rounds {
    ended: Receiver<()>,
    period: Duration,
}

impl Iterator for Rounds {
    type Item = ();

    fn next(&mut self) -> Option<()> {
        let waited = self.ended.recv_timeout(self.period);
        (waited == Err(RecvTimeoutError::Timeout)).then_some(())
    }
}

impl Periodic {
    /// Starts a thread for `work`.
    ///
    /// # Errors
    /// [`Error::Io`] if there cannot be another thread.
    pub(super) fn start(
        name: &'static str,
        period: Duration,
        work: impl FnOnce(Rounds) + Send + 'static,
    ) -> Result<Self> {
        let (running, ended) = channel::bounded(0);
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(move || work(Rounds { ended, period }))
            .map_err(|error| Error::io(format!("start the thread {name}"), error))?;
        Ok(Self {
            running: Some(running),
            thread: Some(thread),
            name,
        })
    }
}

impl Drop for Periodic {
    fn drop(&mut self) {
        self.running = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread {} panicked", self.name);
        }
    }
}
