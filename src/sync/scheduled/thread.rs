//! Threads.

use std::io;
use std::time::Duration;

pub(crate) use shuttle::thread::{
    Builder, JoinHandle, Scope, ScopedJoinHandle, Thread, current, park, yield_now,
};

use super::channel;

use super::time::{self, Instant};

/// Parks until unparked, or so long. It may end early.
pub(crate) fn park_timeout(timeout: Duration) {
    time::unpark_at(Instant::now() + timeout, current());
    park();
}

/// As [`std::thread::scope`]. A thread of its own lasts as long as `f`: when the last one of a scope
/// ends, shuttle wakes whoever opened it, whatever that is waiting for.
pub(crate) fn scope<'env, T>(f: impl for<'scope> FnOnce(&'scope Scope<'scope, 'env>) -> T) -> T {
    shuttle::thread::scope(|scope| {
        let (ends, ended) = channel::unbounded::<()>();
        scope.spawn(move || ended.recv());
        let result = f(scope);
        drop(ends);
        result
    })
}

/// Starts a thread of a scope.
pub(crate) fn spawn_scoped<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    _name: &str,
    f: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    Ok(scope.spawn(f))
}
