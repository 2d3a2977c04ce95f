//! The threads of a device, and how they are told what to do.

use std::sync::Arc;

use super::Device;
use crate::config::DeviceConfig;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::maintain::{Command, Destager, Periodic, Recompressor, Writeback};
use crate::origin::SyncPolicy;
use crate::sync::channel::{self, Sender};
use crate::sync::thread::{self, JoinHandle};

/// The threads of a device.
pub(super) struct Background {
    /// Dropped, it ends the writeback thread.
    commands: Option<Sender<Command>>,
    writeback: Option<JoinHandle<()>>,
    recompression: Option<Periodic>,
    syncing: Option<Periodic>,
}

impl Background {
    /// Starts the writeback thread, once its state, of a device whose segment uses have numbers behind `sequence`,
    /// was `prepare`d.
    ///
    /// # Errors
    /// [`Error::Io`] if there cannot be another thread; those of `prepare`.
    pub(super) fn start(
        engine: &Arc<Engine>,
        destager: Option<&Arc<Destager>>,
        sequence: u64,
        prepare: impl FnOnce(&mut Writeback) -> Result<()>,
    ) -> Result<Self> {
        let (sender, receiver) = channel::unbounded();
        let mut writeback =
            Writeback::new(Arc::clone(engine), destager.cloned(), receiver, sequence);
        prepare(&mut writeback)?;
        let thread = thread::Builder::new()
            .name("uzram-writeback".into())
            .spawn(move || writeback.run())
            .map_err(|error| Error::io("start the writeback thread", error))?;
        Ok(Self {
            commands: Some(sender),
            writeback: Some(thread),
            recompression: None,
            syncing: None,
        })
    }

    /// Starts the threads that do something once in each period, those that are asked for.
    ///
    /// # Errors
    /// As [`Background::start`].
    pub(super) fn start_periodic(
        &mut self,
        config: &DeviceConfig,
        recompressor: &Arc<Recompressor>,
        destager: Option<&Arc<Destager>>,
        policy: Option<SyncPolicy>,
    ) -> Result<()> {
        if let Some(age) = config.recompress_after {
            self.recompression = Some(Recompressor::run_in_background(recompressor, age)?);
        }
        if let (Some(destager), Some(SyncPolicy::Every(period))) = (destager, policy) {
            self.syncing = Some(Destager::sync_every(destager, period)?);
        }
        Ok(())
    }

    /// Ends the thread that syncs.
    pub(super) fn end_syncing(&mut self) {
        self.syncing = None;
    }

    /// Ends all threads of a device that stops.
    pub(super) fn end(&mut self, engine: &Engine) {
        self.recompression = None;
        self.commands = None;
        engine.waker.wake();
        if let Some(thread) = self.writeback.take()
            && thread.join().is_err()
        {
            tracing::error!("the writeback thread panicked");
        }
    }

    /// Puts a command into the queue, from which the writeback thread takes it once it is woken.
    pub(super) fn queue(&self, command: Command) {
        if let Some(commands) = &self.commands {
            // The thread outlives its sender; it is gone only if it panicked, and then the answer
            // never comes, which the caller sees.
            let _ = commands.send(command);
        }
    }

    /// Whether a command waits to be taken.
    #[cfg(test)]
    pub(super) fn has_queued(&self) -> bool {
        self.commands
            .as_ref()
            .is_some_and(|commands| !commands.is_empty())
    }
}

impl Device {
    /// Has the writeback thread do something.
    pub(super) fn command(&self, command: Command) {
        self.background.queue(command);
        self.engine.waker.wake();
    }
}
