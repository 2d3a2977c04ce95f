//! The control protocol: how `uzram stat`, `set`, `reset` and their kin reach a running server.
//!
//! A Unix socket of mode 0600; on it one JSON object a line, a [`Request`] up, a [`Reply`] down, in
//! order, any number on a connection:
//!
//! ```text
//! {"op":"stat"}                                       {"ok":{"disksize":1073741824,...}}
//! {"op":"get","attribute":"mm_stat"}                  {"ok":"       0        0 ...\n"}
//! {"op":"set","attribute":"mem_limit","value":"64M"}  {"ok":null}
//! {"op":"set","attribute":"mem_limit","value":"x"}    {"error":"mem_limit: ...","errno":22,"usage":true}
//! {"op":"latency"}                                    {"ok":{"read":{"count":7,"sum_ns":41300,...}}}
//! {"op":"map","first":0,"pages":512,"cells":2}        {"ok":{"cells":[[0,201,3,0],[0,0,0,8]],...}}
//! {"op":"compact"}                                    {"ok":{"pages":12}}
//! {"op":"idle","which":"all"}                         {"ok":{"pages":345}}
//! {"op":"writeback","which":"type=idle"}              {"ok":{"pages":345}}
//! {"op":"reset"}                                      {"ok":null}
//! {"op":"scrub","from":0}                             {"ok":{"next":512,"intact":257,"damaged":[],...}}
//! {"op":"save","path":"/var/vm.image","last":false}   {"ok":{"pages":345,"bytes":412345}}
//! {"op":"save_progress"}                              {"ok":{"pages":100,"of":345}}
//! ```
//!
//! It is our own because an open file may come with a request (SCM_RIGHTS), which crates for JSON-RPC and varlink do not have, and
//! because a shell can speak it.
//!
//! `errno` is the kernel's number: both ends are on one machine. `usage` is there if no device would do
//! that. Everything is bounded: lines to
//! [`MAX_LINE_BYTES`], clients to [`MAX_CLIENTS`], waits to [`IDLE_TIMEOUT`].

mod client;
mod clients;
mod line;
mod protocol;
mod server;

pub use client::{Client, HangUp};
pub use clients::MAX_CLIENTS;
pub use line::MAX_LINE_BYTES;
pub use protocol::{Compacted, PagesDone};
#[doc(hidden)]
pub use protocol::{Reply, Request};
pub use server::{IDLE_TIMEOUT, Server};
