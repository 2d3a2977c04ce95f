//! `uzram attach` and `uzram detach`: a served device as a block device of this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use uzram::nbd::Address;

use crate::args::{AttachArgs, NameArgs, Transport};
use crate::loopdev;
use crate::mount::require_root;
use crate::mounts;
use crate::output;
use crate::program;
use crate::release;
use crate::rundir::{Record, RunDir, RunRoot};
use crate::server;

/// How long nbd-client may take to disconnect from a server that may be dead.
const DISCONNECT: Duration = Duration::from_secs(20);

/// `uzram attach`.
pub(crate) fn attach(args: &AttachArgs, root: &RunRoot) -> Result<()> {
    require_root("attach")?;
    let dir = root.dir(&args.name);
    dir.require_owner()?;
    let Some(record) = dir.record() else {
        bail!("{} is only just starting: try again", args.name);
    };
    if let Some(device) = attached(&dir, &record).first() {
        let (name, device) = (&args.name, device.display());
        bail!("{name} is attached already, as {device}: uzram detach {name} first");
    }
    let transport = args.transport().unwrap_or(match record.fuse {
        Some(_) => Transport::Fuse,
        None => Transport::Nbd,
    });
    let device = match (transport, &record.fuse) {
        (Transport::Fuse, Some(fuse)) => loopdev::attach(&fuse.join("disk"))?.path,
        (Transport::Fuse, None) => bail!(
            "--fuse: {} is not served over FUSE: start it with uzram serve ... --fuse DIR",
            args.name
        ),
        (Transport::Nbd, _) => attach_nbd(&dir, &record)?,
    };
    output::line(format_args!("{}", device.display()))
}

/// `uzram detach`: what is attached, and all that a dead server left.
pub(crate) fn detach(args: &NameArgs, root: &RunRoot) -> Result<()> {
    let dir = root.dir(&args.name);
    if !dir.exists() {
        bail!("no device {} is being served: see uzram list", args.name);
    }
    let alive = dir.owner()?.is_some();
    let record = dir.record();
    let devices = record
        .as_ref()
        .map(|record| attached(&dir, record))
        .unwrap_or_default();
    if devices.is_empty() && alive {
        bail!("{} is not attached", args.name);
    }
    for device in &devices {
        require_root("detach")?;
        if let (Some(mount), Some(record)) = (mounts::of(device)?.first(), &record) {
            let mounted = release::describe_mount(mount, record);
            bail!("{} is {mounted}", device.display());
        }
    }
    for device in &devices {
        match loopdev::at(device) {
            Some(device) if alive => loopdev::detach(&device)?,
            Some(device) => loopdev::request_detach(&device)?,
            None => detach_nbd(&dir, device)?,
        }
    }
    if !alive {
        server::stop(&dir)?;
    }
    Ok(())
}

/// The block devices of this machine that lead to the server of `dir`.
fn attached(dir: &RunDir, record: &Record) -> Vec<PathBuf> {
    let loops = record.fuse.iter().flat_map(|fuse| loopdev::over(fuse));
    let mut devices: Vec<_> = loops.map(|device| device.path).collect();
    if let Ok(device) = fs::read_to_string(dir.nbd_device()) {
        let device = PathBuf::from(device);
        if nbd_is_connected(&device) {
            devices.push(device);
        }
    }
    devices
}

fn nbd_sysfs(device: &Path) -> PathBuf {
    Path::new("/sys/block").join(device.file_name().unwrap_or_default())
}

/// The driver shows `pid` for as long as a device is connected.
fn nbd_is_connected(device: &Path) -> bool {
    nbd_sysfs(device).join("pid").exists()
}

fn attach_nbd(dir: &RunDir, record: &Record) -> Result<PathBuf> {
    let Some(device) = free_nbd_device() else {
        bail!(
            "no free /dev/nbdN: modprobe nbd, or serve {} with --fuse DIR, which needs no driver",
            dir.name()
        );
    };
    let Some(address) = record.nbd.first() else {
        bail!("--nbd: {} is not served over NBD", dir.name());
    };
    let client = program::find("nbd-client", "nbd-client")?;
    let mut args: Vec<_> = match address.parse()? {
        Address::Unix(path) => vec!["-unix".into(), path.into_os_string()],
        Address::Tcp { host, port } => vec![host.into(), port.to_string().into()],
    };
    args.push(device.as_os_str().to_owned());
    args.extend(["-N", dir.name().as_str(), "-b", "4096"].map(Into::into));
    program::run(&client, args)?;
    fs::write(dir.nbd_device(), device.as_os_str().as_encoded_bytes())
        .with_context(|| format!("cannot write {}", dir.nbd_device().display()))?;
    Ok(device)
}

fn free_nbd_device() -> Option<PathBuf> {
    (0..)
        .map(|n| PathBuf::from(format!("/dev/nbd{n}")))
        .take_while(|device| device.exists())
        .find(|device| !nbd_is_connected(device))
}

fn detach_nbd(dir: &RunDir, device: &Path) -> Result<()> {
    let client = program::find("nbd-client", "nbd-client")?;
    program::run_within(&client, ["-d".as_ref(), device.as_os_str()], DISCONNECT)?;
    // Only a note of ours; a stale one is told from a live one by sysfs.
    let _ = fs::remove_file(dir.nbd_device());
    Ok(())
}
