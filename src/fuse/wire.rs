//! What the kernel and a FUSE server say to each other, as far as the transports here look into it
//! (`linux/fuse.h`).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Kinds of requests.
pub(super) mod opcode {
    pub(in crate::fuse) const READ: u32 = 15;
    pub(in crate::fuse) const WRITE: u32 = 16;
    pub(in crate::fuse) const FSYNC: u32 = 20;
    pub(in crate::fuse) const INIT: u32 = 26;
    pub(in crate::fuse) const DESTROY: u32 = 38;
    pub(in crate::fuse) const FALLOCATE: u32 = 43;
}

/// What a server asks of the kernel through a ring.
pub(super) mod command {
    /// Offers a slot, for the kernel to put a first request in.
    pub(in crate::fuse) const REGISTER: u32 = 1;
    /// Answers the request in a slot and offers the slot again.
    pub(in crate::fuse) const COMMIT_AND_FETCH: u32 = 2;
}

/// In the place of an error: what the server has taken and not answered is to be given again
/// (`FUSE_NOTIFY_RESEND`).
pub(super) const NOTIFY_RESEND: i32 = 7;

/// Before every request.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct InHeader {
    /// Bytes of the whole request, these among them.
    pub(super) len: u32,
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) nodeid: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: u32,
    pub(super) padding: u32,
}

/// Before every reply.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct OutHeader {
    /// Bytes of the whole reply, these among them.
    pub(super) len: u32,
    /// Zero, or an errno, negated.
    pub(super) error: i32,
    pub(super) unique: u64,
}

/// The body of an INIT.
#[derive(Clone, Copy, Debug, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct InitIn {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) max_readahead: u32,
    pub(super) flags: [u32; 2],
    pub(super) unused: [u32; 11],
}

/// What a READ and a WRITE begin with.
#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct TransferIn {
    pub(super) fh: u64,
    pub(super) offset: u64,
    pub(super) size: u32,
    pub(super) transfer_flags: u32,
    pub(super) lock_owner: u64,
    /// Those of open(2).
    pub(super) flags: u32,
}

/// The reply to a WRITE.
#[derive(Clone, Copy, Debug, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct WriteOut {
    pub(super) size: u32,
    pub(super) padding: u32,
}

/// The body of a FALLOCATE.
#[derive(Clone, Copy, Debug, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct AllocateIn {
    pub(super) fh: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) mode: u32,
    pub(super) padding: u32,
}

/// What stands beside the payload of a slot.
#[derive(Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct SlotHeader {
    /// An [`InHeader`], then the [`OutHeader`] of its reply.
    pub(super) in_out: [u8; 128],
    /// What this kind of request begins with.
    pub(super) body: [u8; 128],
    pub(super) flags: u64,
    /// Names the request when it is answered.
    pub(super) commit_id: u64,
    /// Bytes in the payload, either way.
    pub(super) payload_len: u32,
    pub(super) padding: u32,
    pub(super) reserved: u64,
}

/// What a [`command`] carries.
#[derive(Clone, Copy, Debug, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct CommandIn {
    pub(super) flags: u64,
    pub(super) commit_id: u64,
    pub(super) queue: u16,
    pub(super) padding: [u8; 6],
}
