//! Waiting for what another thread or process does.

use std::thread;
use std::time::{Duration, Instant};

use crate::HANG;

/// Whether `done` comes true within `timeout`; it is asked now and then.
pub fn within(timeout: Duration, mut done: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + timeout;
    let mut pause = Duration::from_millis(1);
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    true
}

/// Waits until `done`.
///
/// # Panics
/// If that takes longer than [`HANG`].
#[track_caller]
pub fn eventually(what: &str, done: impl FnMut() -> bool) {
    assert!(within(HANG, done), "not {what} after {} s", HANG.as_secs());
}
