//! A ring, and the slots that requests come in through it.
//!
//! Invariants:
//! 1. A slot is either in its [`Ring`] and the kernel's to write to, or out, a [`Slot`] that
//!    one thread owns. It leaves with a completion and comes back with a commit.
//! 2. The kernel writes to a slot only while the ring's own thread is in [`Ring::turn`]: that is
//!    what deferred task work means.
//! 3. The memory of slots outlives the ring, and theirs who are out.
#![expect(
    unsafe_code,
    reason = "the kernel writes to memory that Rust does not see it write to"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use fuser::Errno;
use io_uring::squeue::Entry128;
use io_uring::types::{Fixed, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode};
use rustix::event::PollFlags;
use zerocopy::{FromBytes, IntoBytes};

use crate::fuse::wire::{CommandIn, InHeader, OutHeader, SlotHeader, command};
use crate::memory::Mapping;

/// The longest payload, bytes: a whole request of the largest size, or its reply.
pub(super) const PAYLOAD_BYTES: usize = crate::fuse::MAX_REQUEST_BYTES as usize;

/// A payload keeps this much memory when it is not in use.
pub(super) const KEPT_BYTES: usize = 64 << 10;

/// The header of a slot has a page to itself.
const HEADER_BYTES: usize = 4096;
const SLOT_BYTES: usize = HEADER_BYTES + PAYLOAD_BYTES;

/// The files that a ring knows, by their place in its table.
const DEVICE: Fixed = Fixed(0);
const WAKE: Fixed = Fixed(1);

/// Marks the completion which says that the wake-up file is readable.
const WOKEN: u64 = u64::MAX;

/// Where a submission entry has the number of segments that it points at.
const SQE_LEN_OFFSET: usize = 24;

/// A request and the room for its reply, in our hands.
pub(super) struct Slot {
    /// Its place in the ring.
    index: u32,
    queue: u16,
    /// Whether the payload may have more memory than it keeps.
    grown: bool,
    /// `SLOT_BYTES` of `memory`, which no other slot has.
    base: NonNull<u8>,
    memory: Arc<Mapping>,
}

// SAFETY: a slot owns its part of the mapping, and that is plain memory.
unsafe impl Send for Slot {}

impl Slot {
    fn payload_base(&self) -> NonNull<u8> {
        // SAFETY: `SLOT_BYTES` are there.
        unsafe { self.base.add(HEADER_BYTES) }
    }

    pub(super) fn header(&self) -> &SlotHeader {
        // SAFETY: the header begins the slot, aligned to a page; any bytes are a valid one; and a
        // slot that is out is this owner's alone.
        unsafe { self.base.cast().as_ref() }
    }

    fn header_mut(&mut self) -> &mut SlotHeader {
        // SAFETY: as above, and borrowed mutably.
        unsafe { self.base.cast().as_mut() }
    }

    /// The whole payload, for a reply.
    pub(super) fn payload_mut(&mut self) -> &mut [u8] {
        // SAFETY: the payload follows the header; otherwise as above.
        unsafe { NonNull::slice_from_raw_parts(self.payload_base(), PAYLOAD_BYTES).as_mut() }
    }

    /// What the request carries beside its headers.
    pub(super) fn received(&self) -> &[u8] {
        let len = (self.header().payload_len as usize).min(PAYLOAD_BYTES);
        // SAFETY: as above, borrowed as `self` is.
        unsafe { NonNull::slice_from_raw_parts(self.payload_base(), len).as_ref() }
    }

    pub(super) fn request(&self) -> InHeader {
        let (request, _) = InHeader::read_from_prefix(&self.header().in_out).expect("it fits");
        request
    }

    /// What a request of this kind begins with.
    pub(super) fn body<T: FromBytes>(&self) -> T {
        let (body, _) = T::read_from_prefix(&self.header().body).expect("it fits");
        body
    }

    /// Says that a request of this slot is larger than [`KEPT_BYTES`].
    pub(super) fn grow(&mut self) {
        self.grown = true;
    }

    /// Answers the request: with the first so many bytes of the payload, or an errno.
    pub(super) fn complete(&mut self, result: Result<usize, Errno>) {
        let (error, len) = match result {
            Ok(len) => (0, len),
            Err(errno) => (-errno.code(), 0),
        };
        let reply = OutHeader {
            // A payload is shorter than 4 GiB.
            len: (size_of::<OutHeader>() + len) as u32,
            error,
            unique: self.request().unique,
        };
        let header = self.header_mut();
        header.in_out[..size_of::<OutHeader>()].copy_from_slice(reply.as_bytes());
        header.payload_len = len as u32;
    }
}

/// What a ring has for its thread.
pub(super) enum Event {
    Request(Slot),
    /// The wake-up file is readable.
    Woken,
    /// The kernel gave up a slot.
    Lost(rustix::io::Errno),
}

/// Where a slot is, in the form that the kernel is told of it: `struct iovec` for the header and
/// for the payload.
#[repr(C)]
struct Segments([(NonNull<u8>, usize); 2]);

/// The ring of one thread.
pub(super) struct Ring {
    ring: IoUring<Entry128>,
    /// By index; `None` while it is out.
    slots: Vec<Option<Slot>>,
    /// What registering the slots points at.
    segments: Vec<Segments>,
    /// Slots that the kernel was offered and has not given up.
    live: usize,
}

// SAFETY: the segments only say where slots are, which may be sent themselves.
unsafe impl Send for Ring {}

impl Ring {
    /// A ring with a slot for each of `queues`, which may name one more than once, for the thread
    /// that calls [`Ring::open`].
    pub(super) fn new(queues: &[u16]) -> io::Result<Self> {
        let count = queues.len();
        let ring = IoUring::builder()
            .dontfork()
            .setup_r_disabled()
            .setup_submit_all()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(count as u32 + 1)?;
        let memory = Arc::new(Mapping::zeroed(count * SLOT_BYTES)?);
        let slot = |index: usize| Slot {
            index: index as u32,
            queue: queues[index],
            grown: false,
            // SAFETY: there are `count` slots in the mapping.
            base: unsafe { memory.base().add(index * SLOT_BYTES) },
            memory: Arc::clone(&memory),
        };
        let slots: Vec<_> = (0..count).map(|index| Some(slot(index))).collect();
        let segments = slots.iter().flatten().map(|slot| {
            Segments([
                (slot.base, HEADER_BYTES),
                (slot.payload_base(), PAYLOAD_BYTES),
            ])
        });
        Ok(Self {
            segments: segments.collect(),
            ring,
            live: 0,
            slots,
        })
    }

    /// Makes this thread the ring's, and offers the slots to the kernel through `device`. `wake`
    /// is watched from then on.
    pub(super) fn open(&mut self, device: BorrowedFd<'_>, wake: BorrowedFd<'_>) -> io::Result<()> {
        self.ring.submitter().register_enable_rings()?;
        let files = [device.as_raw_fd(), wake.as_raw_fd()];
        self.ring.submitter().register_files(&files)?;
        // A shortcut, which the kernel may not have.
        let _ = self.ring.submitter().register_ring_fd();
        self.watch();
        for index in 0..self.slots.len() {
            let address = self.segments[index].0.as_ptr() as u64;
            let slot = self.slots[index].as_ref().expect("none is out yet");
            let mut entry = entry(command::REGISTER, slot, 0, Some(address));
            // SAFETY: the entry is a `struct io_uring_sqe` of 128 bytes, with an aligned u32 for
            // the number of segments there.
            unsafe {
                let len = (&raw mut entry).byte_add(SQE_LEN_OFFSET).cast::<u32>();
                len.write(size_of::<Segments>() as u32 / size_of::<(usize, usize)>() as u32);
            }
            self.push(&entry);
        }
        self.live = self.slots.len();
        let offered = self.ring.submit()?;
        if offered != self.slots.len() + 1 {
            return Err(io::Error::other("the kernel did not take all slots"));
        }
        Ok(())
    }

    fn watch(&mut self) {
        // Of another type where rustix goes through libc.
        let readable = PollFlags::IN.bits() as u32;
        let watch = opcode::PollAdd::new(WAKE, readable).multi(true).build();
        self.push(&watch.user_data(WOKEN).into());
    }

    fn push(&mut self, entry: &Entry128) {
        // SAFETY: what the entry points at is a slot that is in the ring, or the segments, and both stay
        // where they are as long as the ring.
        let pushed = unsafe { self.ring.submission().push(entry) };
        pushed.expect("there is room for each slot, and the watch");
    }

    /// Takes a slot back, answered; the kernel hears of it in the next [`Ring::turn`].
    pub(super) fn commit(&mut self, slot: Slot) {
        let commit_id = slot.header().commit_id;
        let entry = entry(command::COMMIT_AND_FETCH, &slot, commit_id, None);
        let index = slot.index as usize;
        self.slots[index] = Some(slot);
        self.push(&entry);
    }

    /// Sends off what was committed, and waits for an event, if need be up to `timeout`. Says
    /// whether there may be one.
    pub(super) fn turn(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        let submitter = self.ring.submitter();
        let result = match timeout.map(Timespec::from) {
            None => submitter.submit_and_wait(1),
            Some(time) => submitter.submit_with_args(1, &SubmitArgs::new().timespec(&time)),
        };
        outcome(result)
    }

    /// Sends off what was committed.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        outcome(self.ring.submit()).map(drop)
    }

    /// The next event of those that are there.
    pub(super) fn next(&mut self) -> Option<Event> {
        let completion = self.ring.completion().next()?;
        if completion.user_data() == WOKEN {
            if !cqueue::more(completion.flags()) {
                self.watch();
            }
            return Some(Event::Woken);
        }
        let slot = self.slots[completion.user_data() as usize].take();
        match (completion.result(), slot) {
            (0, Some(slot)) => Some(Event::Request(slot)),
            (error, _) => {
                self.live -= 1;
                Some(Event::Lost(rustix::io::Errno::from_raw_os_error(
                    error.abs(),
                )))
            }
        }
    }

    /// Whether the kernel has given up all slots.
    pub(super) fn is_over(&self) -> bool {
        self.live == 0
    }

    /// Gives back the memory of payloads that large requests left in slots that are in the ring.
    pub(super) fn shrink(&mut self) {
        for slot in self.slots.iter_mut().flatten().filter(|slot| slot.grown) {
            let start = slot.index as usize * SLOT_BYTES + HEADER_BYTES;
            // Nobody refers to a slot that is in the ring, and what the kernel will write, it writes
            // later. Memory that is not given back is only kept.
            let _ = slot
                .memory
                .release(start + KEPT_BYTES..start + PAYLOAD_BYTES);
            slot.grown = false;
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if self.live > 0 {
            // The kernel may hold on to slots for a while after the ring is closed.
            std::mem::forget(
                self.slots
                    .iter()
                    .flatten()
                    .next()
                    .map(|slot| Arc::clone(&slot.memory)),
            );
        }
    }
}

/// What a turn came to: false if it was in vain.
fn outcome(result: io::Result<usize>) -> io::Result<bool> {
    use rustix::io::Errno;

    match result {
        Ok(_) => Ok(true),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::TIME) => Ok(false),
            // What was not sent off is, the next time.
            Some(Errno::INTR | Errno::AGAIN | Errno::BUSY) => Ok(true),
            _ => Err(error),
        },
    }
}

fn entry(operation: u32, slot: &Slot, commit_id: u64, address: Option<u64>) -> Entry128 {
    let command = CommandIn {
        flags: 0,
        commit_id,
        queue: slot.queue,
        padding: [0; 6],
    };
    let mut bytes = [0; 80];
    bytes[..size_of::<CommandIn>()].copy_from_slice(command.as_bytes());
    opcode::UringCmd80::new(DEVICE, operation)
        .cmd(bytes)
        .addr(address)
        .build()
        .user_data(slot.index.into())
}
