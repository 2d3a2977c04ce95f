//! What a request does: read, write, discard; what it reads back, reads ahead, and copies for a save before
//! it changes it.
//!
//! ```text
//! read      look at a run of slots under a lock ── in memory ── decompress
//!               └── elsewhere ── read it, look again if it has moved meanwhile ── decompress, promote
//! write     compress ── lock to change: copy first what is being saved ── store ── wait for room
//! ```
//!
//! No lock is held while anything is read from a backing or an image, compressed (but for part of a
//! page) or waited for.

mod change;
mod discard;
mod extents;
mod found;
mod origin_read;
mod read;
mod read_ahead;
mod read_back;
mod scrub;
mod sequential;
mod would_block;
mod write;

use std::sync::Arc;

use self::read_ahead::ReadAhead;
pub(crate) use self::read_back::{has_room_to_restore, storable};
pub use self::scrub::Scrubbed;
use crate::engine::Engine;

/// What reads a device.
pub(crate) struct Reader {
    engine: Arc<Engine>,
    read_ahead: ReadAhead,
}

impl Reader {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self {
            engine,
            read_ahead: ReadAhead::default(),
        }
    }
}

/// What changes a device.
pub(crate) struct Writer {
    engine: Arc<Engine>,
    reader: Arc<Reader>,
}

impl Writer {
    pub(crate) fn new(engine: Arc<Engine>, reader: Arc<Reader>) -> Self {
        Self { engine, reader }
    }
}
