//! Whether a connection that waits for its client sleeps at once or asks again for a while first.
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

/// How long is asked: about what it takes a client to be woken and to answer.
const WINDOW: Duration = Duration::from_micros(50);
/// Waits of a trial.
const TRIAL: u32 = 32;
/// Waits until the next trials.
const SETTLED: u32 = 32 * TRIAL;
/// What a wait counts for at most in a trial: a client that has nothing to ask says nothing about
/// the ways to wait.
const MOST: Duration = Duration::from_micros(200);

/// What the connections of this process share.
static PLACES: LazyLock<Places> = LazyLock::new(|| {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    Places(AtomicUsize::new(cores / 2))
});

/// How one connection waits.
pub(super) struct Patience {
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
    TryAsking,
    Sleeping,
    Asking,
}

impl Patience {
    pub(super) fn new() -> Self {
        Self {
            phase: Phase::TrySleeping,
            left: TRIAL,
            waited: Duration::ZERO,
            asleep: Duration::ZERO,
        }
    }

    /// Waits until `ask` returns something, or else in `sleep`.
    pub(super) fn wait<T>(
        &mut self,
        ask: impl FnMut() -> Option<T>,
        sleep: impl FnOnce() -> T,
    ) -> T {
        let begun = Instant::now();
        let at_once = if self.asks() {
            PLACES.ask_until(begun + WINDOW, ask)
        } else {
            None
        };
        let answer = at_once.unwrap_or_else(sleep);
        self.note(begun.elapsed());
        answer
    }

    fn asks(&self) -> bool {
        matches!(self.phase, Phase::TryAsking | Phase::Asking)
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
                (Phase::TryAsking, TRIAL)
            }
            // Staying awake costs a core: it has to be worth a tenth of the time.
            Phase::TryAsking if waited < self.asleep * 9 / 10 => (Phase::Asking, SETTLED),
            Phase::TryAsking => (Phase::Sleeping, SETTLED),
            Phase::Sleeping | Phase::Asking => (Phase::TrySleeping, TRIAL),
        };
    }
}

/// How many more threads may be kept awake.
struct Places(AtomicUsize);

impl Places {
    /// Calls `ask` until it returns something, until `deadline` and if there is a place.
    fn ask_until<T>(&self, deadline: Instant, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
        let _place = self.take()?;
        loop {
            let answer = ask();
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

    /// Waits `count` times, `awake` or `asleep`; how many of them asked.
    fn asked(patience: &mut Patience, count: u32, awake: Duration, asleep: Duration) -> u32 {
        let waits = (0..count).map(|_| {
            let asks = patience.asks();
            patience.note(if asks { awake } else { asleep });
            u32::from(asks)
        });
        waits.sum()
    }

    #[test]
    fn keeps_to_what_is_faster_and_tries_again() {
        let mut patience = Patience::new();
        assert_eq!(asked(&mut patience, 2 * TRIAL, SHORT, LONG), TRIAL);
        assert_eq!(asked(&mut patience, SETTLED, SHORT, LONG), SETTLED);
        assert_eq!(asked(&mut patience, 2 * TRIAL, LONG, SHORT), TRIAL);
        assert_eq!(asked(&mut patience, SETTLED, LONG, SHORT), 0);
        assert_eq!(asked(&mut patience, 2 * TRIAL, SHORT, LONG), TRIAL);
        assert_eq!(asked(&mut patience, SETTLED, SHORT, LONG), SETTLED);
    }

    #[test]
    fn sleeps_unless_asking_gains_something() {
        for waited in [SHORT, IDLE] {
            let mut patience = Patience::new();
            asked(&mut patience, 2 * TRIAL, waited, waited);
            assert_eq!(asked(&mut patience, SETTLED, waited, waited), 0);
        }
    }

    #[test]
    fn one_long_wait_decides_nothing() {
        let mut patience = Patience::new();
        asked(&mut patience, TRIAL, SHORT, LONG);
        patience.note(IDLE);
        asked(&mut patience, TRIAL - 1, SHORT, LONG);
        assert!(patience.asks());
    }

    #[test]
    fn asks_only_while_there_is_a_place() {
        let places = Places(AtomicUsize::new(1));
        let later = Instant::now() + IDLE;
        let taken = places.take();
        assert_eq!(places.ask_until(later, || Some(())), None);
        drop(taken);
        assert_eq!(places.ask_until(later, || Some(())), Some(()));
        assert_eq!(places.ask_until(Instant::now(), || None::<()>), None);
        assert!(places.take().is_some(), "a place is given back");
    }
}
