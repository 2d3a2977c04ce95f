//! A bound on how often something is logged that clients, or a machine at its limits, can make happen at
//! will. What is left out is counted, and the next line says so.
//!
//! One lock, a leaf.

use std::time::Duration;

use crate::sync::Mutex;
use crate::sync::time::Instant;

/// Lines about one kind of event, for the log.
#[derive(Debug)]
pub struct LogLimit {
    most: u32,
    period: Duration,
    state: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    began: Option<Instant>,
    /// Lines in the period that began then.
    count: u32,
    /// Lines left out since the last that was not.
    left_out: u64,
}

impl LogLimit {
    /// For failures of requests: each may be of interest, a few times a second.
    pub fn of_requests() -> Self {
        Self::new(4, Duration::from_secs(1))
    }

    /// For a state that lasts, which is said once a minute.
    pub fn of_states() -> Self {
        Self::new(1, Duration::from_secs(60))
    }

    fn new(most: u32, period: Duration) -> Self {
        Self {
            most,
            period,
            state: Mutex::default(),
        }
    }

    /// Whether a line may be logged now: if so, how it ends, which tells how many were not.
    pub fn admit(&self) -> Option<String> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<String> {
        let mut lines = self.state.lock();
        let over = |began| now.duration_since(began) >= self.period;
        if lines.began.is_none_or(over) {
            lines.began = Some(now);
            lines.count = 0;
        }
        if lines.count == self.most {
            lines.left_out += 1;
            return None;
        }
        lines.count += 1;
        Some(match std::mem::take(&mut lines.left_out) {
            0 => String::new(),
            left_out => format!(" ({left_out} such lines were left out before this)"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_lines_a_period_and_a_count_of_the_others() {
        for (limit, lines) in [(LogLimit::of_requests(), 4), (LogLimit::of_states(), 1)] {
            let start = Instant::now();
            let admitted = (0..100).filter_map(|_| limit.admit_at(start));
            assert_eq!(admitted.count(), lines);
            let later = start + limit.period;
            let line = limit.admit_at(later).expect("the period is over");
            let left_out = (100 - lines).to_string();
            assert!(line.contains(&left_out), "{line}");
            assert_eq!(limit.admit_at(later + limit.period).as_deref(), Some(""));
        }
    }
}
