//! The one place where a request is checked; what comes through is trusted afterwards.

use crate::block_device::check_range;

use super::reply::{MAX_DATA, NbdError};
use super::wire::{Command, MAX_SERVED, Request, cmd_flag};

/// What a connection allows.
pub(super) struct Limits {
    /// Bytes in the device.
    pub(super) size: u64,
    pub(super) read_only: bool,
    /// Whether structured replies were negotiated.
    pub(super) structured: bool,
    /// Whether a metadata context was selected.
    pub(super) has_contexts: bool,
}

/// Why a request is not executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) error: NbdError,
    pub(super) message: &'static str,
}

const fn refusal(error: NbdError, message: &'static str) -> Refusal {
    Refusal { error, message }
}

/// Checks `request` and returns its command.
pub(super) fn validate(request: &Request, limits: &Limits) -> Result<Command, Refusal> {
    let command = request
        .command
        .ok_or(refusal(NbdError::Inval, "unknown command"))?;
    check_flags(request, command, limits)?;
    if limits.read_only && writes(command) {
        return Err(refusal(NbdError::Perm, "the export is read-only"));
    }
    match command {
        Command::Flush if request.offset == 0 && request.length == 0 => Ok(command),
        Command::Flush => Err(refusal(NbdError::Inval, "a flush covers no range")),
        _ => {
            check_reach(request, command, limits)?;
            check_length(request, command, limits)?;
            Ok(command)
        }
    }
}

fn writes(command: Command) -> bool {
    matches!(
        command,
        Command::Write | Command::Trim | Command::WriteZeroes
    )
}

/// FUA is accepted everywhere, as the protocol demands of a server that offers it at all.
fn check_flags(request: &Request, command: Command, limits: &Limits) -> Result<(), Refusal> {
    let allowed = cmd_flag::FUA
        | match command {
            Command::Read if limits.structured => cmd_flag::DF,
            Command::WriteZeroes => cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO,
            Command::BlockStatus => cmd_flag::REQ_ONE,
            _ => 0,
        };
    if request.flags & !allowed == 0 {
        Ok(())
    } else {
        Err(refusal(
            NbdError::Inval,
            "unknown or misplaced command flag",
        ))
    }
}

/// Writing past the end is ENOSPC, everything else past it EINVAL.
fn check_reach(request: &Request, command: Command, limits: &Limits) -> Result<(), Refusal> {
    let error = match command {
        Command::Write | Command::WriteZeroes => NbdError::NoSpc,
        _ => NbdError::Inval,
    };
    check_range(request.offset, request.length.into(), limits.size)
        .map_err(|_| refusal(error, "the range reaches past the end of the export"))
}

fn check_length(request: &Request, command: Command, limits: &Limits) -> Result<(), Refusal> {
    let oversized = request.length > MAX_SERVED;
    match command {
        Command::Write if oversized => Err(refusal(NbdError::Inval, "a payload is at most 64 MiB")),
        // EOVERFLOW tells a client to ask for less; only these commands may use it.
        Command::Read if oversized && !limits.structured => {
            Err(refusal(NbdError::Inval, "a payload is at most 64 MiB"))
        }
        Command::Read | Command::Cache if oversized => {
            Err(refusal(NbdError::Overflow, "a read is at most 64 MiB"))
        }
        Command::Read if request.has(cmd_flag::DF) && request.length as usize > MAX_DATA => {
            Err(refusal(
                NbdError::Overflow,
                "a read in one chunk is at most 1280 KiB",
            ))
        }
        Command::BlockStatus if !limits.has_contexts => {
            Err(refusal(NbdError::Inval, "no metadata context was selected"))
        }
        Command::BlockStatus if request.length == 0 => {
            Err(refusal(NbdError::Inval, "no extent has length 0"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 1 << 30;
    const LIMITS: Limits = Limits {
        size: SIZE,
        read_only: false,
        structured: true,
        has_contexts: true,
    };

    fn request(command: Command, flags: u16, offset: u64, length: u32) -> Request {
        Request {
            flags,
            disconnects: false,
            command: Some(command),
            cookie: 0,
            offset,
            length,
        }
    }

    fn error(request: &Request, limits: &Limits) -> Option<NbdError> {
        validate(request, limits).err().map(|refusal| refusal.error)
    }

    #[test]
    fn the_last_byte_is_in_and_the_next_is_out() {
        use Command::{BlockStatus, Cache, Read, Trim, Write, WriteZeroes};
        for (command, beyond) in [
            (Read, NbdError::Inval),
            (Trim, NbdError::Inval),
            (Cache, NbdError::Inval),
            (BlockStatus, NbdError::Inval),
            (Write, NbdError::NoSpc),
            (WriteZeroes, NbdError::NoSpc),
        ] {
            let at = |offset, length| error(&request(command, 0, offset, length), &LIMITS);
            assert_eq!(at(SIZE - 1, 1), None, "{command:?}");
            assert_eq!(at(SIZE - 1, 2), Some(beyond), "{command:?}");
            assert_eq!(at(SIZE, 1), Some(beyond), "{command:?}");
            assert_eq!(at(u64::MAX, 1), Some(beyond), "{command:?}");
            assert_eq!(at(u64::MAX, u32::MAX), Some(beyond), "{command:?}");
        }
    }

    #[test]
    fn each_flag_belongs_to_its_command() {
        use Command::{BlockStatus, Cache, Flush, Read, Trim, Write, WriteZeroes};
        for command in [BlockStatus, Cache, Flush, Read, Trim, Write, WriteZeroes] {
            for bit in 0..16 {
                let length = if command == Flush { 0 } else { 4096 };
                let flag = 1 << bit;
                let allowed = match flag {
                    cmd_flag::FUA => true,
                    cmd_flag::NO_HOLE | cmd_flag::FAST_ZERO => command == WriteZeroes,
                    cmd_flag::DF => command == Read,
                    cmd_flag::REQ_ONE => command == BlockStatus,
                    _ => false,
                };
                let expected = (!allowed).then_some(NbdError::Inval);
                let got = error(&request(command, flag, 0, length), &LIMITS);
                assert_eq!(got, expected, "{command:?} {flag:#x}");
            }
        }
        let simple = Limits {
            structured: false,
            ..LIMITS
        };
        assert_eq!(
            error(&request(Read, cmd_flag::DF, 0, 1), &simple),
            Some(NbdError::Inval)
        );
    }

    #[test]
    fn only_payloads_are_bounded_in_length() {
        use Command::{BlockStatus, Cache, Read, Trim, Write, WriteZeroes};
        let over = MAX_SERVED + 1;
        for (command, expected) in [
            (Read, Some(NbdError::Overflow)),
            (Cache, Some(NbdError::Overflow)),
            (Write, Some(NbdError::Inval)),
            (Trim, None),
            (WriteZeroes, None),
            (BlockStatus, None),
        ] {
            assert_eq!(error(&request(command, 0, 0, MAX_SERVED), &LIMITS), None);
            let got = error(&request(command, 0, 0, over), &LIMITS);
            assert_eq!(got, expected, "{command:?}");
        }
    }

    #[test]
    fn a_read_only_export_refuses_what_writes() {
        use Command::{Cache, Read, Trim, Write, WriteZeroes};
        let limits = Limits {
            read_only: true,
            ..LIMITS
        };
        for command in [Write, Trim, WriteZeroes] {
            let got = error(&request(command, 0, 0, 1), &limits);
            assert_eq!(got, Some(NbdError::Perm), "{command:?}");
        }
        for command in [Read, Cache] {
            assert_eq!(error(&request(command, 0, 0, 1), &limits), None);
        }
    }
}
