//! The user that a server runs as, if that is not who starts it.

use std::fmt;
use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};
use nix::unistd;
use rustix::fs::{Gid, Uid};
use serde::{Deserialize, Serialize};

use crate::base::failure::Usage;

/// A user of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct User {
    name: String,
    pub(crate) uid: u32,
    /// His own group; a server is in no other.
    pub(crate) gid: u32,
}

impl User {
    /// The user whose name or number `text` is.
    ///
    /// # Errors
    /// If there is none.
    fn find(text: &str) -> Result<Self> {
        let found = match text.parse() {
            Ok(uid) => unistd::User::from_uid(unistd::Uid::from_raw(uid)),
            Err(_) => unistd::User::from_name(text),
        };
        match found {
            Ok(Some(user)) => Ok(Self {
                name: user.name,
                uid: user.uid.as_raw(),
                gid: user.gid.as_raw(),
            }),
            Ok(None) => Err(Usage::error(format!(
                "--user: there is no user {text}: useradd --system {text} makes one"
            ))),
            Err(error) => bail!("--user: cannot look up {text}: {error}"),
        }
    }

    /// The user whose name or number `text` is, unless that is who we are.
    ///
    /// # Errors
    /// If there is none, or we have no right to have anything run as another.
    pub(crate) fn other(text: &str) -> Result<Option<Self>> {
        let (user, ours) = (Self::find(text)?, rustix::process::geteuid());
        if user.uid == ours.as_raw() {
            return Ok(None);
        }
        if !ours.is_root() {
            bail!(
                "--user: only root can have a server run as {user}: run it with sudo, or leave --user out"
            );
        }
        Ok(Some(user))
    }
}

impl User {
    /// Makes a file that user's.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn own(&self, file: impl AsFd) -> Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let given = rustix::fs::fchown(file, Some(uid), Some(gid));
        given.with_context(|| format!("cannot give a file to {self}"))
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_name_and_by_number() {
        let daemon = User::find("daemon").unwrap();
        assert_eq!(User::find(&daemon.uid.to_string()).unwrap(), daemon);
        let error = User::find("no-such-user").unwrap_err();
        assert!(error.is::<Usage>(), "{error}");
        let ours = rustix::process::geteuid().as_raw().to_string();
        assert_eq!(User::other(&ours).unwrap(), None);
    }
}
