//! The secrecy of records: AES-256-GCM under keys that exist only in this process.
//!
//! Invariants:
//! 1. The keys are random, made for one device, and nowhere but in one page of locked memory; and, for a device whose
//!    memory outlives the process, in one page of secret memory that does.
//! 2. A nonce is used once: it is a sequence number with an offset in a segment. A log gives out
//!    each offset once under a number ([`super::SegmentLog`]).

use std::io;

use ring::aead::quic::{self, HeaderProtectionKey};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, Tag, UnboundKey};
use ring::error::Unspecified;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::address::{RECORD_ALIGN, RecordAddress, SEGMENT_BYTES};
use crate::error::{Error, Result};
use crate::memory::{DeviceMemory, Locked};

/// Bytes of an authentication tag.
pub(super) const TAG_LEN: usize = 16;

/// The keys of a device.
pub(crate) struct SealKey(Locked<Keys>);

struct Keys {
    records: LessSafeKey,
    /// Makes the masks of their headers.
    headers: HeaderProtectionKey,
}

/// A record's tag did not verify.
pub(super) struct NotSealed;

impl SealKey {
    /// Random keys; or, of a device whose memory outlives the process, those that it has there.
    ///
    /// # Errors
    /// [`Error::Io`] if the kernel does not lock a page of memory, or has no randomness.
    pub(super) fn new(memory: Option<&DeviceMemory>) -> Result<Self> {
        let action = "lock 4 KiB of memory for the key of `BackingConfig::encrypt` (see ulimit -l)";
        let keys = Locked::new(|| match memory {
            Some(memory) => memory.with_key(fill_randomly, Keys::of),
            None => {
                let mut bytes = Zeroizing::new([0; KEY_BYTES]);
                fill_randomly(&mut bytes)?;
                Keys::of(&bytes)
            }
        });
        Ok(Self(keys.map_err(|error| Error::io(action, error))?))
    }

    /// Encrypts `bytes` in place; returns the tag, which also covers `len`, the length of the
    /// object in them.
    pub(super) fn seal(
        &self,
        bytes: &mut [u8],
        len: u16,
        at: RecordAddress,
        sequence: u64,
    ) -> [u8; TAG_LEN] {
        let sealed = self.0.records.seal_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce(at, sequence)),
            Aad::from(associated(len, at)),
            bytes,
        );
        let tag = sealed.expect("a record is not too long for AES-GCM");
        tag.as_ref()
            .try_into()
            .expect("AES-GCM's tags have 16 bytes")
    }

    /// Decrypts `bytes` in place.
    ///
    /// # Errors
    /// [`NotSealed`] if they are not what was sealed there; they are useless then.
    pub(super) fn open(
        &self,
        tag: [u8; TAG_LEN],
        bytes: &mut [u8],
        len: u16,
        at: RecordAddress,
        sequence: u64,
    ) -> Result<(), NotSealed> {
        let opened = self.0.records.open_in_place_separate_tag(
            Nonce::assume_unique_for_key(nonce(at, sequence)),
            Aad::from(associated(len, at)),
            Tag::from(tag),
            bytes,
            0..,
        );
        opened.map(drop).map_err(|Unspecified| NotSealed)
    }

    /// What the length in the header of the record at a place is combined with by exclusive or.
    pub(super) fn mask(&self, at: RecordAddress, sequence: u64) -> u16 {
        let mut block = [0; 16];
        block[..12].copy_from_slice(&nonce(at, sequence));
        let mask = self.0.headers.new_mask(&block);
        let [l0, l1, ..] = mask.expect("a block is 16 bytes");
        u16::from_le_bytes([l0, l1])
    }
}

/// Bytes of both keys.
const KEY_BYTES: usize = 64;

fn no_randomness(_: Unspecified) -> io::Error {
    io::Error::other("there is no randomness")
}

fn fill_randomly(bytes: &mut [u8; KEY_BYTES]) -> io::Result<()> {
    SystemRandom::new().fill(bytes).map_err(no_randomness)
}

impl Keys {
    fn of(bytes: &[u8; KEY_BYTES]) -> io::Result<Self> {
        let (records, headers) = bytes.split_at(KEY_BYTES / 2);
        let records = UnboundKey::new(&AES_256_GCM, records).map_err(no_randomness)?;
        Ok(Self {
            records: LessSafeKey::new(records),
            headers: HeaderProtectionKey::new(&quic::AES_256, headers).map_err(no_randomness)?,
        })
    }
}

/// Sequence number, and offset in the segment in units of 16 bytes.
fn nonce(at: RecordAddress, sequence: u64) -> [u8; 12] {
    let offset = (at.byte() % SEGMENT_BYTES) as usize / RECORD_ALIGN;
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&sequence.to_le_bytes());
    nonce[8..].copy_from_slice(&(offset as u32).to_le_bytes());
    nonce
}

/// What a tag covers beside the encrypted bytes, which have the page and the codec.
fn associated(len: u16, at: RecordAddress) -> [u8; 10] {
    let mut bytes = [0; 10];
    bytes[..2].copy_from_slice(&len.to_le_bytes());
    bytes[2..].copy_from_slice(&at.0.to_le_bytes());
    bytes
}
