//! When and how surely a server stops.
//!
//! SIGTERM and SIGINT ask for an orderly stop; from then on a watchdog makes sure that the
//! process is gone in time, whatever clients, disks and threads do. But where the pages have a home
//! in an image, it is not before they are there: data that was acknowledged wins over time. A second
//! signal ends it at once. SIGHUP is ignored: the data exists nowhere else, and losing a terminal is
//! no reason to lose it. So are SIGPIPE (by Rust's runtime) and SIGXFSZ, which become errors of the
//! write they belong to.

use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;

use uzram::{BlockDevice, Device};

use crate::leftovers::Traces;
use crate::undo::Interrupted;

/// What is said of a stop that came too early.
const NOT_READY: &str = "interrupted before it was ready";

/// How long what could not be written home rests before it is tried again.
const REST: Duration = Duration::from_secs(1);

/// How long the orderly stop may take where the data outlives the server: longer than a file system
/// may take to be written out.
const UNHURRIED: Duration = Duration::from_secs(900);

/// From the request to stop to the end of the process, at most; the contract says 5 s.
const DEADLINE: Duration = Duration::from_millis(4700);

/// How long removing the traces may hold up an exit.
const TRACES: Duration = Duration::from_millis(600);

/// Asks the server to stop; the first request counts.
#[derive(Clone)]
pub(crate) struct Stopper {
    requested: Arc<AtomicBool>,
    /// Whether it was said that the server is ready.
    ready: Arc<AtomicBool>,
    wake: Sender<()>,
    traces: Arc<Mutex<Traces>>,
    home: Arc<Mutex<Weak<Device>>>,
}

impl Stopper {
    /// Starts the stop and its watchdog.
    pub(crate) fn request(&self) {
        if self.requested.swap(true, Ordering::SeqCst) {
            return;
        }
        let (traces, home) = (Arc::clone(&self.traces), Arc::clone(&self.home));
        let ready = Arc::clone(&self.ready);
        thread::spawn(move || {
            let outlives = |device: Arc<Device>| device.outlives_the_device();
            let is_home = lock(&home).upgrade().is_some_and(outlives);
            thread::sleep(if is_home {
                UNHURRIED
            } else {
                DEADLINE - TRACES
            });
            let device = lock(&home).upgrade();
            let written = device.map_or(Ok(()), |device| write_home(&device));
            let was_ready = ready.load(Ordering::SeqCst);
            tracing::warn!(
                "{} hold up the stop: exiting without them",
                if was_ready {
                    "clients or disks"
                } else {
                    "disks"
                }
            );
            if !was_ready {
                tracing::error!("{NOT_READY}");
            }
            remove_bounded(&traces);
            process::exit(i32::from(written.is_err() || !was_ready));
        });
        // Without a receiver the main thread is already on its way out.
        let _ = self.wake.send(());
    }

    /// Fails once a stop is requested, which is before the server is ready.
    pub(crate) fn check(&self) -> Result<()> {
        match self.requested.load(Ordering::SeqCst) {
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
        *lock(&self.home) = Arc::downgrade(device);
    }

    /// Notes what the server has made outside its memory by now.
    pub(crate) fn note(&self, change: impl FnOnce(&mut Traces)) {
        change(&mut lock(&self.traces));
    }
}

/// Installs the signal handlers; the receiver gets one message when the server is to stop.
pub(crate) fn install() -> Result<(Stopper, Receiver<()>)> {
    let (wake, woken) = mpsc::channel();
    let stopper = Stopper {
        requested: Arc::default(),
        ready: Arc::default(),
        wake,
        traces: Arc::default(),
        home: Arc::default(),
    };
    for ignored in [SIGHUP, SIGXFSZ] {
        // A handler that only sets a flag; unlike SIG_IGN it is not inherited by our children.
        signal_hook::flag::register(ignored, Arc::default()).context("cannot handle signals")?;
    }
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
                remove_bounded(&handler.traces);
                process::exit(1);
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
pub(crate) fn write_home(device: &Device) -> Result<()> {
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
            "{pages} pages are still to be written home: {error}; trying again, unless another \
             signal gives them up"
        );
        thread::sleep(REST);
    }
}

/// Removes the traces, but does not wait for a file system that hangs.
fn remove_bounded(traces: &Mutex<Traces>) {
    let traces = lock(traces).clone();
    let (done, finished) = mpsc::channel();
    thread::spawn(move || {
        traces.remove_now();
        let _ = done.send(());
    });
    let _ = finished.recv_timeout(TRACES);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
