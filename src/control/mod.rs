//! The control protocol: how `uzram stat`, `set`, `stop` and their kin reach a running server.
//!
//! A Unix socket of mode 0600; on it one JSON object a line, a [`Request`] up, a [`Reply`] down, in
//! order, any number on a connection:
//!
//! ```text
//! {"op":"stat"}                                       {"ok":{"disksize":1073741824,...}}
//! {"op":"get","attribute":"mm_stat"}                  {"ok":"       0        0 ...\n"}
//! {"op":"set","attribute":"mem_limit","value":"64M"}  {"ok":null}
//! {"op":"set","attribute":"mem_limit","value":"x"}    {"error":"mem_limit: ...","errno":"EINVAL"}
//! {"op":"compact"}                                    {"ok":{"pages":12}}
//! {"op":"reset"}                                      {"ok":null}
//! {"op":"info"}                                       {"ok":{"name":"scratch","pid":4711,...}}
//! {"op":"stop"}                                       {"ok":null}
//! ```
//!
//! Everything is bounded: lines to [`MAX_LINE_BYTES`], clients to [`MAX_CLIENTS`], waits to
//! [`IDLE_TIMEOUT`]. Locks nothing.

mod client;
mod errno;
mod line;
mod protocol;
mod server;

pub use client::Client;
pub use line::MAX_LINE_BYTES;
pub use protocol::{Compacted, Info, Reply, Request};
pub use server::{Context, IDLE_TIMEOUT, MAX_CLIENTS, Server};
