//! Errno by name, as the protocol spells it.

use rustix::io::Errno;

/// What the library answers with. Any other errno travels as EIO, with its text intact.
const NAMES: [(Errno, &str); 24] = [
    (Errno::PERM, "EPERM"),
    (Errno::NOENT, "ENOENT"),
    (Errno::IO, "EIO"),
    (Errno::NXIO, "ENXIO"),
    (Errno::TOOBIG, "E2BIG"),
    (Errno::AGAIN, "EAGAIN"),
    (Errno::NOMEM, "ENOMEM"),
    (Errno::ACCESS, "EACCES"),
    (Errno::BUSY, "EBUSY"),
    (Errno::EXIST, "EEXIST"),
    (Errno::NODEV, "ENODEV"),
    (Errno::NOTDIR, "ENOTDIR"),
    (Errno::ISDIR, "EISDIR"),
    (Errno::INVAL, "EINVAL"),
    (Errno::MFILE, "EMFILE"),
    (Errno::FBIG, "EFBIG"),
    (Errno::NOSPC, "ENOSPC"),
    (Errno::ROFS, "EROFS"),
    (Errno::RANGE, "ERANGE"),
    (Errno::OPNOTSUPP, "EOPNOTSUPP"),
    (Errno::NOTCONN, "ENOTCONN"),
    (Errno::TIMEDOUT, "ETIMEDOUT"),
    (Errno::DQUOT, "EDQUOT"),
    (Errno::SHUTDOWN, "ESHUTDOWN"),
];

pub(super) fn name(errno: Errno) -> &'static str {
    let known = NAMES.iter().find(|(known, _)| *known == errno);
    known.map_or("EIO", |(_, name)| name)
}

pub(super) fn from_name(name: &str) -> Errno {
    let known = NAMES.iter().find(|(_, known)| *known == name);
    known.map_or(Errno::IO, |(errno, _)| *errno)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        for (errno, text) in NAMES {
            assert_eq!((name(errno), from_name(text)), (text, errno));
        }
        assert_eq!(name(Errno::XFULL), "EIO");
        assert_eq!(from_name("EWHATEVER"), Errno::IO);
    }
}
