//! What a server is to do: the resolved form of `serve`'s and `mount`'s arguments. Everything
//! that is wrong on any machine is refused here, before anything is made.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf, absolute};

use anyhow::{Context, Result, bail};
use uzram::nbd::Address;
use uzram::{BackingConfig, DeviceConfig, MAX_SOCKET_PATH, mounts};

use crate::args::DeviceArgs;
use crate::failure::Usage;
use crate::name::Name;
use crate::parse;
use crate::rundir::{Record, RunRoot};

/// A server to run. Every path is absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) name: Name,
    pub(crate) device: DeviceConfig,
    /// Where it serves NBD; may be empty if `fuse` is set.
    pub(crate) nbd: Vec<Address>,
    pub(crate) fuse: Option<PathBuf>,
    /// Where `uzram mount` mounts the file system it makes on it.
    pub(crate) mountpoint: Option<PathBuf>,
}

impl Settings {
    /// Checks `args` and fills in what they leave out.
    pub(crate) fn resolve(name: Name, args: DeviceArgs, root: &RunRoot) -> Result<Self> {
        let backing = match args.backing {
            Some(path) => Some(BackingConfig {
                path: absolute_option(&path, "--backing")?,
                size: args.backing_size,
            }),
            None => None,
        };
        let device = DeviceConfig {
            size: args.size,
            // As in zram's attribute, 0 is no limit.
            mem_limit: args.mem_limit.filter(|limit| *limit != 0),
            backing,
            algorithm: args.algorithm,
            pool: args.pool,
            shards: args.shards,
        };
        device.validate()?;
        let fuse = match args.fuse {
            Some(dir) => Some(mounts::absolute(&absolute_option(&dir, "--fuse")?)?),
            None => None,
        };
        let mut nbd = args
            .nbd
            .into_iter()
            .map(resolve_address)
            .collect::<Result<Vec<_>>>()?;
        let dir = root.dir(&name);
        // The control socket's name is the longest in the run directory.
        let control = dir.control_socket();
        if control.as_os_str().len() > MAX_SOCKET_PATH {
            bail!(
                "{} is too long for a Unix socket, {MAX_SOCKET_PATH} bytes: use a shorter NAME or \
                 set UZRAM_RUNDIR to a shorter path",
                control.display()
            );
        }
        if nbd.is_empty() && fuse.is_none() {
            nbd.push(Address::Unix(dir.nbd_socket()));
        }
        Ok(Self {
            name,
            device,
            nbd,
            fuse,
            mountpoint: None,
        })
    }

    /// The arguments that make `uzram` serve just this, in the background.
    pub(crate) fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["serve".into(), "--background".into()];
        let mut option = |name: &str, value: OsString| {
            // One word, so that no value is ever taken for an option.
            let mut word = OsString::from(format!("--{name}="));
            word.push(value);
            args.push(word);
        };
        let device = &self.device;
        option("size", device.size.to_string().into());
        if let Some(limit) = device.mem_limit {
            option("mem-limit", limit.to_string().into());
        }
        if let Some(backing) = &device.backing {
            option("backing", backing.path.clone().into());
            if let Some(size) = backing.size {
                option("backing-size", size.to_string().into());
            }
        }
        option("algorithm", device.algorithm.to_string().into());
        option("pool", parse::pool_text(device.pool).into());
        if let Some(shards) = device.shards {
            option("shards", shards.to_string().into());
        }
        for address in &self.nbd {
            option("nbd", address_text(address));
        }
        if let Some(fuse) = &self.fuse {
            option("fuse", fuse.clone().into());
        }
        if let Some(mountpoint) = &self.mountpoint {
            option("mountpoint", mountpoint.clone().into());
        }
        args.extend(["--".into(), self.name.as_str().into()]);
        args
    }

    /// What others need to know of a server that does this.
    pub(crate) fn record(&self) -> Record {
        Record {
            size: self.device.size,
            nbd: self.nbd.iter().map(ToString::to_string).collect(),
            fuse: self.fuse.clone(),
            fuse_device: None,
            mountpoint: self.mountpoint.clone(),
            spill: None,
        }
    }
}

/// What `--nbd` reads as `address`.
fn address_text(address: &Address) -> OsString {
    match address {
        Address::Unix(path) => {
            let mut text = OsString::from("unix:");
            text.push(path);
            text
        }
        tcp @ Address::Tcp { .. } => tcp.to_string().into(),
    }
}

fn resolve_address(address: Address) -> Result<Address> {
    let Address::Unix(path) = address else {
        return Ok(address);
    };
    let path = absolute_option(&path, "--nbd")?;
    if path.as_os_str().as_bytes().len() > MAX_SOCKET_PATH {
        return Err(Usage::error(format!(
            "--nbd: {} is too long for a Unix socket: use a path of at most {MAX_SOCKET_PATH} bytes",
            path.display()
        )));
    }
    if let Some(parent) = path.parent()
        && !parent.is_dir()
    {
        bail!(
            "--nbd: there is no directory {0}: mkdir {0} first",
            parent.display()
        );
    }
    Ok(Address::Unix(path))
}

fn absolute_option(path: &Path, option: &str) -> Result<PathBuf> {
    if path.as_os_str().is_empty() {
        return Err(Usage::error(format!("{option}: the path is empty")));
    }
    absolute(path).with_context(|| format!("{option}: cannot make sense of {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{self, Verb};

    fn resolve(words: &[&str]) -> Result<Settings> {
        let words = ["uzram", "serve"].iter().chain(words).map(OsString::from);
        let Verb::Serve(serve) = args::parse(words)?.verb else {
            bail!("not serve");
        };
        Settings::resolve(serve.name, serve.device, &RunRoot::locate()?)
    }

    #[test]
    fn settings_survive_being_passed_on() {
        let mut first = resolve(&[
            "x",
            "--size=1G",
            "--mem-limit=64M",
            "--backing=/tmp/b",
            "--backing-size=2G",
            "--algorithm=zstd:3",
            "--shards=4",
            "--nbd=unix:relative.sock",
            "--nbd=tcp:[::1]:10809",
            "--fuse=/mnt/a b",
        ])
        .unwrap();
        first.mountpoint = Some("/mnt/c d".into());
        let words = [OsString::from("uzram")].into_iter().chain(first.to_args());
        let Verb::Serve(serve) = args::parse(words).unwrap().verb else {
            panic!("not serve");
        };
        let root = RunRoot::locate().unwrap();
        let mut second = Settings::resolve(serve.name, serve.device, &root).unwrap();
        second.mountpoint = serve.mountpoint;
        assert_eq!(first, second);
        assert!(matches!(&first.nbd[0], Address::Unix(path) if path.is_absolute()));
    }

    #[test]
    fn the_default_is_nbd_in_the_run_directory() {
        let settings = resolve(&["x", "--size=1G"]).unwrap();
        let root = RunRoot::locate().unwrap();
        let socket = root.dir(&settings.name).nbd_socket();
        assert_eq!(settings.nbd, [Address::Unix(socket)]);
        let settings = resolve(&["x", "--size=1G", "--fuse=/mnt"]).unwrap();
        assert!(settings.nbd.is_empty());
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        let long = format!("--nbd=unix:/{}", "x".repeat(200));
        for words in [
            &["x", "--size=0"][..],
            &["x", "--size=4097"],
            &["x", "--size=17T"],
            &["x", "--size=1G", "--mem-limit=4K"],
            &["x", "--size=1G", "--shards=0"],
            &["x", "--size=1G", &long],
        ] {
            let error = resolve(words).unwrap_err();
            assert_eq!(crate::failure::exit_code(&error), 2, "{words:?}: {error}");
        }
    }
}
