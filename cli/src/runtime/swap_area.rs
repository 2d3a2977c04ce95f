//! What this machine swaps to: whether a device is, and bringing back what is there.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::base::program;
use crate::base::undo::Interrupt;

/// Brings back what is swapped to `area`, unless that takes longer.
pub(crate) fn bring_back_within(area: &Path, timeout: Duration) -> Result<()> {
    let swapoff = program::find("swapoff", "mount")?;
    program::run_within(&swapoff, [area], timeout)
        .map(drop)
        .with_context(|| format!("{} is still swapped to", area.display()))
}

/// Brings back what is swapped to `area`, however long that takes, unless it is interrupted.
pub(crate) fn bring_back(area: &Path) -> Result<()> {
    let swapoff = program::find("swapoff", "mount")?;
    let interrupt = Interrupt::install()?;
    match program::run_unless(&swapoff, [area], &interrupt) {
        Err(error) if is_swap(area) => {
            let shown = area.display();
            Err(error.context(format!("{shown} is still swapped to")))
        }
        ended => ended.map(drop),
    }
}

/// Whether `device` is in `/proc/swaps` (proc_swaps(5)).
pub(crate) fn is_swap(device: &Path) -> bool {
    let table = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let mut lines = table.lines().skip(1);
    lines.any(|line| line.split_whitespace().next().map(Path::new) == Some(device))
}
