//! Who uses a device: the connections and open files through which frontends serve it.
//!
//! Invariant: what takes data away from under users runs while there are none, and none is
//! admitted before it has ended.
//!
//! A client that has closed its file or its connection may go on counting for a moment, since the
//! kernel and the frontends learn of it afterwards; so whoever finds users waits a little for them
//! to go.
//!
//! One lock, taken when a user comes or goes, never by a request; held for as long as data is
//! being taken away.

use std::sync::Arc;
use std::time::Duration;

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Condvar, Mutex};

/// How long users that have gone may take to be known to have.
const GRACE: Duration = Duration::from_millis(250);

/// The users of one device.
#[derive(Debug, Default)]
pub(crate) struct Users {
    count: Mutex<usize>,
    left: Condvar,
    /// Whether there has been one.
    came: AtomicBool,
}

impl Users {
    /// Admits a user.
    pub(crate) fn enter(self: &Arc<Self>) -> User {
        *self.count.lock() += 1;
        self.came.store(true, Ordering::Release);
        User {
            users: Some(Arc::clone(self)),
        }
    }

    pub(crate) fn any(&self) -> bool {
        *self.count.lock() != 0
    }

    /// Whether there is or was one.
    pub(crate) fn ever_any(&self) -> bool {
        self.came.load(Ordering::Acquire)
    }

    /// Runs `action` if there is no user; `None` if there is.
    pub(crate) fn while_none<T>(&self, action: impl FnOnce() -> T) -> Option<T> {
        self.while_at_most(0, action)
    }

    fn while_at_most<T>(&self, most: usize, action: impl FnOnce() -> T) -> Option<T> {
        let mut count = self.count.lock();
        let waited = self
            .left
            .wait_while_for(&mut count, |count| *count > most, GRACE);
        (!waited.timed_out()).then(action)
    }
}

/// One user, until dropped.
#[derive(Debug)]
#[must_use = "a user that is dropped has gone"]
pub struct User {
    /// None of a device that does not count them.
    users: Option<Arc<Users>>,
}

impl User {
    /// A user of a device that does not count its users.
    pub fn uncounted() -> Self {
        Self { users: None }
    }

    /// Runs `action` if there are at most so many `others`, as far as they are counted; `None` if
    /// there are more.
    pub(crate) fn while_at_most<T>(&self, others: usize, action: impl FnOnce() -> T) -> Option<T> {
        match &self.users {
            Some(users) => users.while_at_most(others + 1, action),
            None => Some(action()),
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if let Some(users) = &self.users {
            *users.count.lock() -= 1;
            users.left.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn data_is_taken_away_only_without_users() {
        let users = Arc::new(Users::default());
        assert!(!users.ever_any());
        let (a, b) = (users.enter(), users.enter());
        assert!(users.while_none(|| ()).is_none());
        assert!(a.while_at_most(0, || ()).is_none());
        assert!(a.while_at_most(1, || ()).is_some());
        drop(b);
        assert!(users.any());
        assert!(a.while_at_most(0, || ()).is_some());
        assert!(users.while_none(|| ()).is_none());
        drop(a);
        assert!(!users.any() && users.ever_any());
        assert!(users.while_none(|| ()).is_some());
        assert!(User::uncounted().while_at_most(0, || ()).is_some());
    }

    #[test]
    fn one_who_is_just_leaving_is_waited_for() {
        let users = Arc::new(Users::default());
        let user = users.enter();
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(GRACE / 10);
                drop(user);
            });
            assert!(users.while_none(|| ()).is_some());
        });
    }

    #[test]
    fn nobody_is_admitted_while_data_is_being_taken_away() {
        let users = Arc::new(Users::default());
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            users.while_none(|| {
                let comer = scope.spawn(|| {
                    let _user = users.enter();
                    assert!(done.load(Ordering::SeqCst), "admitted too early");
                });
                thread::sleep(Duration::from_millis(50));
                assert!(!comer.is_finished());
                done.store(true, Ordering::SeqCst);
            });
        });
    }
}
