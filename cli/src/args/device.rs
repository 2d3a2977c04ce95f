//! The options of a device: what `serve` and `mount` share.

use std::fmt;
use std::path::PathBuf;

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
    /// Size of the device, like 8G, 1.5GiB, or 50% or `ram / 2` of the machine's memory; at most 16T.
    #[arg(long, value_parser = parse::device_size, required_unless_present_any = ["restore", "origin"])]
    pub(crate) size: Option<u64>,

    /// Begin with what `uzram save` wrote to an image; it is as large as the image's, or --size.
    #[arg(long, value_name = "FILE", conflicts_with = "origin")]
    pub(crate) restore: Option<PathBuf>,

    /// Read all of the image before anything is served, and refuse one that is damaged.
    #[arg(long, requires = "restore")]
    pub(crate) verify_image: bool,

    /// An image that the device begins as, a raw file or a block device; what is written goes there.
    #[arg(long, value_name = "IMAGE", conflicts_with = "size")]
    pub(crate) origin: Option<PathBuf>,

    /// Only read the image: what is written is the device's own, and is gone at its end.
    #[arg(long, requires = "origin")]
    pub(crate) snapshot: bool,

    /// When the image has all that was written: at each `flush`, `never` but at the end, or every so
    /// many seconds [default: flush].
    #[arg(long, value_name = "WHEN", value_parser = parse::sync, requires = "origin")]
    #[arg(conflicts_with_all = ["snapshot", "read_only"])]
    #[arg(add = ArgValueCandidates::new(values::syncs))]
    pub(crate) sync: Option<SyncPolicy>,

    /// What the image is taken for: `detect` refuses one that is not raw, such as qcow2 or gzip; `raw`
    /// serves its bytes as they are [default: detect].
    #[arg(long, value_name = "FORMAT", value_parser = parse::origin_format, requires = "origin")]
    #[arg(add = ArgValueCandidates::new(values::origin_formats))]
    pub(crate) origin_format: Option<OriginFormat>,

    /// Refuse all writes, over NBD, FUSE and to what is mounted or attached; the image of --origin is only
    /// read.
    #[arg(long)]
    pub(crate) read_only: bool,

    /// What it may be grown to while it is in use: costs addresses only [default: 4 x SIZE].
    #[arg(long, value_name = "SIZE", value_parser = parse::size, conflicts_with = "origin")]
    pub(crate) max_size: Option<u64>,

    /// Most memory for its compressed pages, 0 for no limit; the coldest are spilled to --backing.
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    pub(crate) mem_limit: Option<u64>,

    /// Start with a --mem-limit that the device can outgrow without --backing; writes then fail with ENOSPC.
    #[arg(long)]
    pub(crate) allow_enospc: bool,

    /// Most memory for the tables that say where pages are, 4 KiB for each 2 MiB in use, and for
    /// dictionaries [default: a quarter of the machine's].
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    pub(crate) table_limit: Option<u64>,

    /// Where to spill: a file (made if missing) or a block device; it must be empty or an old spill.
    #[arg(long, value_name = "PATH")]
    pub(crate) backing: Option<PathBuf>,

    /// Overwrite what the backing holds, whatever it is.
    #[arg(long, requires = "backing")]
    pub(crate) backing_force: bool,

    /// Most of the backing to use.
    #[arg(long, value_name = "SIZE", value_parser = parse::size, requires = "backing")]
    pub(crate) backing_size: Option<u64>,

    /// Encrypt what is spilled, under a key that exists only in the server's memory.
    #[arg(long, requires = "backing")]
    pub(crate) backing_encrypt: bool,

    /// At the end: `keep` it as it is, `remove` the file, or `wipe` it first [default: remove].
    #[arg(long, value_name = "WHAT", value_parser = parse::keep, requires = "backing")]
    #[arg(add = ArgValueCandidates::new(values::keeps))]
    pub(crate) backing_keep: Option<BackingKeep>,

    /// Most to write to the backing in any 24 hours, 0 for no limit: spares flash that wears out.
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    pub(crate) writeback_daily_limit: Option<u64>,

    /// How pages are compressed: lz4, lz4hc, zstd or deflate, with or without a :LEVEL.
    #[arg(long, value_name = "NAME", default_value = "lz4", value_parser = parse::algorithm)]
    #[arg(add = ArgValueCandidates::new(values::algorithms))]
    pub(crate) algorithm: Algorithm,

    /// Compress pages that were not used for a while again, like this: zstd:3, say; with up to three
    /// algorithms, given in this order, a page takes the first that makes it smaller.
    #[arg(long, value_name = "NAME", value_parser = parse::algorithm)]
    #[arg(add = ArgValueCandidates::new(values::algorithms))]
    pub(crate) recompress: Vec<Algorithm>,

    /// How many seconds is a while; 0 to recompress only what is asked for [default: 300].
    #[arg(long, value_name = "SECONDS", requires = "recompress")]
    pub(crate) after: Option<u64>,

    /// Which allocator keeps them: zsmalloc, the densest, zbud or z3fold.
    #[arg(long, value_name = "NAME", default_value = "zsmalloc", value_parser = parse::pool)]
    #[arg(add = ArgValueCandidates::new(values::pools))]
    pub(crate) pool: PoolKind,

    /// Slices of the device, each with a lock of its own [default: chosen from the machine].
    #[arg(long, value_name = "N")]
    pub(crate) shards: Option<u32>,

    #[command(flatten)]
    pub(crate) export: ExportArgs,

    #[command(flatten)]
    pub(crate) watch: WatchArgs,

    /// What the server gives up at its start: the rights that it never needs (`on`), also all files but
    /// those that its options name (`strict`), or nothing (`off`).
    #[arg(long, value_name = "MODE", value_enum, default_value_t)]
    pub(crate) sandbox: SandboxMode,

    /// Serve as another user, by name or number, who needs no rights to the files, ports and directories that
    /// are named here; a small process of root's stays beside the server (root).
    #[arg(long, value_name = "USER")]
    pub(crate) user: Option<String>,

    /// It is for swap: lock the server's memory and spare it when memory runs out (root).
    #[arg(long, conflicts_with = "read_only")]
    pub(crate) swap: bool,

    /// Mount a directory here in which `disk` is the device, with its attributes beside it.
    #[arg(long, value_name = "DIR")]
    pub(crate) fuse: Option<PathBuf>,
}

/// How the device is served over NBD.
#[derive(Clone, Debug, Args)]
pub(crate) struct ExportArgs {
    /// Serve NBD on unix:PATH or tcp:HOST:PORT; may be given several times. Sockets inherited from systemd
    /// (LISTEN_FDS) are served as well.
    #[arg(long, value_name = "ADDRESS", value_parser = parse::address)]
    #[arg(add = ArgValueCompleter::new(values::nbd))]
    pub(crate) nbd: Vec<Address>,

    /// Speak TLS, with server-cert.pem and server-key.pem (and ca-cert.pem) from here.
    #[arg(long, value_name = "DIR")]
    pub(crate) tls_certificates: Option<PathBuf>,

    /// Whether clients can or must use TLS [default: on with --tls-certificates, require with
    /// --tls-verify-peer, else off].
    #[arg(long, value_name = "MODE", value_enum)]
    pub(crate) tls: Option<TlsMode>,

    /// Turn away clients without a certificate that ca-cert.pem vouches for, and so without TLS.
    #[arg(long, requires = "tls_certificates")]
    pub(crate) tls_verify_peer: bool,

    /// Listen even where other machines can connect without TLS.
    #[arg(long)]
    pub(crate) insecure: bool,

    /// Turn away NBD clients beyond so many [default: 100]. Those that are still in the handshake, for
    /// 10 s at most, count, but give way to new ones.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_connections: Option<u32>,
}

/// What is told of the device while it is served.
#[derive(Clone, Debug, Args)]
pub(crate) struct WatchArgs {
    /// Serve metrics for Prometheus at unix:PATH or tcp:HOST:PORT, or write them to file:PATH every
    /// 15 s; may be given several times. Where other machines can read them a warning says so, unless
    /// --insecure is given.
    #[arg(long, value_name = "WHERE", add = ArgValueCompleter::new(values::metrics))]
    pub(crate) metrics: Vec<Sink>,

    /// Log requests that take so many milliseconds or longer.
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u64).range(1..))]
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
