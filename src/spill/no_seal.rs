//! What stands for the secrecy of records in a build without the feature `encrypt`: there is no key.

use super::address::RecordAddress;
use crate::error::{Error, Result};
use crate::memory::DeviceMemory;

/// Bytes of an authentication tag.
pub(super) const TAG_LEN: usize = 16;

/// There is none, and so nothing to be done with one.
pub(crate) enum SealKey {}

pub(super) struct NotSealed;

impl SealKey {
    /// # Errors
    /// [`Error::InvalidConfig`]: records are to be sealed, and are not in this build.
    pub(super) fn new(_: Option<&DeviceMemory>) -> Result<Self> {
        Err(Error::InvalidConfig {
            option: "backing_encrypt",
            reason: "this build has no encryption: its cargo feature `encrypt` is off".to_owned(),
        })
    }

    pub(super) fn seal(&self, _: &mut [u8], _: u16, _: RecordAddress, _: u64) -> [u8; TAG_LEN] {
        match *self {}
    }

    pub(super) fn open(
        &self,
        _: [u8; TAG_LEN],
        _: &mut [u8],
        _: u16,
        _: RecordAddress,
        _: u64,
    ) -> Result<(), NotSealed> {
        match *self {}
    }

    pub(super) fn mask(&self, _: RecordAddress, _: u64) -> u16 {
        match *self {}
    }
}
