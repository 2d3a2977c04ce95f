//! What zram leaves to whoever runs it: which pages are idle.

use std::time::Duration;

use super::Device;

impl Device {
    /// Marks the pages in memory as idle that were neither written nor read for `age`, or all;
    /// returns how many. A mark is gone when its page is written or read. Ages are known to a
    /// second at first; after a day of use a page may be three times as old as is known, but it is
    /// never taken for older than it is. Pages that are same-filled or spilled are not marked.
    pub fn mark_idle(&self, age: Option<Duration>) -> u64 {
        self.core.mark_idle(age)
    }
}
