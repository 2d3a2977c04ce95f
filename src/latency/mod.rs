//! How long operations take: a histogram of each kind, and a line in the log for slow requests.
//!
//! Reading the clock twice takes about 60 ns, which is much beside a small request of a page that
//! takes no more than a microsecond. So of small requests one in [`PERIOD`] of a thread is timed and
//! counts for all of them, unless slow ones are to be logged: then all are timed. Requests of
//! [`LARGE`] bytes and all that reaches the backing are always timed.
//!
//! Locks nothing: threads count in stripes of their own, as far as there are enough. They never wait for
//! each other here, so what they count with is the standard library's also in models of races.

mod histogram;

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crossbeam::utils::CachePadded;

use self::histogram::{Histogram, Snapshot};
pub use self::histogram::{Latency, OperationLatencies};
use crate::log_limit::LogLimit;

/// One in so many small requests is timed. A prime: what comes in turns is still seen evenly.
const PERIOD: u32 = 7;

/// From how many bytes on a request is worth the clock.
const LARGE: u64 = 64 << 10;

/// Threads that count without meeting each other.
const STRIPES: usize = 8;

/// What takes time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Read,
    /// Of data or of zeroes.
    Write,
    Discard,
    Flush,
    /// A batch of objects, from when it is sent off until its memory is free.
    Eviction,
    /// A page from the backing.
    ReadBack,
}

impl Operation {
    const COUNT: usize = 6;

    const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Discard => "discard",
            Self::Flush => "flush",
            Self::Eviction => "eviction",
            Self::ReadBack => "read_back",
        }
    }
}

type Stripe = [Histogram; Operation::COUNT];

thread_local! {
    static STRIPE: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Relaxed) % STRIPES
    };
    /// Small requests of this thread until the next that is timed.
    static UNTIL_TIMED: Cell<u32> = const { Cell::new(0) };
}

/// The histograms of a device.
#[derive(Debug)]
pub(crate) struct Latencies {
    stripes: Box<[CachePadded<Stripe>]>,
    /// What takes so long is logged.
    slow: Option<Duration>,
    log_limit: LogLimit,
}

impl Latencies {
    pub(crate) fn new(slow: Option<Duration>) -> Self {
        Self {
            stripes: (0..STRIPES).map(|_| CachePadded::default()).collect(),
            slow,
            log_limit: LogLimit::of_requests(),
        }
    }

    /// Does `work`, which is a request for `bytes` bytes at `offset`.
    pub(crate) fn of_request<T>(
        &self,
        operation: Operation,
        offset: u64,
        bytes: u64,
        work: impl FnOnce() -> T,
    ) -> T {
        let weight = match bytes >= LARGE || self.slow.is_some() {
            true => 1,
            false if is_timed() => PERIOD,
            false => return work(),
        };
        let start = Instant::now();
        let done = work();
        let taken = start.elapsed();
        self.note(operation, taken, weight);
        if self.slow.is_some_and(|slow| taken >= slow)
            && let Some(end) = self.log_limit.admit()
        {
            let (name, ms) = (operation.name(), taken.as_secs_f64() * 1e3);
            tracing::warn!("slow {name}: {bytes} bytes at {offset} took {ms:.1} ms{end}");
        }
        done
    }

    /// Does `work`, and notes how long it takes.
    pub(crate) fn of<T>(&self, operation: Operation, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let done = work();
        self.note(operation, start.elapsed(), 1);
        done
    }

    /// Notes that `weight` operations took so long each.
    pub(crate) fn note(&self, operation: Operation, taken: Duration, weight: u32) {
        let stripe = STRIPE.with(|stripe| *stripe);
        self.stripes[stripe][operation as usize].add(taken, weight.into());
    }

    /// What was noted by now.
    pub(crate) fn snapshot(&self) -> OperationLatencies {
        let of = |operation: Operation| {
            let mut sum = Snapshot::default();
            for stripe in &self.stripes {
                stripe[operation as usize].add_to(&mut sum);
            }
            Latency::of(&sum)
        };
        OperationLatencies {
            read: of(Operation::Read),
            write: of(Operation::Write),
            discard: of(Operation::Discard),
            flush: of(Operation::Flush),
            eviction: of(Operation::Eviction),
            read_back: of(Operation::ReadBack),
        }
    }

    /// Forgets all that was noted.
    pub(crate) fn reset(&self) {
        let stripes = self.stripes.iter();
        stripes
            .flat_map(|stripe| stripe.iter())
            .for_each(Histogram::reset);
    }
}

/// Whether it is the turn of this thread's small request to be timed.
fn is_timed() -> bool {
    UNTIL_TIMED.with(|until| match until.get() {
        0 => {
            until.set(PERIOD - 1);
            true
        }
        left => {
            until.set(left - 1);
            false
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_requests_are_counted_by_a_sample_and_large_ones_each() {
        let latencies = Latencies::new(None);
        for _ in 0..70 {
            latencies.of_request(Operation::Read, 0, 4096, || ());
        }
        for _ in 0..5 {
            latencies.of_request(Operation::Write, 0, LARGE, || ());
        }
        let seen = latencies.snapshot();
        assert_eq!((seen.read.count, seen.write.count), (70, 5));
        assert_eq!(seen.flush, Latency::default());
        latencies.reset();
        assert_eq!(latencies.snapshot(), OperationLatencies::default());
    }

    #[test]
    fn where_slow_ones_are_logged_all_are_timed() {
        let latencies = Latencies::new(Some(Duration::from_millis(1)));
        for _ in 0..3 {
            latencies.of_request(Operation::Discard, 0, 1, || ());
        }
        assert_eq!(latencies.snapshot().discard.count, 3);
    }

    #[test]
    fn threads_lose_nothing_to_each_other() {
        const EACH: u64 = 10_000;
        let latencies = Latencies::new(None);
        std::thread::scope(|scope| {
            for _ in 0..2 * STRIPES {
                scope.spawn(|| {
                    for _ in 0..EACH {
                        latencies.note(Operation::ReadBack, Duration::from_micros(9), 1);
                    }
                });
            }
        });
        let read_back = latencies.snapshot().read_back;
        assert_eq!(read_back.count, 2 * STRIPES as u64 * EACH);
        assert_eq!(read_back.sum_ns, read_back.count * 9_000);
    }
}
