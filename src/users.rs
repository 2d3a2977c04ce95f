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

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::sync::{Condvar, Mutex};

/// How long users that have gone may take to be known to have.
const GRACE: Duration = Duration::from_millis(250);

/// What is known of a user, for whoever finds it in the way.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Who {
    /// Through what it uses the device.
    pub frontend: Frontend,
    /// The process that came, if that is one of this machine that the server sees. It may have handed its
    /// connection or file on, and ended.
    pub pid: Option<u32>,
    /// That process's command, as it was then.
    pub command: Option<String>,
    /// The address of one that came over a network.
    pub address: Option<String>,
}

/// What a user uses a device through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Frontend {
    /// A connection of its own.
    #[default]
    Nbd,
    /// An open file in the FUSE directory, or the loop device over it.
    Fuse,
}

impl Who {
    /// The process of the thread `tid`; 0 for one that this process does not see.
    pub fn process(frontend: Frontend, tid: u32) -> Self {
        let status = fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
        let group = status.lines().find_map(|line| line.strip_prefix("Tgid:"));
        let group = group.and_then(|group| group.trim().parse().ok());
        let pid = group.unwrap_or(tid);
        let command = fs::read_to_string(format!("/proc/{pid}/comm")).ok();
        Self {
            frontend,
            pid: Some(pid).filter(|&pid| pid != 0),
            command: command.map(|name| name.trim_end().to_owned()),
            address: None,
        }
    }

    /// The other end of an NBD connection.
    #[cfg(feature = "nbd")]
    pub(crate) fn peer(socket: &impl std::os::fd::AsFd) -> Self {
        use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
        use rustix::net::{SocketAddrUnix, getpeername};
        let peer = getpeername(socket).ok().flatten();
        let address = peer.filter(|peer| SocketAddrUnix::try_from(peer.clone()).is_err());
        if let Some(address) = address {
            let shown = std::net::SocketAddr::try_from(address).map(|address| address.to_string());
            return Self {
                address: shown.ok(),
                ..Self::default()
            };
        }
        match getsockopt(socket, PeerCredentials).map(|peer| peer.pid().try_into()) {
            Ok(Ok(pid)) => Self::process(Frontend::Nbd, pid),
            _ => Self::default(),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.command, self.pid, &self.address) {
            (Some(command), Some(pid), _) => write!(f, "{command} (PID {pid})")?,
            (_, Some(pid), _) => write!(f, "PID {pid}")?,
            (.., Some(address)) => write!(f, "{address}")?,
            _ => f.write_str("a process of another container")?,
        }
        f.write_str(match self.frontend {
            Frontend::Nbd => " over NBD",
            Frontend::Fuse => " over FUSE",
        })
    }
}

/// The users of one device.
#[derive(Debug, Default)]
pub(crate) struct Users {
    present: Mutex<Present>,
    left: Condvar,
}

#[derive(Debug, Default)]
struct Present {
    next: u64,
    /// In the order in which they came.
    users: BTreeMap<u64, Who>,
}

impl Users {
    /// Admits a user.
    pub(crate) fn enter(self: &Arc<Self>, who: Who) -> User {
        let mut present = self.present.lock();
        let number = present.next;
        present.next += 1;
        present.users.insert(number, who);
        User {
            users: Some((Arc::clone(self), number)),
        }
    }

    pub(crate) fn any(&self) -> bool {
        !self.present.lock().users.is_empty()
    }

    /// Who they are, but for those who are just leaving.
    pub(crate) fn who(&self) -> Vec<Who> {
        let mut present = self.present.lock();
        let is_used = |present: &mut Present| !present.users.is_empty();
        self.left.wait_while_for(&mut present, is_used, GRACE);
        present.users.values().cloned().collect()
    }

    /// Whether there is or was one.
    pub(crate) fn ever_any(&self) -> bool {
        self.present.lock().next != 0
    }

    /// Runs `action` if there is no user; `None` if there is.
    pub(crate) fn while_none<T>(&self, action: impl FnOnce() -> T) -> Option<T> {
        self.while_at_most(0, action)
    }

    fn while_at_most<T>(&self, most: usize, action: impl FnOnce() -> T) -> Option<T> {
        let mut present = self.present.lock();
        let are_more = |present: &mut Present| present.users.len() > most;
        let waited = self.left.wait_while_for(&mut present, are_more, GRACE);
        (!waited.timed_out()).then(action)
    }
}

/// One user, until dropped.
#[derive(Debug)]
#[must_use = "a user that is dropped has gone"]
pub struct User {
    /// None of a device that does not count them.
    users: Option<(Arc<Users>, u64)>,
}

impl User {
    /// A user of a device that does not count its users.
    pub fn uncounted() -> Self {
        Self { users: None }
    }

    /// Runs `action` if there are at most so many `others`, as far as they are counted; `None` if
    /// there are more.
    #[cfg(any(test, feature = "fuse"))]
    pub(crate) fn while_at_most<T>(&self, others: usize, action: impl FnOnce() -> T) -> Option<T> {
        match &self.users {
            Some((users, _)) => users.while_at_most(others + 1, action),
            None => Some(action()),
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if let Some((users, number)) = &self.users {
            users.present.lock().users.remove(number);
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
        let (a, b) = (users.enter(Who::default()), users.enter(Who::default()));
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

    #[cfg(feature = "nbd")]
    #[test]
    fn they_are_known_by_their_process_or_address() {
        let users = Arc::new(Users::default());
        let (near, _far) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
        let address = listener.local_addr().expect("bound");
        let client = std::net::TcpStream::connect(address).expect("connects");
        let (served, _) = listener.accept().expect("accepts");
        let local = users.enter(Who::peer(&near));
        let _remote = users.enter(Who::peer(&served));
        let _file = users.enter(Who::process(Frontend::Fuse, std::process::id()));
        let shown: Vec<_> = users.who().iter().map(Who::to_string).collect();
        let ours = format!("(PID {})", std::process::id());
        assert!(shown[0].contains(&ours) && shown[0].ends_with(" over NBD"));
        let peer = client.local_addr().expect("connected");
        assert_eq!(shown[1], format!("{peer} over NBD"));
        assert!(shown[2].contains(&ours) && shown[2].ends_with(" over FUSE"));
        drop(local);
        assert_eq!(users.who().len(), 2);
    }

    #[test]
    fn one_who_is_just_leaving_is_waited_for() {
        let users = Arc::new(Users::default());
        let is_waited_for = || {
            let user = users.enter(Who::default());
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(GRACE / 10);
                    drop(user);
                });
                users.while_none(|| ()).is_some()
            })
        };
        // On a busy machine the other thread may oversleep.
        assert!((0..100).any(|_| is_waited_for()));
    }

    #[test]
    fn nobody_is_admitted_while_data_is_being_taken_away() {
        let users = Arc::new(Users::default());
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            users.while_none(|| {
                let comer = scope.spawn(|| {
                    let _user = users.enter(Who::default());
                    assert!(done.load(Ordering::SeqCst), "admitted too early");
                });
                thread::sleep(Duration::from_millis(50));
                assert!(!comer.is_finished());
                done.store(true, Ordering::SeqCst);
            });
        });
    }
}
