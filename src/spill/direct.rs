//! Reads and writes that go past the page cache where the file system lets them: what is spilled
//! left memory to save it, so it must not come to occupy the kernel's.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::blocks::{BLOCK, BlockBuf, is_aligned};

thread_local! {
    /// Where a read that is not aligned goes first.
    static BOUNCE: RefCell<BlockBuf> = RefCell::default();
}

/// A file read and written at any place from any thread.
#[derive(Debug)]
pub(crate) struct DirectFile {
    file: File,
    /// Whether the file was opened for direct I/O and has not refused it since.
    direct: AtomicBool,
}

impl DirectFile {
    /// Takes a file that is open for reading and writing, and turns direct I/O on if it can be.
    pub(crate) fn new(file: File) -> Self {
        let direct = set_direct(&file, true).is_ok() && reads_directly(&file);
        let this = Self {
            file,
            direct: AtomicBool::new(direct),
        };
        if !direct {
            this.give_up();
        }
        this
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Says how the file is used, for whoever reads the log.
    pub(crate) fn log_mode(&self, path: &Path) {
        let mode = if self.direct.load(Relaxed) {
            "direct I/O"
        } else {
            "the page cache: its file system has no direct I/O"
        };
        tracing::debug!("{} is used by {mode}", path.display());
    }

    /// Writes all of `data`, which is best aligned, at a byte of the file.
    pub(crate) fn write_all(&self, data: &[u8], at: u64) -> io::Result<()> {
        if self.direct.load(Relaxed) && !is_aligned(data, at) {
            self.give_up();
        }
        match self.file.write_all_at(data, at) {
            Err(error) if self.is_refusal(&error) => self.file.write_all_at(data, at),
            done => done,
        }
    }

    /// Fills `buf` from a byte of the file.
    pub(crate) fn read_exact(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let read = if !self.direct.load(Relaxed) || is_aligned(buf, at) {
            self.file.read_exact_at(buf, at)
        } else {
            self.read_through_bounce(buf, at)
        };
        match read {
            Err(error) if self.is_refusal(&error) => self.file.read_exact_at(buf, at),
            done => done,
        }
    }

    /// Reads the blocks that the bytes lie in, and copies those out.
    fn read_through_bounce(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let skip = (at % BLOCK as u64) as usize;
        let wanted = skip + buf.len();
        BOUNCE.with_borrow_mut(|bounce| {
            bounce.resize(wanted.next_multiple_of(BLOCK));
            let start = at - skip as u64;
            let mut len = 0;
            // The file may end inside the last block.
            while len < wanted {
                match self.file.read_at(&mut bounce[len..], start + len as u64) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(n) => len += n,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            buf.copy_from_slice(&bounce[skip..wanted]);
            Ok(())
        })
    }

    /// Whether an error means that the file does not take direct I/O after all; if so, it is off
    /// from here on and the call is worth another try.
    fn is_refusal(&self, error: &io::Error) -> bool {
        // Others may have turned it off since: then this call has not been tried without.
        let refused = Errno::from_io_error(error) == Some(Errno::INVAL);
        if refused {
            self.give_up();
        }
        refused
    }

    fn give_up(&self) {
        // In this order: nobody takes it for off while it is on.
        if let Err(error) = set_direct(&self.file, false) {
            tracing::warn!("cannot turn direct I/O off: {error}");
        }
        self.direct.store(false, Relaxed);
    }
}

fn set_direct(file: &File, on: bool) -> rustix::io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, on);
    rustix::fs::fcntl_setfl(file, flags)
}

/// Whether a block can be read: some file systems take the flag and refuse the transfer.
fn reads_directly(file: &File) -> bool {
    let mut block = BlockBuf::with_capacity(BLOCK);
    block.resize(BLOCK);
    file.read_at(&mut block, 0).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_range_reads_back_what_was_written() {
        for dir in ["/var/tmp", "/dev/shm"] {
            let file = tempfile::tempfile_in(dir).expect("a file");
            let file = DirectFile::new(file);
            let mut data = BlockBuf::default();
            data.extend_from_slice(&(0..5 * BLOCK).map(|i| (i / 7) as u8).collect::<Vec<_>>());
            file.write_all(&data, 2 * BLOCK as u64).expect("written");
            for (from, len) in [
                (0, 5 * BLOCK),
                (1, 1),
                (4000, 200),
                (4095, 2 * BLOCK),
                (5 * BLOCK - 3, 3),
            ] {
                let mut buf = vec![0; len];
                file.read_exact(&mut buf, (2 * BLOCK + from) as u64)
                    .expect("read");
                assert_eq!(buf, data[from..from + len], "{from} {len} in {dir}");
            }
            let mut buf = [0; 9];
            let past = file
                .read_exact(&mut buf, 7 * BLOCK as u64 - 4)
                .expect_err("ended");
            assert_eq!(past.kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    /// Where there is no direct I/O it is off from the start.
    #[test]
    fn direct_io_that_is_refused_is_off_from_then_on() {
        // What the kernel says of an offset like that is what it says of a refused transfer.
        const NO_OFFSET: u64 = 1 << 63;
        let mut block = BlockBuf::default();
        block.extend_from_slice(&[7; BLOCK]);
        type Use = fn(&DirectFile, &mut [u8], u64) -> io::Result<()>;
        let uses: [Use; 2] = [
            |file, block, at| file.write_all(block, at),
            |file, block, at| file.read_exact(block, at),
        ];
        for used in uses {
            let file = DirectFile::new(tempfile::tempfile_in("/var/tmp").expect("a file"));
            file.write_all(&block, 0).expect("written");
            used(&file, &mut block, NO_OFFSET).expect_err("no such place");
            assert!(!file.direct.load(Relaxed));
            used(&file, &mut block, 0).expect("it goes on without");
            assert_eq!(block[..], [7; BLOCK]);
        }
    }

    #[test]
    fn a_write_that_is_not_aligned_succeeds_all_the_same() {
        let file = DirectFile::new(tempfile::tempfile_in("/var/tmp").expect("a file"));
        file.write_all(b"abc", 5).expect("written");
        let mut buf = [0; 3];
        file.read_exact(&mut buf, 5).expect("read");
        assert_eq!(&buf, b"abc");
    }
}
