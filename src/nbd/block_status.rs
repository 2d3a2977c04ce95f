//! Replies to BLOCK_STATUS: one chunk for each selected metadata context, from the device's
//! extents, with neighbours of equal status joined.

use std::ops::{ControlFlow, Range};

use crate::block_device::BlockDevice;

use super::export::MetaContext;
use super::reply::Replies;

/// Most descriptors in a chunk. The protocol allows 2^20; a client asks again for the rest.
pub(super) const MAX_DESCRIPTORS: usize = 1 << 13;

/// The descriptors of one chunk.
#[derive(Default)]
pub(super) struct Descriptors(Vec<Descriptor>);

struct Descriptor {
    length: u32,
    status: u32,
}

impl Descriptors {
    /// At most `most` descriptors from the start of `range` on, which is shorter than 4 GiB.
    pub(super) fn find(
        &mut self,
        device: &dyn BlockDevice,
        range: Range<u64>,
        context: MetaContext,
        most: usize,
    ) {
        self.0.clear();
        device.extents(range, &mut |extent| {
            let status = context.status(extent.state);
            let length = extent.len as u32;
            let full = self.0.len() == most;
            match self.0.last_mut() {
                Some(last) if last.status == status => last.length += length,
                _ if full => return ControlFlow::Break(()),
                _ => self.0.push(Descriptor { length, status }),
            }
            ControlFlow::Continue(())
        });
    }

    /// Bytes of the chunk's payload.
    pub(super) fn len(&self) -> usize {
        4 + 8 * self.0.len()
    }

    /// Appends the chunk's payload to `replies`, which has room for it.
    pub(super) fn append(&self, context: MetaContext, replies: &mut Replies) {
        replies.append(&(context as u32).to_be_bytes());
        for descriptor in &self.0 {
            replies.append(&descriptor.length.to_be_bytes());
            replies.append(&descriptor.status.to_be_bytes());
        }
    }
}
