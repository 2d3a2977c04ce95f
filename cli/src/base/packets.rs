//! Packets between two processes: each is a message in JSON, and open files with it.
//!
//! Whoever sends waits for nobody: where the other does not receive, sending fails. Locks nothing.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketFlags, SocketType,
    recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The largest message, bytes.
const MAX_BYTES: usize = 128 << 10;

/// Most files in a packet: the kernel's own bound (SCM_MAX_FD).
const MAX_FILES: usize = 253;

/// One end.
#[derive(Debug)]
pub(crate) struct Packets(OwnedFd);

impl Packets {
    /// Two ends, the second for another process.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        Ok((Self(ours), theirs))
    }

    /// The end that a process has from the one that started it.
    pub(crate) fn of(end: OwnedFd) -> Self {
        Self(end)
    }

    /// The end that a process has as its stdin.
    pub(crate) fn on_stdin() -> io::Result<Self> {
        Ok(Self::of(io::stdin().as_fd().try_clone_to_owned()?))
    }

    /// Has both ends be closed, whoever has them open; what was sent is still received.
    pub(crate) fn close(&self) {
        // It fails if nobody has the other end any more.
        let _ = rustix::net::shutdown(&self.0, Shutdown::Both);
    }

    /// Sends a message with these files.
    ///
    /// # Errors
    /// The kernel's: EAGAIN if the other end has too much to receive, EPIPE if it is closed.
    pub(crate) fn send(
        &self,
        message: &impl Serialize,
        files: &[BorrowedFd<'_>],
    ) -> io::Result<()> {
        let text = serde_json::to_vec(message)?;
        if text.len() > MAX_BYTES || files.len() > MAX_FILES {
            return Err(ErrorKind::ArgumentListTooLong.into());
        }
        let rights = SendAncillaryMessage::ScmRights(files);
        let mut space = vec![MaybeUninit::uninit(); rights.size()];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() && !ancillary.push(rights) {
            return Err(ErrorKind::ArgumentListTooLong.into());
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        sendmsg(&self.0, &[IoSlice::new(&text)], &mut ancillary, flags)?;
        Ok(())
    }

    /// Waits for a message and its files; `None` once the other end is closed.
    ///
    /// # Errors
    /// The kernel's; `InvalidData` if it is not what was to come.
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut text = vec![0; MAX_BYTES];
        let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FILES))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let parts = &mut [IoSliceMut::new(&mut text)];
            match recvmsg(&self.0, parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                // It was killed before it received what we sent.
                Err(rustix::io::Errno::CONNRESET) => return Ok(None),
                received => break received?,
            }
        };
        if received.bytes == 0 {
            return Ok(None);
        }
        if received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
        {
            return Err(ErrorKind::InvalidData.into());
        }
        let files = ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(files) => files.collect(),
            _ => Vec::new(),
        });
        let files = files.collect();
        Ok(Some((
            serde_json::from_slice(&text[..received.bytes])?,
            files,
        )))
    }
}

impl AsFd for Packets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    #[test]
    fn files_come_with_their_message_until_the_other_end_is_closed() {
        let (one, other) = Packets::pair().unwrap();
        let other = Packets::of(other);
        let file = File::open("/proc/self/comm").unwrap();
        one.send(&["a", "b"], &[file.as_fd(), file.as_fd()])
            .unwrap();
        one.send(&7, &[]).unwrap();
        let (message, files) = other.receive::<Vec<String>>().unwrap().unwrap();
        assert_eq!((message, files.len()), (vec!["a".into(), "b".into()], 2));
        let mut read = String::new();
        File::from(files.into_iter().next().unwrap())
            .read_to_string(&mut read)
            .unwrap();
        assert!(!read.is_empty());
        // Not what was expected, but the next one is.
        let wrong = other.receive::<String>().unwrap_err();
        assert_eq!(wrong.kind(), ErrorKind::InvalidData);
        let long = "x".repeat(MAX_BYTES);
        assert!(one.send(&long, &[]).is_err());
        drop(one);
        assert!(other.receive::<String>().unwrap().is_none());
        assert!(other.send(&7, &[]).is_err());
    }

    #[test]
    fn one_end_is_closed_by_the_other_that_somebody_still_has() {
        let (one, other) = Packets::pair().unwrap();
        let other = Packets::of(other);
        other.send(&7, &[]).unwrap();
        one.close();
        assert_eq!(one.receive::<u8>().unwrap().unwrap().0, 7);
        assert!(one.receive::<u8>().unwrap().is_none() && other.receive::<u8>().unwrap().is_none());
        assert!(other.send(&7, &[]).is_err());
        drop(other);
        one.close();
    }

    #[test]
    fn who_sends_waits_for_nobody() {
        let (one, _other) = Packets::pair().unwrap();
        let refused = (0..1 << 20).find_map(|n| one.send(&n, &[]).err());
        assert_eq!(refused.unwrap().kind(), ErrorKind::WouldBlock);
    }
}
