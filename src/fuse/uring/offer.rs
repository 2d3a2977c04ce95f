//! Agreeing on rings with the kernel: how many there are, and which queues' slots each has.

use std::fs;
use std::io;
use std::iter::repeat_n;
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;

use super::ring::Ring;

/// The CPUs that the kernel could have.
const POSSIBLE_CPUS: &str = "/sys/devices/system/cpu/possible";

/// Slots of all queues together, as far as each has some. A payload takes memory once a large
/// request was in it, and keeps little.
const SLOTS: usize = 128;
const SLOTS_OF_A_QUEUE: std::ops::RangeInclusive<usize> = 4..=32;

/// More queues than this would take more memory than they are worth.
const MOST_QUEUES: usize = 1024;
const MOST_RINGS: usize = 16;

/// The rings that were agreed on with the kernel, if any were.
#[derive(Clone, Default)]
pub(in super::super) struct Offer {
    made: Arc<Mutex<Option<Vec<Ring>>>>,
    declines: bool,
}

impl Offer {
    /// None are agreed on.
    pub(in super::super) fn declining() -> Self {
        Self {
            declines: true,
            ..Self::default()
        }
    }

    /// Makes rings, for a kernel that has offered to use them; says whether there are any.
    pub(in super::super) fn accept(&self) -> bool {
        if self.declines {
            return false;
        }
        match make_rings() {
            Ok(rings) => {
                *self.made.lock() = Some(rings);
                true
            }
            Err(error) => {
                tracing::debug!("no rings, so all goes through /dev/fuse: {error}");
                false
            }
        }
    }

    /// Takes the rings, if there are any.
    pub(super) fn take(&self) -> Option<Vec<Ring>> {
        self.made.lock().take()
    }
}

fn make_rings() -> io::Result<Vec<Ring>> {
    let queues = parse_cpus(&fs::read_to_string(POSSIBLE_CPUS)?)
        .filter(|queues| (1..=MOST_QUEUES).contains(queues))
        .ok_or_else(|| io::Error::other("too many CPUs, or an unknown number"))?;
    let depth = (SLOTS / queues).clamp(*SLOTS_OF_A_QUEUE.start(), *SLOTS_OF_A_QUEUE.end());
    let usable = thread::available_parallelism().map_or(1, usize::from);
    let rings = usable.min(queues).min(MOST_RINGS);
    let ring = |index: usize| Ring::new(&queues_of(index, rings, queues, depth));
    (0..rings).map(ring).collect()
}

/// The queue of each slot of a ring, with half of a queue's `depth` slots in one ring and half in
/// another, if there is another.
fn queues_of(ring: usize, rings: usize, queues: usize, depth: usize) -> Vec<u16> {
    let halves = |queue: usize| {
        let has = |offset: usize| usize::from((queue + offset) % rings == ring);
        has(0) + has(1)
    };
    (0..queues)
        // A queue's number is that of its CPU, below `MOST_QUEUES`.
        .flat_map(|queue| repeat_n(queue as u16, halves(queue) * depth / 2))
        .collect()
}

/// How many CPUs a list such as `0-3,8` names.
fn parse_cpus(list: &str) -> Option<usize> {
    let mut count = 0;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        count += last.checked_sub(first)? + 1;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_queue_has_all_its_slots_in_two_rings() {
        for (rings, queues, depth) in [(1, 1, 32), (1, 2, 32), (2, 2, 32), (3, 8, 16), (16, 64, 4)]
        {
            let all: Vec<_> = (0..rings)
                .map(|ring| queues_of(ring, rings, queues, depth))
                .collect();
            for queue in 0..queues as u16 {
                let of_ring = |ring: &Vec<u16>| ring.iter().filter(|&&q| q == queue).count();
                let counts = all.iter().map(of_ring).filter(|&count| count > 0);
                let counts: Vec<_> = counts.collect();
                assert_eq!(counts.len(), rings.min(2), "{rings} {queues}");
                assert_eq!(counts.iter().sum::<usize>(), depth);
            }
        }
    }

    #[test]
    fn a_list_of_cpus_is_counted() {
        for (list, count) in [
            ("0\n", Some(1)),
            ("0-1\n", Some(2)),
            ("0-3,8,10-11", Some(7)),
            ("", None),
            ("3-1", None),
            ("all", None),
        ] {
            assert_eq!(parse_cpus(list), count, "{list:?}");
        }
    }
}
