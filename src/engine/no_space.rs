//! Saying in the log that writes find no room, and what gives them some.

use super::{Engine, tables};
use crate::error::Error;

impl Engine {
    /// Logs, once a minute, that what was written could not be stored, if that is the error. Whoever wrote may
    /// hear of it late or never: a file system writes behind the back of those who write to it.
    pub(crate) fn warn_of_no_space(&self, error: &Error) {
        let Error::NoSpace(reason) = error else {
            return;
        };
        if self.is_stopping() {
            return;
        }
        if let Some(end) = self.no_space.admit() {
            let remedy = self.remedy(reason);
            tracing::warn!("writes fail with ENOSPC, as {reason}: {remedy}{end}");
        }
    }

    /// What gives writes room again, which they lack for `reason`.
    fn remedy(&self, reason: &str) -> &'static str {
        if reason == tables::SPENT {
            "give it a larger `DeviceConfig::table_limit` when it is started next"
        } else if !self.limit.evicts() {
            "`Device::set_backing`, or `Device::set_mem_limit` to a larger one"
        } else {
            "see to that, or `Device::set_mem_limit` to a larger one"
        }
    }
}
