//! The library's one error type. Every failure keeps its cause and has one errno.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno as KernelErrno;

/// A `Result` with this library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting makes no sense whatever the machine: `option` names it, `reason` says what would.
    #[error("{option}: {reason}")]
    InvalidConfig {
        /// The setting or attribute, as it is named here: `mem_limit` of [`DeviceConfig`](crate::DeviceConfig), say.
        option: &'static str,
        /// What is wrong and what would be right.
        reason: String,
    },

    /// A request reaches past the end of the device.
    #[error("the request covers bytes {offset}..{end}, the device ends at {size}")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// Byte after the last, saturated.
        end: u64,
        /// Bytes in the device.
        size: u64,
    },

    /// No memory under the limit and nowhere left to spill.
    #[error("no space: {0}")]
    NoSpace(&'static str),

    /// A spilled page cannot be read back: the backing fails.
    #[error("page {page} cannot be read back from the backing: {source}")]
    Unreadable {
        /// Index of the page.
        page: u32,
        /// The backing's answer.
        source: io::Error,
    },

    /// A page cannot be read from the image.
    #[error("page {page} cannot be read from the image: {source}")]
    Absent {
        /// Index of the page.
        page: u32,
        /// The image's answer.
        source: io::Error,
    },

    /// A page is lost: what the backing has, or the image that the device was restored from, is not what
    /// was written there.
    #[error(
        "page {page} is lost until it is written or discarded: its record in the backing or the image is \
         damaged"
    )]
    Damaged {
        /// Index of the page.
        page: u32,
    },

    /// An object in memory does not decompress: memory was damaged.
    #[error("page {page} does not decompress")]
    Corrupt {
        /// Index of the page.
        page: u32,
    },

    /// The file at `path` cannot serve as asked.
    #[error("{}: {reason}", path.display())]
    Unusable {
        /// The file, directory or socket.
        path: PathBuf,
        /// What is wrong and what would be right.
        reason: String,
    },

    /// `what` does not allow this, ever or as things stand.
    #[error("{what}: {reason}")]
    Refused {
        /// The attribute or operation.
        what: &'static str,
        /// Why not.
        reason: String,
        /// EACCES, EBUSY, EINVAL, EPERM: what the kernel answers in the same place.
        errno: Errno,
    },

    /// Another process, asked over its control socket, answered with an error.
    #[error("{message}")]
    Remote {
        /// Its one line.
        message: String,
        /// Its errno.
        errno: Errno,
        /// Whether it says that the request makes no sense, whatever the machine.
        is_usage: bool,
    },

    /// The kernel refused `action`.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried, as a verb phrase: "open /var/tmp/spill".
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// An error number of the kernel's (errno(3)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(i32);

impl Errno {
    /// The number, as the kernel and its clients have it.
    pub const fn raw_os_error(self) -> i32 {
        self.0
    }
}

impl From<KernelErrno> for Errno {
    fn from(errno: KernelErrno) -> Self {
        Self(errno.raw_os_error())
    }
}

impl From<Errno> for KernelErrno {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}

impl PartialEq<KernelErrno> for Errno {
    fn eq(&self, other: &KernelErrno) -> bool {
        *self == Self::from(*other)
    }
}

impl Error {
    /// An [`Error::Io`] for `action`.
    pub fn io(action: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            action: action.into(),
            source: source.into(),
        }
    }

    /// The errno a client is answered with.
    pub fn errno(&self) -> Errno {
        let errno = match self {
            Self::InvalidConfig { .. } | Self::OutOfRange { .. } => KernelErrno::INVAL,
            Self::NoSpace(_) => KernelErrno::NOSPC,
            Self::Unreadable { .. }
            | Self::Absent { .. }
            | Self::Damaged { .. }
            | Self::Corrupt { .. } => KernelErrno::IO,
            Self::Unusable { .. } => KernelErrno::INVAL,
            Self::Refused { errno, .. } | Self::Remote { errno, .. } => return *errno,
            Self::Io { source, .. } => {
                KernelErrno::from_io_error(source).unwrap_or(KernelErrno::IO)
            }
        };
        errno.into()
    }

    /// That `what` does not allow it.
    pub(crate) fn refused(
        what: &'static str,
        errno: impl Into<Errno>,
        reason: impl Into<String>,
    ) -> Self {
        Self::Refused {
            what,
            reason: reason.into(),
            errno: errno.into(),
        }
    }

    /// Whether the user asked for something impossible, as opposed to the machine failing at it.
    pub fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::InvalidConfig { .. } | Self::Remote { is_usage: true, .. }
        )
    }
}
