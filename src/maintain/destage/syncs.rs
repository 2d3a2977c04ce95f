//! One sync for all who ask while another is under way.

use crate::error::Result;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// Counts requests to sync, so that what begins after a request came does for it.
#[derive(Debug, Default)]
pub(super) struct Syncs {
    requested: AtomicU64,
    /// The last request that is covered; held by who syncs.
    covered: Mutex<u64>,
}

impl Syncs {
    /// Calls `sync`, unless another call of it begins after this and ends well.
    ///
    /// # Errors
    /// Those of `sync`.
    pub(super) fn run(&self, sync: impl FnOnce() -> Result<()>) -> Result<()> {
        let request = self.requested.fetch_add(1, SeqCst) + 1;
        let mut covered = self.covered.lock();
        if *covered >= request {
            return Ok(());
        }
        let covers = self.requested.load(SeqCst);
        sync()?;
        *covered = covers;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;
    use std::sync::Barrier;

    #[test]
    fn who_comes_during_one_shares_the_next() {
        let (syncs, count) = (Syncs::default(), AtomicU64::new(0));
        let begun = Barrier::new(2);
        std::thread::scope(|scope| {
            let first = scope.spawn(|| {
                syncs.run(|| {
                    begun.wait();
                    while syncs.requested.load(SeqCst) < 5 {
                        std::thread::yield_now();
                    }
                    count.fetch_add(1, SeqCst);
                    Ok(())
                })
            });
            begun.wait();
            let one = || {
                syncs.run(|| {
                    count.fetch_add(1, SeqCst);
                    Ok(())
                })
            };
            let others = [(); 4].map(|()| scope.spawn(one));
            for thread in others.into_iter().chain([first]) {
                thread.join().expect("no panic").expect("synced");
            }
        });
        assert_eq!(count.load(SeqCst), 2);
    }

    #[test]
    fn one_that_fails_is_nobody_elses() {
        let syncs = Syncs::default();
        assert!(syncs.run(|| Err(Error::NoSpace("x"))).is_err());
        let mut called = false;
        let done = syncs.run(|| {
            called = true;
            Ok(())
        });
        assert!(done.is_ok() && called);
    }
}
