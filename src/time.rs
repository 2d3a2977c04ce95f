//! The time that policies go by.

use std::time::Duration;

use crate::sync::time::since_boot;

/// Tells how long the machine has been on, while it was suspended included: a page that was not
/// read before the lid was closed is no younger when it is opened. Tests can have it skip.
#[derive(Debug, Default)]
pub(crate) struct Timepiece {
    #[cfg(test)]
    skipped_millis: std::sync::atomic::AtomicU64,
}

impl Timepiece {
    /// Since the machine was started.
    pub(crate) fn now(&self) -> Duration {
        let now = since_boot();
        #[cfg(test)]
        let now = now + self.skipped();
        now
    }

    #[cfg(test)]
    fn skipped(&self) -> Duration {
        let millis = self
            .skipped_millis
            .load(std::sync::atomic::Ordering::SeqCst);
        Duration::from_millis(millis)
    }

    /// Has so much time pass at once.
    #[cfg(test)]
    pub(crate) fn skip(&self, time: Duration) {
        let millis = time.as_millis() as u64;
        self.skipped_millis
            .fetch_add(millis, std::sync::atomic::Ordering::SeqCst);
    }
}
