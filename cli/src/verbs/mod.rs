//! The verbs, one file each: what a command line has the machine do.
//!
//! A verb may use another one; nothing below uses any.

pub(crate) mod attach;
pub(crate) mod background;
pub(crate) mod clear_spill;
pub(crate) mod compact;
pub(crate) mod complete;
pub(crate) mod detach;
pub(crate) mod down;
pub(crate) mod idle;
pub(crate) mod list;
pub(crate) mod log;
pub(crate) mod man;
pub(crate) mod map;
pub(crate) mod metrics;
pub(crate) mod mount;
pub(crate) mod recompress;
pub(crate) mod reset;
pub(crate) mod save;
pub(crate) mod scrub;
pub(crate) mod serve;
pub(crate) mod set;
pub(crate) mod stat;
pub(crate) mod stop;
pub(crate) mod swapon;
pub(crate) mod sync;
pub(crate) mod top;
pub(crate) mod train;
pub(crate) mod umount;
pub(crate) mod up;
pub(crate) mod wipe_spill;
pub(crate) mod writeback;
