//! A task beside others, even where no thread can be had for it.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, Scope, ScopedJoinHandle};

type Task<'a> = Box<dyn FnOnce() + Send + 'a>;

/// A task that was begun, or is yet to be.
pub(crate) enum Begun<'scope> {
    Running(ScopedJoinHandle<'scope, ()>),
    Waiting(Task<'scope>),
}

/// Begins a task on a thread of its own, if there is one to be had.
pub(crate) fn begin<'scope>(
    scope: &'scope Scope<'scope, '_>,
    task: impl FnOnce() + Send + 'scope,
) -> Begun<'scope> {
    let task: Task<'scope> = Box::new(task);
    let ours = Arc::new(Mutex::new(Some(task)));
    let its = Arc::clone(&ours);
    let take = |task: &Mutex<Option<_>>| {
        let mut task = task.lock().unwrap_or_else(PoisonError::into_inner);
        task.take()
    };
    let work = move || {
        if let Some(task) = take(&its) {
            task();
        }
    };
    match thread::Builder::new().spawn_scoped(scope, work) {
        Ok(thread) => Begun::Running(thread),
        Err(error) => {
            tracing::warn!("cannot start a thread, doing one thing after the other: {error}");
            // A thread that did not start has left it there.
            Begun::Waiting(take(&ours).unwrap_or_else(|| Box::new(|| {})))
        }
    }
}

impl Begun<'_> {
    /// Waits for its end, or does it now.
    pub(crate) fn finish(self) {
        match self {
            // One that panicked has said so.
            Self::Running(thread) => drop(thread.join()),
            Self::Waiting(task) => task(),
        }
    }
}
