//! Time, which passes only when it is told to. It is the same for all threads of a model.

use std::cell::RefCell;
use std::ops::Add;
use std::sync::Arc;
use std::time::Duration;

use shuttle::sync::Condvar;
use shuttle::thread::Thread;

std::thread_local! {
    static CLOCK: RefCell<Clock> = const {
        RefCell::new(Clock { now: Duration::ZERO, sleepers: Vec::new() })
    };
}

struct Clock {
    now: Duration,
    /// Who is to be woken, and from when on.
    sleepers: Vec<(Duration, Sleeper)>,
}

/// Who waits for a time.
#[derive(Clone)]
enum Sleeper {
    Thread(Thread),
    Condvar(Arc<Condvar>),
}

impl Sleeper {
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Thread(a), Self::Thread(b)) => a.id() == b.id(),
            (Self::Condvar(a), Self::Condvar(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// Whether it may miss that it is woken: a condition variable, with which somebody may be only
    /// about to wait.
    fn may_miss_it(&self) -> bool {
        matches!(self, Self::Condvar(condvar) if Arc::strong_count(condvar) > 1)
    }

    fn wake(&self) {
        match self {
            Self::Thread(thread) => thread.unpark(),
            Self::Condvar(condvar) => condvar.notify_all(),
        }
    }
}

/// A point in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Instant(Duration);

impl Instant {
    pub(crate) fn now() -> Self {
        Self(since_boot())
    }

    pub(crate) fn elapsed(self) -> Duration {
        Self::now().duration_since(self)
    }

    pub(crate) fn duration_since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    pub(crate) fn saturating_duration_since(self, earlier: Self) -> Duration {
        self.duration_since(earlier)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0 + duration)
    }
}

/// What time it is.
pub(crate) fn since_boot() -> Duration {
    CLOCK.with_borrow(|clock| clock.now)
}

/// Has who waits with `condvar` woken at a time.
pub(super) fn notify_at(at: Instant, condvar: &Arc<Condvar>) {
    wake_at(at, Sleeper::Condvar(Arc::clone(condvar)));
}

/// Has a thread woken at a time.
pub(super) fn unpark_at(at: Instant, thread: Thread) {
    wake_at(at, Sleeper::Thread(thread));
}

fn wake_at(Instant(at): Instant, sleeper: Sleeper) {
    CLOCK.with_borrow_mut(|clock| {
        // Of what it has waited for before, the earliest is enough: it looks at the clock itself.
        match clock.sleepers.iter_mut().find(|(_, who)| who.is(&sleeper)) {
            Some((when, _)) => *when = at.min(*when),
            None => clock.sleepers.push((at, sleeper)),
        }
    });
}

/// Has so much time pass, and wakes who waits for that.
pub(crate) fn advance(by: Duration) {
    let due: Vec<_> = CLOCK.with_borrow_mut(|clock| {
        clock.now += by;
        let now = clock.now;
        let due = clock.sleepers.iter().filter(|(at, _)| *at <= now);
        let due = due.map(|(_, sleeper)| sleeper.clone()).collect();
        clock
            .sleepers
            .retain(|(at, sleeper)| *at > now || sleeper.may_miss_it());
        due
    });
    due.iter().for_each(Sleeper::wake);
}

/// Begins time anew, with nobody who waits.
pub(crate) fn restart() {
    CLOCK.set(Clock {
        now: Duration::from_secs(1_000_000),
        sleepers: Vec::new(),
    });
}
