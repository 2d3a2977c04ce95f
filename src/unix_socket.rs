//! Unix sockets to listen on: private from the moment they exist, in the place of one that a dead
//! server left, never in that of a live one, and gone when dropped.
//!
//! Of two servers that both find a dead socket, the second must find the first one's in its place,
//! and a socket that is bound and does not listen yet looks dead. So who changes what is at `PATH`
//! holds a lock on `PATH.lock`, a file that exists only meanwhile. (A lock on the directory would
//! be anyone's to hold who can read it.)
//!
//! No crate does this: those that bind a socket remove what has its name first, or set its mode afterwards.

use std::ffi::OsString;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::{Error, Result};

/// Most bytes in a Unix socket's path: `sun_path` less its terminating zero (unix(7)).
pub const MAX_SOCKET_PATH: usize = 107;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// A listening socket's file, removed when dropped; the socket itself should be closed after it.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Of our file: another server's at the same path is not ours to remove.
    identity: Option<Identity>,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some()
            && identity(&self.path) == self.identity
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Listens at `path`, for this user only; accepting does not block.
///
/// # Errors
/// [`Error::Unusable`] if something lives there already or the path is too long for a socket;
/// [`Error::Io`] for what the kernel says.
pub fn listen(path: &Path) -> Result<(OwnedFd, SocketFile)> {
    let address = address(path)?;
    let failed = |errno| Error::io(format!("listen on {}", path.display()), errno);
    let _turn = Turn::take(path)?;
    let socket = match bind(&address) {
        Err(Errno::ADDRINUSE) => {
            make_room(path)?;
            bind(&address)
        }
        other => other,
    }
    .map_err(failed)?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: identity(path),
    };
    net::listen(&socket, BACKLOG).map_err(failed)?;
    Ok((socket, file))
}

/// `path` as a socket address.
///
/// # Errors
/// [`Error::Unusable`] if it is longer than an address holds.
pub(crate) fn address(path: &Path) -> Result<SocketAddrUnix> {
    SocketAddrUnix::new(path).map_err(|_| {
        unusable(
            path,
            format!("a socket's path has at most {MAX_SOCKET_PATH} bytes and no NUL"),
        )
    })
}

/// Removes the socket at `path` if nobody listens on it; anything else is left alone.
///
/// # Errors
/// [`Error::Unusable`] if another process keeps the path locked; [`Error::Io`] for what the
/// kernel says.
pub fn remove_dead_socket(path: &Path) -> Result<()> {
    // The lock file of a turn that was killed goes with the turn that follows.
    if !matches!(occupant(path)?, Occupant::Dead) && !Turn::is_left(path) {
        return Ok(());
    }
    let _turn = Turn::take(path)?;
    match occupant(path)? {
        Occupant::Dead => remove(path),
        _ => Ok(()),
    }
}

/// What is at a path.
enum Occupant {
    Nothing,
    Dead,
    Alive,
    NoSocket,
}

fn occupant(path: &Path) -> Result<Occupant> {
    let failed = |errno| Error::io(format!("look at {}", path.display()), errno);
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => {}
        Ok(_) => return Ok(Occupant::NoSocket),
        Err(error) => {
            return match Errno::from_io_error(&error) {
                Some(Errno::NOENT | Errno::NOTDIR) => Ok(Occupant::Nothing),
                _ => Err(Error::io(format!("look at {}", path.display()), error)),
            };
        }
    }
    let probe = socket().map_err(failed)?;
    Ok(match net::connect(&probe, &address(path)?) {
        Err(Errno::CONNREFUSED) => Occupant::Dead,
        Err(Errno::NOENT) => Occupant::Nothing,
        // A full backlog or a refusal by permission is an owner as well.
        _ => Occupant::Alive,
    })
}

/// Makes sure that nothing is at `path`. The caller has its turn.
fn make_room(path: &Path) -> Result<()> {
    match occupant(path)? {
        Occupant::Nothing => Ok(()),
        Occupant::Dead => remove(path),
        Occupant::Alive => Err(unusable(
            path,
            "address in use: a server is already listening there",
        )),
        Occupant::NoSocket => Err(unusable(
            path,
            "it exists and is not a socket; remove it or choose another path",
        )),
    }
}

fn remove(path: &Path) -> Result<()> {
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Error::io(format!("remove {}", path.display()), errno)),
    }
}

fn bind(address: &SocketAddrUnix) -> rustix::io::Result<OwnedFd> {
    let socket = socket()?;
    // The file that bind makes takes its mode from the socket, so it is never open to others.
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    net::bind(&socket, address)?;
    Ok(socket)
}

/// A socket whose calls do not block.
fn socket() -> rustix::io::Result<OwnedFd> {
    let socket = net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    ioctl_fionbio(&socket, true)?;
    Ok(socket)
}

/// Device and inode.
type Identity = (u64, u64);

fn identity(path: &Path) -> Option<Identity> {
    let metadata = fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn unusable(path: &Path, reason: impl Into<String>) -> Error {
    Error::Unusable {
        path: path.to_owned(),
        reason: reason.into(),
    }
}

/// A turn at changing what is at a path: its lock file, removed when dropped.
struct Turn {
    lock: PathBuf,
    /// Closed after the file is removed, and so locked until then.
    _file: OwnedFd,
}

impl Turn {
    /// Attempts before giving up on whoever has the lock, and the time between them.
    const ATTEMPTS: u32 = 200;
    const PAUSE: Duration = Duration::from_millis(10);

    fn take(socket: &Path) -> Result<Self> {
        let lock = Self::lock_of(socket);
        for _ in 0..Self::ATTEMPTS {
            let taken = Self::try_lock(&lock)
                .map_err(|errno| Error::io(format!("lock {}", lock.display()), errno))?;
            if let Some(_file) = taken {
                // It is removed in the end.
                if !fs::symlink_metadata(&lock).is_ok_and(|found| is_lock_file(&found)) {
                    return Err(unusable(
                        &lock,
                        "is where a lock file is to be for a moment; move it away or choose another path",
                    ));
                }
                return Ok(Self { lock, _file });
            }
            thread::sleep(Self::PAUSE);
        }
        Err(unusable(
            &lock,
            "another process keeps it locked; remove it or choose another path",
        ))
    }

    fn lock_of(socket: &Path) -> PathBuf {
        let mut lock = OsString::from(socket);
        lock.push(".lock");
        lock.into()
    }

    /// Whether there is a lock file, of a turn that is taken or was killed.
    fn is_left(socket: &Path) -> bool {
        let found = fs::symlink_metadata(Self::lock_of(socket));
        found.is_ok_and(|found| is_lock_file(&found))
    }

    /// `None` if another has it, or has just removed it.
    fn try_lock(lock: &Path) -> rustix::io::Result<Option<OwnedFd>> {
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::open(lock, flags, Mode::RUSR | Mode::WUSR)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK | Errno::INTR) => return Ok(None),
            Err(errno) => return Err(errno),
        }
        let ours = rustix::fs::fstat(&file)?;
        let named = identity(lock) == Some((ours.st_dev, ours.st_ino));
        Ok(named.then_some(file))
    }
}

/// Whether it is as a turn makes it: with nothing in it.
fn is_lock_file(found: &fs::Metadata) -> bool {
    found.is_file() && found.len() == 0
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.lock) {
            tracing::warn!("cannot remove {}: {error}", self.lock.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    fn refusal(path: &Path) -> String {
        listen(path).expect_err("refused").to_string()
    }

    fn names(dir: &Path) -> Vec<OsString> {
        let entries = fs::read_dir(dir).expect("lists");
        entries.map(|e| e.expect("an entry").file_name()).collect()
    }

    #[test]
    fn the_file_is_private_and_goes_with_the_listener() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let (socket, file) = listen(&path).expect("listens");
        let mode = fs::symlink_metadata(&path).expect("exists").permissions();
        assert_eq!(mode.mode() & 0o7777, 0o600);
        assert_eq!(names(dir.path()), ["s"]);
        assert!(refusal(&path).contains("already listening"));
        remove_dead_socket(&path).expect("looks");
        UnixStream::connect(&path).expect("unharmed");
        drop((file, socket));
        assert!(names(dir.path()).is_empty());
        remove_dead_socket(&path).expect("nothing there");
    }

    #[test]
    fn a_dead_socket_is_replaced_and_anything_else_is_not() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).expect("binds"));
        let (_socket, first) = listen(&path).expect("replaces the dead one");

        fs::remove_file(&path).expect("removes");
        fs::write(&path, "precious").expect("writes");
        assert!(refusal(&path).contains("not a socket"));
        remove_dead_socket(&path).expect("looks");
        drop(first);
        assert_eq!(fs::read_to_string(&path).expect("stays"), "precious");

        let dead = dir.path().join("dead");
        drop(UnixListener::bind(&dead).expect("binds"));
        remove_dead_socket(&dead).expect("removes");
        assert_eq!(names(dir.path()), ["s"]);

        let long = dir.path().join("x".repeat(120));
        assert!(refusal(&long).contains("107"));
    }

    #[test]
    fn what_is_no_lock_file_stays() {
        let dir = tempfile::tempdir().expect("a directory");
        let (path, lock) = (dir.path().join("s"), dir.path().join("s.lock"));
        fs::write(&lock, "precious").expect("writes");
        assert!(refusal(&path).contains("s.lock"));
        remove_dead_socket(&path).expect("looks");
        drop(UnixListener::bind(&path).expect("binds"));
        remove_dead_socket(&path).expect_err("it cannot be locked");
        assert_eq!(fs::read_to_string(&lock).expect("stays"), "precious");
    }

    #[test]
    fn the_lock_file_of_a_turn_that_was_killed_goes() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        File::create(dir.path().join("s.lock")).expect("creates");
        remove_dead_socket(&path).expect("removes");
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn a_locked_directory_is_no_hindrance() {
        let dir = tempfile::tempdir().expect("a directory");
        let locked = File::open(dir.path()).expect("opens");
        locked.lock().expect("locks");
        listen(&dir.path().join("s")).expect("listens");
    }

    #[test]
    fn one_of_many_takes_the_place_of_a_dead_socket() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        for _ in 0..20 {
            drop(UnixListener::bind(&path).expect("binds"));
            let winners: Vec<_> = thread::scope(|scope| {
                let comers: Vec<_> = (0..4).map(|_| scope.spawn(|| listen(&path))).collect();
                let joined = comers.into_iter().map(|comer| comer.join().expect("ends"));
                joined.filter_map(Result::ok).collect()
            });
            assert_eq!(winners.len(), 1);
            UnixStream::connect(&path).expect("it is at its path");
            let (socket, file) = winners.into_iter().next().expect("the one");
            drop((file, socket));
            assert!(names(dir.path()).is_empty());
        }
    }
}
