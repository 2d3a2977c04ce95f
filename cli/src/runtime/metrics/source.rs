//! What a server exports, whatever asks for it.

use std::sync::{Arc, Weak};

use uzram::Device;

use super::exposition::{Format, Observed, exposition};
use crate::base::name::Name;

/// What is exported. The threads outlive the device, which is not theirs to keep.
pub(super) struct Source {
    pub(super) name: Name,
    device: Weak<Device>,
}

impl Source {
    pub(super) fn new(name: &Name, device: &Arc<Device>) -> Self {
        Self {
            name: name.clone(),
            device: Arc::downgrade(device),
        }
    }

    pub(super) fn text(&self, format: Format) -> String {
        let device = self.device.upgrade();
        let observed = Observed {
            name: self.name.to_string(),
            seen: device.map(|device| (device.stats(), device.latencies())),
        };
        exposition(&[observed], format)
    }
}
