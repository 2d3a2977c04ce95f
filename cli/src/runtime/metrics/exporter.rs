//! A server's own metrics: served over HTTP, and written to files.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use uzram::{Device, SocketFile};

use super::file::FileWriter;
use super::http;
use super::source::Source;
use crate::args::Sink;
use crate::base::name::Name;

/// Where a server's metrics go, before anything is served.
#[derive(Default)]
pub(crate) struct Outlets {
    /// Sockets that listen.
    pub(crate) sockets: Vec<OwnedFd>,
    /// Of Unix sockets; they go with them.
    pub(crate) socket_files: Vec<SocketFile>,
    pub(crate) files: Vec<PathBuf>,
}

impl Outlets {
    /// Listens wherever `sinks` say.
    ///
    /// # Errors
    /// If an address cannot be had.
    pub(crate) fn open(sinks: &[Sink]) -> Result<Self> {
        let mut outlets = Self::default();
        for sink in sinks {
            match sink {
                Sink::Http(address) => {
                    let listening = http::listen(address);
                    let (socket, file) = listening.with_context(|| format!("--metrics {sink}"))?;
                    outlets.sockets.push(socket);
                    outlets.socket_files.extend(file);
                }
                Sink::File(path) => outlets.files.push(path.clone()),
            }
        }
        Ok(outlets)
    }
}

/// What exports the metrics of a server. Dropping it removes their sockets and files.
pub(crate) struct Exporter {
    _socket_files: Vec<SocketFile>,
    _files: Vec<FileWriter>,
}

impl Exporter {
    /// Starts to serve and to write.
    ///
    /// # Errors
    /// If a file cannot be written, or there is no thread to be had.
    pub(crate) fn start(outlets: Outlets, name: &Name, device: &Arc<Device>) -> Result<Self> {
        let source = Arc::new(Source::new(name, device));
        for socket in outlets.sockets {
            http::start(socket, Arc::clone(&source)).context("--metrics")?;
        }
        let files = outlets.files.iter().map(|path| {
            let started = FileWriter::start(path, Arc::clone(&source));
            started.with_context(|| format!("--metrics file:{}", path.display()))
        });
        Ok(Self {
            _files: files.collect::<Result<_>>()?,
            _socket_files: outlets.socket_files,
        })
    }
}
