//! An image that pages still come from is emptied: to memory while there is room, then to the
//! backing, or else it waits for room.
//!
//! The image's segments are sealed ones of the log that are only ever emptied, in a place of their
//! own: what is in them is read back, overwritten and freed like all that is spilled.

use std::path::PathBuf;
use std::time::Duration;

use super::Writeback;
use super::cleaner::{Cleaned, To};
use crate::spill::{Adopted, Leave};
use crate::sync::time::Instant;

/// How long it waits while writers wait for memory.
const SHORT_REST: Duration = Duration::from_millis(50);

/// How long it waits where there is no room, or the image cannot be read.
const REST: Duration = Duration::from_secs(1);

/// How long it waits where what is left is damaged, and goes only by being overwritten.
const LONG_REST: Duration = Duration::from_secs(60);

/// An image that is being emptied.
pub(super) struct Restoring {
    path: PathBuf,
    began: Instant,
    rests_until: Option<Instant>,
    /// Whether it has been logged that some of it cannot leave.
    is_noted: bool,
}

impl Writeback {
    /// Begins to empty the image, to whose records slots refer.
    ///
    /// # Errors
    /// Why that cannot be done.
    pub(super) fn restore(&mut self, image: Adopted) -> Result<(), String> {
        self.prepare()?;
        let store = self.core.stores.image().ok_or("there is no image")?;
        self.log.adopt(image);
        self.restoring = Some(Restoring {
            path: store.path().to_owned(),
            began: Instant::now(),
            rests_until: None,
            is_noted: false,
        });
        self.core.waker.wake();
        Ok(())
    }

    /// Empties a segment of the image; returns false if more is to be done at once.
    pub(super) fn go_on_restoring(&mut self) -> bool {
        if self.core.is_stopping() {
            // What is left in it can still be read.
            self.restoring = None;
        }
        if self.restoring_rests() != Some(Duration::ZERO) {
            return true;
        }
        // Nobody waits for this, and reading may take long.
        if self.core.room.demand() {
            return self.rest(SHORT_REST);
        }
        let segment = match self.log.leave_image() {
            Leave::Move(segment) => segment,
            Leave::Done => {
                self.note_restored();
                return true;
            }
            // Nothing is ever appended to it.
            Leave::Damaged | Leave::Land => {
                self.note_damaged();
                return self.rest(LONG_REST);
            }
        };
        let Some(to) = self.room_for_segment() else {
            return self.rest(REST);
        };
        let Some(written) = self.read_segment(segment) else {
            return self.rest(REST);
        };
        match self.empty_and_land(segment, &written, to) {
            Ok(Cleaned::All | Cleaned::Damaged) => false,
            // What failed is logged.
            Ok(Cleaned::NoRoom | Cleaned::Unreadable) | Err(_) => self.rest(REST),
        }
    }

    /// How long it waits before it goes on with an image, if there is one.
    pub(super) fn restoring_rests(&self) -> Option<Duration> {
        let restoring = self.restoring.as_ref()?;
        let rests = restoring.rests_until.map_or(Duration::ZERO, |until| {
            until.saturating_duration_since(Instant::now())
        });
        Some(rests)
    }

    fn rest(&mut self, period: Duration) -> bool {
        if let Some(restoring) = &mut self.restoring {
            restoring.rests_until = Some(Instant::now() + period);
        }
        true
    }

    /// Where what is in a segment can go.
    fn room_for_segment(&self) -> Option<To> {
        if self.core.has_room_to_restore() {
            return Some(To::Memory);
        }
        let spills = self.core.stores.spills() && self.core.may_write().is_ok();
        spills.then_some(To::Log)
    }

    fn note_restored(&mut self) {
        let Some(restoring) = self.restoring.take() else {
            return;
        };
        let seconds = restoring.began.elapsed().as_secs_f64();
        let path = restoring.path.display();
        tracing::info!("{path} is needed no more, after {seconds:.1} s");
    }

    fn note_damaged(&mut self) {
        let left = self.core.segments.image_bytes();
        if let Some(restoring) = &mut self.restoring
            && !std::mem::replace(&mut restoring.is_noted, true)
        {
            let path = restoring.path.display();
            tracing::error!(
                "{left} bytes of {path} are damaged: what was in them cannot be read, until it is \
                 written or discarded"
            );
        }
    }
}
