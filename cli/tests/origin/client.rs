//! As much of an NBD client as these tests need: one request at a time, simple replies.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

pub(crate) const PAGE: usize = 4096;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const FUA: u16 = 1;

/// Transmission flags.
pub(crate) const SEND_FLUSH: u16 = 1 << 2;
pub(crate) const SEND_FUA: u16 = 1 << 3;

#[derive(Clone, Copy, Debug)]
#[repr(u16)]
enum Command {
    Read = 0,
    Write = 1,
    Flush = 3,
    Trim = 4,
    WriteZeroes = 6,
}

/// A connection.
pub(crate) struct Client {
    stream: UnixStream,
    pub(crate) size: u64,
    pub(crate) flags: u16,
    cookie: u64,
}

impl Client {
    pub(crate) fn connect(socket: &Path) -> io::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        let mut hello = [0; 18];
        stream.read_exact(&mut hello)?;
        assert_eq!(&hello[..16], b"NBDMAGICIHAVEOPT");
        let mut start = Vec::new();
        // FIXED_NEWSTYLE and NO_ZEROES; EXPORT_NAME, the default one.
        start.extend(3u32.to_be_bytes());
        start.extend(b"IHAVEOPT");
        start.extend(1u32.to_be_bytes());
        start.extend(0u32.to_be_bytes());
        stream.write_all(&start)?;
        let mut export = [0; 10];
        stream.read_exact(&mut export)?;
        let (size, flags) = export.split_at(8);
        Ok(Self {
            stream,
            size: u64::from_be_bytes(size.try_into().unwrap()),
            flags: u16::from_be_bytes(flags.try_into().unwrap()),
            cookie: 0,
        })
    }

    /// Makes a request; fails also if the server says no.
    fn request(
        &mut self,
        command: Command,
        flags: u16,
        offset: u64,
        length: usize,
        payload: &[u8],
    ) -> io::Result<()> {
        self.cookie += 1;
        let mut bytes = Vec::with_capacity(28 + payload.len());
        bytes.extend(REQUEST_MAGIC.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes.extend((command as u16).to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend((length as u32).to_be_bytes());
        bytes.extend(payload);
        self.stream.write_all(&bytes)?;
        let mut reply = [0; 16];
        self.stream.read_exact(&mut reply)?;
        assert_eq!(reply[..4], REPLY_MAGIC.to_be_bytes());
        assert_eq!(reply[8..], self.cookie.to_be_bytes());
        match u32::from_be_bytes(reply[4..8].try_into().unwrap()) {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error as i32)),
        }
    }

    pub(crate) fn read(&mut self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.request(Command::Read, 0, offset, buf.len(), &[])?;
        self.stream.read_exact(buf)
    }

    pub(crate) fn write(&mut self, offset: u64, data: &[u8], fua: bool) -> io::Result<()> {
        let flags = if fua { FUA } else { 0 };
        self.request(Command::Write, flags, offset, data.len(), data)
    }

    pub(crate) fn trim(&mut self, offset: u64, length: usize) -> io::Result<()> {
        self.request(Command::Trim, 0, offset, length, &[])
    }

    pub(crate) fn write_zeroes(&mut self, offset: u64, length: usize) -> io::Result<()> {
        self.request(Command::WriteZeroes, 0, offset, length, &[])
    }

    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.request(Command::Flush, 0, 0, 0, &[])
    }
}
