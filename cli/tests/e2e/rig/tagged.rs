//! A client over NBD that knows what every page of its device must hold: the page's number and a
//! version. Only as much of the protocol as that takes, so that each request's errno is seen.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Bytes in a page.
pub(crate) const PAGE: usize = 4096;

const EIO: u32 = 5;
const READ: u16 = 0;
const WRITE: u16 = 1;
/// A request that takes longer has hung.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A connection, and the versions of each page that it may hold: the last acknowledged one, and
/// those of failed writes since.
pub(crate) struct TaggedDisk {
    stream: UnixStream,
    pages: Vec<(u32, u32)>,
}

impl TaggedDisk {
    /// Connects to export `name`, whose device is still empty.
    pub(crate) fn connect(socket: &Path, name: &str) -> Self {
        let stream = UnixStream::connect(socket).expect("the server listens");
        stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
        stream.set_write_timeout(Some(TIMEOUT)).expect("a timeout");
        let mut disk = Self {
            stream,
            pages: Vec::new(),
        };
        let size = disk.negotiate(name).expect("a fixed newstyle handshake");
        disk.pages = vec![(0, 0); size as usize / PAGE];
        disk
    }

    fn negotiate(&mut self, name: &str) -> io::Result<u64> {
        let mut greeting = [0; 18];
        self.stream.read_exact(&mut greeting)?;
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        // Fixed newstyle, no zeroes; NBD_OPT_EXPORT_NAME.
        let mut hello = 3u32.to_be_bytes().to_vec();
        hello.extend(b"IHAVEOPT");
        hello.extend(1u32.to_be_bytes());
        hello.extend((name.len() as u32).to_be_bytes());
        hello.extend(name.as_bytes());
        self.stream.write_all(&hello)?;
        let mut export = [0; 10];
        self.stream.read_exact(&mut export)?;
        Ok(u64::from_be_bytes(export[..8].try_into().expect("8 bytes")))
    }

    pub(crate) fn pages(&self) -> u32 {
        self.pages.len() as u32
    }

    /// Writes the next version of a page; the errno if that fails.
    pub(crate) fn write(&mut self, page: u32) -> Result<(), u32> {
        let next = self.pages[page as usize].1 + 1;
        self.pages[page as usize].1 = next;
        let mut data = content(page, next);
        self.request(WRITE, page, &mut data)?;
        self.pages[page as usize].0 = next;
        Ok(())
    }

    /// Reads a page and compares it; the errno if it cannot be read.
    ///
    /// # Panics
    /// If it is not what was written.
    pub(crate) fn verify(&mut self, page: u32) -> Result<(), u32> {
        let mut data = vec![0xa5; PAGE];
        self.request(READ, page, &mut data)?;
        let (acknowledged, begun) = self.pages[page as usize];
        let right = (acknowledged..=begun).any(|version| data == content(page, version));
        assert!(
            right,
            "page {page} is not one of versions {acknowledged} to {begun}: {:?}",
            &data[..16]
        );
        Ok(())
    }

    /// Verifies all pages; returns those that cannot be read.
    ///
    /// # Panics
    /// If one is wrong, or fails with another errno than EIO.
    pub(crate) fn unreadable(&mut self) -> Vec<u32> {
        let failed = |disk: &mut Self, page| {
            disk.verify(page)
                .is_err_and(|errno| errno == EIO || panic!("page {page}: errno {errno}"))
        };
        (0..self.pages())
            .filter(|&page| failed(self, page))
            .collect()
    }

    fn request(&mut self, kind: u16, page: u32, data: &mut [u8]) -> Result<(), u32> {
        let mut exchange = |stream: &mut UnixStream| -> io::Result<u32> {
            let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
            request.extend(0u16.to_be_bytes());
            request.extend(kind.to_be_bytes());
            request.extend(u64::from(page).to_be_bytes());
            request.extend((u64::from(page) * PAGE as u64).to_be_bytes());
            request.extend((PAGE as u32).to_be_bytes());
            if kind == WRITE {
                request.extend(&*data);
            }
            stream.write_all(&request)?;
            let mut reply = [0; 16];
            stream.read_exact(&mut reply)?;
            assert_eq!(reply[..4], 0x6744_6698u32.to_be_bytes(), "a simple reply");
            assert_eq!(reply[8..], u64::from(page).to_be_bytes(), "its cookie");
            let errno = u32::from_be_bytes(reply[4..8].try_into().expect("4 bytes"));
            if kind == READ && errno == 0 {
                stream.read_exact(data)?;
            }
            Ok(errno)
        };
        match exchange(&mut self.stream).expect("the server answers") {
            0 => Ok(()),
            errno => Err(errno),
        }
    }
}

/// What a version of a page is: about half of it is noise. Version 0 is an empty page.
fn content(page: u32, version: u32) -> Vec<u8> {
    let mut data = vec![0; PAGE];
    if version == 0 {
        return data;
    }
    let mut state = u64::from(page) << 32 | u64::from(version);
    for chunk in data.chunks_exact_mut(16) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        chunk[..8].copy_from_slice(&(state ^ state >> 29).to_le_bytes());
    }
    data[..4].copy_from_slice(&page.to_le_bytes());
    data[4..8].copy_from_slice(&version.to_le_bytes());
    data
}
