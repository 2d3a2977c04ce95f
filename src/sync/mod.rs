//! What the engine's threads meet by: mutexes, channels, atomics, the clock, and threads themselves.
//!
//! They are parking_lot's, crossbeam's and the standard library's. In unit tests with `--cfg shuttle`
//! (`scripts/models.sh`) they are those of a scheduler that decides by a seed, at each of them, which thread
//! goes on (`scheduled`), so that a model of a race runs the engine's own code.

#[cfg(all(test, shuttle))]
mod scheduled;
mod without;

#[cfg(all(test, shuttle))]
pub(crate) use self::scheduled::*;

#[cfg(not(all(test, shuttle)))]
mod of_the_system {
    pub(crate) use std::sync::atomic;
    pub(crate) use std::thread_local;

    pub(crate) use crossbeam::channel;
    pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

    pub(crate) mod thread {
        use std::io;
        pub(crate) use std::thread::*;

        /// Starts a thread of a scope.
        ///
        /// # Errors
        /// The kernel's.
        pub(crate) fn spawn_scoped<'scope, T: Send + 'scope>(
            scope: &'scope Scope<'scope, '_>,
            name: &str,
            f: impl FnOnce() -> T + Send + 'scope,
        ) -> io::Result<ScopedJoinHandle<'scope, T>> {
            Builder::new().name(name.to_owned()).spawn_scoped(scope, f)
        }
    }

    pub(crate) mod time {
        pub(crate) use std::time::Instant;

        use rustix::time::{ClockId, clock_gettime};
        use std::time::Duration;

        /// Since the machine was started, while it was suspended included.
        pub(crate) fn since_boot() -> Duration {
            let now = clock_gettime(ClockId::Boottime);
            Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
        }
    }
}

#[cfg(not(all(test, shuttle)))]
pub(crate) use self::of_the_system::*;
#[cfg(all(test, shuttle))]
pub(crate) use self::without::take_out;
pub(crate) use self::without::{Protection, without};
