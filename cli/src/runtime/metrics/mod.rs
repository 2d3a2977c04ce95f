//! Statistics as text for Prometheus: of all devices by `uzram metrics`, of its own by a server with
//! `--metrics`.

mod exporter;
mod exposition;
mod file;
mod http;
mod source;

pub(crate) use self::exporter::{Exporter, Outlets};
pub(crate) use self::exposition::{Format, Observed, Seen, exposition};
pub(crate) use self::file::remove_stale;
