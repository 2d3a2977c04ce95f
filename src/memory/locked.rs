//! A value that never leaves memory: for keys.
#![expect(unsafe_code, reason = "places a value in a mapping of its own")]

use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::atomic::{Ordering, compiler_fence};

use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::MemfdFlags;
use rustix::mm::Advice;

use super::mapping::Mapping;
use crate::units::PAGE_SIZE;

/// A `T` in a page of its own that is not swapped out, not part of a core dump and not a child
/// process's, and that is overwritten with zeroes when this is dropped. Where the kernel has
/// memfd_secret(2), no other process can read it, not even root's.
///
/// Invariant: the mapping starts with a valid `T`, which nothing else owns.
#[derive(Debug)]
pub(crate) struct Locked<T> {
    mapping: Mapping,
    value: PhantomData<T>,
}

// SAFETY: the mapping is only the memory of the `T`, which this owns as a `Box` would.
unsafe impl<T: Send> Send for Locked<T> {}
// SAFETY: as above; `&Locked<T>` gives nothing but `&T`.
unsafe impl<T: Sync> Sync for Locked<T> {}

impl<T> Locked<T> {
    /// Locks a page and has `make` fill it. What `make` leaves on the stack is overwritten.
    ///
    /// # Errors
    /// The kernel's: `ENOMEM`, `EAGAIN` or `EPERM` if the limit of locked memory (RLIMIT_MEMLOCK)
    /// does not allow another page; and whatever `make` returns.
    pub(crate) fn new(make: impl FnOnce() -> io::Result<T>) -> io::Result<Self> {
        const { assert!(size_of::<T>() <= PAGE_SIZE && align_of::<T>() <= PAGE_SIZE) };
        let mapping = Mapping::secret(PAGE_SIZE).or_else(|_| locked_page())?;
        let made = place(&mapping, make);
        overwrite_stack();
        made?;
        Ok(Self {
            mapping,
            value: PhantomData,
        })
    }
}

/// The next best where there is no secret memory.
fn locked_page() -> io::Result<Mapping> {
    let mapping = Mapping::zeroed(PAGE_SIZE)?;
    mapping.advise(Advice::LinuxWipeOnFork)?;
    mapping.lock()?;
    Ok(mapping)
}

/// Memory for a secret of at most a page that outlives the process, for as long as some process has this
/// descriptor of it. Where the kernel has memfd_secret(2) nobody else can read it.
///
/// # Errors
/// The kernel's.
pub(super) fn secret_memory() -> io::Result<OwnedFd> {
    Mapping::secret_file(PAGE_SIZE).or_else(|_| {
        let file = rustix::fs::memfd_create("uzram-key", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, PAGE_SIZE as u64)?;
        Ok(file)
    })
}

/// Hands the secret that is in such memory, of `N` bytes, to `look`; if there is none yet, it is what `make` fills it
/// with.
///
/// # Errors
/// The kernel's; those of `make` and of `look`.
pub(super) fn with_secret<const N: usize, T>(
    memory: BorrowedFd<'_>,
    make: impl FnOnce(&mut [u8; N]) -> io::Result<()>,
    look: impl FnOnce(&[u8; N]) -> io::Result<T>,
) -> io::Result<T> {
    /// What the first byte is once the secret follows it.
    const THERE: u8 = 1;
    const { assert!(N < PAGE_SIZE) };
    let mapping = Mapping::of_file(memory, PAGE_SIZE)?;
    let base = mapping.base();
    // SAFETY: both lie in the mapping, which is a page, and do not overlap; any bytes are valid. This process is the
    // only one that uses it now, and this function the only place.
    let (there, secret) = unsafe {
        (
            &mut *base.as_ptr(),
            &mut *base.add(1).cast::<[u8; N]>().as_ptr(),
        )
    };
    if *there != THERE {
        make(secret)?;
        compiler_fence(Ordering::SeqCst);
        *there = THERE;
    }
    look(secret)
}

/// Fills the mapping. Not inlined, so that its frame is one that [`overwrite_stack`] covers.
#[inline(never)]
fn place<T>(mapping: &Mapping, make: impl FnOnce() -> io::Result<T>) -> io::Result<()> {
    let value = make()?;
    // SAFETY: the mapping is a page, writable, aligned, and as large as a `T` (asserted in `new`).
    unsafe { mapping.base().cast::<T>().write(value) };
    Ok(())
}

/// Overwrites what functions that have returned left on the stack.
#[inline(never)]
fn overwrite_stack() {
    let mut waste = [0u8; 32 << 10];
    std::hint::black_box(&mut waste);
}

impl<T> Deref for Locked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: there is a `T` by the invariant, and nothing gives `&mut` to it.
        unsafe { self.mapping.base().cast::<T>().as_ref() }
    }
}

impl<T> Drop for Locked<T> {
    fn drop(&mut self) {
        let base = self.mapping.base();
        // SAFETY: the `T` is ours by the invariant, and nobody refers to it any more. Its bytes
        // are plain memory afterwards, ours until the mapping goes, which follows.
        unsafe {
            base.cast::<T>().drop_in_place();
            for byte in 0..PAGE_SIZE {
                base.add(byte).write_volatile(0);
            }
        }
        compiler_fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's flags of the mapping that holds an address (proc(5), VmFlags).
    fn flags_of(address: usize) -> String {
        let maps = std::fs::read_to_string("/proc/self/smaps").expect("readable");
        let mut ours = false;
        for line in maps.lines() {
            let range = line.split(' ').next().and_then(|word| word.split_once('-'));
            let bound = |text: &str| usize::from_str_radix(text, 16).ok();
            if let Some((Some(start), Some(end))) = range.map(|(s, e)| (bound(s), bound(e))) {
                ours = (start..end).contains(&address);
            } else if let (true, Some(flags)) = (ours, line.strip_prefix("VmFlags:")) {
                return flags.to_owned();
            }
        }
        panic!("no mapping holds {address:#x}");
    }

    #[test]
    fn is_locked_not_dumped_and_not_inherited() {
        let locked = Locked::new(|| Ok([7u8; 100])).expect("a page can be locked");
        assert_eq!(*locked, [7; 100]);
        let flags = flags_of(std::ptr::from_ref(&*locked).addr());
        for flag in [" lo", " dd"] {
            assert!(flags.contains(flag), "{flag} in {flags}");
        }
        // Secret memory is not copied to a child, the other is wiped there.
        assert!(flags.contains(" dc") || flags.contains(" wf"), "{flags}");
    }

    #[test]
    fn a_locked_page_stands_in_for_secret_memory() {
        let page = locked_page().expect("a page can be locked");
        let flags = flags_of(page.base().addr().get());
        for flag in [" lo", " dd", " wf"] {
            assert!(flags.contains(flag), "{flag} in {flags}");
        }
    }

    /// Also for root, which reads all other memory there.
    #[test]
    fn secret_memory_is_not_to_be_read_through_the_kernel() {
        use std::os::unix::fs::FileExt;
        let Ok(page) = Mapping::secret(PAGE_SIZE) else {
            eprintln!(
                "SKIPPED: secret_memory_is_not_to_be_read_through_the_kernel needs memfd_secret"
            );
            return;
        };
        let open = locked_page().expect("a page can be locked");
        let memory = std::fs::File::open("/proc/self/mem").expect("ours");
        let read = |mapping: &Mapping| {
            memory.read_exact_at(&mut [0; 16], mapping.base().addr().get() as u64)
        };
        read(&open).expect("what is not secret can be read");
        read(&page).expect_err("secret memory cannot");
    }

    #[test]
    fn a_failed_value_is_an_error() {
        let failed = Locked::<u64>::new(|| Err(io::ErrorKind::Unsupported.into()));
        assert_eq!(
            failed.expect_err("an error").kind(),
            io::ErrorKind::Unsupported
        );
    }
}
