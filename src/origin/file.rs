//! A raw image: a plain file or a block device.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::Errno;

use super::config::OriginConfig;
use super::image::Image;
use crate::error::{Error, Result};
use crate::file_lock;
use crate::spill::{BlockBuf, DirectFile, block_device_size};
use crate::units::{MAX_DEVICE_BYTES, PAGE_SIZE};

/// Zeroes written at once where no hole can be made.
const ZEROES: usize = 256 << 10;

/// An open image. Its lock, which is flock(2)'s, is exclusive for one that is written to and shared
/// for one that is read only, so that there are either one device that writes or any number that
/// do not.
#[derive(Debug)]
pub(crate) struct FileImage {
    file: Access,
    path: PathBuf,
    size: u64,
    /// Whether holes can be made; until that was refused they may.
    discards: AtomicBool,
}

/// How the file is gone about.
#[derive(Debug)]
enum Access {
    /// Past the page cache: what is worth keeping is kept in the pool.
    Direct(DirectFile),
    /// Through the page cache, which all devices over the image share.
    Cached(File),
}

impl Access {
    fn file(&self) -> &File {
        match self {
            Self::Direct(file) => file.file(),
            Self::Cached(file) => file,
        }
    }
}

impl FileImage {
    /// Opens the image.
    ///
    /// # Errors
    /// Those of [`OriginConfig::size`].
    pub(crate) fn open(config: &OriginConfig) -> Result<Self> {
        let path = config.path.as_path();
        let unusable = |reason: String| Error::Unusable {
            path: path.into(),
            reason,
        };
        let failed = |error: io::Error| Error::io(format!("use {}", path.display()), error);
        let file = open(path, !config.is_snapshot())?;
        let metadata = file.metadata().map_err(failed)?;
        let is_block_device = metadata.file_type().is_block_device();
        let size = if is_block_device {
            block_device_size(&file).map_err(failed)?
        } else if metadata.is_file() {
            metadata.len()
        } else {
            let reason = "is neither a plain file nor a block device";
            return Err(unusable(reason.to_owned()));
        };
        let lock = if config.is_snapshot() {
            FlockOperation::NonBlockingLockShared
        } else {
            FlockOperation::NonBlockingLockExclusive
        };
        match file_lock::lock(&file, lock, is_block_device) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(unusable("is in use by another device".to_owned()));
            }
            Err(error) => return Err(failed(error.into())),
        }
        if size == 0 || !size.is_multiple_of(PAGE_SIZE as u64) {
            let reason = format!(
                "its size, {size} bytes, is not a multiple of 4096; to make a file one: truncate \
                 -s %4K"
            );
            return Err(unusable(reason));
        }
        if size > MAX_DEVICE_BYTES {
            let reason = format!("its size, {size} bytes, is more than the largest device, 16T");
            return Err(unusable(reason));
        }
        let file = if config.is_snapshot() {
            Access::Cached(file)
        } else {
            let file = DirectFile::new(file);
            file.log_mode(path);
            Access::Direct(file)
        };
        Ok(Self {
            file,
            path: path.into(),
            size,
            discards: AtomicBool::new(true),
        })
    }

    /// Bytes in it, a multiple of the page size.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Fails if somebody has cut the file short before `end`: a write would make it longer again, and
    /// what was cut off zeroes.
    fn check_end(&self, end: u64) -> io::Result<()> {
        let metadata = self.file.file().metadata()?;
        if metadata.is_file() && metadata.len() < end {
            return Err(io::Error::other("it is shorter than it was"));
        }
        Ok(())
    }

    fn write_zeroes(&self, at: u64, len: u64) -> io::Result<()> {
        let mut zeroes = BlockBuf::default();
        zeroes.pad_to(len.min(ZEROES as u64) as usize);
        let mut done = 0;
        while done < len {
            let some = (len - done).min(zeroes.len() as u64);
            self.write(at + done, &zeroes[..some as usize])?;
            done += some;
        }
        Ok(())
    }
}

fn open(path: &Path, write: bool) -> Result<File> {
    let is_block_device = fs::metadata(path).is_ok_and(|there| there.file_type().is_block_device());
    // On a block device O_EXCL refuses one that is mounted.
    let excl = if is_block_device && write {
        OFlags::EXCL
    } else {
        OFlags::empty()
    };
    let opened = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags((excl | OFlags::NONBLOCK).bits() as i32)
        .open(path);
    opened.map_err(|error| {
        let unusable = |reason: &str| Error::Unusable {
            path: path.into(),
            reason: reason.to_owned(),
        };
        match Errno::from_io_error(&error) {
            Some(Errno::ISDIR) => unusable("is a directory; give the path of an image"),
            Some(Errno::BUSY) => unusable("is in use: mounted, or another program's"),
            _ => Error::io(format!("open the image {}", path.display()), error),
        }
    })
}

impl Image for FileImage {
    fn read(&self, at: u64, buf: &mut [u8]) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        match &self.file {
            Access::Direct(file) => file.read_exact(buf, at),
            Access::Cached(file) => file.read_exact_at(buf, at),
        }
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.check_end(at + data.len() as u64)?;
        match &self.file {
            Access::Direct(file) => file.write_all(data, at),
            Access::Cached(_) => Err(Errno::ROFS.into()),
        }
    }

    fn discard(&self, at: u64, len: u64) -> io::Result<()> {
        if !self.discards.load(Relaxed) {
            return self.write_zeroes(at, len);
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(self.file.file(), punch, at, len) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                let path = self.path.display();
                tracing::info!("{path} takes no discards: zeroes are written in their place");
                self.discards.store(false, Relaxed);
                self.write_zeroes(at, len)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.file.file().sync_data()
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::{OriginUse, SyncPolicy};

    fn config(path: &Path, usage: OriginUse) -> OriginConfig {
        OriginConfig {
            path: path.into(),
            usage,
        }
    }

    const WRITTEN: OriginUse = OriginUse::WriteBack(SyncPolicy::Flush);

    #[test]
    fn one_writes_or_many_read() {
        let dir = tempfile::tempdir_in("/var/tmp").expect("a directory");
        let path = dir.path().join("image");
        fs::write(&path, vec![7; 8 * PAGE_SIZE]).expect("written");
        let open = |usage| FileImage::open(&config(&path, usage));
        let writer = open(WRITTEN).expect("free");
        for usage in [WRITTEN, OriginUse::Snapshot] {
            let refused = open(usage).expect_err("in use");
            assert!(refused.to_string().contains("in use"), "{refused}");
        }
        drop(writer);
        let readers = [OriginUse::Snapshot; 3].map(|usage| open(usage).expect("shared"));
        assert!(open(WRITTEN).is_err());
        assert!(readers[0].write(0, &[0; PAGE_SIZE]).is_err());
        assert!(readers[0].discard(0, PAGE_SIZE as u64).is_err());
        drop(readers);
        open(WRITTEN).expect("free again");
        assert_eq!(fs::read(&path).expect("there"), vec![7; 8 * PAGE_SIZE]);
    }

    #[test]
    fn what_is_discarded_reads_as_zeroes_with_or_without_holes() {
        let page = PAGE_SIZE as u64;
        for dir in ["/var/tmp", "/dev/shm"] {
            let dir = tempfile::tempdir_in(dir).expect("a directory");
            let path = dir.path().join("image");
            fs::write(&path, vec![7; 200 * PAGE_SIZE]).expect("written");
            let image = FileImage::open(&config(&path, WRITTEN)).expect("opened");
            image.discard(page, 2 * page).expect("discarded");
            image.discards.store(false, Relaxed);
            image.discard(5 * page, 190 * page).expect("discarded");
            image.sync().expect("synced");
            let mut expected = vec![7; 200 * PAGE_SIZE];
            expected[PAGE_SIZE..3 * PAGE_SIZE].fill(0);
            expected[5 * PAGE_SIZE..195 * PAGE_SIZE].fill(0);
            assert!(fs::read(&path).expect("there") == expected);
            File::options()
                .write(true)
                .open(&path)
                .and_then(|file| file.set_len(3 * page))
                .expect("truncated");
            let mut buf = vec![0; PAGE_SIZE];
            let ended = image.read(4 * page, &mut buf).expect_err("beyond");
            assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
            image
                .write(190 * page, &buf)
                .expect_err("it would grow again");
        }
    }

    #[test]
    fn what_is_no_image_is_refused_with_its_remedy() {
        let dir = tempfile::tempdir().expect("a directory");
        let odd = dir.path().join("odd");
        fs::write(&odd, [1; 5000]).expect("written");
        let empty = dir.path().join("empty");
        fs::write(&empty, []).expect("written");
        for (path, says) in [
            (odd.as_path(), "truncate -s %4K"),
            (empty.as_path(), "truncate"),
            (dir.path(), "is a directory"),
            (Path::new("/dev/null"), "neither a plain file"),
            (Path::new("/nonexistent/image"), "cannot open the image"),
        ] {
            let refused = FileImage::open(&config(path, WRITTEN)).expect_err("refused");
            assert!(refused.to_string().contains(says), "{refused}");
        }
    }
}
