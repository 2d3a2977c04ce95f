//! What a keeper and its server say to each other.
//!
//! A server that runs as another user ([`crate::base::user::User`]) has no rights but that user's. The keeper,
//! which has started it, has its starter's: it has opened what the server works on, and does at the end what
//! needs rights.
//!
//! ```text
//! keeper (root)                                  server (USER)
//!   lock, record, mount, sockets, files ── Start ──> the device and all who use it
//!   `ready`, systemd                    <── Ready, Alive, Stopping
//!   the record of spills, their removal <── Opened, Closed ── Noted ──>
//!   signals                             ── Stop ──>
//!   unmounts, detaches                  <── Free ── Freed ──>
//!   removes what is left                <── the end of its process
//! ```
//!
//! Invariants:
//! 1. The keeper reads nothing of clients, images or backings, and waits for the server in nothing but its end.
//! 2. What the server says is believed as far as it could do the same itself: a file that it says it spills to is
//!    one that it has open, to write to, or that is its user's; but not its image, nor the lock.
//! 3. Whichever of the two dies, the other sees the end of the connection. The keeper has the name's lock; where
//!    it is killed the server takes that ([`Handed::Lock`]) and stops.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::settings::Settings;

/// What the keeper says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToServer {
    /// What to serve; the first of all, and the only one with files.
    Start(Box<Start>),
    /// Stop; said again, at once.
    Stop,
    /// That was done as far as it could be.
    Freed(Over),
    /// What was said of a spill is in the record; or else why not.
    Noted(Result<(), String>),
}

/// What a server is to do, and with what.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) settings: Settings,
    /// What the files are that come with it, one for each.
    pub(crate) handed: Vec<Handed>,
    /// How often systemd is to hear of it.
    pub(crate) watchdog: Option<Duration>,
}

/// What a file is that is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Handed {
    /// The name's lock, not locked by the server.
    Lock,
    /// The listening control socket.
    Control,
    /// Where to log once ready.
    Log,
    Backing {
        made: bool,
    },
    Origin,
    /// The image to restore.
    Restore,
    /// A listening socket for NBD.
    Nbd,
    /// A listening socket for metrics.
    Metrics,
    /// The connection of the FUSE directory.
    Fuse,
}

/// By which way a device of this machine leads to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Over {
    /// The FUSE directory.
    Fuse,
    Nbd,
}

/// What the server says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToKeeper {
    Ready,
    /// It still answers.
    Alive,
    Stopping,
    /// Free the device from what is attached to it that way, and unmount the FUSE directory; is there time for
    /// all to be written out?
    Free {
        over: Over,
        unhurried: bool,
    },
    /// It has claimed a file to spill to, which comes with this: one that was `made` for that is to be removed.
    Opened {
        path: PathBuf,
        made: bool,
    },
    /// It does not use that any more.
    Closed {
        path: PathBuf,
    },
}
