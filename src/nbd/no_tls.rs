//! What stands for TLS in a build without the feature `tls`: no server that is to have it starts.

use std::convert::Infallible;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;

use crate::error::{Error, Result};

use super::socket::{Socket, Stream};
use super::tls_config::TlsConfig;

pub(super) struct Tls {
    pub(super) required: bool,
    none: Infallible,
}

impl Tls {
    /// # Errors
    /// [`Error::InvalidConfig`].
    pub(super) fn load(_: &TlsConfig) -> Result<Self> {
        Err(Error::InvalidConfig {
            option: "tls",
            reason: "this build has no TLS: its cargo feature `tls` is off".to_owned(),
        })
    }

    pub(super) fn accept(&self, _: Socket) -> io::Result<TlsStream> {
        match self.none {}
    }
}

pub(super) enum TlsStream {}

impl TlsStream {
    pub(super) fn socket_mut(&mut self) -> &mut Socket {
        match *self {}
    }

    pub(super) fn close(&mut self) -> io::Result<()> {
        match *self {}
    }
}

impl Stream for TlsStream {
    fn wait_readable(&mut self, _: BorrowedFd<'_>) -> io::Result<bool> {
        match *self {}
    }
}

impl Read for TlsStream {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        match *self {}
    }
}

impl Write for TlsStream {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        match *self {}
    }

    fn flush(&mut self) -> io::Result<()> {
        match *self {}
    }
}
