//! The thread that syncs again and again.

use std::sync::Arc;
use std::time::Duration;

use super::Destager;
use crate::error::{Error, Result};
use crate::sync::channel::{self, Receiver, RecvTimeoutError, Sender};
use crate::sync::thread::JoinHandle;

/// The thread; it ends when this is dropped, after a sync that is under way.
pub(crate) struct Periodic {
    running: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Periodic {
    /// Syncs once in each period.
    ///
    /// # Errors
    /// [`Error::Io`] if there cannot be another thread.
    pub(crate) fn start(destager: Arc<Destager>, period: Duration) -> Result<Self> {
        let (running, ended) = channel::bounded(0);
        let thread = crate::sync::thread::Builder::new()
            .name("uzram-sync".into())
            .spawn(move || sync_all(&destager, period, &ended))
            .map_err(|error| Error::io("start the thread that syncs", error))?;
        Ok(Self {
            running: Some(running),
            thread: Some(thread),
        })
    }
}

impl Drop for Periodic {
    fn drop(&mut self) {
        self.running = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that syncs panicked");
        }
    }
}

fn sync_all(destager: &Destager, period: Duration, ended: &Receiver<()>) {
    while ended.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
        // What failed is logged, and tried again the next time.
        let _ = destager.sync();
    }
}
