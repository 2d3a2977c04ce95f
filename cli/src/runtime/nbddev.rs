//! Devices of the kernel's NBD driver, found through sysfs and made with nbd-client(8).
//!
//! The driver keeps no trace of which server a device is connected to, so `attach` notes that in
//! the server's run directory: the device, and what sysfs shows as its `pid`, which tells this
//! connection from a later one of somebody else's.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use uzram::SectorSize;
use uzram::nbd::Address;

use crate::base::name::Name;
use crate::base::program;
use crate::runtime::rundir::Turn;

/// How long a connection may take to appear in sysfs after nbd-client has made it.
const APPEARS: Duration = Duration::from_secs(5);

/// A connection of the driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NbdDevice {
    /// For example `/dev/nbd0`.
    pub(crate) path: PathBuf,
    /// As sysfs shows it.
    pid: String,
}

impl NbdDevice {
    /// The connection noted in the file `note`, if it still is there.
    pub(crate) fn noted(note: &Path) -> Option<Self> {
        let device: Self = serde_json::from_slice(&fs::read(note).ok()?).ok()?;
        device.is_connected().then_some(device)
    }

    fn is_connected(&self) -> bool {
        pid(&self.path).as_ref() == Some(&self.pid)
    }

    /// Connects a free device to the export `name` at `address`, and notes that in `note`; a
    /// device that cannot be noted is disconnected again. A request that the server does not answer
    /// within `timeout` seconds fails, and the device with it; 0 is for ever.
    pub(crate) fn connect(
        turn: &Turn,
        name: &Name,
        address: Address,
        timeout: u32,
        sectors: SectorSize,
        note: &Path,
    ) -> Result<Self> {
        let path = free()?;
        let client = program::find("nbd-client", "nbd-client")?;
        let arguments = arguments(name.as_str(), address, timeout, sectors, &path);
        program::run_in(turn.stdin()?, &client, arguments)?;
        let device = Self::appeared(path)?;
        if let Err(error) = device.write_note(note) {
            device.disconnect(APPEARS)?;
            return Err(error).with_context(|| format!("cannot write {}", note.display()));
        }
        Ok(device)
    }

    /// nbd-client may be done a moment before the driver is.
    fn appeared(path: PathBuf) -> Result<Self> {
        let deadline = Instant::now() + APPEARS;
        loop {
            if let Some(pid) = pid(&path) {
                return Ok(Self { path, pid });
            }
            if Instant::now() >= deadline {
                bail!(
                    "nbd-client connected {}, which is gone again",
                    path.display()
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn write_note(&self, note: &Path) -> io::Result<()> {
        let new = note.with_extension("new");
        fs::write(&new, serde_json::to_vec(self)?)?;
        fs::rename(&new, note)
    }

    /// Ends the connection, whoever uses it.
    pub(crate) fn disconnect(&self, timeout: Duration) -> Result<()> {
        let client = program::find("nbd-client", "nbd-client")?;
        let args = ["-d".as_ref(), self.path.as_os_str()];
        match program::run_within(&client, args, timeout) {
            // Gone meanwhile is what we wanted.
            Err(_) if !self.is_connected() => Ok(()),
            result => result
                .map(drop)
                .with_context(|| format!("cannot disconnect {}", self.path.display())),
        }
    }
}

/// What nbd-client is told.
fn arguments(
    name: &str,
    address: Address,
    timeout: u32,
    sectors: SectorSize,
    device: &Path,
) -> Vec<OsString> {
    let mut args: Vec<OsString> = match address {
        Address::Unix(path) => vec!["-unix".into(), path.into_os_string()],
        Address::Tcp { host, port } => vec![host.into(), port.to_string().into()],
    };
    args.push(device.into());
    args.extend(["-N", name, "-b", &sectors.to_string()].map(Into::into));
    if timeout != 0 {
        args.extend(["-timeout".into(), timeout.to_string().into()]);
    }
    args
}

/// The driver shows `pid` for as long as a device is connected.
fn pid(device: &Path) -> Option<String> {
    let sysfs = Path::new("/sys/block").join(device.file_name()?);
    let pid = fs::read_to_string(sysfs.join("pid")).ok()?;
    Some(pid.trim_end().to_owned())
}

fn free() -> Result<PathBuf> {
    (0..)
        .map(|n| PathBuf::from(format!("/dev/nbd{n}")))
        .take_while(|device| device.exists())
        .find(|device| pid(device).is_none())
        .context("no free /dev/nbdN: modprobe nbd, or serve with --fuse DIR, which needs no driver")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_out_is_passed_on_unless_there_is_none() {
        let device = Path::new("/dev/nbd0");
        let said = |address: &str, timeout, sectors| {
            let args = arguments("vm", address.parse().unwrap(), timeout, sectors, device);
            args.join(" ".as_ref()).into_string().unwrap()
        };
        assert_eq!(
            said("unix:/s", 60, SectorSize::Page),
            "-unix /s /dev/nbd0 -N vm -b 4096 -timeout 60"
        );
        assert_eq!(
            said("tcp:[::1]:10809", 0, SectorSize::Least),
            "::1 10809 /dev/nbd0 -N vm -b 512"
        );
    }

    #[test]
    fn a_note_counts_only_while_its_connection_is_there() {
        let temp = tempfile::tempdir().unwrap();
        let note = temp.path().join("nbd-device");
        assert_eq!(NbdDevice::noted(&note), None);
        let gone = NbdDevice {
            path: "/dev/nbd-none".into(),
            pid: "1".to_owned(),
        };
        gone.write_note(&note).unwrap();
        assert_eq!(NbdDevice::noted(&note), None);
        fs::write(&note, "/dev/nbd0").unwrap();
        assert_eq!(NbdDevice::noted(&note), None);
    }
}
