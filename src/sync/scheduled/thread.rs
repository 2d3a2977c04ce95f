//! Threads.

use std::time::Duration;

pub(crate) use shuttle::thread::{Builder, JoinHandle, Thread, current, park};

use super::time::{self, Instant};

/// Parks until unparked, or so long. It may end early.
pub(crate) fn park_timeout(timeout: Duration) {
    time::unpark_at(Instant::now() + timeout, current());
    park();
}
