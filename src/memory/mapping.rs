//! One mapping of memory that only this process has, or that outlives it. What is in it is the device's data, or
//! says what that is, so it is part of no core dump.
#![expect(unsafe_code, reason = "mapping memory is what this module is for")]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::iter;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::Arc;

#[cfg(feature = "encrypt")]
use rustix::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::fs::{FallocateFlags, SeekFrom, seek};
use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, MprotectFlags, ProtFlags};

/// What memory is mapped.
#[derive(Clone, Debug)]
pub(super) enum Mapped {
    /// New memory, that ends with the mapping.
    Anonymous,
    /// A part of a file that is memory, and that nobody cuts.
    Region {
        file: Arc<File>,
        /// Its first byte in the file.
        start: u64,
    },
}

/// An address range of our own. It is unmapped when dropped.
///
/// Invariant: `base..base + len` is one mapping, anonymous and private, of secret memory, or of a region of a file,
/// that nothing else unmaps, and no other mapping has its memory.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    mapped: Mapped,
}

// SAFETY: a mapping is plain memory, not tied to the thread that made it; access to its bytes goes
// through `base`, whose users uphold the aliasing rules themselves.
unsafe impl Send for Mapping {}
// SAFETY: as above; the methods here only ask the kernel to change protection or drop contents.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `len` bytes of addresses, inaccessible until opened with [`Mapping::open`]. Until
    /// then they are not charged, even where the kernel does not overcommit.
    pub(super) fn reserve(len: usize, mapped: Mapped) -> io::Result<Self> {
        Self::map(len, ProtFlags::empty(), mapped)
    }

    /// Maps `len` bytes that read as zeroes; memory is spent as pages are first written. Where the
    /// kernel does not overcommit all of it is charged at once.
    #[cfg(any(feature = "encrypt", feature = "fuse"))]
    pub(crate) fn zeroed(len: usize) -> io::Result<Self> {
        Self::zeroed_of(len, Mapped::Anonymous)
    }

    /// The same, of any memory: what a region held is there.
    pub(super) fn zeroed_of(len: usize, mapped: Mapped) -> io::Result<Self> {
        Self::map(len, ProtFlags::READ | ProtFlags::WRITE, mapped)
    }

    fn map(len: usize, protection: ProtFlags, mapped: Mapped) -> io::Result<Self> {
        let len = len.max(1);
        let anywhere = std::ptr::null_mut();
        let base = match &mapped {
            Mapped::Anonymous => {
                let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
                // SAFETY: a new anonymous mapping at an address of the kernel's choice overlaps no
                // memory that Rust knows of.
                unsafe { mm::mmap_anonymous(anywhere, len, protection, flags) }?
            }
            Mapped::Region { file, start } => {
                let flags = MapFlags::SHARED | MapFlags::NORESERVE;
                // SAFETY: as above. Whoever else has the file neither cuts it nor uses it, by the
                // seal and the lock that it has.
                unsafe { mm::mmap(anywhere, len, protection, flags, file, *start) }?
            }
        };
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Self { base, len, mapped };
        // A huge page would spend 2 MiB on the first write, and outlive the release of its parts.
        // Kernels without huge pages refuse it, rightly.
        let _ = mapping.advise(Advice::LinuxNoHugepage);
        mapping.advise(Advice::LinuxDontDump)?;
        Ok(mapping)
    }

    /// Advice about all of it that changes nothing that Rust knows of.
    pub(super) fn advise(&self, advice: Advice) -> io::Result<()> {
        // SAFETY: the range is our own mapping, and the advices given here keep its contents in this
        // process.
        Ok(unsafe { mm::madvise(self.base.as_ptr().cast(), self.len, advice) }?)
    }

    /// First byte of the mapping.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes in the mapping.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Keeps all of it from being swapped out.
    #[cfg(any(feature = "encrypt", feature = "fuse"))]
    pub(super) fn lock(&self) -> io::Result<()> {
        // SAFETY: the range is our own mapping; locking it changes nothing that Rust knows of.
        Ok(unsafe { mm::mlock(self.base.as_ptr().cast(), self.len) }?)
    }

    /// Makes the whole pages of `bytes` readable and writable.
    pub(crate) fn open(&self, bytes: Range<usize>) -> io::Result<()> {
        let start = self.check(&bytes);
        let flags = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: the range lies in our mapping, and widening its protection invalidates nothing.
        Ok(unsafe { mm::mprotect(start, bytes.len(), flags) }?)
    }

    /// Gives the memory behind the whole pages of `bytes` back; they read as zeroes from then on.
    /// The caller sees to it that nobody refers to bytes in the range.
    pub(crate) fn release(&self, bytes: Range<usize>) -> io::Result<()> {
        let start = self.check(&bytes);
        if let Mapped::Region {
            file,
            start: region,
        } = &self.mapped
        {
            // Also where it is locked.
            let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            let (at, len) = (region + bytes.start as u64, bytes.len() as u64);
            return Ok(rustix::fs::fallocate(file, punch, at, len)?);
        }
        let give_back = |advice| {
            // SAFETY: the range lies in our mapping; any bytes are valid `u8`s, before and after.
            unsafe { mm::madvise(start, bytes.len(), advice) }
        };
        match give_back(Advice::LinuxDontNeed) {
            // How the kernel says that it is locked.
            Err(Errno::INVAL) => Ok(give_back(Advice::LinuxDontneedLocked)?),
            done => Ok(done?),
        }
    }

    /// The parts of it that may hold something else than zeroes.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn data_ranges(&self) -> io::Result<Vec<Range<usize>>> {
        let Mapped::Region { file, start } = &self.mapped else {
            return Ok(iter::once(0..self.len).collect());
        };
        let end = start + self.len as u64;
        let ranges = data_ranges(file, *start..end)?;
        let within = |data: Range<u64>| (data.start - start) as usize..(data.end - start) as usize;
        Ok(ranges.into_iter().map(within).collect())
    }

    fn check(&self, bytes: &Range<usize>) -> *mut c_void {
        assert!(
            bytes.start <= bytes.end && bytes.end <= self.len,
            "{bytes:?} in {}",
            self.len
        );
        // SAFETY: `start` is at most `len`, so the result is in the mapping or one past it.
        unsafe { self.base.add(bytes.start) }.as_ptr().cast()
    }
}

#[cfg(feature = "encrypt")]
impl Mapping {
    /// A file of `len` bytes of memfd_secret(2), to be mapped: zeroes, that not even the kernel has mapped and that are
    /// not swapped out.
    ///
    /// # Errors
    /// The kernel's, where there is no such memory.
    pub(super) fn secret_file(len: usize) -> io::Result<OwnedFd> {
        // SAFETY: the call takes flags and returns a descriptor; it touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
        let fd = match i32::try_from(fd) {
            // SAFETY: the kernel has just made the descriptor for us; nothing else has it.
            Ok(fd) if fd >= 0 => unsafe { OwnedFd::from_raw_fd(fd) },
            _ => return Err(io::Error::last_os_error()),
        };
        rustix::fs::ftruncate(&fd, len as u64)?;
        Ok(fd)
    }

    /// Maps `len` bytes of memory that others may have mapped as well, and that no child gets.
    ///
    /// # Errors
    /// The kernel's, or where RLIMIT_MEMLOCK allows no more of secret memory.
    pub(super) fn of_file(file: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice overlaps no memory that Rust knows
        // of. Who else has the file is this process, or was before it: they do not use it at once.
        let base = unsafe { mm::mmap(std::ptr::null_mut(), len, protection, flags, file, 0) }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Self {
            base,
            len,
            mapped: Mapped::Anonymous,
        };
        mapping.advise(Advice::LinuxDontFork)?;
        mapping.advise(Advice::LinuxDontDump)?;
        Ok(mapping)
    }

    /// The same, of a file of its own that nobody else has.
    ///
    /// # Errors
    /// Those of [`Mapping::secret_file`] and [`Mapping::of_file`].
    pub(crate) fn secret(len: usize) -> io::Result<Self> {
        Self::of_file(Self::secret_file(len)?.as_fd(), len)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is ours by the invariant, and whoever could refer into it borrows or
        // shares this `Mapping`. An error is impossible for such a range and could not be helped.
        let _ = unsafe { mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The parts of a range that may hold something else than zeroes.
pub(super) fn data_ranges(file: &File, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let mut at = range.start;
    while at < range.end {
        at = match seek(file, SeekFrom::Data(at)) {
            // There is none behind it.
            Err(Errno::NXIO) => break,
            found => found?.max(at),
        };
        if at >= range.end {
            break;
        }
        let end = seek(file, SeekFrom::Hole(at))?.min(range.end);
        ranges.push(at..end);
        at = end;
    }
    Ok(ranges)
}
