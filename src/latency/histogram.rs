//! Log-linear histograms of durations: four buckets to each power of two nanoseconds, so that what is
//! read from one is within an eighth of the truth.
//!
//! The crate histogram has the same buckets. It keeps no sums and refuses durations beyond its range, and what most of this file
//! is about would stay: the form that goes over the control socket, and the difference of two.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Buckets to a power of two, as a power of two.
const SPLIT: u32 = 2;

/// What is shorter than 2 to this many nanoseconds is in the first bucket.
const LEAST: u32 = 8;

/// What is longer than 2 to this many nanoseconds, 17 s, is in the last bucket.
const MOST: u32 = 34;

const BUCKETS: usize = (((MOST - LEAST) << SPLIT) + 2) as usize;

/// The bucket of a duration in nanoseconds.
fn bucket(nanos: u64) -> usize {
    let exponent = nanos.max(1).ilog2();
    if exponent < LEAST {
        return 0;
    }
    if exponent >= MOST {
        return BUCKETS - 1;
    }
    let within = (nanos >> (exponent - SPLIT)) as usize & ((1 << SPLIT) - 1);
    (((exponent - LEAST) as usize) << SPLIT) + within + 1
}

/// Where a bucket ends, in nanoseconds; the last one never does.
fn upper(bucket: usize) -> u64 {
    if bucket == BUCKETS - 1 {
        return u64::MAX;
    }
    // The first ends where the second starts, which is the first of its power of two.
    let exponent = LEAST + (bucket >> SPLIT) as u32;
    let within = bucket as u64 & ((1 << SPLIT) - 1);
    ((1 << SPLIT) + within) << (exponent - SPLIT)
}

/// A histogram that threads add to.
#[derive(Debug)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: [const { AtomicU64::new(0) }; BUCKETS],
            sum_ns: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    pub(super) fn add(&self, taken: Duration, weight: u64) {
        let nanos = u64::try_from(taken.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(nanos)].fetch_add(weight, Relaxed);
        self.sum_ns.fetch_add(nanos.saturating_mul(weight), Relaxed);
    }

    pub(super) fn add_to(&self, sum: &mut Snapshot) {
        for (total, bucket) in sum.buckets.iter_mut().zip(&self.buckets) {
            *total += bucket.load(Relaxed);
        }
        sum.sum_ns += self.sum_ns.load(Relaxed);
    }

    pub(super) fn reset(&self) {
        let Self { buckets, sum_ns } = self;
        for count in buckets.iter().chain([sum_ns]) {
            count.store(0, Relaxed);
        }
    }
}

/// Histograms added up.
pub(super) struct Snapshot {
    buckets: [u64; BUCKETS],
    sum_ns: u64,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            buckets: [0; BUCKETS],
            sum_ns: 0,
        }
    }
}

/// How long operations of a kind took.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// How many there were; of small requests an estimate, to a few for each thread.
    pub count: u64,
    /// What they took together, ns.
    pub sum_ns: u64,
    /// Those buckets that have any: where the bucket ends, ns, and how many took less than that and
    /// no less than where the one before ends. Buckets start at 0 and grow by a fifth to a quarter.
    pub buckets: Vec<(u64, u64)>,
}

impl Latency {
    pub(super) fn of(sum: &Snapshot) -> Self {
        let all = (0..BUCKETS).map(|i| (upper(i), sum.buckets[i]));
        let buckets: Vec<_> = all.filter(|(_, count)| *count > 0).collect();
        Self {
            count: buckets.iter().map(|(_, count)| count).sum(),
            sum_ns: sum.sum_ns,
            buckets,
        }
    }

    /// How many took less than `ns`, which should be a power of two.
    pub fn below(&self, ns: u64) -> u64 {
        let below = self.buckets.iter().take_while(|(end, _)| *end <= ns);
        below.map(|(_, count)| count).sum()
    }

    /// What the share `quantile` of them, 0 to 1, took less than: ns, at most a quarter too much.
    /// `None` if there were none.
    pub fn quantile(&self, quantile: f64) -> Option<u64> {
        let wanted = (quantile * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let reaches = |&&(_, count): &&(u64, u64)| {
            seen += count;
            seen >= wanted
        };
        self.buckets.iter().find(reaches).map(|(end, _)| *end)
    }

    /// What one took on average, ns.
    pub fn mean_ns(&self) -> Option<u64> {
        self.sum_ns.checked_div(self.count)
    }

    /// What came to this since `earlier`; all of it, if it was started again meanwhile.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        if earlier.count > self.count {
            return self.clone();
        }
        let before = |end| {
            let found = earlier.buckets.binary_search_by_key(&end, |(end, _)| *end);
            found.map_or(0, |at| earlier.buckets[at].1)
        };
        let grown = self.buckets.iter().map(|&(end, count)| {
            let grown = count.saturating_sub(before(end));
            (end, grown)
        });
        Self {
            count: self.count - earlier.count,
            sum_ns: self.sum_ns.saturating_sub(earlier.sum_ns),
            buckets: grown.filter(|(_, count)| *count > 0).collect(),
        }
    }
}

/// How long each kind of operation took. Of requests smaller than 64 KiB one in seven is timed and
/// counts for all, unless slow requests are logged.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperationLatencies {
    /// Requests to read.
    pub read: Latency,
    /// Requests to write data or zeroes.
    pub write: Latency,
    /// Requests to discard.
    pub discard: Latency,
    /// Requests to flush.
    pub flush: Latency,
    /// Batches of objects written to the backing, until their memory was free.
    pub eviction: Latency,
    /// Pages read back from the backing.
    pub read_back: Latency,
}

impl OperationLatencies {
    /// All of them by name.
    pub fn named(&self) -> [(&'static str, &Latency); 6] {
        [
            ("read", &self.read),
            ("write", &self.write),
            ("discard", &self.discard),
            ("flush", &self.flush),
            ("eviction", &self.eviction),
            ("read_back", &self.read_back),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_without_gaps() {
        for i in 0..BUCKETS - 1 {
            assert_eq!(bucket(upper(i) - 1), i);
            assert_eq!(bucket(upper(i)), i + 1);
        }
        assert_eq!((bucket(0), bucket(u64::MAX)), (0, BUCKETS - 1));
        for power in LEAST..=MOST {
            assert!((0..BUCKETS).any(|i| upper(i) == 1 << power), "{power}");
        }
    }

    fn of(nanos: impl IntoIterator<Item = u64>) -> Latency {
        let (histogram, mut sum) = (Histogram::default(), Snapshot::default());
        for nanos in nanos {
            histogram.add(Duration::from_nanos(nanos), 1);
        }
        histogram.add_to(&mut sum);
        Latency::of(&sum)
    }

    #[test]
    fn quantiles_are_near_the_truth() {
        let latency = of((1..=100_000).map(|i| i * 100));
        for (quantile, truth) in [(0.5, 5_000_000), (0.99, 9_900_000), (0.999, 9_990_000)] {
            let found = latency.quantile(quantile).expect("there are some");
            assert!(found >= truth && found <= truth * 5 / 4, "{found} {truth}");
        }
        assert_eq!(latency.mean_ns(), Some(5_000_050));
        assert_eq!(latency.below(1 << 20), (1_u64 << 20) / 100);
        assert_eq!((of([]).quantile(0.5), of([]).mean_ns()), (None, None));
    }

    #[test]
    fn what_came_since_is_the_difference() {
        let (earlier, later) = (of([300, 300, 9_000]), of([300, 300, 300, 9_000, 70_000]));
        let since = later.since(&earlier);
        assert_eq!((since.count, since.sum_ns), (2, 70_300));
        assert_eq!(since, of([300, 70_000]));
        assert_eq!(earlier.since(&later), earlier);
    }
}
