//! Doing several steps so that a failure, or Ctrl-C, leaves nothing half made.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Once};

use anyhow::{Context, Error, Result};
use signal_hook::SigId;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

use crate::base::name::Name;

/// What ends a program unless it is handled.
const SIGNALS: [i32; 3] = [SIGINT, SIGTERM, SIGHUP];

/// Whether nobody notes signals. Then they do what they do to any program.
static IDLE: LazyLock<Arc<AtomicBool>> = LazyLock::new(|| Arc::new(AtomicBool::new(true)));

/// A signal has come, and this is what became of what was being done.
#[derive(Debug)]
pub(crate) struct Interrupted(String);

impl Interrupted {
    /// With what is to be said of it.
    pub(crate) fn error(became: impl Into<String>) -> Error {
        Self(became.into()).into()
    }
}

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Interrupted {}

/// Notes SIGINT, SIGTERM and SIGHUP instead of dying of them, while it lives. There is one at a time.
#[derive(Debug)]
pub(crate) struct Interrupt(Noted);

impl Interrupt {
    pub(crate) fn install() -> Result<Self> {
        static FIRST: Once = Once::new();
        let mut registered = Ok(());
        // Actions of a signal are done in the order in which they came.
        FIRST.call_once(|| {
            registered = SIGNALS.iter().try_for_each(|&signal| {
                flag::register_conditional_default(signal, Arc::clone(&IDLE)).map(drop)
            });
        });
        let noted = registered.and_then(|()| Noted::from_now_on());
        let interrupt = Self(noted.context("cannot handle signals")?);
        // Last, so that no signal is lost: until here one ends the program.
        IDLE.store(false, Ordering::SeqCst);
        Ok(interrupt)
    }

    /// Fails once a signal has come.
    pub(crate) fn check(&self) -> Result<()> {
        match self.0.any() {
            true => Err(Interrupted::error("interrupted")),
            false => Ok(()),
        }
    }

    /// Notes those that come after all that came until now, while both live.
    pub(crate) fn again(&self) -> Result<Noted> {
        Noted::from_now_on().context("cannot handle signals")
    }

    /// Fails if a signal came while the device `name` was taken down, which is done by now.
    pub(crate) fn check_down(&self, name: &Name) -> Result<()> {
        let was_down = |_| Interrupted::error(format!("interrupted, but {name} was down by then"));
        self.check().map_err(was_down)
    }

    /// Makes something in steps; if one of them fails, or a signal came, those before it are undone.
    pub(crate) fn or_undo<'a, T>(
        &self,
        make: impl FnOnce(&mut Undo<'a>) -> Result<T>,
    ) -> Result<T> {
        let mut undo = Undo::default();
        match make(&mut undo) {
            Ok(made) => {
                undo.disarm();
                Ok(made)
            }
            Err(error) => {
                let undone = undo.unwind();
                Err(self.explain(error, undone))
            }
        }
    }

    /// What to say of `error`: after a signal, which the tools got too, not what they said of it.
    fn explain(&self, error: Error, undone: bool) -> Error {
        match (self.check(), undone) {
            (Ok(()), _) => error,
            (Err(_), true) => Interrupted::error("interrupted, everything was undone"),
            (Err(_), false) => {
                Interrupted::error("interrupted, but not everything could be undone")
            }
        }
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        // They are noted no more after that.
        IDLE.store(true, Ordering::SeqCst);
    }
}

/// Signals since some moment.
#[derive(Debug, Default)]
pub(crate) struct Noted {
    came: Arc<AtomicBool>,
    ids: Vec<SigId>,
}

impl Noted {
    fn from_now_on() -> io::Result<Self> {
        let mut noted = Self::default();
        for signal in SIGNALS {
            let id = flag::register(signal, Arc::clone(&noted.came))?;
            noted.ids.push(id);
        }
        Ok(noted)
    }

    /// Whether any has come.
    pub(crate) fn any(&self) -> bool {
        self.came.load(Ordering::SeqCst)
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        for id in self.ids.drain(..) {
            signal_hook::low_level::unregister(id);
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
    fn unwind(mut self) -> bool {
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
    fn disarm(mut self) {
        self.0.clear();
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        self.run();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::bail;
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
