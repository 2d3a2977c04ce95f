//! Unix sockets to listen on: mode 0600 from the first moment, a dead server's replaced, a living
//! one's left alone.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::{Error, Result};

const BACKLOG: i32 = 64;

/// A listening socket whose file goes when it does.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    /// Device and inode of our file: another server's at the same path is not ours to remove.
    identity: Option<(u64, u64)>,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && identity(&self.path) == self.identity {
            // Nobody is left to tell if it cannot be removed; the next server replaces it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens at `path`, for this user only.
///
/// # Errors
/// [`Error::Unusable`] if something lives there already or the path is too long for a socket;
/// [`Error::Io`] for what the kernel says.
pub(crate) fn listen(path: &Path) -> Result<(UnixListener, SocketFile)> {
    let address = address(path)?;
    let listener = match bind(&address) {
        Err(Errno::ADDRINUSE) => {
            remove_dead(path)?;
            bind(&address)
        }
        other => other,
    }
    .map_err(|errno| Error::io(format!("listen on {}", path.display()), errno))?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: identity(path),
    };
    Ok((listener, file))
}

/// `path` as a socket address.
///
/// # Errors
/// [`Error::Unusable`] if it is longer than an address holds.
pub(crate) fn address(path: &Path) -> Result<SocketAddrUnix> {
    SocketAddrUnix::new(path).map_err(|_| Error::Unusable {
        path: path.to_owned(),
        reason: "a socket's path has at most 107 bytes and no NUL".to_owned(),
    })
}

fn bind(address: &SocketAddrUnix) -> rustix::io::Result<UnixListener> {
    let socket: OwnedFd = net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // The file that bind makes takes its mode from the socket, so it is never open to others.
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o600))?;
    net::bind(&socket, address)?;
    net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

fn remove_dead(path: &Path) -> Result<()> {
    let unusable = |reason: &str| Error::Unusable {
        path: path.to_owned(),
        reason: reason.to_owned(),
    };
    let metadata = fs::symlink_metadata(path)
        .map_err(|error| Error::io(format!("look at {}", path.display()), error))?;
    if !metadata.file_type().is_socket() {
        return Err(unusable(
            "is not a socket; remove it or choose another path",
        ));
    }
    match UnixStream::connect(path) {
        Err(error) if error.raw_os_error() == Some(Errno::CONNREFUSED.raw_os_error()) => {
            fs::remove_file(path)
                .map_err(|error| Error::io(format!("remove {}", path.display()), error))
        }
        _ => Err(unusable("a server is already listening there")),
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn refusal(path: &Path) -> String {
        listen(path).expect_err("refused").to_string()
    }

    #[test]
    fn the_file_is_private_and_goes_with_the_listener() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let (listener, file) = listen(&path).expect("listens");
        let mode = fs::symlink_metadata(&path).expect("exists").permissions();
        assert_eq!(mode.mode() & 0o7777, 0o600);
        assert!(refusal(&path).contains("already listening"));
        drop((listener, file));
        assert!(!path.exists());
    }

    #[test]
    fn a_dead_socket_is_replaced_and_anything_else_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).expect("binds"));
        assert!(path.exists());
        let (_listener, first) = listen(&path).expect("replaces the dead one");

        fs::remove_file(&path).expect("removes");
        fs::write(&path, "precious").expect("writes");
        assert!(refusal(&path).contains("not a socket"));
        drop(first);
        assert_eq!(fs::read_to_string(&path).expect("stays"), "precious");

        let long = dir.path().join("x".repeat(120));
        assert!(refusal(&long).contains("107"));
    }
}
