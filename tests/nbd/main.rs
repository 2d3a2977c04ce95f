//! The NBD server as raw bytes see it: every option, command, reply and error of the protocol,
//! and what no honest client sends. What real clients make of it is in `nbd_clients.rs`.

mod client;
mod device;
mod handshake;
mod hostile;
mod log;
mod server;
mod tls;
mod tls_files;
mod transmission;
mod worker_pool;
