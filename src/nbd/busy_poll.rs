//! Whether a connection that waits for its client sleeps at once or polls for a while first.
//!
//! To be put to sleep and woken can take longer than storing a page, most of all on a virtual
//! machine with an idle core; on a busy machine a thread that stays awake is in its own client's
//! way. Which it is cannot be known, but it can be measured: a connection waits some times in
//! either way, keeps to the one that was faster for a while, and tries again.
//!
//! Never more than half of the cores are kept awake, over all connections of the process. No
//! locks.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long it polls: about what it takes a client to be woken and to answer.
const WINDOW: Duration = Duration::from_micros(50);
/// Waits of a trial.
const TRIAL: u32 = 32;
/// Waits until the next trials.
const SETTLED: u32 = 32 * TRIAL;
/// What a wait counts for at most in a trial: a client that has nothing to say tells nothing about
/// the ways to wait.
const MOST: Duration = Duration::from_micros(200);

/// What the connections of this process share.
static PLACES: LazyLock<Places> = LazyLock::new(|| {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    Places(AtomicUsize::new(cores / 2))
});

/// How one connection waits.
pub(super) struct BusyPoll {
    phase: Phase,
    /// Waits left in this phase.
    left: u32,
    /// Time waited in this phase.
    waited: Duration,
    /// What `waited` was at the end of the last trial of sleeping.
    asleep: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    TrySleeping,
    TryPolling,
    Sleeping,
    Polling,
}

impl BusyPoll {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::TrySleeping,
            left: TRIAL,
            waited: Duration::ZERO,
            asleep: Duration::ZERO,
        }
    }

    /// Waits until `poll` returns something, or else in `sleep`.
    pub(super) fn wait<T>(
        &mut self,
        poll: impl FnMut() -> Option<T>,
        sleep: impl FnOnce() -> T,
    ) -> T {
        let begun = Instant::now();
        let at_once = if self.polls() {
            PLACES.poll_until(begun + WINDOW, poll)
        } else {
            None
        };
        let answer = at_once.unwrap_or_else(sleep);
        self.note(begun.elapsed());
        answer
    }

    fn polls(&self) -> bool {
        matches!(self.phase, Phase::TryPolling | Phase::Polling)
    }

    /// Learns from a wait.
    fn note(&mut self, waited: Duration) {
        self.waited += waited.min(MOST);
        self.left -= 1;
        if self.left == 0 {
            self.next_phase();
        }
    }

    fn next_phase(&mut self) {
        let waited = std::mem::take(&mut self.waited);
        (self.phase, self.left) = match self.phase {
            Phase::TrySleeping => {
                self.asleep = waited;
                (Phase::TryPolling, TRIAL)
            }
            // Staying awake costs a core: it has to be worth a tenth of the time.
            Phase::TryPolling if waited < self.asleep * 9 / 10 => (Phase::Polling, SETTLED),
            Phase::TryPolling => (Phase::Sleeping, SETTLED),
            Phase::Sleeping | Phase::Polling => (Phase::TrySleeping, TRIAL),
        };
    }
}

/// How many more threads may be kept awake.
struct Places(AtomicUsize);

impl Places {
    /// Calls `poll` until it returns something, until `deadline` and if there is a place.
    fn poll_until<T>(&self, deadline: Instant, mut poll: impl FnMut() -> Option<T>) -> Option<T> {
        let _place = self.take()?;
        loop {
            let answer = poll();
            if answer.is_some() || Instant::now() >= deadline {
                return answer;
            }
            std::hint::spin_loop();
        }
    }

    fn take(&self) -> Option<Place<'_>> {
        let places = &self.0;
        let taken = places.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        taken.is_ok().then_some(Place(places))
    }
}

/// A place that is taken.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_micros(5);
    const LONG: Duration = Duration::from_micros(40);
    const IDLE: Duration = Duration::from_secs(1);

    /// Waits `count` times, `awake` or `asleep`; how many of them polled.
    fn polled(busy_poll: &mut BusyPoll, count: u32, awake: Duration, asleep: Duration) -> u32 {
        let waits = (0..count).map(|_| {
            let polls = busy_poll.polls();
            busy_poll.note(if polls { awake } else { asleep });
            u32::from(polls)
        });
        waits.sum()
    }

    #[test]
    fn keeps_to_what_is_faster_and_tries_again() {
        let mut busy_poll = BusyPoll::new();
        assert_eq!(polled(&mut busy_poll, 2 * TRIAL, SHORT, LONG), TRIAL);
        assert_eq!(polled(&mut busy_poll, SETTLED, SHORT, LONG), SETTLED);
        assert_eq!(polled(&mut busy_poll, 2 * TRIAL, LONG, SHORT), TRIAL);
        assert_eq!(polled(&mut busy_poll, SETTLED, LONG, SHORT), 0);
        assert_eq!(polled(&mut busy_poll, 2 * TRIAL, SHORT, LONG), TRIAL);
        assert_eq!(polled(&mut busy_poll, SETTLED, SHORT, LONG), SETTLED);
    }

    #[test]
    fn sleeps_unless_asking_gains_something() {
        for waited in [SHORT, IDLE] {
            let mut busy_poll = BusyPoll::new();
            polled(&mut busy_poll, 2 * TRIAL, waited, waited);
            assert_eq!(polled(&mut busy_poll, SETTLED, waited, waited), 0);
        }
    }

    #[test]
    fn one_long_wait_decides_nothing() {
        let mut busy_poll = BusyPoll::new();
        polled(&mut busy_poll, TRIAL, SHORT, LONG);
        busy_poll.note(IDLE);
        polled(&mut busy_poll, TRIAL - 1, SHORT, LONG);
        assert!(busy_poll.polls());
    }

    #[test]
    fn asks_only_while_there_is_a_place() {
        let places = Places(AtomicUsize::new(1));
        let later = Instant::now() + IDLE;
        let taken = places.take();
        assert_eq!(places.poll_until(later, || Some(())), None);
        drop(taken);
        assert_eq!(places.poll_until(later, || Some(())), Some(()));
        assert_eq!(places.poll_until(Instant::now(), || None::<()>), None);
        assert!(places.take().is_some(), "a place is given back");
    }
}
