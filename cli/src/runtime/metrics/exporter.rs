//! A server's own metrics: served over HTTP, and written to files.

use std::sync::Arc;

use anyhow::{Context, Result};
use uzram::nbd::Address;
use uzram::{Device, SocketFile};

use super::file::FileWriter;
use super::http;
use super::source::Source;
use crate::args::Sink;
use crate::base::name::Name;

/// The sinks of a server. Dropping it removes their sockets and files.
pub(crate) struct Exporter {
    _sockets: Vec<SocketFile>,
    _files: Vec<FileWriter>,
}

impl Exporter {
    /// Starts to serve `sinks`.
    pub(crate) fn start(sinks: &[Sink], name: &Name, device: &Arc<Device>) -> Result<Self> {
        let mut exporter = Self {
            _sockets: Vec::new(),
            _files: Vec::new(),
        };
        let source = Arc::new(Source::new(name, device));
        for sink in sinks {
            let source = Arc::clone(&source);
            let started = match sink {
                Sink::Http(Address::Unix(path)) => http::serve_unix(path, source).map(|socket| {
                    exporter._sockets.push(socket);
                }),
                Sink::Http(Address::Tcp { host, port }) => http::serve_tcp(host, *port, source),
                Sink::File(path) => FileWriter::start(path, source).map(|file| {
                    exporter._files.push(file);
                }),
            };
            started.with_context(|| format!("--metrics {sink}"))?;
        }
        Ok(exporter)
    }
}
