//! Requests that wait for a flush: one for all of a connection's that wait at once.
//!
//! A flush makes durable what took effect before it began. So who comes while one is under way waits
//! for the next, which is for all that wait by then.

use super::wire::Request;

/// Requests of one connection that may wait for the next flush: as many as an honest client has
/// under way, and what they take is bounded.
const MOST_WAITING: usize = 1024;

/// One connection's. No more than one flush is under way at once.
#[derive(Default)]
pub(super) struct Flushes {
    /// Whom the one that is under way is for; none is if there are none.
    covered: Vec<Request>,
    /// Whom the next is for.
    waiting: Vec<Request>,
}

impl Flushes {
    /// Has a request wait for the next flush; returns false if too many do.
    pub(super) fn wait(&mut self, request: Request) -> bool {
        let may = self.waiting.len() < MOST_WAITING;
        if may {
            self.waiting.push(request);
        }
        may
    }

    /// Whether a flush is to begin: somebody waits for one, and none is under way. It has begun then.
    pub(super) fn begin(&mut self) -> bool {
        let begins = self.covered.is_empty() && !self.waiting.is_empty();
        if begins {
            std::mem::swap(&mut self.covered, &mut self.waiting);
        }
        begins
    }

    /// Ends the flush that was under way; returns whom it was for.
    pub(super) fn end(&mut self) -> Vec<Request> {
        std::mem::take(&mut self.covered)
    }
}
