//! The same under shuttle's scheduler. Each operation is a point at which another thread may go on.
//!
//! All threads of a model are coroutines of one thread of the system, so what is behind them needs
//! no locks of its own. Atomics are sequentially consistent whatever they are asked for. Time stands
//! still but for [`time::advance`].

pub(crate) mod atomic;
pub(crate) mod channel;
mod locks;
pub(crate) mod thread;
pub(crate) mod time;

use std::cell::Cell;
use std::time::Duration;

pub(crate) use shuttle::thread_local;

pub(crate) use self::locks::{Condvar, Mutex, MutexGuard, RwLock};

std::thread_local! {
    static COARSE: Cell<bool> = const { Cell::new(false) };
}

/// Whether only locks and messages are points at which another thread may go on: for long runs.
pub(crate) fn be_coarse(coarse: bool) {
    COARSE.set(coarse);
}

/// A point at which another thread may go on.
fn switch() {
    if !COARSE.get() {
        // Shuttle's sleep is that, and no hint that this thread has nothing to do.
        shuttle::thread::sleep(Duration::ZERO);
    }
}
