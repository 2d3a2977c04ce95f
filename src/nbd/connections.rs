//! The connections that are open: how many, which may be sent away, and waiting for their end.
//!
//! A connection that is still in its handshake when all places are taken gives way to a new one,
//! the oldest first: clients that connect and say nothing cannot keep others out. One that is in
//! transmission keeps its place.
//!
//! One mutex covers the table. It is held for bookkeeping and `shutdown(2)`, never for I/O.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rustix::net::{Shutdown, shutdown};

use crate::users::Who;

pub(super) struct Connections {
    max: usize,
    table: Mutex<Table>,
    ended: Condvar,
}

#[derive(Default)]
struct Table {
    next_id: u64,
    /// By age: ids are given in order.
    open: BTreeMap<u64, Entry>,
}

struct Entry {
    fd: Arc<OwnedFd>,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Handshake,
    Transmission,
    /// Shut down and about to end: its place is free.
    SentAway,
}

impl Connections {
    pub(super) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            max,
            table: Mutex::default(),
            ended: Condvar::new(),
        })
    }

    /// Takes a place for a new connection; `None` if there is none to be had.
    pub(super) fn admit(self: &Arc<Self>, fd: &Arc<OwnedFd>) -> Option<Place> {
        let mut table = self.table.lock();
        if table.taken() >= self.max && !table.send_oldest_away() {
            return None;
        }
        // Those sent away still have their threads for a moment.
        if table.open.len() >= 2 * self.max {
            return None;
        }
        let id = table.next_id;
        table.next_id += 1;
        let entry = Entry {
            fd: Arc::clone(fd),
            phase: Phase::Handshake,
        };
        table.open.insert(id, entry);
        Some(Place {
            id,
            connections: Arc::clone(self),
        })
    }

    /// Shuts down every connection; with [`Shutdown::Read`] they end once what they received is
    /// answered.
    pub(super) fn shut_down(&self, how: Shutdown) {
        for entry in self.table.lock().open.values() {
            entry.shut_down(how);
        }
    }

    /// Waits until no connection is left, for at most `time`; says whether that is so.
    pub(super) fn wait_for_none(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut table = self.table.lock();
        while !table.open.is_empty() {
            if self.ended.wait_until(&mut table, deadline).timed_out() {
                break;
            }
        }
        table.open.is_empty()
    }
}

impl Table {
    fn taken(&self) -> usize {
        let sent_away = |entry: &&Entry| entry.phase == Phase::SentAway;
        self.open.len() - self.open.values().filter(sent_away).count()
    }

    fn send_oldest_away(&mut self) -> bool {
        let oldest = self
            .open
            .values_mut()
            .find(|entry| entry.phase == Phase::Handshake);
        match oldest {
            Some(entry) => {
                entry.phase = Phase::SentAway;
                entry.shut_down(Shutdown::Both);
                true
            }
            None => false,
        }
    }
}

impl Entry {
    fn shut_down(&self, how: Shutdown) {
        // It fails only where the client has already gone, which is as good.
        if let Err(error) = shutdown(&self.fd, how) {
            tracing::trace!("shutdown of a connection: {error}");
        }
    }
}

/// A connection's place, given back when dropped.
pub(super) struct Place {
    id: u64,
    connections: Arc<Connections>,
}

impl Place {
    /// The connection's number, for the log.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Who is at the other end.
    pub(super) fn who(&self) -> Who {
        let table = self.connections.table.lock();
        let socket = table.open.get(&self.id).map(|entry| Arc::clone(&entry.fd));
        drop(table);
        socket.map_or_else(Who::default, |socket| Who::peer(&*socket))
    }

    /// Notes that the handshake is over; `false` if the place was lost meanwhile.
    pub(super) fn enter_transmission(&self) -> bool {
        match self.connections.table.lock().open.get_mut(&self.id) {
            Some(entry) if entry.phase == Phase::Handshake => {
                entry.phase = Phase::Transmission;
                true
            }
            _ => false,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The descriptor closes when its last owner goes, and that should not be under the lock.
        let entry = self.connections.table.lock().open.remove(&self.id);
        self.connections.ended.notify_all();
        drop(entry);
    }
}
