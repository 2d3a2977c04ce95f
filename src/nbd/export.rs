//! What is exported, and what a client may do with it.

use std::sync::Arc;

use crate::block_device::BlockDevice;
use crate::units::PageState;

use super::wire::{state, transmission_flag};

/// One device under one name; the empty name is the same export.
pub struct Export {
    /// At most 4096 bytes.
    pub name: String,
    /// What requests are served from.
    pub device: Arc<dyn BlockDevice>,
    /// Whether everything that writes is refused here, as it is wherever the device is read-only.
    pub read_only: bool,
}

impl Export {
    pub(super) fn is_read_only(&self) -> bool {
        self.read_only || self.device.is_read_only()
    }

    /// Whether `name`, as a client sent it, is this export.
    pub(super) fn answers_to(&self, name: &[u8]) -> bool {
        name.is_empty() || name == self.name.as_bytes()
    }

    /// The transmission flags: exactly what [`super::transmission`] does.
    ///
    /// MULTI_CONN holds because no connection has a cache of its own: a write is in the device,
    /// which all connections share, before it is answered.
    pub(super) fn transmission_flags(&self, structured: bool) -> u16 {
        use transmission_flag as flag;
        let mut flags = flag::HAS_FLAGS | flag::CAN_MULTI_CONN | flag::SEND_CACHE;
        if self.device.offers_flush() {
            flags |= flag::SEND_FLUSH | flag::SEND_FUA;
        }
        if structured {
            flags |= flag::SEND_DF;
        }
        flags
            | if self.is_read_only() {
                flag::READ_ONLY
            } else {
                flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO
            }
    }
}

/// A metadata context that a client may select. Its number is its id on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MetaContext {
    /// `base:allocation`: holes and zeroes.
    Allocation = 1,
    /// `uzram:state`: 0 for empty pages and those only an image has, 1 for same-filled ones (zeroes among them), 2 for
    /// resident ones, 3 for ones written back.
    State = 2,
}

impl MetaContext {
    pub(super) const ALL: [Self; 2] = [Self::Allocation, Self::State];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Allocation => "base:allocation",
            Self::State => "uzram:state",
        }
    }

    /// `base:` or `uzram:`, which stands for all of a namespace when contexts are listed.
    pub(super) fn namespace(self) -> &'static str {
        match self {
            Self::Allocation => "base:",
            Self::State => "uzram:",
        }
    }

    /// The status flags of pages in `page_state`.
    ///
    /// A page of zeroes that was written is not a hole: its slot is taken.
    pub(super) fn status(self, page_state: PageState) -> u32 {
        match (self, page_state) {
            (Self::Allocation, PageState::Empty) => state::HOLE | state::ZERO,
            (Self::Allocation, PageState::Zero) => state::ZERO,
            (Self::Allocation, _) | (Self::State, PageState::Empty | PageState::Absent) => 0,
            (Self::State, PageState::Zero | PageState::SameFilled) => 1,
            (Self::State, PageState::Resident) => 2,
            (Self::State, PageState::WrittenBack) => 3,
        }
    }
}

/// The metadata contexts that a client has selected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MetaContexts {
    selected: [bool; MetaContext::ALL.len()],
}

impl MetaContexts {
    pub(super) fn insert(&mut self, context: MetaContext) {
        self.selected[context as usize - 1] = true;
    }

    pub(super) fn contains(&self, context: MetaContext) -> bool {
        self.selected[context as usize - 1]
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn iter(self) -> impl Iterator<Item = MetaContext> {
        MetaContext::ALL
            .into_iter()
            .filter(move |&context| self.contains(context))
    }
}
