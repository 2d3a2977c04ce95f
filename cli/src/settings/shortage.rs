//! Devices that can run out of memory: their limit is less than they can come to need, and their pages have
//! nowhere to leave for. A client of zram expects that. A file system does not: it takes data that it writes
//! later, when nobody is told any more that there was no room for it.

use anyhow::Result;

use crate::base::failure::Usage;
use crate::base::table::bytes;
use crate::settings::Settings;

/// Refuses such a device, unless `--allow-enospc` says that it is meant.
pub(crate) fn refuse(settings: &Settings) -> Result<()> {
    let Some(limit) = limit(settings) else {
        return Ok(());
    };
    Err(Usage::error(format!(
        "--mem-limit: {} is less than the {} that pages can come to need, and they have nowhere to spill to: \
         writes would fail, and data be lost: give it --backing, or --allow-enospc if that is meant",
        bytes(limit),
        bytes(settings.device.most_memory()),
    )))
}

/// Warns of such a device, unless `--allow-enospc` says that it is meant.
pub(crate) fn warn(settings: &Settings) {
    let Some(limit) = limit(settings) else {
        return;
    };
    let (limit, most) = (bytes(limit), bytes(settings.device.most_memory()));
    let name = &settings.name;
    tracing::warn!(
        "--mem-limit: {limit} is less than the {most} that pages can come to need, and they have nowhere to spill \
         to: writes fail with ENOSPC then: uzram set {name} backing_dev=PATH or a larger mem_limit \
         (--allow-enospc if that is meant)"
    );
}

/// The limit that such a device meets.
fn limit(settings: &Settings) -> Option<u64> {
    let device = &settings.device;
    let meets = device.can_meet_limit() && !settings.allow_enospc;
    device.mem_limit.filter(|_| meets)
}
