//! How the writeback thread is woken.

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::thread::{self, Thread};
use crate::sync::time::Instant;
use crate::sync::{Protection, without};
use std::sync::OnceLock;
use std::time::Duration;

/// Wakes one thread, cheaply if it is awake already. Locks nothing.
///
/// Whoever changes something that the thread looks at calls [`Waker::wake`] after it; the thread
/// looks after [`Waker::wait`]. Both swap `pending`, so one of the two comes first: either the
/// thread sees the change, or its next wait returns at once.
#[derive(Debug, Default)]
pub(crate) struct Waker {
    pending: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Waker {
    /// Makes the calling thread the one to wake. A second call changes nothing.
    pub(crate) fn attach(&self) {
        let _ = self.thread.set(thread::current());
    }

    /// Makes the next or present [`Waker::wait`] return.
    pub(crate) fn wake(&self) {
        // Not a load first: it could see a `pending` that the thread is about to take back, before
        // the caller's change is visible to it.
        if self.pending.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Waits until woken; returns false if `timeout` passed first.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> bool {
        let deadline = timeout.map(|timeout| Instant::now() + timeout);
        if without(Protection::WakeRemembered) {
            self.pending.store(false, Ordering::Release);
        }
        // A park may end early: for an unpark that an earlier wait did not need, or for nothing.
        while !self.pending.swap(false, Ordering::AcqRel) {
            match deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())) {
                None => thread::park(),
                Some(Duration::ZERO) => return false,
                Some(left) => thread::park_timeout(left),
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    #[test]
    fn a_wake_before_the_wait_is_not_lost_and_not_seen_twice() {
        let waker = Waker::default();
        waker.attach();
        waker.wake();
        waker.wake();
        assert!(waker.wait(None));
        let start = Instant::now();
        assert!(!waker.wait(Some(Duration::from_millis(50))));
        assert!(start.elapsed() >= Duration::from_millis(50));
    }

    #[test]
    fn what_changed_before_a_wake_is_seen() {
        const ROUNDS: u32 = 20_000;
        let waker = Arc::new(Waker::default());
        let seen = Arc::new(std::sync::atomic::AtomicU32::new(0));
        let flag = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let (waker, seen, flag) = (Arc::clone(&waker), Arc::clone(&seen), Arc::clone(&flag));
            move || {
                waker.attach();
                while seen.load(Ordering::Relaxed) < ROUNDS {
                    waker.wait(None);
                    if flag.swap(false, Ordering::Relaxed) {
                        seen.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        for round in 1..=ROUNDS {
            // Pending may be true from before: this wake must count all the same.
            waker.wake();
            flag.store(true, Ordering::Relaxed);
            waker.wake();
            let start = Instant::now();
            while seen.load(Ordering::Relaxed) < round {
                assert!(
                    start.elapsed() < Duration::from_secs(20),
                    "lost in round {round}"
                );
                thread::yield_now();
            }
        }
        thread.join().expect("no panic");
    }
}
