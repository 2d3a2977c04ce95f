//! Who uses a device: the connections and open files through which frontends serve it.
//!
//! Invariant: what takes data away from under users runs while there are none, and none is
//! admitted before it has ended.
//!
//! One lock, taken when a user comes or goes, never by a request; held for as long as data is
//! being taken away.

use std::sync::Arc;

use parking_lot::Mutex;

/// The users of one device.
#[derive(Debug, Default)]
pub(crate) struct Users {
    count: Mutex<usize>,
}

impl Users {
    /// Admits a user.
    pub(crate) fn enter(self: &Arc<Self>) -> User {
        *self.count.lock() += 1;
        User {
            users: Some(Arc::clone(self)),
        }
    }

    pub(crate) fn any(&self) -> bool {
        *self.count.lock() != 0
    }

    /// Runs `action` if there is no user; `None` if there is.
    pub(crate) fn while_none<T>(&self, action: impl FnOnce() -> T) -> Option<T> {
        let count = self.count.lock();
        (*count == 0).then(action)
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
}

impl Drop for User {
    fn drop(&mut self) {
        if let Some(users) = &self.users {
            *users.count.lock() -= 1;
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
        let (a, b) = (users.enter(), users.enter());
        assert!(users.while_none(|| ()).is_none());
        drop(b);
        assert!(users.any());
        assert!(users.while_none(|| ()).is_none());
        drop(a);
        assert!(!users.any());
        assert!(users.while_none(|| ()).is_some());
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
                thread::sleep(std::time::Duration::from_millis(50));
                assert!(!comer.is_finished());
                done.store(true, Ordering::SeqCst);
            });
        });
    }
}
