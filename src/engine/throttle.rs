//! Where writers wait when the memory limit is met.
//!
//! The writeback thread works in rounds; each ends with memory freed or with the reason why none
//! could be. A writer that found no room waits for the end of a round that began after it came,
//! and tries again or gives up with that reason. Locks one mutex, which nobody holds for long and
//! nobody takes while there is room.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::sync::atomic::{AtomicBool, Ordering::Relaxed};
use crate::sync::time::Instant;
use crate::sync::{Condvar, Mutex};
use crate::sync::{Protection, without};

/// How long a writer waits for the end of a round: past that the backing hangs.
const TIMEOUT: Duration = Duration::from_secs(60);

/// How a round ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RoundEnd {
    /// Memory was freed, or there is some under the limit.
    Room,
    /// No memory can be freed, for this reason.
    Stuck(&'static str),
}

#[derive(Debug)]
struct State {
    /// Rounds that have ended.
    ended: u64,
    last: RoundEnd,
    closed: bool,
}

/// The meeting place.
#[derive(Debug)]
pub(crate) struct Throttle {
    state: Mutex<State>,
    round_ended: Condvar,
    /// Whether a writer waits that the last round has not sent off. Changes under `state`'s lock.
    demand: AtomicBool,
}

impl Throttle {
    pub(crate) fn new() -> Self {
        let state = State {
            ended: 0,
            last: RoundEnd::Room,
            closed: false,
        };
        Self {
            state: Mutex::new(state),
            round_ended: Condvar::new(),
            demand: AtomicBool::new(false),
        }
    }

    /// Whether a writer waits for a round.
    pub(crate) fn demand(&self) -> bool {
        self.demand.load(Relaxed)
    }

    /// Waits until it makes sense to try again, calling `wake` to have a round begin.
    ///
    /// # Errors
    /// [`Error::NoSpace`] if the round freed nothing, none ended within a minute, or the device
    /// stops.
    pub(crate) fn wait(&self, wake: impl Fn()) -> Result<()> {
        let deadline = Instant::now() + TIMEOUT;
        let mut state = self.state.lock();
        // A round that is under way may have begun before room was short; the one after it did
        // not. But memory that it frees is as good as any.
        let came = state.ended;
        loop {
            if state.closed {
                return Err(Error::NoSpace("the device is stopping"));
            }
            match state.last {
                RoundEnd::Room if state.ended > came => return Ok(()),
                RoundEnd::Stuck(reason)
                    if state.ended > came + u64::from(!without(Protection::WholeRoundAwaited)) =>
                {
                    return Err(Error::NoSpace(reason));
                }
                _ => {}
            }
            self.demand.store(true, Relaxed);
            wake();
            if self
                .round_ended
                .wait_until(&mut state, deadline)
                .timed_out()
            {
                return Err(Error::NoSpace("the backing has not answered for a minute"));
            }
        }
    }

    /// Ends a round.
    pub(crate) fn end_round(&self, end: RoundEnd) {
        let mut state = self.state.lock();
        state.ended += 1;
        state.last = end;
        self.demand.store(false, Relaxed);
        self.round_ended.notify_all();
    }

    /// Whether [`Throttle::close`] was called.
    pub(crate) fn is_closed(&self) -> bool {
        self.state.lock().closed
    }

    /// Sends all waiting writers away, now and from now on.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        if !without(Protection::WritersSentAway) {
            self.round_ended.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    /// A thread that waits in a throttle, once it does.
    fn waiter(throttle: &Arc<Throttle>) -> std::thread::JoinHandle<Result<()>> {
        let thread = std::thread::spawn({
            let throttle = Arc::clone(throttle);
            move || throttle.wait(|| {})
        });
        wait_for_demand(throttle);
        thread
    }

    fn wait_for_demand(throttle: &Throttle) {
        while !throttle.demand() {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_round_that_frees_memory_lets_writers_try_again() {
        let throttle = Arc::new(Throttle::new());
        let writer = waiter(&throttle);
        throttle.end_round(RoundEnd::Room);
        assert!(writer.join().expect("no panic").is_ok());
        assert!(!throttle.demand());
    }

    #[test]
    fn only_a_whole_round_that_frees_nothing_sends_writers_away() {
        let throttle = Arc::new(Throttle::new());
        let writer = waiter(&throttle);
        throttle.end_round(RoundEnd::Stuck("began before"));
        wait_for_demand(&throttle);
        throttle.end_round(RoundEnd::Stuck("full"));
        let error = writer.join().expect("no panic").expect_err("stuck");
        assert!(matches!(error, Error::NoSpace("full")));
    }

    #[test]
    fn closing_sends_everyone_away() {
        let throttle = Arc::new(Throttle::new());
        let writer = waiter(&throttle);
        throttle.close();
        assert!(writer.join().expect("no panic").is_err());
        assert!(throttle.wait(|| {}).is_err());
    }
}
