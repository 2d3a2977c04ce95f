//! The FUSE frontend through the kernel. Needs root and `/dev/fuse`; says so loudly where they are
//! missing.

mod attributes;
mod disk;
mod kept;
mod log;
mod mounts;
mod rig;
mod uring;
