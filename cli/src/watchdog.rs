//! systemd's watchdog: told now and then that the device still answers.

use std::sync::Arc;
use std::thread;

use uzram::Device;

/// Starts to tell it, where systemd expects that.
pub(crate) fn start(device: &Arc<Device>) {
    let Some(period) = sd_notify::watchdog_enabled() else {
        return;
    };
    // Not what keeps the device alive.
    let device = Arc::downgrade(device);
    let started = thread::Builder::new()
        .name("uzram-watchdog".to_owned())
        .spawn(move || {
            while let Some(device) = device.upgrade() {
                // Takes the lock of every shard: with one of them stuck, this never returns.
                device.orig_data_size();
                drop(device);
                if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Watchdog]) {
                    tracing::warn!(%error, "cannot notify systemd");
                }
                thread::sleep(period / 3);
            }
        });
    if let Err(error) = started {
        tracing::warn!("cannot start the watchdog's thread: {error}");
    }
}
