//! The NBD server as real clients see it.

#[path = "../certificates/mod.rs"]
mod certificates;
mod plain;
mod rig;
mod tls;
