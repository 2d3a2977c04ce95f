//! The image that a device begins as, which what is written is destaged to, or not.
//!
//! A page that was never written is absent: only in the image. `maintain::destage` says how a page
//! becomes dirty and clean.

mod config;
#[cfg(test)]
mod faulty;
mod file;
mod format;
mod image;

use std::sync::Arc;

pub use config::{OriginConfig, OriginUse, SyncPolicy};
#[cfg(test)]
pub(crate) use faulty::FaultyImage;
pub(crate) use file::FileImage;
pub use format::OriginFormat;
pub(crate) use image::Image;

/// What a page is whose slot is empty.
pub(crate) enum Origin {
    /// Zeroes.
    Blank,
    /// What the image has, which is only read. What is written is spilled like that of a blank
    /// device.
    Snapshot(Arc<dyn Image>),
    /// What the image has, and what is written is destaged to it, durably as the policy says.
    WriteBack(Arc<dyn Image>, SyncPolicy),
}

impl Origin {
    /// The image, if there is one.
    pub(crate) fn image(&self) -> Option<&dyn Image> {
        match self {
            Self::Blank => None,
            Self::Snapshot(image) | Self::WriteBack(image, _) => Some(&**image),
        }
    }

    /// When what is written becomes durable in the image; `None` if it does not go there.
    pub(crate) fn policy(&self) -> Option<SyncPolicy> {
        match self {
            Self::WriteBack(_, policy) => Some(*policy),
            Self::Blank | Self::Snapshot(_) => None,
        }
    }

    /// Whether what is written is destaged to the image.
    pub(crate) fn destages(&self) -> bool {
        self.policy().is_some()
    }
}
