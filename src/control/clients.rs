//! The clients of a control server: how many, and who gives way to a new one.
//!
//! A client that has been idle for [`REST`] gives way, the one idle for longest first. One that was just
//! admitted or answered is about to ask, and keeps its place. A new client waits until a place is free;
//! only where nobody has gone for [`TURN`] it is turned away.
//!
//! The accepting thread alone has the table. Each client has a lock on what it is doing, held to note or
//! look at that.

use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};

/// Clients at one time; one more takes the place of an idle one, or waits for a place.
pub const MAX_CLIENTS: usize = 32;

/// How long a client keeps its place until its next request: on a busy machine that much may pass
/// before it runs again.
const REST: Duration = Duration::from_millis(250);

/// How long new clients wait for a place while nobody goes.
const TURN: Duration = Duration::from_secs(1);

/// What a client's thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// It has waited for a request since then.
    Idle(Instant),
    Busy,
    /// Nothing but the end of the thread follows.
    Ended,
}

#[derive(Debug)]
struct State {
    doing: Doing,
    /// Its place is another's.
    sent_away: bool,
}

/// What a client's thread and the accepting thread tell each other.
#[derive(Debug)]
pub(super) struct Activity {
    state: Mutex<State>,
    changed: Arc<OwnedFd>,
}

impl Activity {
    pub(super) fn busy(&self) {
        self.state.lock().doing = Doing::Busy;
    }

    pub(super) fn idle(&self) {
        self.note(Doing::Idle(Instant::now()));
    }

    pub(super) fn ended(&self) {
        self.note(Doing::Ended);
    }

    /// Whether the client's place is another's by now.
    pub(super) fn is_sent_away(&self) -> bool {
        self.state.lock().sent_away
    }

    fn note(&self, doing: Doing) {
        self.state.lock().doing = doing;
        // It fails only where the count is at its end, and then it is readable already.
        let _ = rustix::io::write(&self.changed, &1u64.to_ne_bytes());
    }

    /// Since when the client could give its place away.
    fn idle_since(&self) -> Option<Instant> {
        match *self.state.lock() {
            State {
                doing: Doing::Idle(since),
                sent_away: false,
            } => Some(since),
            _ => None,
        }
    }

    fn has_ended(&self) -> bool {
        self.state.lock().doing == Doing::Ended
    }
}

/// A client's connection and the thread that serves it.
struct Client {
    stream: UnixStream,
    thread: JoinHandle<()>,
    activity: Arc<Activity>,
}

impl Client {
    /// Its place is another's. What was received by now is still answered.
    fn send_away(&self) {
        self.activity.state.lock().sent_away = true;
        self.stop_reading();
    }

    fn stop_reading(&self) {
        // It may be closed already.
        let _ = self.stream.shutdown(Shutdown::Read);
    }

    fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!("a control client's thread panicked");
        }
    }
}

/// Whether there is a place for a new client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    Free,
    /// To be asked again when something has [changed](Clients::changed), or after so long.
    Wait(Duration),
    /// There is none, and has not been for long.
    None,
}

pub(super) struct Clients {
    open: Vec<Client>,
    changed: Arc<OwnedFd>,
    /// Since when new clients have waited for a place.
    full_since: Option<Instant>,
}

impl Clients {
    /// # Errors
    /// Without a descriptor to be had.
    pub(super) fn new() -> rustix::io::Result<Self> {
        let changed = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            open: Vec::new(),
            changed: Arc::new(changed),
            full_since: None,
        })
    }

    /// What a new client's thread notes its doings in. It is idle.
    pub(super) fn activity(&self) -> Arc<Activity> {
        Arc::new(Activity {
            state: Mutex::new(State {
                doing: Doing::Idle(Instant::now()),
                sent_away: false,
            }),
            changed: Arc::clone(&self.changed),
        })
    }

    /// Readable once a client has become idle or ended, since [`Clients::make_room`] was asked.
    pub(super) fn changed(&self) -> BorrowedFd<'_> {
        self.changed.as_fd()
    }

    /// Makes a place for a new client if that can be done at the time `now`.
    pub(super) fn make_room(&mut self, now: Instant) -> Room {
        // Before the look at them, so that no change is missed.
        let _ = rustix::io::read(&self.changed, &mut [0; 8]);
        self.collect();
        if self.sent_one_away(now)
            || self.staying() < MAX_CLIENTS && self.open.len() < 2 * MAX_CLIENTS
        {
            self.full_since = None;
            return Room::Free;
        }
        let given_up = *self.full_since.get_or_insert(now) + TURN;
        if given_up <= now {
            return Room::None;
        }
        let idle = self.open.iter().filter_map(|c| c.activity.idle_since());
        let rested = idle.min().map_or(given_up, |since| since + REST);
        Room::Wait(rested.max(now).min(given_up) - now)
    }

    /// Forgets those that have ended.
    fn collect(&mut self) {
        let ended = self.open.extract_if(.., |client| {
            // A thread that panicked did not say so.
            client.activity.has_ended() || client.thread.is_finished()
        });
        ended.for_each(Client::join);
    }

    fn staying(&self) -> usize {
        let stays = |client: &&Client| !client.activity.is_sent_away();
        self.open.iter().filter(stays).count()
    }

    /// Has the client go that has been idle for longest, if all places are taken and it has had its
    /// rest. Those that go still have their threads for a moment: there may be as many as places.
    fn sent_one_away(&self, now: Instant) -> bool {
        if self.staying() < MAX_CLIENTS || self.open.len() >= 2 * MAX_CLIENTS {
            return false;
        }
        let idle = self.open.iter();
        let idle = idle.filter_map(|client| Some((client.activity.idle_since()?, client)));
        match idle.min_by_key(|(since, _)| *since) {
            Some((since, client)) if since + REST <= now => {
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
        self.open.push(Client {
            stream,
            thread,
            activity,
        });
    }

    /// Has them all end, and waits for that.
    pub(super) fn join(self) {
        self.open.iter().for_each(Client::stop_reading);
        self.open.into_iter().for_each(Client::join);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::thread;

    use super::*;

    /// A client whose thread does nothing but wait for the end.
    fn add(clients: &mut Clients) -> (UnixStream, Arc<Activity>) {
        let (near, mut far) = UnixStream::pair().expect("a pair");
        let stream = far.try_clone().expect("a duplicate");
        let activity = clients.activity();
        let noted = Arc::clone(&activity);
        let thread = thread::spawn(move || {
            assert!(matches!(far.read(&mut [0]), Ok(0)));
            noted.ended();
        });
        clients.add(stream, thread, Arc::clone(&activity));
        (near, activity)
    }

    #[test]
    fn the_client_idle_for_longest_gives_way_and_busy_ones_do_not() {
        let mut clients = Clients::new().expect("a descriptor");
        let ends: Vec<_> = (0..MAX_CLIENTS)
            .map(|_| {
                assert_eq!(clients.make_room(Instant::now()), Room::Free);
                add(&mut clients)
            })
            .collect();
        let away = |ends: &[(UnixStream, Arc<Activity>)]| -> Vec<usize> {
            let indices = 0..ends.len();
            indices.filter(|&i| ends[i].1.is_sent_away()).collect()
        };
        for (_, activity) in &ends {
            activity.busy();
        }
        let now = Instant::now();
        assert_eq!(clients.make_room(now), Room::Wait(TURN));
        assert_eq!(clients.make_room(now + TURN), Room::None);
        ends[7].1.idle();
        ends[5].1.idle();
        let later = Instant::now() + REST;
        assert_eq!(clients.make_room(later), Room::Free);
        assert_eq!(away(&ends), [7]);
        // The place is free, and stays so until somebody takes it.
        assert_eq!(clients.make_room(later), Room::Free);
        assert_eq!(away(&ends), [7]);
        let taken = add(&mut clients);
        taken.1.busy();
        assert_eq!(clients.make_room(later), Room::Free);
        assert_eq!(away(&ends), [5, 7]);
        clients.join();
    }

    #[test]
    fn who_is_about_to_ask_keeps_its_place() {
        let mut clients = Clients::new().expect("a descriptor");
        let ends: Vec<_> = (0..MAX_CLIENTS).map(|_| add(&mut clients)).collect();
        let since = ends[0].1.idle_since().expect("idle");
        match clients.make_room(since + REST / 2) {
            Room::Wait(time) => assert_eq!(time, REST / 2),
            room => panic!("{room:?}"),
        }
        assert!(ends.iter().all(|(_, activity)| !activity.is_sent_away()));
        // It goes by itself, which wakes who waits for a place.
        let mut changed = [0; 8];
        drop(ends.into_iter().next_back());
        while rustix::io::read(clients.changed(), &mut changed).is_err() {
            thread::yield_now();
        }
        assert_eq!(clients.make_room(since), Room::Free);
        clients.join();
    }

    #[test]
    fn those_who_are_slow_to_go_are_bounded_too() {
        let mut clients = Clients::new().expect("a descriptor");
        let (may_go, waits) = crossbeam::channel::bounded::<()>(0);
        let mut added = 0;
        while clients.make_room(Instant::now() + REST) == Room::Free {
            let (stream, _) = UnixStream::pair().expect("a pair");
            let waits = waits.clone();
            let activity = clients.activity();
            let noted = Arc::clone(&activity);
            let thread = thread::spawn(move || {
                assert!(waits.recv().is_err());
                noted.ended();
            });
            clients.add(stream, thread, activity);
            added += 1;
        }
        assert_eq!(added, 2 * MAX_CLIENTS);
        drop(may_go);
        while clients.make_room(Instant::now()) != Room::Free {
            thread::yield_now();
        }
        clients.join();
    }
}
