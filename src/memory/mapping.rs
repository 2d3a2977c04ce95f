//! One mapping of memory that only this process has. What is in it is the device's data, or says what
//! that is, so it is part of no core dump.
#![expect(unsafe_code, reason = "mapping memory is what this module is for")]

use std::ffi::c_void;
use std::io;
use std::ops::Range;
use std::ptr::NonNull;

#[cfg(feature = "encrypt")]
use rustix::fd::{FromRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::mm::{self, Advice, MapFlags, MprotectFlags, ProtFlags};

/// An address range of our own. It is unmapped when dropped.
///
/// Invariant: `base..base + len` is one mapping, anonymous and private or of secret memory, that nothing
/// else unmaps, and no other mapping has its memory.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: a mapping is plain memory, not tied to the thread that made it; access to its bytes goes
// through `base`, whose users uphold the aliasing rules themselves.
unsafe impl Send for Mapping {}
// SAFETY: as above; the methods here only ask the kernel to change protection or drop contents.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Reserves `len` bytes of addresses, inaccessible until opened with [`Mapping::open`]. Until
    /// then they are not charged, even where the kernel does not overcommit.
    pub(crate) fn reserve(len: usize) -> io::Result<Self> {
        Self::map(len, ProtFlags::empty())
    }

    /// Maps `len` bytes that read as zeroes; memory is spent as pages are first written. Where the
    /// kernel does not overcommit all of it is charged at once.
    pub(crate) fn zeroed(len: usize) -> io::Result<Self> {
        Self::map(len, ProtFlags::READ | ProtFlags::WRITE)
    }

    fn map(len: usize, protection: ProtFlags) -> io::Result<Self> {
        let len = len.max(1);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice overlaps no memory
        // that Rust knows of.
        let base = unsafe { mm::mmap_anonymous(std::ptr::null_mut(), len, protection, flags) }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Self { base, len };
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
    /// Maps `len` bytes of memfd_secret(2): zeroes, that not even the kernel has mapped, are not swapped
    /// out, and are no child's.
    ///
    /// # Errors
    /// The kernel's, where there is no such memory or RLIMIT_MEMLOCK allows no more of it.
    pub(crate) fn secret(len: usize) -> io::Result<Self> {
        // SAFETY: the call takes flags and returns a descriptor; it touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
        let fd = match i32::try_from(fd) {
            // SAFETY: the kernel has just made the descriptor for us; nothing else has it.
            Ok(fd) if fd >= 0 => unsafe { OwnedFd::from_raw_fd(fd) },
            _ => return Err(io::Error::last_os_error()),
        };
        rustix::fs::ftruncate(&fd, len as u64)?;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a new mapping at an address of the kernel's choice overlaps no memory that Rust knows
        // of; the descriptor is gone in a moment, so nobody else maps or cuts the file.
        let base = unsafe { mm::mmap(std::ptr::null_mut(), len, protection, flags, &fd, 0) }?;
        let base = NonNull::new(base.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Self { base, len };
        mapping.advise(Advice::LinuxDontFork)?;
        Ok(mapping)
    }

    /// Keeps all of it from being swapped out.
    pub(super) fn lock(&self) -> io::Result<()> {
        // SAFETY: the range is our own mapping; locking it changes nothing that Rust knows of.
        Ok(unsafe { mm::mlock(self.base.as_ptr().cast(), self.len) }?)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is ours by the invariant, and whoever could refer into it borrows or
        // shares this `Mapping`. An error is impossible for such a range and could not be helped.
        let _ = unsafe { mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
