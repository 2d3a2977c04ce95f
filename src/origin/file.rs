//! A raw image: a plain file or a block device.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use rustix::fs::{FallocateFlags, FlockOperation, OFlags, SeekFrom, seek};
use rustix::io::Errno;

use super::config::OriginConfig;
use super::format::{Container, OriginFormat};
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
    /// Bytes of the file. Of one that is only read the last page may be a part of one; the rest of
    /// that reads as zeroes.
    len: u64,
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
        let file = match &config.handed {
            Some(handed) => handed.open().map_err(failed)?,
            None => open(path, !config.is_snapshot())?,
        };
        let metadata = file.metadata().map_err(failed)?;
        let is_block_device = metadata.file_type().is_block_device();
        let len = if is_block_device {
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
        if config.format == OriginFormat::Detect
            && let Some(container) = Container::of(&file, len).map_err(failed)?
        {
            return Err(unusable(container.refusal()));
        }
        check_len(len, config.is_snapshot()).map_err(unusable)?;
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
            len,
            discards: AtomicBool::new(true),
        })
    }

    /// Bytes of the device over it, a multiple of the page size.
    pub(crate) fn size(&self) -> u64 {
        self.len.next_multiple_of(PAGE_SIZE as u64)
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

/// Says what is wrong with an image of `len` bytes, which is only read or written to as well.
fn check_len(len: u64, is_snapshot: bool) -> Result<(), String> {
    if len == 0 {
        return Err(
            "is empty: truncate -s SIZE makes it as large as the device is to be".to_owned(),
        );
    }
    if len > MAX_DEVICE_BYTES {
        let reason = format!("its size, {len} bytes, is more than the largest device, 16T");
        return Err(reason);
    }
    if !is_snapshot && !len.is_multiple_of(PAGE_SIZE as u64) {
        return Err(format!(
            "its size, {len} bytes, is not a multiple of 4096, which an image that is written to \
             needs: `OriginUse::Snapshot` or `DeviceConfig::read_only` serve it as it is, and truncate -s %4K makes a file \
             longer"
        ));
    }
    Ok(())
}

pub(super) fn open(path: &Path, write: bool) -> Result<File> {
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
        let there = self.len.saturating_sub(at).min(buf.len() as u64) as usize;
        let (data, padding) = buf.split_at_mut(there);
        padding.fill(0);
        match &self.file {
            Access::Direct(file) => file.read_exact(data, at),
            Access::Cached(file) => file.read_exact_at(data, at),
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

    fn next_data(&self, at: u64) -> Range<u64> {
        let (file, end) = (self.file.file(), self.size());
        match seek(file, SeekFrom::Data(at)) {
            Ok(data) => {
                let hole = seek(file, SeekFrom::Hole(data)).unwrap_or(end);
                whole_pages(data..hole, at..end)
            }
            // One that was cut short has no holes there: it cannot be read.
            Err(Errno::NXIO) if file.metadata().is_ok_and(|now| now.len() >= self.len) => end..end,
            // Where holes are not to be had, on a block device say, all is data.
            Err(_) => at..end,
        }
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// The pages that hold `data`, of those in `bounds`: a file system's blocks may be smaller than pages.
fn whole_pages(data: Range<u64>, bounds: Range<u64>) -> Range<u64> {
    let page = PAGE_SIZE as u64;
    let start = data.start / page * page;
    let end = data.end.next_multiple_of(page);
    start.max(bounds.start)..end.min(bounds.end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::{OriginUse, SyncPolicy};

    fn config(path: &Path, usage: OriginUse) -> OriginConfig {
        OriginConfig::new(path, usage)
    }

    #[test]
    fn a_block_of_data_within_a_page_makes_it_data() {
        for (data, pages) in [
            (1024..2048, 0..4096),
            (0..1024, 0..4096),
            (3072..5120, 0..8192),
            (9000..9001, 8192..12_288),
        ] {
            assert_eq!(whole_pages(data.clone(), 0..16_384), pages, "{data:?}");
        }
        assert_eq!(whole_pages(5000..6000, 4097..16_384), 4097..8192);
        assert_eq!(whole_pages(16_000..16_384, 0..16_384), 12_288..16_384);
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
    fn holes_are_told_from_data() {
        let page = PAGE_SIZE as u64;
        // A file system that has holes.
        let dir = tempfile::tempdir_in("/dev/shm").expect("a directory");
        let path = dir.path().join("image");
        let file = File::create(&path).expect("made");
        file.set_len(100 * page + 512).expect("it has room");
        for at in [10 * page + 100, 11 * page, 50 * page] {
            file.write_all_at(&[7; 8], at).expect("written");
        }
        let image = FileImage::open(&config(&path, OriginUse::Snapshot)).expect("opened");
        let end = image.size();
        assert_eq!(image.next_data(0), 10 * page..12 * page);
        assert_eq!(image.next_data(11 * page), 11 * page..12 * page);
        assert_eq!(image.next_data(12 * page), 50 * page..51 * page);
        assert_eq!(image.next_data(51 * page), end..end);
        assert_eq!(image.next_data(end), end..end);
        // The last page is data though only a part of it is there.
        file.write_all_at(&[7; 8], 100 * page).expect("written");
        assert_eq!(image.next_data(51 * page), 100 * page..end);
        // What was cut off is no hole: whoever reads it is to hear of that.
        file.set_len(30 * page).expect("cut short");
        assert_eq!(image.next_data(20 * page), 20 * page..end);
        assert_eq!(image.next_data(40 * page), 40 * page..end);
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
            (empty.as_path(), "is empty"),
            (dir.path(), "is a directory"),
            (Path::new("/dev/null"), "neither a plain file"),
            (Path::new("/nonexistent/image"), "cannot open the image"),
        ] {
            let refused = FileImage::open(&config(path, WRITTEN)).expect_err("refused");
            assert!(refused.to_string().contains(says), "{refused}");
        }
        let refused = FileImage::open(&config(&empty, OriginUse::Snapshot)).expect_err("refused");
        assert!(refused.to_string().contains("is empty"), "{refused}");
    }

    #[test]
    fn what_looks_like_another_format_is_raw_only_if_that_is_said() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("image");
        // No multiple of a page: what is wrong is the format, and a longer file would not mend it.
        fs::write(&path, [b"QFI\xfb".as_slice(), &[0; 5000]].concat()).expect("written");
        for usage in [WRITTEN, OriginUse::Snapshot] {
            let mut config = config(&path, usage);
            let refused = FileImage::open(&config).expect_err("refused").to_string();
            assert!(refused.contains("qemu-img convert -O raw"), "{refused}");
            assert!(!refused.contains("truncate"), "{refused}");
            config.format = OriginFormat::Raw;
            assert_eq!(
                FileImage::open(&config).is_ok(),
                usage == OriginUse::Snapshot
            );
        }
    }

    #[test]
    fn the_last_page_of_an_image_that_is_only_read_may_be_a_part_of_one() {
        let page = PAGE_SIZE as u64;
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("image");
        fs::write(&path, [7; 5000]).expect("written");
        let image = FileImage::open(&config(&path, OriginUse::Snapshot)).expect("opened");
        assert_eq!(image.size(), 2 * page);
        let mut read = vec![1; 2 * PAGE_SIZE];
        image.read(0, &mut read).expect("read");
        assert!(read[..5000].iter().all(|&byte| byte == 7));
        assert!(read[5000..].iter().all(|&byte| byte == 0));
        // One that was cut short is told all the same.
        File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_len(4999))
            .expect("truncated");
        let ended = image.read(page, &mut read[..PAGE_SIZE]).expect_err("short");
        assert_eq!(ended.kind(), io::ErrorKind::UnexpectedEof);
    }
}
