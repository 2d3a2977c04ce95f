//! Words of a command line that only the machine knows: which there are is looked up when a shell asks.

use clap::builder::ArgExt;

/// What an argument is one of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Known {
    /// A device that is served, or was until its server was killed.
    Devices,
    /// Where `uzram mount` has mounted something.
    Mountpoints,
    /// A device of the configuration file.
    Configured,
}

impl ArgExt for Known {}
