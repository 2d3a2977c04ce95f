//! The order in which the machine fills its swap areas.

use std::fmt;

/// Which of several swap areas is filled first: the one of the highest (swapon(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SwapPriority(i16);

impl SwapPriority {
    /// Reads a number from -1 to 32767.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let number: i16 = text.parse().ok()?;
        (number >= -1).then_some(Self(number))
    }
}

impl fmt::Display for SwapPriority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
