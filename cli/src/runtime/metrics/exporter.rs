//! A server's own metrics: served over HTTP, and written to files.

use std::sync::{Arc, Weak};

use anyhow::{Context, Result};
use uzram::nbd::Address;
use uzram::{Device, SocketFile};

use super::exposition::{Format, Observed, exposition};
use super::file::FileWriter;
use super::http;
use super::sink::Sink;
use crate::base::name::Name;

/// What is exported. The threads outlive the device, which is not theirs to keep.
pub(super) struct Source {
    pub(super) name: Name,
    device: Weak<Device>,
}

impl Source {
    pub(super) fn new(name: &Name, device: &Arc<Device>) -> Self {
        Self {
            name: name.clone(),
            device: Arc::downgrade(device),
        }
    }

    pub(super) fn text(&self, format: Format) -> String {
        let device = self.device.upgrade();
        let observed = Observed {
            name: self.name.to_string(),
            seen: device.map(|device| (device.stats(), device.latencies())),
        };
        exposition(&[observed], format)
    }
}

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
