//! Running the system's own tools: losetup, mkfs, mount, umount, nbd-client.
//!
//! File systems on our own device are only ever unmounted by a child process. A thread of the
//! server stuck in such a system call would keep the FUSE connection alive, and with it the very
//! request it waits for.

use std::env;
use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail};

use crate::base::child_output::ChildOutput;
use crate::base::undo::Interrupt;

/// Where administrators' tools are when a user's PATH leaves them out.
const SYSTEM_DIRS: [&str; 3] = ["/usr/sbin", "/sbin", "/usr/local/sbin"];

/// How long a tool may take when the caller sets no bound of its own.
const LONG: Duration = Duration::from_secs(600);

/// Finds `tool`, of the Debian package `package`.
pub(crate) fn find(tool: &str, package: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(SYSTEM_DIRS.iter().map(PathBuf::from))
        .map(|dir| dir.join(tool))
        .find(|candidate| is_executable(candidate))
        .ok_or_else(|| anyhow!("{tool} is not installed: apt-get install {package}"))
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Runs a tool to its end and returns its stdout, trimmed. A failure quotes the first line of
/// its complaint; what follows is advice or its usage.
pub(crate) fn run<S: AsRef<OsStr>>(
    tool: &Path,
    args: impl IntoIterator<Item = S>,
) -> Result<String> {
    run_within(tool, args, LONG)
}

/// [`run`], for what makes something of which others are to know: its stdin is the name's `turn`, so that it
/// has that too, until its end, whatever becomes of us.
pub(crate) fn run_in<S: AsRef<OsStr>>(
    turn: Stdio,
    tool: &Path,
    args: impl IntoIterator<Item = S>,
) -> Result<String> {
    finish_in(turn, tool, args)?.into_stdout()
}

/// [`run_in`], of a tool whose exit status does not say whether it failed.
pub(crate) fn finish_in<S: AsRef<OsStr>>(
    turn: Stdio,
    tool: &Path,
    args: impl IntoIterator<Item = S>,
) -> Result<Finished> {
    finish_while(tool, args, turn, give_up_after(LONG))
}

/// [`run`], but gives up after `timeout`; the tool is then left to end by itself, because one
/// that waits for a dead disk cannot be killed.
pub(crate) fn run_within<S: AsRef<OsStr>>(
    tool: &Path,
    args: impl IntoIterator<Item = S>,
    timeout: Duration,
) -> Result<String> {
    finish_within(tool, args, timeout)?.into_stdout()
}

/// [`run_within`], of a tool whose exit status is an answer.
pub(crate) fn finish_within<S: AsRef<OsStr>>(
    tool: &Path,
    args: impl IntoIterator<Item = S>,
    timeout: Duration,
) -> Result<Finished> {
    finish_while(tool, args, Stdio::null(), give_up_after(timeout))
}

fn give_up_after(timeout: Duration) -> impl Fn(&str, &mut Child) -> Result<()> {
    let deadline = Instant::now() + timeout;
    move |shown, _| {
        if Instant::now() >= deadline {
            bail!("{shown} did not finish within {} s", timeout.as_secs_f32());
        }
        Ok(())
    }
}

/// [`run`], for as long as it takes, unless that is interrupted; the tool is then killed.
pub(crate) fn run_unless<S: AsRef<OsStr>>(
    tool: &Path,
    args: impl IntoIterator<Item = S>,
    interrupt: &Interrupt,
) -> Result<String> {
    let ended = finish_while(tool, args, Stdio::null(), |_, child| {
        interrupt.check().inspect_err(|_| kill(child))
    });
    let ended = ended.and_then(Finished::into_stdout);
    // Ctrl-C is for the tool as well: what counts is not what it says of that.
    interrupt.check().and(ended)
}

/// Kills a tool and waits until it is gone, unless it waits for a dead disk.
fn kill(child: &mut Child) {
    const TIMEOUT: Duration = Duration::from_secs(2);
    let deadline = Instant::now() + TIMEOUT;
    // It may have ended by itself.
    let _ = child.kill();
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
}

/// A tool that has come to its end.
#[derive(Debug)]
pub(crate) struct Finished {
    tool: String,
    pub(crate) status: ExitStatus,
    /// Trimmed.
    pub(crate) stdout: String,
    stderr: String,
}

impl Finished {
    /// Its stdout, if it succeeded.
    fn into_stdout(self) -> Result<String> {
        match self.status.success() {
            true => Ok(self.stdout),
            false => Err(self.complaint()),
        }
    }

    /// What to say of it, which failed.
    pub(crate) fn complaint(&self) -> Error {
        let (tool, status) = (&self.tool, self.status);
        let mut said = self.stderr.lines().map(str::trim);
        match said.find(|line| !line.is_empty()) {
            Some(line) => anyhow!("{tool} failed: {line}"),
            None => anyhow!("{tool} failed: {status}"),
        }
    }
}

/// Runs a tool to its end, or until `go_on`, which is asked often and told its name, fails.
fn finish_while<S: AsRef<OsStr>>(
    tool: &Path,
    args: impl IntoIterator<Item = S>,
    stdin: Stdio,
    go_on: impl Fn(&str, &mut Child) -> Result<()>,
) -> Result<Finished> {
    let shown = tool.file_name().unwrap_or(tool.as_os_str());
    let shown = shown.to_string_lossy();
    let mut child = Command::new(tool)
        .args(args)
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", tool.display()))?;
    let mut output = ChildOutput::take(&mut child)?;
    let mut pause = Duration::from_millis(1);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        go_on(&shown, &mut child)?;
        output.read(pause)?;
        pause = (pause * 2).min(Duration::from_millis(20));
    };
    // All that it has said is there, whoever else may have its pipes.
    output.read(Duration::ZERO)?;
    Ok(Finished {
        tool: shown.into_owned(),
        status,
        stdout: output.stdout().trim().to_owned(),
        stderr: output.stderr(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, timeout: Duration) -> Result<String> {
        run_within(&find("sh", "dash").unwrap(), ["-c", script], timeout)
    }

    #[test]
    fn output_failure_and_timeout() {
        let long = Duration::from_secs(60);
        assert_eq!(sh("echo out; echo noise >&2", long).unwrap(), "out");
        let error = sh("echo >&2; echo first >&2; echo last >&2; exit 3", long).unwrap_err();
        assert_eq!(error.to_string(), "sh failed: first");
        let error = sh("exec sleep 5", Duration::from_millis(20)).unwrap_err();
        assert!(error.to_string().contains("did not finish"), "{error}");
        let error = find("no-such-tool", "some-package").unwrap_err();
        assert!(error.to_string().ends_with("apt-get install some-package"));
    }
}
