//! systemd's watchdog: told now and then that the device still answers.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use uzram::{Device, LogLimit};

/// The least time between two signs of life.
const LEAST: Duration = Duration::from_millis(10);

/// Starts to tell it, where systemd expects that.
///
/// It expects that every `period`, and hears of it by way of `tell`.
pub(crate) fn start(
    device: &Arc<Device>,
    period: Option<Duration>,
    tell: impl Fn() -> Result<()> + Send + 'static,
) {
    // Of 0 systemd itself makes no watchdog.
    let Some(period) = period.filter(|period| !period.is_zero()) else {
        return;
    };
    let pause = (period / 3).max(LEAST);
    let failures = LogLimit::of_states();
    // Not what keeps the device alive.
    let device = Arc::downgrade(device);
    let started = thread::Builder::new()
        .name("uzram-watchdog".to_owned())
        .spawn(move || {
            while let Some(device) = device.upgrade() {
                // Takes the lock of every shard: with one of them stuck, this never returns.
                device.orig_data_size();
                drop(device);
                if let Err(error) = tell()
                    && let Some(end) = failures.admit()
                {
                    tracing::warn!("cannot notify systemd: {error:#}{end}");
                }
                thread::sleep(pause);
            }
        });
    if let Err(error) = started {
        tracing::warn!("cannot start the watchdog's thread: {error}");
    }
}
