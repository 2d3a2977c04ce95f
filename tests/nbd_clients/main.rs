//! The NBD server as real clients see it.

mod plain;
mod recipes;
mod rig;
mod tls;
