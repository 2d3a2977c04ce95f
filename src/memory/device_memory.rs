//! Memory that outlives the process: a memfd(2) that a device's pages and tables stand in.
//!
//! | from byte | what |
//! |---|---|
//! | 0 | header: magic, version, and the shape of the device, with a CRC-32C; written once |
//! | 4096 | two records of what the device remembers of its settings, written in turns |
//! | 1 MiB | dictionaries, each in a place of its own |
//! | 64 MiB | regions: tables and page frames, in the order in which a device of this shape makes them |
//!
//! Nothing says how long a region is or where it starts: a device of the same shape makes the same ones again.
//! Numbers are little-endian in the header and the records, and the machine's own in the regions, which no other
//! machine sees.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::error::{Error, Result};
use crate::units::PAGE_SIZE;

const MAGIC: [u8; 8] = *b"UZRAMMEM";

/// Of the layout of everything in the memory, what slots and objects look like included.
const VERSION: u32 = 1;

const RECORDS: u64 = PAGE_SIZE as u64;
const RECORD_BYTES: u64 = 256 << 10;
const DICTIONARIES: u64 = 1 << 20;
/// Bytes of a place for a dictionary: its length, and it.
const DICTIONARY_BYTES: u64 = (1 << 20) + PAGE_SIZE as u64;
const REGIONS: u64 = 64 << 20;

/// What a device's regions follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Shape {
    /// Pages that there are slots for.
    pub(crate) capacity: u64,
    pub(crate) shards: u32,
    /// Which pool, by its number.
    pub(crate) pool: u32,
    /// 1 if pages are destaged to an image.
    pub(crate) destages: u32,
    /// 1 if what is spilled is encrypted.
    pub(crate) encrypts: u32,
}

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: u32,
    /// CRC-32C of what stands before and after it.
    checksum: u32,
    shape: Shape,
}

impl Header {
    fn checksum(&self) -> u32 {
        let bytes = self.as_bytes();
        crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..])
    }
}

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct RecordHeader {
    /// Counts up from 1.
    sequence: u64,
    len: u32,
    /// CRC-32C of the sequence number, the length and the record.
    checksum: u32,
}

impl RecordHeader {
    fn of(sequence: u64, record: &[u8]) -> Self {
        let len = record.len() as u32;
        let start =
            crc32c::crc32c_append(crc32c::crc32c(&sequence.to_le_bytes()), &len.to_le_bytes());
        Self {
            sequence,
            len,
            checksum: crc32c::crc32c_append(start, record),
        }
    }
}

/// Whoever keeps open files for a device whose memory outlives the process: what it spills to has to, too.
pub trait FileKeeper: Send + Sync {
    /// Keeps a file under a name, in the place of what was kept under that before.
    ///
    /// # Errors
    /// Why it cannot: then the device does not use the file.
    fn keep(&self, name: &str, file: BorrowedFd<'_>) -> io::Result<()>;

    /// Keeps it no longer.
    fn forget(&self, name: &str);

    /// What was kept under a name when this process began, once.
    fn take(&self, name: &str) -> Option<OwnedFd>;
}

/// The memory of a device that outlives the process that serves it, for as long as some process holds one of its
/// descriptors. A server that dies, by whatever, leaves a device there that the next one adopts:
/// [`DeviceBuilder::memory`](crate::DeviceBuilder::memory).
///
/// One process at a time uses it: a lock says so that ends with its holder.
#[derive(Clone)]
pub struct DeviceMemory(Arc<Inner>);

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = &self.0.found;
        f.debug_struct("DeviceMemory")
            .field("found", found)
            .finish()
    }
}

struct Inner {
    /// As it was given, to be handed on.
    handed: OwnedFd,
    /// Memory for the key of what is spilled, which stands nowhere else.
    secret: OwnedFd,
    /// Opened by us, with the lock.
    file: Arc<File>,
    files: OnceLock<Arc<dyn FileKeeper>>,
    /// The shape of the device that is there, if one is.
    found: Option<Shape>,
    /// The end of the regions that have been made.
    end: Mutex<u64>,
    /// The number of the last record.
    sequence: Mutex<u64>,
    /// Whether a device of this process is, or was, in it.
    is_taken: AtomicBool,
}

impl DeviceMemory {
    /// Memory that no device is in yet. It costs nothing until one is.
    ///
    /// # Errors
    /// [`Error::Io`]: the kernel's.
    pub fn new() -> Result<Self> {
        let failed = |error: Errno| Error::io("make memory that outlives this process", error);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let made = rustix::fs::memfd_create("uzram", flags | MemfdFlags::NOEXEC_SEAL);
        // Before Linux 6.3 there was no such flag.
        let made = match made {
            Err(Errno::INVAL) => rustix::fs::memfd_create("uzram", flags),
            made => made,
        };
        let made = made.map_err(failed)?;
        grow(&made, REGIONS).map_err(failed)?;
        // Who else has a descriptor is not to cut away what is mapped here.
        rustix::fs::fcntl_add_seals(&made, SealFlags::SHRINK).map_err(failed)?;
        let secret = secret_memory();
        let secret = secret.map_err(|error| Error::io("make memory for a key", error))?;
        Self::open(made, secret)
    }

    /// Memory that was made by [`DeviceMemory::new`], perhaps in another process, by its descriptors
    /// ([`DeviceMemory::as_fds`]).
    ///
    /// # Errors
    /// [`Error::Refused`]: EBUSY while another process uses it; EINVAL if it is none, another version's, or damaged.
    /// [`Error::Io`]: the kernel's.
    pub fn open(handed: OwnedFd, secret: OwnedFd) -> Result<Self> {
        let failed = |error: io::Error| Error::io("open a device's memory", error);
        let seals = rustix::fs::fcntl_get_seals(&handed).unwrap_or(SealFlags::empty());
        if !seals.contains(SealFlags::SHRINK) {
            return Err(refused("it is no memory that uzram made", Errno::INVAL));
        }
        // A description of its own, which has the lock and is no other process's.
        let path = format!("/proc/self/fd/{}", handed.as_raw_fd());
        let file = File::options().read(true).write(true).open(path);
        let file = file.map_err(failed)?;
        match lock(&file) {
            Err(Errno::WOULDBLOCK) => {
                return Err(refused(
                    "another process serves the device in it",
                    Errno::BUSY,
                ));
            }
            locked => locked.map_err(|error| failed(error.into()))?,
        }
        let found = find(&file)?;
        Ok(Self(Arc::new(Inner {
            handed,
            secret,
            files: OnceLock::new(),
            found,
            sequence: Mutex::new(newest(&file).map_err(failed)?.map_or(0, |(at, _)| at)),
            file: Arc::new(file),
            end: Mutex::new(REGIONS),
            is_taken: AtomicBool::new(false),
        })))
    }

    /// Has open files of the device, those that it spills to and is restored from, be kept by `keeper`. Without one the
    /// device cannot have any.
    pub fn with_files(self, keeper: Arc<dyn FileKeeper>) -> Self {
        // A second one changes nothing.
        let _ = self.0.files.set(keeper);
        self
    }

    /// Keeps an open file.
    ///
    /// # Errors
    /// The keeper's, or that there is none.
    pub(crate) fn keep_file(&self, name: &str, file: BorrowedFd<'_>) -> io::Result<()> {
        let nobody = || io::Error::new(io::ErrorKind::Unsupported, "nobody keeps its open files");
        self.0.files.get().ok_or_else(nobody)?.keep(name, file)
    }

    pub(crate) fn forget_file(&self, name: &str) {
        if let Some(files) = self.0.files.get() {
            files.forget(name);
        }
    }

    /// An open file that was kept.
    pub(crate) fn take_file(&self, name: &str) -> Option<OwnedFd> {
        self.0.files.get()?.take(name)
    }

    /// Whether a device is in it.
    pub fn holds_device(&self) -> bool {
        self.0.found.is_some()
    }

    /// Its descriptors, the memory's and that of the memory for a key, to be handed to other processes: they keep it,
    /// and do not hold its lock by that.
    pub fn as_fds(&self) -> [BorrowedFd<'_>; 2] {
        [self.0.handed.as_fd(), self.0.secret.as_fd()]
    }

    /// Hands the key of what is spilled to `look`, which `make` fills with random bytes if there is none yet.
    ///
    /// # Errors
    /// The kernel's; those of `make` and of `look`.
    #[cfg(feature = "encrypt")]
    pub(crate) fn with_key<const N: usize, T>(
        &self,
        make: impl FnOnce(&mut [u8; N]) -> io::Result<()>,
        look: impl FnOnce(&[u8; N]) -> io::Result<T>,
    ) -> io::Result<T> {
        super::locked::with_secret(self.0.secret.as_fd(), make, look)
    }

    /// Takes it for a device: what was found in it is one device's, once.
    ///
    /// # Errors
    /// [`Error::Refused`] (EBUSY) if it was taken before.
    pub(crate) fn take(&self) -> Result<()> {
        match self.0.is_taken.swap(true, Ordering::SeqCst) {
            true => Err(refused(
                "a device of this process was in it before",
                Errno::BUSY,
            )),
            false => Ok(()),
        }
    }

    /// The shape of the device that was found in it.
    pub(crate) fn shape(&self) -> Option<Shape> {
        self.0.found
    }

    /// Says that a device is in it: from here on it is one to adopt.
    pub(crate) fn begin(&self, shape: Shape) -> io::Result<()> {
        let mut header = Header {
            magic: MAGIC,
            version: VERSION.to_le(),
            checksum: 0,
            shape,
        };
        header.checksum = header.checksum();
        self.0.file.write_all_at(header.as_bytes(), 0)
    }

    /// Makes the next region, of `len` bytes; returns where in the file it starts.
    pub(super) fn add_region(&self, len: usize) -> io::Result<u64> {
        let mut end = self.0.end.lock();
        let start = *end;
        let next = (len as u64)
            .checked_next_multiple_of(PAGE_SIZE as u64)
            .and_then(|len| start.checked_add(len))
            .ok_or(io::ErrorKind::OutOfMemory)?;
        if self.0.file.metadata()?.len() < next {
            grow(&self.0.file, next)?;
        }
        *end = next;
        Ok(start)
    }

    pub(super) fn regions_end(&self) -> u64 {
        *self.0.end.lock()
    }

    pub(super) fn rewind_regions(&self, end: u64) {
        *self.0.end.lock() = end;
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.0.file
    }

    /// Remembers `record` in the place of the one before.
    ///
    /// # Errors
    /// The kernel's; the one before stands.
    pub(crate) fn remember(&self, record: &[u8]) -> io::Result<()> {
        let header_len = size_of::<RecordHeader>() as u64;
        if record.len() as u64 + header_len > RECORD_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let mut sequence = self.0.sequence.lock();
        let next = *sequence + 1;
        let at = record_at(next);
        // The newer one is whole at any time.
        self.0.file.write_all_at(record, at + header_len)?;
        let header = RecordHeader::of(next, record);
        self.0.file.write_all_at(header.as_bytes(), at)?;
        *sequence = next;
        Ok(())
    }

    /// What was remembered last.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn remembered(&self) -> io::Result<Option<Vec<u8>>> {
        Ok(newest(&self.0.file)?.map(|(_, record)| record))
    }

    /// Keeps a dictionary in its place, which is empty.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn keep_dictionary(&self, index: usize, bytes: &[u8]) -> io::Result<()> {
        let at = dictionary_at(index);
        self.0.file.write_all_at(bytes, at + PAGE_SIZE as u64)?;
        // What is not whole has no length.
        let len = (bytes.len() as u64).to_le_bytes();
        self.0.file.write_all_at(&len, at)
    }

    /// The dictionary in a place, if there is one.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn dictionary(&self, index: usize) -> io::Result<Option<Vec<u8>>> {
        let at = dictionary_at(index);
        let mut len = [0; 8];
        self.0.file.read_exact_at(&mut len, at)?;
        let len = u64::from_le_bytes(len);
        if !(1..=DICTIONARY_BYTES - PAGE_SIZE as u64).contains(&len) {
            return Ok(None);
        }
        let mut bytes = vec![0; len as usize];
        self.0
            .file
            .read_exact_at(&mut bytes, at + PAGE_SIZE as u64)?;
        Ok(Some(bytes))
    }

    /// A copy that nobody else has, as it is at this moment.
    #[cfg(test)]
    pub(crate) fn copy(&self) -> (OwnedFd, OwnedFd) {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let copy = rustix::fs::memfd_create("uzram-copy", flags).expect("memory");
        let size = self.0.file.metadata().expect("readable").len();
        rustix::fs::ftruncate(&copy, size).expect("sparse");
        rustix::fs::fcntl_add_seals(&copy, SealFlags::SHRINK).expect("sealed");
        let copy = File::from(copy);
        for data in super::mapping::data_ranges(&self.0.file, 0..size).expect("seekable") {
            let mut bytes = vec![0; (data.end - data.start) as usize];
            self.0
                .file
                .read_exact_at(&mut bytes, data.start)
                .expect("readable");
            copy.write_all_at(&bytes, data.start).expect("memory");
        }
        let secret = self.0.secret.try_clone().expect("a descriptor");
        (copy.into(), secret)
    }
}

/// Memory for a key that outlives the process.
#[cfg(feature = "encrypt")]
use super::locked::secret_memory;

/// There is no key.
#[cfg(not(feature = "encrypt"))]
fn secret_memory() -> io::Result<OwnedFd> {
    Ok(rustix::fs::memfd_create("uzram-key", MemfdFlags::CLOEXEC)?)
}

/// Locks a memory. Who has died holds its lock for a moment still where it was about to start another process.
fn lock(file: &File) -> std::result::Result<(), Errno> {
    const WAITS: Duration = Duration::from_secs(3);
    let deadline = Instant::now() + WAITS;
    loop {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            locked => return locked,
        }
    }
}

fn refused(reason: &str, errno: Errno) -> Error {
    Error::Refused {
        what: "the device's memory",
        reason: reason.to_owned(),
        errno: errno.into(),
    }
}

/// The shape of the device in a memory, if one is there.
fn find(file: &File) -> Result<Option<Shape>> {
    let mut bytes = [0; size_of::<Header>()];
    file.read_exact_at(&mut bytes, 0)
        .map_err(|error| Error::io("read a device's memory", error))?;
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok(None);
    }
    let header: Header = zerocopy::transmute!(bytes);
    if header.magic != MAGIC {
        return Err(refused("it is no memory that uzram made", Errno::INVAL));
    }
    let version = u32::from_le(header.version);
    if version != VERSION {
        let reason =
            format!("its layout has version {version}, and this program knows version {VERSION}");
        return Err(refused(&reason, Errno::INVAL));
    }
    if header.checksum != header.checksum() {
        return Err(refused("its header is damaged", Errno::INVAL));
    }
    Ok(Some(header.shape))
}

/// Makes a memory longer, by addresses.
///
/// # Errors
/// EFBIG beyond the limit of files' sizes (RLIMIT_FSIZE), where the kernel would send a signal, too.
fn grow(file: impl AsFd, len: u64) -> std::result::Result<(), Errno> {
    let limit = getrlimit(Resource::Fsize).current;
    if limit.is_some_and(|limit| len > limit) {
        return Err(Errno::FBIG);
    }
    rustix::fs::ftruncate(file, len)
}

/// Where a record stands.
fn record_at(sequence: u64) -> u64 {
    RECORDS + sequence % 2 * RECORD_BYTES
}

fn dictionary_at(index: usize) -> u64 {
    DICTIONARIES + index as u64 * DICTIONARY_BYTES
}

/// The newer of the two records that are whole, and its number.
fn newest(file: &File) -> io::Result<Option<(u64, Vec<u8>)>> {
    let mut newest: Option<(u64, Vec<u8>)> = None;
    for place in 0..2 {
        let at = record_at(place);
        let mut bytes = [0; size_of::<RecordHeader>()];
        file.read_exact_at(&mut bytes, at)?;
        let header: RecordHeader = zerocopy::transmute!(bytes);
        let room = RECORD_BYTES - bytes.len() as u64;
        if header.sequence == 0 || u64::from(header.len) > room {
            continue;
        }
        let mut record = vec![0; header.len as usize];
        file.read_exact_at(&mut record, at + bytes.len() as u64)?;
        let is_whole = RecordHeader::of(header.sequence, &record).checksum == header.checksum;
        let is_newer = newest
            .as_ref()
            .is_none_or(|(known, _)| *known < header.sequence);
        if is_whole && is_newer {
            newest = Some((header.sequence, record));
        }
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape {
        capacity: 100,
        shards: 2,
        pool: 0,
        destages: 0,
        encrypts: 0,
    };

    #[test]
    fn a_device_is_found_by_the_next_who_opens_it() {
        let memory = DeviceMemory::new().expect("memory");
        let [handed, secret] = memory
            .as_fds()
            .map(|fd| fd.try_clone_to_owned().expect("a descriptor"));
        assert!(!memory.holds_device());
        memory.begin(SHAPE).expect("writable");
        let again = |fd: &OwnedFd| fd.try_clone().expect("a descriptor");
        let busy = DeviceMemory::open(again(&handed), again(&secret));
        let busy = busy.expect_err("the lock is held").to_string();
        assert!(busy.contains("another process"), "{busy}");
        drop(memory);
        let memory = DeviceMemory::open(handed, secret).expect("the lock is free");
        assert_eq!(memory.shape(), Some(SHAPE));
    }

    #[test]
    fn what_is_no_memory_of_ours_is_refused() {
        let plain = rustix::fs::memfd_create("other", MemfdFlags::CLOEXEC).expect("memory");
        let secret = plain.try_clone().expect("a descriptor");
        DeviceMemory::open(plain, secret).expect_err("it has no seals");
        let refused = |at: u64, byte: u8| {
            let memory = DeviceMemory::new().expect("memory");
            memory.begin(SHAPE).expect("writable");
            let (copy, secret) = memory.copy();
            let copy = File::from(copy);
            copy.write_all_at(&[byte], at).expect("writable");
            let refused = DeviceMemory::open(copy.into(), secret);
            refused.expect_err("it is damaged").to_string()
        };
        assert!(refused(0, b'x').contains("no memory that uzram made"));
        assert!(refused(8, 77).contains("version 77"));
        assert!(refused(17, 1).contains("damaged"));
    }

    #[test]
    fn the_newest_whole_record_is_remembered() {
        let memory = DeviceMemory::new().expect("memory");
        assert_eq!(memory.remembered().expect("readable"), None);
        for record in ["one", "two", "three"] {
            memory.remember(record.as_bytes()).expect("writable");
            let last = memory.remembered().expect("readable");
            assert_eq!(last.as_deref(), Some(record.as_bytes()));
        }
        // As after a death within the fourth.
        let (copy, secret) = memory.copy();
        let copy = File::from(copy);
        copy.write_all_at(b"t4", record_at(4) + 16)
            .expect("writable");
        let copy = DeviceMemory::open(copy.into(), secret).expect("memory");
        let last = copy.remembered().expect("readable");
        assert_eq!(last.as_deref(), Some(&b"three"[..]));
        copy.remember(b"four").expect("writable");
        assert_eq!(
            copy.remembered().expect("readable").as_deref(),
            Some(&b"four"[..])
        );
        let huge = vec![0; RECORD_BYTES as usize];
        memory.remember(&huge).expect_err("too long");
    }

    #[test]
    fn dictionaries_have_places() {
        let memory = DeviceMemory::new().expect("memory");
        memory.keep_dictionary(31, &[7; 1 << 20]).expect("writable");
        assert_eq!(memory.dictionary(30).expect("readable"), None);
        assert_eq!(
            memory.dictionary(31).expect("readable"),
            Some(vec![7; 1 << 20])
        );
        assert!(dictionary_at(32) <= REGIONS && record_at(1) + RECORD_BYTES <= DICTIONARIES);
    }
}
