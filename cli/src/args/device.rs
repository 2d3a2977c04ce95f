//! The options of a device: what `serve` and `mount` share.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use clap_complete::engine::{ArgValueCandidates, ArgValueCompleter};
use serde::{Deserialize, Serialize};
use uzram::nbd::Address;
use uzram::{Algorithm, BackingKeep, OriginFormat, PoolKind, SyncPolicy};

use super::sink::Sink;
use super::{parse, values};

/// The device itself and how it is served: what `serve` and `mount` share.
#[derive(Clone, Debug, Args)]
pub(crate) struct DeviceArgs {
    /// Set the size of the device: 8G, 1.5GiB, or 50% or `ram / 2` of the machine's memory; at most 16T.
    #[arg(long, value_parser = parse::device_size, required_unless_present_any = ["restore", "origin"])]
    pub(crate) size: Option<u64>,

    /// Begin with an image that `uzram save` wrote; --size makes the device larger than it.
    #[arg(long, value_name = "FILE", conflicts_with = "origin")]
    #[arg(help_heading = "Images")]
    pub(crate) restore: Option<PathBuf>,

    /// Read the whole image before serving anything, and refuse a damaged one.
    #[arg(long, requires = "restore")]
    #[arg(help_heading = "Images")]
    pub(crate) verify_image: bool,

    /// Begin as a raw image or a block device, and write changes to it.
    #[arg(long, value_name = "IMAGE", conflicts_with = "size")]
    #[arg(help_heading = "Images")]
    pub(crate) origin: Option<PathBuf>,

    /// Only read the image: changes are the device's own and are gone at its end.
    #[arg(long, requires = "origin")]
    #[arg(help_heading = "Images")]
    pub(crate) snapshot: bool,

    /// Choose when changes reach the image: at each `flush`, `never` before the end, or every so many seconds
    /// [default: flush].
    #[arg(long, value_name = "WHEN", value_parser = parse::sync, requires = "origin")]
    #[arg(conflicts_with_all = ["snapshot", "read_only"])]
    #[arg(add = ArgValueCandidates::new(values::syncs))]
    #[arg(help_heading = "Images")]
    pub(crate) sync: Option<SyncPolicy>,

    /// Choose what the image may be: `detect` refuses other formats than raw, such as qcow2 or gzip; `raw` serves
    /// its bytes as they are [default: detect].
    #[arg(long, value_name = "FORMAT", value_parser = parse::origin_format, requires = "origin")]
    #[arg(add = ArgValueCandidates::new(values::origin_formats))]
    #[arg(help_heading = "Images")]
    pub(crate) origin_format: Option<OriginFormat>,

    /// Refuse all writes, over NBD and FUSE and to what is mounted or attached; the image of --origin is opened for
    /// reading.
    #[arg(long)]
    pub(crate) read_only: bool,

    /// Allow the device to grow to this size while in use; costs addresses only [default: 4 x SIZE].
    #[arg(long, value_name = "SIZE", value_parser = parse::size, conflicts_with = "origin")]
    pub(crate) max_size: Option<u64>,

    /// Limit the memory of compressed pages; the coldest are then spilled to --backing; 0 is no limit.
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    #[arg(help_heading = "Memory")]
    pub(crate) mem_limit: Option<u64>,

    /// Allow a --mem-limit that the device can outgrow without --backing; writes then fail with ENOSPC.
    #[arg(long)]
    #[arg(help_heading = "Memory")]
    pub(crate) allow_enospc: bool,

    /// Limit the memory of the tables that say where pages are, 4 KiB for each 2 MiB in use, and of dictionaries
    /// [default: a quarter of the machine's, or of its control group's limit].
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    #[arg(help_heading = "Memory")]
    pub(crate) table_limit: Option<u64>,

    /// Spill to this file (made if missing) or block device; it must be empty or an old spill.
    #[arg(long, value_name = "PATH")]
    #[arg(help_heading = "Backing")]
    pub(crate) backing: Option<PathBuf>,

    /// Overwrite whatever the backing holds.
    #[arg(long, requires = "backing")]
    #[arg(help_heading = "Backing")]
    pub(crate) backing_force: bool,

    /// Limit how much of the backing is used.
    #[arg(long, value_name = "SIZE", value_parser = parse::size, requires = "backing")]
    #[arg(help_heading = "Backing")]
    pub(crate) backing_size: Option<u64>,

    /// Encrypt spilled pages, under a key that exists only in the server's memory.
    #[arg(long, requires = "backing")]
    #[arg(help_heading = "Backing")]
    pub(crate) backing_encrypt: bool,

    /// Choose what becomes of the backing at the end: `keep` it as it is, `remove` the file, or `wipe` it first
    /// [default: remove].
    #[arg(long, value_name = "WHAT", value_parser = parse::keep, requires = "backing")]
    #[arg(add = ArgValueCandidates::new(values::keeps))]
    #[arg(help_heading = "Backing")]
    pub(crate) backing_keep: Option<BackingKeep>,

    /// Limit what is written to the backing in any 24 hours, to spare flash that wears out; 0 is no limit.
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    #[arg(help_heading = "Backing")]
    pub(crate) writeback_daily_limit: Option<u64>,

    /// Compress pages with lz4, lz4hc, zstd or deflate, with or without a :LEVEL.
    #[arg(long, value_name = "NAME", default_value = "lz4", value_parser = parse::algorithm)]
    #[arg(add = ArgValueCandidates::new(values::algorithms))]
    #[arg(help_heading = "Compression")]
    pub(crate) algorithm: Algorithm,

    /// Compress idle pages again with this algorithm, such as zstd:3; of up to three, in this order, a page takes
    /// the first that makes it smaller.
    #[arg(long, value_name = "NAME", value_parser = parse::algorithm)]
    #[arg(add = ArgValueCandidates::new(values::algorithms))]
    #[arg(help_heading = "Compression")]
    pub(crate) recompress: Vec<Algorithm>,

    /// Idle seconds before recompression; 0 to recompress only when asked [default: 300].
    #[arg(long, value_name = "SECONDS", requires = "recompress")]
    #[arg(help_heading = "Compression")]
    pub(crate) after: Option<u64>,

    /// Choose the allocator: zsmalloc (the densest), zbud or z3fold.
    #[arg(long, value_name = "NAME", default_value = "zsmalloc", value_parser = parse::pool)]
    #[arg(add = ArgValueCandidates::new(values::pools))]
    #[arg(help_heading = "Memory")]
    pub(crate) pool: PoolKind,

    /// Divide the device into N slices with a lock each [default: chosen from the machine].
    #[arg(long, value_name = "N")]
    #[arg(help_heading = "Memory")]
    pub(crate) shards: Option<u32>,

    #[command(flatten)]
    pub(crate) export: ExportArgs,

    #[command(flatten)]
    pub(crate) watch: WatchArgs,

    /// Choose which rights the server gives up at its start: those that it never needs (`on`), also all files but
    /// those of its options (`strict`), or none (`off`).
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    pub(crate) sandbox: SandboxMode,

    /// Serve as another user, by name or number, who needs no rights to the files, ports and directories of the
    /// options; a small process of root's stays beside the server (root).
    #[arg(long, value_name = "USER")]
    pub(crate) user: Option<String>,

    /// Back swap: lock the server's memory and spare it when memory runs out (root).
    #[arg(long, conflicts_with = "read_only")]
    pub(crate) swap: bool,

    /// Mount a directory here, with the device as `disk` and its attributes beside it.
    #[arg(long, value_name = "DIR")]
    pub(crate) fuse: Option<PathBuf>,
}

impl DeviceArgs {
    /// Has paths that are relative be so to `dir`.
    pub(crate) fn seen_from(&mut self, dir: &Path) {
        let paths = [
            &mut self.restore,
            &mut self.origin,
            &mut self.backing,
            &mut self.fuse,
            &mut self.export.tls_certificates,
        ];
        for path in paths.into_iter().flatten() {
            see_from(dir, path);
        }
        let sinks = self.watch.metrics.iter_mut();
        let sinks = sinks.map(|sink| match sink {
            Sink::Http(Address::Unix(path)) | Sink::File(path) => Some(path),
            Sink::Http(Address::Tcp { .. }) => None,
        });
        let addresses = self.export.nbd.iter_mut();
        let addresses = addresses.map(|address| match address {
            Address::Unix(path) => Some(path),
            Address::Tcp { .. } => None,
        });
        for path in sinks.chain(addresses).flatten() {
            see_from(dir, path);
        }
    }
}

/// Has `path` be relative to `dir`, if it is relative to anything.
pub(super) fn see_from(dir: &Path, path: &mut PathBuf) {
    // An empty one is refused, whoever asks for it.
    if !path.as_os_str().is_empty() {
        *path = dir.join(&path);
    }
}

/// How the device is served over NBD.
#[derive(Clone, Debug, Args)]
pub(crate) struct ExportArgs {
    /// Serve NBD on unix:PATH or tcp:HOST:PORT; may be given several times. Sockets inherited from systemd
    /// (LISTEN_FDS) are served as well.
    #[arg(long, value_name = "ADDRESS", value_parser = parse::address)]
    #[arg(add = ArgValueCompleter::new(values::nbd))]
    #[arg(help_heading = "NBD")]
    pub(crate) nbd: Vec<Address>,

    /// Speak TLS, with server-cert.pem and server-key.pem (and ca-cert.pem) of this directory.
    #[arg(long, value_name = "DIR")]
    #[arg(help_heading = "NBD")]
    pub(crate) tls_certificates: Option<PathBuf>,

    /// Choose whether clients can or must use TLS [default: on with --tls-certificates, require with --tls-verify-
    /// peer, else off].
    #[arg(long, value_name = "MODE", value_enum)]
    #[arg(help_heading = "NBD")]
    pub(crate) tls: Option<TlsMode>,

    /// Refuse clients without a certificate that ca-cert.pem vouches for, and so without TLS.
    #[arg(long, requires = "tls_certificates")]
    #[arg(help_heading = "NBD")]
    pub(crate) tls_verify_peer: bool,

    /// Listen even where other machines can connect without TLS.
    #[arg(long)]
    #[arg(help_heading = "NBD")]
    pub(crate) insecure: bool,

    /// Limit the NBD connections; further clients are turned away [default: 100]. Clients in the handshake count,
    /// for 10 s at most, but give way to new ones.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(help_heading = "NBD")]
    pub(crate) max_connections: Option<u32>,
}

/// What is told of the device while it is served.
#[derive(Clone, Debug, Args)]
pub(crate) struct WatchArgs {
    /// Serve metrics for Prometheus at unix:PATH or tcp:HOST:PORT, or write them to file:PATH every 15 s; may be
    /// given several times. Where other machines can read them a warning says so, unless --insecure is given.
    #[arg(long, value_name = "WHERE", add = ArgValueCompleter::new(values::metrics))]
    #[arg(help_heading = "Monitoring")]
    pub(crate) metrics: Vec<Sink>,

    /// Log requests that take this many milliseconds or longer.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
    #[arg(help_heading = "Monitoring")]
    pub(crate) slow: Option<u64>,
}

/// Whether NBD clients use TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TlsMode {
    /// None can.
    Off,
    /// Those that ask for it do.
    On,
    /// All must.
    Require,
}

/// How much a server gives up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(crate) enum SandboxMode {
    /// Nothing.
    Off,
    /// The rights that no server needs.
    #[default]
    On,
    /// Also all files but those that its options name.
    Strict,
}

impl SandboxMode {
    /// As `--sandbox` takes it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::On => "on",
            Self::Strict => "strict",
        }
    }
}

impl fmt::Display for SandboxMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
