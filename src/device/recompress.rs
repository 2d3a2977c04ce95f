//! Recompressing pages when that is asked for.

use super::Device;
use crate::error::Result;
use crate::maintain::{Plan, Wanted};
use crate::recompression::Recompression;

impl Device {
    /// Recompresses chosen pages, those of them that are in memory, and packs what is left of
    /// their zspages; returns how many pages have become smaller. A page that is read, written or
    /// discarded meanwhile stays as it is, and so does one that would not lie in a smaller size
    /// class. What was tried is not tried again until it is written, or another algorithm is set,
    /// unless the request names an algorithm that is not. The device is in use meanwhile.
    ///
    /// # Errors
    /// [`crate::Error::Refused`], EINVAL if there is no such algorithm to recompress with, EINTR once the device
    /// is stopping; [`crate::Error::NoSpace`] if there is no backing, and no memory to recompress in.
    pub fn recompress(&self, request: &Recompression) -> Result<u64> {
        let plan = Plan::new(request, &self.engine.codecs.secondary())?;
        let wanted = Wanted {
            request,
            plan: &plan,
            age: None,
        };
        let smaller = self.recompressor.recompress(&wanted)?;
        if smaller > 0 {
            self.compact();
        }
        Ok(smaller)
    }
}
