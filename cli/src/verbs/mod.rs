//! The verbs, one file each: what a command line has the machine do.
//!
//! A verb may use another one; nothing below uses any.

pub(crate) mod attach;
pub(crate) mod clear_spill;
pub(crate) mod complete;
pub(crate) mod list;
pub(crate) mod log;
pub(crate) mod man;
pub(crate) mod manage;
pub(crate) mod map;
pub(crate) mod metrics;
pub(crate) mod mount;
pub(crate) mod save;
pub(crate) mod scrub;
pub(crate) mod serve;
pub(crate) mod stat;
pub(crate) mod swapon;
pub(crate) mod top;
pub(crate) mod train;
pub(crate) mod up;
pub(crate) mod wipe_spill;
