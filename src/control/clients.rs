//! The clients of a control server: how many, and who gives way to a new one.
//!
//! Only the accepting thread has them. Each client has a lock on what it is doing, held to note or
//! look at that.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Clients at one time; one more takes the place of an idle one, or is told EAGAIN.
pub const MAX_CLIENTS: usize = 32;

/// How long a new client waits for many that were sent away to end.
const FAREWELL: Duration = Duration::from_secs(1);

/// Since when a client has been idle; `None` while a request of its is executed.
#[derive(Debug)]
pub(super) struct Activity(Mutex<Option<Instant>>);

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(Instant::now()))))
    }

    pub(super) fn busy(&self) {
        *self.0.lock() = None;
    }

    pub(super) fn idle(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    fn idle_since(&self) -> Option<Instant> {
        *self.0.lock()
    }
}

/// A client's connection and the thread that serves it.
struct Client {
    stream: UnixStream,
    thread: JoinHandle<()>,
    activity: Arc<Activity>,
    /// Shut down and about to end: its place is free.
    sent_away: bool,
}

impl Client {
    /// Reading ends; what was received by now is still answered.
    fn send_away(&mut self) {
        // It may be closed already.
        let _ = self.stream.shutdown(Shutdown::Read);
        self.sent_away = true;
    }
}

#[derive(Default)]
pub(super) struct Clients(Vec<Client>);

impl Clients {
    /// Forgets those that have ended.
    pub(super) fn collect(&mut self) {
        self.0.retain(|client| !client.thread.is_finished());
    }

    /// Makes sure that there is a place, by sending the client away that has been idle for
    /// longest; false if all are busy, or many that were sent away have not ended yet.
    pub(super) fn make_room(&mut self) -> bool {
        let came = Instant::now();
        while self.0.len() >= 2 * MAX_CLIENTS && came.elapsed() < FAREWELL {
            thread::sleep(Duration::from_millis(1));
            self.collect();
        }
        let all = self.0.len();
        let mut staying: Vec<_> = self.0.iter_mut().filter(|c| !c.sent_away).collect();
        if staying.len() < MAX_CLIENTS {
            return true;
        }
        let idle = staying
            .iter_mut()
            .filter_map(|client| Some((client.activity.idle_since()?, client)));
        match idle.min_by_key(|(since, _)| *since) {
            Some((_, client)) if all < 2 * MAX_CLIENTS => {
                client.send_away();
                true
            }
            _ => false,
        }
    }

    pub(super) fn add(
        &mut self,
        stream: UnixStream,
        thread: JoinHandle<()>,
        activity: Arc<Activity>,
    ) {
        self.0.push(Client {
            stream,
            thread,
            activity,
            sent_away: false,
        });
    }

    /// Sends them all away and waits for their ends.
    pub(super) fn join(mut self) {
        self.0.iter_mut().for_each(Client::send_away);
        for client in self.0 {
            if client.thread.join().is_err() {
                tracing::error!("a control client's thread panicked");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// A client whose thread does nothing but wait for the end.
    fn add(clients: &mut Clients) -> (UnixStream, Arc<Activity>) {
        let (near, mut far) = UnixStream::pair().expect("a pair");
        let stream = far.try_clone().expect("a duplicate");
        let thread = thread::spawn(move || assert!(matches!(far.read(&mut [0]), Ok(0))));
        let activity = Activity::new();
        clients.add(stream, thread, Arc::clone(&activity));
        (near, activity)
    }

    #[test]
    fn the_client_idle_for_longest_gives_way_and_busy_ones_do_not() {
        let mut clients = Clients::default();
        let ends: Vec<_> = (0..MAX_CLIENTS)
            .map(|_| {
                assert!(clients.make_room());
                add(&mut clients)
            })
            .collect();
        let away = |clients: &Clients| -> Vec<usize> {
            let indices = 0..clients.0.len();
            indices.filter(|&i| clients.0[i].sent_away).collect()
        };
        for (_, activity) in &ends {
            activity.busy();
        }
        assert!(!clients.make_room());
        ends[7].1.idle();
        ends[5].1.idle();
        assert!(clients.make_room());
        assert_eq!(away(&clients), [7]);
        // The place is free, and stays so until somebody takes it.
        assert!(clients.make_room());
        let taken = add(&mut clients);
        taken.1.busy();
        assert!(clients.make_room());
        assert_eq!(away(&clients), [5, 7]);
        clients.join();
    }

    #[test]
    fn those_who_are_slow_to_go_are_bounded_too() {
        let mut clients = Clients::default();
        let (may_go, waits) = crossbeam::channel::bounded::<()>(0);
        let mut added = 0;
        while clients.make_room() {
            let (stream, _) = UnixStream::pair().expect("a pair");
            let waits = waits.clone();
            let thread = thread::spawn(move || assert!(waits.recv().is_err()));
            clients.add(stream, thread, Activity::new());
            added += 1;
        }
        assert_eq!(added, 2 * MAX_CLIENTS);
        // They are waited for, a moment.
        drop(may_go);
        assert!(clients.make_room());
        clients.join();
    }
}
