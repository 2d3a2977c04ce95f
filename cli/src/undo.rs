//! Doing several steps so that a failure, or Ctrl-C, leaves nothing half made.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Notes SIGINT, SIGTERM and SIGHUP instead of dying of them.
#[derive(Debug)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    pub(crate) fn install() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&flag))
                .context("cannot handle signals")?;
        }
        Ok(Self(flag))
    }

    /// Fails once a signal has come.
    pub(crate) fn check(&self) -> Result<()> {
        if self.0.load(Ordering::SeqCst) {
            bail!("interrupted");
        }
        Ok(())
    }

    /// What to say of `error`: after a signal, which the tools got too, not what they said of it.
    pub(crate) fn explain(&self, error: Error, undone: bool) -> Error {
        match (self.check(), undone) {
            (Ok(()), _) => error,
            (Err(_), true) => anyhow!("interrupted, everything was undone"),
            (Err(_), false) => anyhow!("interrupted, but not everything could be undone"),
        }
    }
}

type UndoStep<'a> = Box<dyn FnOnce() -> Result<()> + 'a>;

/// What is to be undone, in reverse, unless all goes well.
#[derive(Default)]
pub(crate) struct Undo<'a>(Vec<UndoStep<'a>>);

impl<'a> Undo<'a> {
    pub(crate) fn push(&mut self, step: impl FnOnce() -> Result<()> + 'a) {
        self.0.push(Box::new(step));
    }

    /// Undoes it all, as far as it can be; says whether all of it could.
    pub(crate) fn unwind(mut self) -> bool {
        self.run()
    }

    fn run(&mut self) -> bool {
        let mut undone = true;
        while let Some(step) = self.0.pop() {
            if let Err(error) = step() {
                tracing::error!("cannot undo: {error:#}");
                undone = false;
            }
        }
        undone
    }

    /// All went well: nothing is undone.
    pub(crate) fn disarm(mut self) {
        self.0.clear();
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        self.run();
    }
}

/// Shows which of several steps is being done, if stderr is a terminal.
pub(crate) struct Steps {
    bar: ProgressBar,
}

impl Steps {
    pub(crate) fn new(count: u64) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new(count)
        } else {
            ProgressBar::hidden()
        };
        if let Ok(style) = ProgressStyle::with_template("{spinner} [{pos}/{len}] {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self { bar }
    }

    /// Goes on to the next step.
    pub(crate) fn next(&self, message: impl Into<String>) {
        self.bar.inc(1);
        self.bar.set_message(message.into());
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn undone_in_reverse_unless_disarmed() {
        let done = RefCell::new(Vec::new());
        let mut undo = Undo::default();
        for step in 1..=3 {
            let done = &done;
            undo.push(move || {
                done.borrow_mut().push(step);
                if step == 2 { bail!("step 2") } else { Ok(()) }
            });
        }
        assert!(!undo.unwind());
        assert_eq!(*done.borrow(), [3, 2, 1]);
        let mut undo = Undo::default();
        undo.push(|| Ok(()));
        assert!(undo.unwind());
        let mut undo = Undo::default();
        undo.push(|| {
            done.borrow_mut().clear();
            Ok(())
        });
        undo.disarm();
        assert_eq!(done.borrow().len(), 3);
    }
}
