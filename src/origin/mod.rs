//! The image that a device begins as, and where its pages go home to, or not.
//!
//! ```text
//!             write, discard                  batch of writes          sync
//!  absent ────────────────────> dirty ──────────────────────> clean ────────> durable
//!    ^                            ^                             │
//!    │ leaves memory              └──── write, discard ─────────┤
//!    └──────────────────────────────────────────────────────────┘
//! ```
//!
//! A page is absent, dirty or clean: only in the image, not in it as it is, or in memory as well. A
//! dirty page is in memory until a write of it has ended well and it has not changed since. Pages
//! are written in batches, one batch at a time, with no shard locked: a batch takes dirty pages
//! along, copies them, and looks again at each when it has ended. So no two writes of a page are
//! under way at once, and a later one is never overtaken by an earlier.
//!
//! Who evicts and who flushes take turns at that, batch by batch, and neither needs memory of the
//! pool. Locks: the turn, a mutex; shards are locked under it. Above it is that of [`Syncs`], which
//! who flushes holds.

mod batch;
mod config;
#[cfg(test)]
mod faulty;
mod file;
mod format;
mod home;
mod image;
mod periodic;
mod syncs;
mod writers;

use std::sync::Arc;

pub(crate) use batch::{BATCH_PAGES, HomeBatch, Landing};
pub use config::{OriginConfig, OriginUse, SyncPolicy};
#[cfg(test)]
pub(crate) use faulty::FaultyImage;
pub(crate) use file::FileImage;
pub use format::OriginFormat;
pub(crate) use home::Home;
pub(crate) use image::Image;
pub(crate) use periodic::Periodic;
use syncs::Syncs;

/// What a page is whose slot is empty.
pub(crate) enum Origin {
    /// Zeroes.
    Blank,
    /// What the image has, which is only read. What is written is spilled like that of a blank
    /// device.
    Snapshot(Arc<dyn Image>),
    /// What the image has, and what is written goes home to it.
    Home(Home),
}

impl Origin {
    /// The image, if there is one.
    pub(crate) fn image(&self) -> Option<&dyn Image> {
        match self {
            Self::Blank => None,
            Self::Snapshot(image) => Some(&**image),
            Self::Home(home) => Some(home.image()),
        }
    }

    /// The home of what is written, if it has one.
    pub(crate) fn home(&self) -> Option<&Home> {
        match self {
            Self::Home(home) => Some(home),
            Self::Blank | Self::Snapshot(_) => None,
        }
    }
}
