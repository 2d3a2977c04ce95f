//! Replies to BLOCK_STATUS: one chunk for each selected metadata context, from the device's
//! extents, with neighbours of equal status joined.

use std::ops::{ControlFlow, Range};

use crate::block_device::BlockDevice;

use super::export::MetaContext;
use super::fault::Fault;
use super::reply::HEADERS;
use super::socket::Stream;
use super::transmission::Session;
use super::wire::{Request, chunk, cmd_flag};

/// Most descriptors in a chunk. The protocol allows 2^20; a client asks again for the rest.
const MAX_DESCRIPTORS: usize = 1 << 13;

impl<S: Stream> Session<'_, S> {
    /// Answers a BLOCK_STATUS.
    pub(super) fn block_status(&mut self, request: &Request) -> Result<(), Fault> {
        let range = request.offset..request.offset + u64::from(request.length);
        let most = if request.has(cmd_flag::REQ_ONE) {
            1
        } else {
            MAX_DESCRIPTORS
        };
        let mut contexts = self.contexts.iter().peekable();
        while let Some(context) = contexts.next() {
            let done = match contexts.peek() {
                Some(_) => 0,
                None => chunk::FLAG_DONE,
            };
            self.descriptors
                .find(&*self.export.device, range.clone(), context, most);
            let length = 4 + 8 * self.descriptors.0.len();
            self.replies.make_room(length + HEADERS, self.stream)?;
            self.replies
                .chunk(request.cookie, done, chunk::BLOCK_STATUS, length);
            self.replies.append(&(context as u32).to_be_bytes());
            for descriptor in &self.descriptors.0 {
                self.replies.append(&descriptor.length.to_be_bytes());
                self.replies.append(&descriptor.status.to_be_bytes());
            }
        }
        Ok(())
    }
}

/// The descriptors of one chunk.
#[derive(Default)]
pub(super) struct Descriptors(Vec<Descriptor>);

struct Descriptor {
    length: u32,
    status: u32,
}

impl Descriptors {
    /// At most `most` descriptors from the start of `range` on, which is shorter than 4 GiB.
    fn find(
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
}
