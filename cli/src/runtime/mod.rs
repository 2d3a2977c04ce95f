//! What is there while devices are served: RUNDIR, servers, what is attached to them and what they leave.
//!
//! Imports `settings`, `args` and `base`, no verb.

pub(crate) mod attachments;
pub(crate) mod client;
pub(crate) mod filesystem;
pub(crate) mod fuse2fs;
pub(crate) mod keeper;
pub(crate) mod layers;
pub(crate) mod leftovers;
pub(crate) mod loopdev;
pub(crate) mod metrics;
pub(crate) mod nbddev;
pub(crate) mod progress;
pub(crate) mod release;
pub(crate) mod rundir;
pub(crate) mod sandbox;
pub(crate) mod sectors;
pub(crate) mod server;
pub(crate) mod signature;
pub(crate) mod spill;
pub(crate) mod stop;
pub(crate) mod swap;
pub(crate) mod swap_area;
pub(crate) mod target;
pub(crate) mod watchdog;
pub(crate) mod xfs;
