//! What a server exports, whatever asks for it.

use std::sync::{Arc, Weak};

use uzram::Device;

use super::exposition::{Format, Observed, Seen, exposition};
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
            seen: device.map(|device| Seen {
                stats: device.stats(),
                latencies: device.latencies(),
                algorithm: device.algorithm().to_string(),
                backing: device.backing_path().map(|path| path.display().to_string()),
            }),
        };
        exposition(&[observed], format)
    }
}

#[cfg(test)]
impl Source {
    /// For a test; and its device, which must be kept.
    pub(super) fn of_a_device() -> (Self, Arc<Device>) {
        let device = Arc::new(Device::new(&uzram::DeviceConfig::new(1 << 20)).unwrap());
        (Self::new(&"a".parse().unwrap(), &device), device)
    }
}
