//! The NBD server as real clients see it.

#[path = "../certificates/mod.rs"]
mod certificates;
mod plain;
mod recipes;
#[path = "../certificates/revocation.rs"]
mod revocation;
mod rig;
mod tls;
