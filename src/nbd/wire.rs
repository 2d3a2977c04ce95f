//! The protocol's numbers and fixed layouts, under the names and in the order that the
//! specification gives them (NetworkBlockDevice/nbd, `doc/proto.md`). All integers are big-endian.
//!
//! Nothing here decides anything; nothing here locks.

use std::ops::Range;

/// First eight bytes that a server sends.
pub(super) const NBDMAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
/// Opens the server's newstyle greeting and every option of a client.
pub(super) const IHAVEOPT: u64 = u64::from_be_bytes(*b"IHAVEOPT");
/// Opens the server's reply to an option.
pub(super) const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Longest string of the protocol, export names among them, in bytes.
pub(super) const MAX_STRING: usize = 4096;
/// Largest payload of one READ or WRITE that clients are told of, in bytes: the advertised maximum.
pub(super) const MAX_PAYLOAD: u32 = 32 << 20;
/// Largest that is served, in bytes, to clients that do not ask for the maximum: as much as nbdkit serves, and libnbd
/// sends.
pub(super) const MAX_SERVED: u32 = 64 << 20;
/// Smallest alignment and length of a request, in bytes.
pub(super) const MIN_BLOCK: u32 = 1;
/// Alignment at which a request needs no read-modify-write, in bytes.
pub(super) const PREFERRED_BLOCK: u32 = 4096;

/// Handshake flags of the server, and the client flags that answer them bit for bit.
pub(super) mod handshake {
    pub(crate) const FIXED_NEWSTYLE: u16 = 1 << 0;
    pub(crate) const NO_ZEROES: u16 = 1 << 1;
}

/// Transmission flags.
pub(super) mod transmission_flag {
    pub(crate) const HAS_FLAGS: u16 = 1 << 0;
    pub(crate) const READ_ONLY: u16 = 1 << 1;
    pub(crate) const SEND_FLUSH: u16 = 1 << 2;
    pub(crate) const SEND_FUA: u16 = 1 << 3;
    pub(crate) const SEND_TRIM: u16 = 1 << 5;
    pub(crate) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(crate) const SEND_DF: u16 = 1 << 7;
    pub(crate) const CAN_MULTI_CONN: u16 = 1 << 8;
    pub(crate) const SEND_CACHE: u16 = 1 << 10;
    pub(crate) const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Option types.
pub(super) mod opt {
    pub(crate) const EXPORT_NAME: u32 = 1;
    pub(crate) const ABORT: u32 = 2;
    pub(crate) const LIST: u32 = 3;
    pub(crate) const STARTTLS: u32 = 5;
    pub(crate) const INFO: u32 = 6;
    pub(crate) const GO: u32 = 7;
    pub(crate) const STRUCTURED_REPLY: u32 = 8;
    pub(crate) const LIST_META_CONTEXT: u32 = 9;
    pub(crate) const SET_META_CONTEXT: u32 = 10;
}

/// Option reply types.
pub(super) mod rep {
    pub(crate) const ACK: u32 = 1;
    pub(crate) const SERVER: u32 = 2;
    pub(crate) const INFO: u32 = 3;
    pub(crate) const META_CONTEXT: u32 = 4;
    pub(crate) const ERR_UNSUP: u32 = (1 << 31) + 1;
    pub(crate) const ERR_POLICY: u32 = (1 << 31) + 2;
    pub(crate) const ERR_INVALID: u32 = (1 << 31) + 3;
    pub(crate) const ERR_TLS_REQD: u32 = (1 << 31) + 5;
    pub(crate) const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    pub(crate) const ERR_SHUTDOWN: u32 = (1 << 31) + 7;
    pub(crate) const ERR_TOO_BIG: u32 = (1 << 31) + 9;
}

/// Information types of INFO and GO.
pub(super) mod info {
    pub(crate) const EXPORT: u16 = 0;
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DESCRIPTION: u16 = 2;
    pub(crate) const BLOCK_SIZE: u16 = 3;
}

/// Opens every request of the transmission phase.
pub(super) const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Opens a simple reply.
pub(super) const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Opens a structured reply chunk.
pub(super) const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Command flags.
pub(super) mod cmd_flag {
    pub(crate) const FUA: u16 = 1 << 0;
    pub(crate) const NO_HOLE: u16 = 1 << 1;
    pub(crate) const DF: u16 = 1 << 2;
    pub(crate) const REQ_ONE: u16 = 1 << 3;
    pub(crate) const FAST_ZERO: u16 = 1 << 4;
}

/// Structured reply chunk types, and the one flag of a chunk.
pub(super) mod chunk {
    pub(crate) const FLAG_DONE: u16 = 1 << 0;
    pub(crate) const NONE: u16 = 0;
    pub(crate) const OFFSET_DATA: u16 = 1;
    pub(crate) const OFFSET_HOLE: u16 = 2;
    pub(crate) const BLOCK_STATUS: u16 = 5;
    pub(crate) const ERROR: u16 = (1 << 15) + 1;
    pub(crate) const ERROR_OFFSET: u16 = (1 << 15) + 2;
}

/// Status flags of `base:allocation`.
pub(super) mod state {
    pub(crate) const HOLE: u32 = 1 << 0;
    pub(crate) const ZERO: u32 = 1 << 1;
}

/// The one request type that has no reply.
const DISC: u16 = 2;

/// A request type that this server executes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Read,
    Write,
    Flush,
    Trim,
    Cache,
    WriteZeroes,
    BlockStatus,
}

impl Command {
    fn from_wire(number: u16) -> Option<Self> {
        Some(match number {
            0 => Self::Read,
            1 => Self::Write,
            3 => Self::Flush,
            4 => Self::Trim,
            5 => Self::Cache,
            6 => Self::WriteZeroes,
            7 => Self::BlockStatus,
            _ => return None,
        })
    }
}

/// A request's header, as sent: nothing in it has been checked against the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) flags: u16,
    /// Whether it says goodbye, and nothing else.
    pub(super) disconnects: bool,
    /// `None` for a type that this server does not execute.
    pub(super) command: Option<Command>,
    /// Repeated in every reply, opaque.
    pub(super) cookie: u64,
    pub(super) offset: u64,
    pub(super) length: u32,
}

impl Request {
    /// Bytes of a request's header.
    pub(super) const SIZE: usize = 28;

    /// Reads a header; `None` if its magic is wrong.
    pub(super) fn decode(header: &[u8; Self::SIZE]) -> Option<Self> {
        let mut fields = Fields(header);
        if fields.u32()? != REQUEST_MAGIC {
            return None;
        }
        let (flags, kind) = (fields.u16()?, fields.u16()?);
        Some(Self {
            flags,
            disconnects: kind == DISC,
            command: Command::from_wire(kind),
            cookie: fields.u64()?,
            offset: fields.u64()?,
            length: fields.u32()?,
        })
    }

    /// The bytes it is about; once validated, they are inside the device.
    pub(super) fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64::from(self.length)
    }

    /// Whether `flag` is set.
    pub(super) fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }
}

/// Takes fields off the front of a message; `None` where it is too short.
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string with its 32-bit length before it.
    pub(super) fn string(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()?;
        self.bytes(usize::try_from(length).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(magic: u32, command: u16) -> [u8; Request::SIZE] {
        let mut bytes = Vec::new();
        bytes.extend(magic.to_be_bytes());
        bytes.extend(0x0003u16.to_be_bytes());
        bytes.extend(command.to_be_bytes());
        bytes.extend(0x1122_3344_5566_7788u64.to_be_bytes());
        bytes.extend(0x0102_0304_0506_0708u64.to_be_bytes());
        bytes.extend(0xfffe_fdfcu32.to_be_bytes());
        bytes.try_into().expect("28 bytes")
    }

    #[test]
    fn a_request_header_decodes_field_by_field() {
        let request = Request::decode(&header(REQUEST_MAGIC, 6)).expect("the magic is right");
        assert_eq!(
            request,
            Request {
                flags: cmd_flag::FUA | cmd_flag::NO_HOLE,
                disconnects: false,
                command: Some(Command::WriteZeroes),
                cookie: 0x1122_3344_5566_7788,
                offset: 0x0102_0304_0506_0708,
                length: 0xfffe_fdfc,
            }
        );
    }

    #[test]
    fn an_unknown_command_is_still_a_request_and_a_wrong_magic_is_not() {
        let unknown = Request::decode(&header(REQUEST_MAGIC, 8)).expect("the magic is right");
        assert_eq!((unknown.command, unknown.disconnects), (None, false));
        let goodbye = Request::decode(&header(REQUEST_MAGIC, DISC)).expect("the magic is right");
        assert_eq!((goodbye.command, goodbye.disconnects), (None, true));
        assert_eq!(Request::decode(&header(REQUEST_MAGIC + 1, 0)), None);
    }

    #[test]
    fn fields_never_reach_past_the_end() {
        let mut fields = Fields(&[0, 0, 0, 2, b'a']);
        assert_eq!(fields.string(), None);
        assert_eq!(Fields(&[0xff, 0xff, 0xff, 0xff]).string(), None);
        assert_eq!(Fields(&[0, 0, 0, 0]).string(), Some(&[][..]));
        assert_eq!(Fields(&[1]).u16(), None);
    }
}
