//! The rights that a server gives up before it looks at anything of others': what a client, an image or a
//! backing could make of a fault in it is then bounded by what it keeps.
//!
//! | | given up | where |
//! |---|---|---|
//! | `capabilities` | all that are root's but the few that it uses | every server of root's |
//! | `syscalls` | system calls that a server never makes; they fail with EPERM | every server |
//! | `files` | all files but those that its options name (Landlock) | `--sandbox strict` |
//!
//! None of it can be taken back, and the tools that the server runs inherit it (`no_new_privs`). So a
//! server of another user than root that serves over FUSE gives up nothing: at its end it needs
//! fusermount3, which is setuid.
//!
//! Invariant: [`enter`] is called before the first thread is started that works for clients.

mod files;
mod syscalls;

use anyhow::{Context, Error, Result, anyhow};

use crate::args::SandboxMode;
use crate::base::capabilities;
use crate::runtime::rundir::{RunDir, RunRoot};
use crate::settings::Settings;

/// What is left to be given up once the server is ready.
#[must_use]
pub(crate) struct Entered {
    /// Whether it may still mount.
    mounts: bool,
}

/// Gives up what the settings say, but for what the start itself needs.
///
/// # Errors
/// In strict mode, if the kernel cannot keep the server to its files. What else the kernel refuses is
/// logged: a server with more rights than it needs is better than none.
pub(crate) fn enter(settings: &Settings, root: &RunRoot) -> Result<Entered> {
    let over_fuse = settings.fuse.is_some();
    let nothing = Entered { mounts: false };
    if settings.sandbox == SandboxMode::Off {
        return Ok(nothing);
    }
    let is_root = rustix::process::geteuid().is_root();
    if over_fuse && !is_root {
        tracing::debug!("no right is given up: fusermount3 needs them to unmount");
        return Ok(nothing);
    }
    warn(rustix::thread::set_no_new_privs(true).context("set no_new_privs"));
    if settings.sandbox == SandboxMode::Strict {
        root.ensure()?;
        files::restrict(settings, root).context("--sandbox strict")?;
    }
    warn(capabilities::drop_unused().context("drop capabilities"));
    warn(syscalls::deny(&syscalls::at_start(over_fuse)));
    Ok(Entered { mounts: over_fuse })
}

/// Gives up what a server has no use for that has a keeper, and with it no rights but its user's: files that it
/// was not handed, mounting and unmounting, other programs.
///
/// # Errors
/// In strict mode, if the kernel cannot keep the server to its files.
pub(crate) fn enter_kept(settings: &Settings) -> Result<()> {
    if settings.sandbox == SandboxMode::Off {
        return Ok(());
    }
    warn(rustix::thread::set_no_new_privs(true).context("set no_new_privs"));
    let restricted = files::restrict_kept(settings);
    match settings.sandbox {
        SandboxMode::Strict => restricted.context("--sandbox strict")?,
        _ => warn(restricted.context("keep it to its files")),
    }
    warn(capabilities::drop_unused().context("drop capabilities"));
    warn(syscalls::deny(&syscalls::kept(settings.fuse.is_some())));
    Ok(())
}

/// Gives up what a keeper has no use for once it has started its server.
pub(crate) fn enter_keeper(settings: &Settings) {
    if settings.sandbox == SandboxMode::Off {
        return;
    }
    warn(rustix::thread::set_no_new_privs(true).context("set no_new_privs"));
    warn(capabilities::drop_unused_but(capabilities::KILL).context("drop capabilities"));
    warn(syscalls::deny(&syscalls::at_start(false)));
}

impl Entered {
    /// Gives up what only the start needed.
    pub(crate) fn ready(self) {
        if self.mounts {
            warn(syscalls::deny(syscalls::MOUNTING));
        }
    }
}

fn warn(done: Result<()>) {
    if let Err(error) = done {
        tracing::warn!(
            "--sandbox: cannot {error:#}; the server keeps rights that it does not need"
        );
    }
}

/// What a server said of a file, with the reason if that is its sandbox.
pub(crate) fn explain(error: Error, dir: &RunDir) -> Error {
    let said = format!("{error:#}");
    let Some(record) = dir.record() else {
        return error;
    };
    if !said.contains("Permission denied") {
        return error;
    }
    let name = dir.name();
    if let Some(user) = record.user {
        return anyhow!("{said}: {name} is served by {user}, who may not");
    }
    if !record.strict {
        return error;
    }
    anyhow!(
        "{said}: {name} has --sandbox strict: name a file in a directory that its options name, or serve it \
         with --sandbox on"
    )
}
