//! When and how surely a server stops.
//!
//! SIGTERM and SIGINT ask for an orderly stop; from then on a watchdog makes sure that the
//! process is gone in time, whatever clients, disks and threads do. But where pages are destaged
//! to an image, it is not before they are there: data that was acknowledged wins over time. A second
//! signal ends it at once. SIGHUP is ignored: the data exists nowhere else, and losing a terminal is
//! no reason to lose it. So are SIGPIPE (by Rust's runtime) and SIGXFSZ, which become errors of the
//! write they belong to.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use uzram::{BlockDevice, Device};

use crate::base::bounded::within;
use crate::base::stderr;
use crate::base::undo::Interrupted;
use crate::runtime::leftovers::Traces;

/// What is said of a stop that came too early.
const NOT_READY: &str = "interrupted before it was ready";

/// How long what could not be destaged rests before it is tried again.
const REST: Duration = Duration::from_secs(1);

/// How long the orderly stop may take where the data outlives the server: longer than a file system
/// may take to be written out.
const UNHURRIED: Duration = Duration::from_secs(900);

/// From the request to stop to the end of the process, at most; the contract says 5 s.
pub(crate) const DEADLINE: Duration = Duration::from_millis(4700);

/// How long removing the traces may hold up an exit.
pub(crate) const TRACES: Duration = Duration::from_millis(600);

/// How long the last lines of the log may hold up an exit.
const LAST_LINES: Duration = Duration::from_millis(200);

/// What the orderly stop may take where nothing outlives the server.
const ORDERLY: Duration = DEADLINE.saturating_sub(TRACES).saturating_sub(LAST_LINES);

/// What is left of it, at least, once all is destaged.
const AFTER_DESTAGING: Duration = Duration::from_secs(1);

/// The device whose pages are to be destaged before the process ends.
#[derive(Default)]
struct Destaging {
    device: Mutex<Weak<Device>>,
    changed: Condvar,
}

impl Destaging {
    fn set(&self, device: Weak<Device>) {
        *lock(&self.device) = device;
        self.changed.notify_all();
    }

    /// Waits while there is data that outlives the server, for at most `timeout`; returns whether
    /// there was any.
    fn wait(&self, timeout: Duration) -> bool {
        let outlives = |device: &mut Weak<Device>| {
            let device = device.upgrade();
            device.is_some_and(|device| device.outlives_the_device())
        };
        let mut device = lock(&self.device);
        if !outlives(&mut device) {
            return false;
        }
        let waited = self.changed.wait_timeout_while(device, timeout, outlives);
        drop(waited);
        true
    }
}

/// Asks the server to stop; the first request counts.
#[derive(Clone)]
pub(crate) struct Stopper {
    requested: Arc<AtomicBool>,
    /// Whether it was said that the server is ready.
    ready: Arc<AtomicBool>,
    wake: Sender<()>,
    /// To its thread, which is there from the start: there may be no more to be had.
    watchdog: Sender<()>,
    traces: Arc<Mutex<Traces>>,
    destaging: Arc<Destaging>,
}

impl Stopper {
    /// With those who hear of a request: the main thread, and the watchdog.
    fn new() -> (Self, Receiver<()>, Receiver<()>) {
        let (wake, woken) = mpsc::channel();
        let (watchdog, watched) = mpsc::channel();
        let stopper = Self {
            requested: Arc::default(),
            ready: Arc::default(),
            wake,
            watchdog,
            traces: Arc::default(),
            destaging: Arc::default(),
        };
        (stopper, woken, watched)
    }

    /// Starts the stop and its watchdog.
    pub(crate) fn request(&self) {
        if self.requested.swap(true, Ordering::SeqCst) {
            return;
        }
        let _ = self.watchdog.send(());
        // Without a receiver the main thread is already on its way out.
        let _ = self.wake.send(());
    }

    /// Ends the process when an orderly stop takes too long.
    fn watch(&self) -> ! {
        let began = Instant::now();
        let least = match self.destaging.wait(UNHURRIED) {
            true => AFTER_DESTAGING,
            false => Duration::ZERO,
        };
        thread::sleep(ORDERLY.saturating_sub(began.elapsed()).max(least));
        let was_used = self.was_used();
        let device = lock(&self.destaging.device).upgrade();
        let written = device.map_or(Ok(()), |device| destage(&device));
        let was_ready = was_used || self.ready.load(Ordering::SeqCst);
        let culprits = match was_ready {
            true => "clients or disks",
            false => "disks",
        };
        tracing::warn!("{culprits} hold up the stop: exiting without them");
        if !was_ready {
            tracing::error!("{NOT_READY}");
        }
        self.exit(i32::from(written.is_err() || !was_ready))
    }

    /// Ends the process, without its traces and with its last lines as far as there is time.
    pub(crate) fn exit(&self, code: i32) -> ! {
        let traces = lock(&self.traces).clone();
        // A file system may hang.
        let _ = within(TRACES, move || traces.remove_now());
        stderr::flush(LAST_LINES);
        process::exit(code)
    }

    /// Whether a client was answered, to whom the server was ready.
    fn was_used(&self) -> bool {
        let device = lock(&self.destaging.device).upgrade();
        device.is_some_and(|device| device.was_used())
    }

    /// Fails once a stop is requested before the server is ready, unless it has answered a client by then.
    pub(crate) fn check(&self) -> Result<()> {
        match self.requested.load(Ordering::SeqCst) && !self.was_used() {
            true => Err(Interrupted::error(NOT_READY)),
            false => Ok(()),
        }
    }

    /// Notes that the server is ready: a stop is what it is meant to come to.
    pub(crate) fn ready(&self) -> Result<()> {
        self.ready.store(true, Ordering::SeqCst);
        self.check()
            .inspect_err(|_| self.ready.store(false, Ordering::SeqCst))
    }

    /// Has nothing but a second signal end the process before what is on this device is in its
    /// image.
    pub(crate) fn keep(&self, device: &Arc<Device>) {
        self.destaging.set(Arc::downgrade(device));
    }

    /// Notes that all of it is there: the process may end.
    pub(crate) fn let_go(&self) {
        self.destaging.set(Weak::new());
    }

    /// Notes what the server has made outside its memory by now.
    pub(crate) fn note(&self, change: impl FnOnce(&mut Traces)) {
        change(&mut lock(&self.traces));
    }
}

/// Installs the signal handlers; the receiver gets one message when the server is to stop.
pub(crate) fn install() -> Result<(Stopper, Receiver<()>)> {
    let (stopper, woken, watched) = Stopper::new();
    for ignored in [SIGHUP, SIGXFSZ] {
        // A handler that only sets a flag; unlike SIG_IGN it is not inherited by our children.
        signal_hook::flag::register(ignored, Arc::default()).context("cannot handle signals")?;
    }
    let watching = stopper.clone();
    thread::Builder::new()
        .name("stop-watchdog".to_owned())
        .spawn(move || {
            if watched.recv().is_ok() {
                watching.watch();
            }
        })
        .context("cannot start the thread that watches over the stop")?;
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("cannot handle signals")?;
    let handler = stopper.clone();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut signals = signals.forever();
            if signals.next().is_some() {
                handler.request();
            }
            if signals.next().is_some() {
                handler.exit(1);
            }
        })
        .context("cannot start the signal thread")?;
    Ok((stopper, woken))
}

/// Has what is on a device in its image, if it has one, however long that takes and however often it
/// fails: that may be over next time, and the data is nowhere else. Nothing is written to the device
/// from then on.
///
/// # Errors
/// If all was written and that could not be made durable.
pub(crate) fn destage(device: &Device) -> Result<()> {
    device.refuse_changes();
    let mut was_clean = false;
    loop {
        let (synced, pages) = (device.sync(), device.dirty_pages());
        let error = match synced {
            Ok(()) if pages == 0 => return Ok(()),
            // A write that was under way when changes were refused.
            Ok(()) => continue,
            Err(error) if pages == 0 && was_clean => return Err(error.into()),
            Err(error) => error,
        };
        was_clean = pages == 0;
        if was_clean {
            // Others have written what could not be written: what is left may be the sync alone.
            continue;
        }
        tracing::error!(
            "{pages} pages are still to be written to the image: {error}; trying again, unless another \
             signal gives them up"
        );
        thread::sleep(REST);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use uzram::DeviceConfig;

    use super::*;

    #[test]
    fn a_stop_before_it_was_ready_is_none_once_a_client_was_there() {
        let (stopper, _woken, _watched) = Stopper::new();
        let device = Arc::new(Device::new(&DeviceConfig::new(1 << 20)).unwrap());
        stopper.keep(&device);
        stopper.check().unwrap();
        stopper.requested.store(true, Ordering::SeqCst);
        assert!(stopper.check().is_err() && stopper.ready().is_err());
        drop(device.enter(uzram::Who::default()));
        stopper.check().unwrap();
        stopper.ready().unwrap();
    }
}
