//! What a server is to do: the resolved form of `serve`'s and `mount`'s arguments. Everything
//! that is wrong on any machine is refused here, before anything is made.

pub(crate) mod config;
pub(crate) mod exposure;
pub(crate) mod shortage;
pub(crate) mod swap_priority;

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf, absolute};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use uzram::nbd::{Address, ServerConfig, TlsConfig};
use uzram::{
    Algorithm, BackingConfig, DeviceConfig, MAX_SOCKET_PATH, OriginConfig, OriginUse, mounts,
};

use crate::args::Sink;
use crate::args::{DeviceArgs, ExportArgs, SandboxMode, TlsMode};
use crate::base::failure::Usage;
use crate::base::name::Name;
use crate::base::table::bytes;
use crate::base::user::User;

/// A server to run. Every path is absolute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) name: Name,
    pub(crate) device: DeviceConfig,
    /// Whether it may be one whose writes can fail for want of memory.
    pub(crate) allow_enospc: bool,
    /// The image that it is filled from.
    pub(crate) restore: Option<PathBuf>,
    /// Whether all of it is to be read first.
    pub(crate) verify_image: bool,
    /// How it serves NBD; it has no addresses only if `fuse` is set.
    pub(crate) nbd: ServerConfig,
    pub(crate) fuse: Option<PathBuf>,
    /// Where its metrics go.
    pub(crate) metrics: Vec<Sink>,
    /// Which rights it gives up.
    pub(crate) sandbox: SandboxMode,
    /// Who it runs as, if that is another than who starts it.
    pub(crate) user: Option<User>,
    /// Whether it serves swap.
    pub(crate) swap: bool,
    /// Where `uzram mount` mounts the file system it makes on it.
    pub(crate) mountpoint: Option<PathBuf>,
}

/// The sockets that a server has in its run directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sockets {
    pub(crate) control: PathBuf,
    /// Where it serves NBD if nothing else is asked for.
    pub(crate) nbd: PathBuf,
}

impl Settings {
    /// Checks `args` and fills in what they leave out.
    pub(crate) fn resolve(name: Name, args: DeviceArgs, sockets: &Sockets) -> Result<Self> {
        let backing = match args.backing {
            Some(path) => {
                let mut backing = BackingConfig::new(absolute_option(&path, "--backing")?);
                backing.size = args.backing_size;
                backing.encrypt = args.backing_encrypt;
                backing.keep = args.backing_keep.unwrap_or_default();
                backing.force = args.backing_force;
                Some(backing)
            }
            None => None,
        };
        let restore = match args.restore {
            Some(path) => Some(absolute_option(&path, "--restore")?),
            // Clap does not say so beside --size, as below.
            None if args.verify_image => {
                return Err(Usage::error(
                    "--verify-image is about the image of --restore",
                ));
            }
            None => None,
        };
        let origin = match args.origin {
            Some(path) => {
                let usage = if args.snapshot || args.read_only {
                    OriginUse::Snapshot
                } else {
                    OriginUse::WriteBack(args.sync.unwrap_or_default())
                };
                let path = absolute_option(&path, "--origin")?;
                let mut origin = OriginConfig::new(path, usage);
                origin.format = args.origin_format.unwrap_or_default();
                Some(origin)
            }
            // Clap does not say so beside --size, which it knows to be given instead of --origin.
            None if args.snapshot || args.sync.is_some() || args.origin_format.is_some() => {
                return Err(Usage::error(
                    "--snapshot, --sync and --origin-format are about the image of --origin",
                ));
            }
            None => None,
        };
        let size = match &origin {
            Some(origin) => origin.size()?,
            None => size_of(args.size, restore.as_deref())?,
        };
        let mut device = DeviceConfig::new(size);
        device.origin = origin;
        device.read_only = args.read_only;
        device.max_size = args.max_size;
        // As in zram's attribute, 0 is no limit.
        device.mem_limit = args.mem_limit.filter(|limit| *limit != 0);
        device.table_limit = args.table_limit;
        device.backing = backing;
        device.writeback_daily_limit = args.writeback_daily_limit.filter(|limit| *limit != 0);
        device.algorithm = args.algorithm;
        device.recompress_after = recompress_after(&args.recompress, args.after);
        device.recompress = args.recompress;
        device.pool = args.pool;
        device.shards = args.shards;
        device.slow_request = args.watch.slow.map(Duration::from_millis);
        device.validate()?;
        let fuse = match args.fuse {
            Some(dir) => Some(mounts::absolute(&absolute_option(&dir, "--fuse")?)?),
            None => None,
        };
        let user = args.user.as_deref().map(User::other).transpose()?.flatten();
        if fuse.is_some() && args.sandbox == SandboxMode::Strict && user.is_none() {
            return Err(Usage::error(
                "--sandbox strict: a server over FUSE has to unmount: use --sandbox on, --user, or NBD",
            ));
        }
        let metrics = args.watch.metrics.into_iter().map(resolve_sink);
        let metrics: Vec<_> = metrics.collect::<Result<_>>()?;
        let mut nbd = resolve_export(&name, args.export, &sockets.nbd)?;
        // The control socket's name is the longest in the run directory.
        let control = &sockets.control;
        if control.as_os_str().len() > MAX_SOCKET_PATH {
            bail!(
                "{} is too long for a Unix socket, {MAX_SOCKET_PATH} bytes: use a shorter NAME or \
                 set UZRAM_RUNDIR to a shorter path",
                control.display()
            );
        }
        if nbd.addresses.is_empty() && fuse.is_none() {
            nbd.addresses.push(Address::Unix(sockets.nbd.clone()));
        }
        if !nbd.addresses.is_empty() {
            nbd.validate()?;
        }
        Ok(Self {
            name,
            device,
            allow_enospc: args.allow_enospc,
            restore,
            verify_image: args.verify_image,
            nbd,
            fuse,
            metrics,
            sandbox: args.sandbox,
            user,
            swap: args.swap,
            mountpoint: None,
        })
    }

    /// Whether the device begins with data, and so with its file system.
    pub(crate) fn holds_data(&self) -> bool {
        self.restore.is_some() || self.device.origin.is_some()
    }

    /// The image that what is written is destaged to.
    pub(crate) fn destages_to(&self) -> Option<&Path> {
        let origin = self.device.origin.as_ref()?;
        matches!(origin.usage, OriginUse::WriteBack(_)).then_some(&*origin.path)
    }

    /// The files that its metrics are written to.
    pub(crate) fn metrics_files(&self) -> Vec<PathBuf> {
        let files = self.metrics.iter().filter_map(|sink| match sink {
            Sink::File(path) => Some(path.clone()),
            Sink::Http(_) => None,
        });
        files.collect()
    }

    /// The Unix sockets that its metrics are served on, and the files that they are written to.
    pub(crate) fn metrics_paths(&self) -> Vec<PathBuf> {
        let paths = self.metrics.iter().filter_map(|sink| match sink {
            Sink::Http(Address::Unix(path)) | Sink::File(path) => Some(path.clone()),
            Sink::Http(Address::Tcp { .. }) => None,
        });
        paths.collect()
    }
}

/// The size that is asked for, or that of the device in the image.
fn size_of(asked: Option<u64>, image: Option<&Path>) -> Result<u64> {
    let saved = image.map(uzram::saved_size).transpose()?;
    match (asked, saved) {
        (Some(size), Some(saved)) if size < saved => Err(Usage::error(format!(
            "--size: the image is of a device of {}: ask for as much or more, or leave --size out",
            bytes(saved)
        ))),
        (Some(size), _) | (None, Some(size)) => Ok(size),
        (None, None) => Err(Usage::error("--size: a device needs a size, or --restore")),
    }
}

/// How long pages must lie until they are recompressed, if they are.
fn recompress_after(algorithms: &[Algorithm], seconds: Option<u64>) -> Option<Duration> {
    const DEFAULT: u64 = 300;
    let seconds = seconds.unwrap_or(DEFAULT);
    (seconds != 0 && !algorithms.is_empty()).then(|| Duration::from_secs(seconds))
}

fn resolve_sink(sink: Sink) -> Result<Sink> {
    Ok(match sink {
        Sink::Http(address) => Sink::Http(checked_address(address, "--metrics")?),
        Sink::File(path) => Sink::File(absolute_option(&path, "--metrics")?),
    })
}

fn resolve_export(name: &Name, args: ExportArgs, default: &Path) -> Result<ServerConfig> {
    let addresses = args.nbd.into_iter().map(|address| match address {
        // In a directory that the server makes.
        Address::Unix(path) if path == default => Ok(Address::Unix(path)),
        other => checked_address(other, "--nbd"),
    });
    let addresses = addresses.collect::<Result<_>>()?;
    let mut config = ServerConfig::new(name.as_str(), addresses);
    config.insecure = args.insecure;
    if let Some(most) = args.max_connections {
        config.max_connections = most.try_into()?;
    }
    if args.tls == Some(TlsMode::Off) && args.tls_verify_peer {
        return Err(Usage::error(
            "--tls-verify-peer: without TLS no client has a certificate: leave out --tls off",
        ));
    }
    config.tls = match (args.tls, args.tls_certificates) {
        (Some(TlsMode::Off), _) | (None, None) => None,
        (Some(TlsMode::On | TlsMode::Require), None) => {
            return Err(Usage::error("--tls: TLS needs --tls-certificates DIR"));
        }
        (mode, Some(directory)) => {
            let required = match mode {
                Some(mode) => mode == TlsMode::Require,
                None => args.tls_verify_peer,
            };
            let certificates = absolute_option(&directory, "--tls-certificates")?;
            let tls = TlsConfig::new(certificates);
            Some(tls.required(required).verify_peer(args.tls_verify_peer))
        }
    };
    Ok(config)
}

fn checked_address(address: Address, option: &str) -> Result<Address> {
    let Address::Unix(path) = address else {
        return Ok(address);
    };
    let path = absolute_option(&path, option)?;
    if path.as_os_str().as_bytes().len() > MAX_SOCKET_PATH {
        return Err(Usage::error(format!(
            "{option}: {} is too long for a Unix socket: use a path of at most {MAX_SOCKET_PATH} bytes",
            path.display()
        )));
    }
    if let Some(parent) = path.parent()
        && !parent.is_dir()
    {
        bail!(
            "{option}: there is no directory {0}: mkdir {0} first",
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
    use std::ffi::OsString;

    use super::*;
    use crate::args::{self, Verb};

    fn sockets() -> Sockets {
        Sockets {
            control: "/run/uzram/x/control.sock".into(),
            nbd: "/run/uzram/x/nbd.sock".into(),
        }
    }

    fn resolve(words: &[&str]) -> Result<Settings> {
        let words = ["uzram", "serve"].iter().chain(words).map(OsString::from);
        let Verb::Serve(serve) = args::parse(words)?.verb else {
            bail!("not serve");
        };
        Settings::resolve(serve.name, serve.device, &sockets())
    }

    #[test]
    fn settings_survive_being_passed_on() {
        let mut first = resolve(&[
            "x",
            "--size=1G",
            "--max-size=3G",
            "--mem-limit=64M",
            "--allow-enospc",
            "--table-limit=8M",
            "--backing=/tmp/b",
            "--backing-size=2G",
            "--backing-encrypt",
            "--backing-force",
            "--backing-keep=wipe",
            "--writeback-daily-limit=20G",
            "--algorithm=zstd:3",
            "--recompress=lz4hc",
            "--recompress=zstd:19",
            "--after=60",
            "--shards=4",
            "--nbd=unix:relative.sock",
            "--nbd=tcp:[::1]:10809",
            "--tls-certificates=certs",
            "--tls=require",
            "--tls-verify-peer",
            "--insecure",
            "--max-connections=7",
            "--metrics=unix:m.sock",
            "--metrics=file:/var/m.prom",
            "--slow=20",
            "--sandbox=off",
            "--swap",
            "--fuse=/mnt/a b",
        ])
        .unwrap();
        first.mountpoint = Some("/mnt/c d".into());
        let second: Settings =
            serde_json::from_slice(&serde_json::to_vec(&first).unwrap()).unwrap();
        assert_eq!(first, second);
        assert!(matches!(&first.nbd.addresses[0], Address::Unix(path) if path.is_absolute()));
    }

    #[test]
    fn an_image_survives_being_passed_on_too() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::write(&image, [7; 8192]).unwrap();
        let origin = format!("--origin={}", image.display());
        for more in [
            &["--snapshot"][..],
            &["--read-only"],
            &["--sync=never"],
            &["--sync=30", "--origin-format=raw"],
            &[],
        ] {
            let first = resolve(&[&["x", &origin, "--fuse=/mnt"], more].concat()).unwrap();
            assert_eq!(first.device.size, 8192);
            let second: Settings =
                serde_json::from_slice(&serde_json::to_vec(&first).unwrap()).unwrap();
            assert_eq!(first, second);
            let is_written = more != ["--snapshot"] && more != ["--read-only"];
            assert_eq!(first.destages_to().is_some(), is_written);
        }
        for wrong in [
            &["x", &origin, "--size=8K"][..],
            &["x", &origin, "--max-size=8K"],
            &["x", &origin, "--sync=0"],
            &["x", &origin, "--snapshot", "--sync=never"],
            &["x", &origin, "--read-only", "--sync=never"],
            &["x", &origin, "--origin-format=qcow2"],
            &["x", "--size=1G", "--origin-format=raw"],
            &["x", &origin, "--backing=/tmp/b"],
            &["x", "--size=1G", "--snapshot"],
            &["x"],
        ] {
            let error = resolve(wrong).unwrap_err();
            let refused = error.is::<clap::Error>() || crate::base::failure::exit_code(&error) == 2;
            assert!(refused, "{wrong:?}: {error}");
        }
    }

    #[test]
    fn the_default_is_nbd_in_the_run_directory() {
        let settings = resolve(&["x", "--size=1G"]).unwrap();
        assert_eq!(settings.nbd.addresses, [Address::Unix(sockets().nbd)]);
        let settings = resolve(&["x", "--size=1G", "--fuse=/mnt"]).unwrap();
        assert!(settings.nbd.addresses.is_empty());
    }

    #[test]
    fn certificates_mean_tls_and_tls_may_be_seen_by_others() {
        let words = ["x", "--size=1G", "--nbd=tcp:127.0.0.1:0"];
        let tls = |more: &[&str]| resolve(&[&words, more].concat()).map(|found| found.nbd.tls);
        let on = tls(&["--tls-certificates=/d"]).unwrap().unwrap();
        assert!(!on.required && !on.verify_peer);
        let required = tls(&["--tls-certificates=/d", "--tls=require"]).unwrap();
        assert!(required.unwrap().required);
        let verified = tls(&["--tls-certificates=/d", "--tls-verify-peer"]).unwrap();
        assert!(verified.unwrap().required);
        assert_eq!(tls(&["--insecure"]).unwrap(), None);
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        let long = format!("--nbd=unix:/{}", "x".repeat(200));
        for words in [
            &["x", "--size=0"][..],
            &["x", "--size=4097"],
            &["x", "--size=17T"],
            &["x", "--size=1G", "--mem-limit=4K"],
            &["x", "--size=1G", "--table-limit=4K"],
            &["x", "--size=1G", "--shards=0"],
            &["x", "--size=1G", "--writeback-daily-limit=4K"],
            &["x", "--size=1G", &long],
            &["x", "--size=1G", "--tls=require"],
            &["x", "--size=1G", "--nbd=tcp:0.0.0.0:0"],
            &[
                "x",
                "--size=1G",
                "--nbd=tcp:0.0.0.0:0",
                "--tls-certificates=d",
            ],
            &[
                "x",
                "--size=1G",
                "--tls-certificates=d",
                "--tls=on",
                "--tls-verify-peer",
            ],
            &[
                "x",
                "--size=1G",
                "--tls-certificates=d",
                "--tls=off",
                "--tls-verify-peer",
            ],
            &[
                "x",
                "--size=1G",
                "--tls-certificates=d",
                "--tls=off",
                "--nbd=tcp:[::]:0",
            ],
        ] {
            let error = resolve(words).unwrap_err();
            assert_eq!(
                crate::base::failure::exit_code(&error),
                2,
                "{words:?}: {error}"
            );
        }
    }
}
