//! End to end: the `uzram` program against the clients, file systems and kernels people use with it.
//!
//! Each test has a directory of its own and takes down what it put up, also when it fails, so all of
//! them run beside each other. A missing tool is a failure that names its package; what the machine
//! cannot do at all (mount without root, say) is a line that begins with `SKIPPED`.

mod faults;
mod filesystems;
mod fsmark;
mod guest;
mod nbdcopy;
mod rig;
mod sigterm;
mod witnesses;
