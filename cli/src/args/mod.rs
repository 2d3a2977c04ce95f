//! The command line as typed. What it means once checked is in `settings`.

mod device;
mod examples;
mod fs_type;
mod known;
mod manage;
pub(crate) mod parse;
mod sink;
mod target;
mod values;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCandidates;
use uzram::{Algorithm, SectorSize};

pub(crate) use self::device::{DeviceArgs, ExportArgs, SandboxMode, TlsMode};
pub(crate) use self::fs_type::FsType;
pub(crate) use self::known::Known;
pub(crate) use self::manage::{
    ClearArgs, ClearStep, Column, CompactArgs, CompletionsArgs, IdleArgs, JobArgs, ListArgs,
    LogArgs, ManArgs, NameArgs, RecompressArgs, SaveArgs, SetArgs, StatArgs, StopArgs,
    TrainDictArgs, WipeArgs, WritebackArgs,
};
pub(crate) use self::sink::Sink;
pub(crate) use self::target::Target;
use crate::base::failure::Usage;
use crate::base::name::Name;
use crate::base::spelling;

/// The version, and what was built into it. The command is built with all of the library's frontends.
fn long_version() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let algorithms: Vec<_> = Algorithm::ALL.iter().map(|known| known.name()).collect();
        format!(
            "{}\nalgorithms: {}\nfeatures: nbd, tls, fuse, encrypt",
            env!("UZRAM_VERSION"),
            algorithms.join(", ")
        )
    })
}

/// zram in userspace: compressed RAM disks that spill their coldest pages to a file.
#[derive(Debug, Parser)]
#[command(name = "uzram", version = env!("UZRAM_VERSION"), long_version = long_version(), after_help = examples::UZRAM, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,

    #[command(flatten)]
    pub(crate) logging: LoggingArgs,
}

/// How much is said: what is logged, to stderr, for which `UZRAM_LOG` (as in `debug` or `uzram=trace`) is
/// finer, and what verbs report of what they did.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct LoggingArgs {
    /// Log more: -v for debug, -vv for trace.
    #[arg(short, long, global = true, action = clap::ArgAction::Count, display_order = 900)]
    pub(crate) verbose: u8,

    /// Print only errors and requested output.
    #[arg(
        short,
        long,
        global = true,
        conflicts_with = "verbose",
        display_order = 900
    )]
    pub(crate) quiet: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Serve one device in the foreground, over NBD, FUSE or both.
    #[command(after_help = examples::SERVE)]
    Serve(ServeArgs),

    /// Make a device with a file system and mount it (root, or --rootless).
    #[command(after_help = examples::MOUNT)]
    Mount(MountArgs),

    /// Unmount and stop what `uzram mount` made, even after its server was killed.
    #[command(after_help = examples::UMOUNT)]
    Umount(UmountArgs),

    /// Start the devices of configuration files, and mount or swap to those that say so.
    #[command(after_help = examples::UP)]
    Up(UpArgs),

    /// Stop the devices of configuration files.
    #[command(after_help = examples::DOWN)]
    Down(DownArgs),

    /// Attach a served device as a block device of this machine, and print its path (root).
    #[command(after_help = examples::ATTACH)]
    Attach(AttachArgs),

    /// Detach the block device of `uzram attach`, or clear what a killed server left (root for block devices).
    #[command(after_help = examples::DETACH)]
    Detach(NameArgs),

    /// List the devices that are served.
    #[command(visible_alias = "ls", alias = "ps", after_help = examples::LIST)]
    List(ListArgs),

    /// Show a device's statistics.
    #[command(visible_alias = "status", aliases = ["info", "stats"], after_help = examples::STAT)]
    Stat(StatArgs),

    /// Show all devices live: figures, rates, and what their pages hold.
    #[command(after_help = examples::TOP)]
    Top(TopArgs),

    /// Draw a map of what a device's pages hold.
    #[command(after_help = examples::MAP)]
    Map(MapArgs),

    /// Print the statistics of all devices for Prometheus.
    #[command(after_help = examples::METRICS)]
    Metrics,

    /// Change a device's attributes while it is in use.
    #[command(after_help = examples::SET)]
    Set(SetArgs),

    /// Compact a device's memory: empty sparse zspages into full ones.
    #[command(after_help = examples::COMPACT)]
    Compact(CompactArgs),

    /// Verify all spilled pages while the device is in use.
    #[command(after_help = examples::SCRUB)]
    Scrub(JobArgs),

    /// Save an image of a device to a file while it is in use.
    #[command(after_help = examples::SAVE)]
    Save(SaveArgs),

    /// Mark pages in a device's memory as idle until they are used.
    #[command(after_help = examples::IDLE)]
    Idle(IdleArgs),

    /// Write pages in a device's memory to its backing now.
    #[command(after_help = examples::WRITEBACK)]
    Writeback(WritebackArgs),

    /// Recompress pages in a device's memory with an algorithm that makes them smaller.
    #[command(after_help = examples::RECOMPRESS)]
    Recompress(RecompressArgs),

    /// Write all changes of a device to its image (--origin), durably.
    #[command(after_help = examples::SYNC)]
    Sync(NameArgs),

    /// Train a dictionary for zstd with files, or with the pages of a device.
    #[command(after_help = examples::TRAIN_DICT)]
    TrainDict(TrainDictArgs),

    /// Forget all data on a device that is not in use.
    #[command(after_help = examples::RESET)]
    Reset(NameArgs),

    /// Serve what another command hands over, and log to RUNDIR/NAME/log once ready: how `uzram serve --background`,
    /// `mount` and `up` start a server.
    #[command(hide = true, after_help = examples::SERVE_DETACHED)]
    ServeDetached(NameArgs),

    /// Serve what a keeper hands over: how `uzram serve --user` has a device served.
    #[command(hide = true, after_help = examples::SERVE_KEPT)]
    ServeKept(NameArgs),

    /// Overwrite the file of a spill that nothing uses any more: how a server does it at its end.
    #[command(hide = true, after_help = examples::WIPE_SPILL)]
    WipeSpill(WipeArgs),

    /// Clear the file of a spill that a record names: how a server does it at its end.
    #[command(hide = true, after_help = examples::CLEAR_SPILL)]
    ClearSpill(ClearArgs),

    /// Print a script that completes command lines in a shell.
    #[command(after_help = examples::COMPLETIONS)]
    Completions(CompletionsArgs),

    /// Write man pages of uzram and its verbs.
    #[command(after_help = examples::MAN)]
    Man(ManArgs),

    /// Print the log of a device's server.
    #[command(alias = "logs", after_help = examples::LOG)]
    Log(LogArgs),

    /// Stop a device's server; without --origin its data is gone.
    #[command(alias = "rm", after_help = examples::STOP)]
    Stop(StopArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// Name of the device and its NBD export.
    pub(crate) name: Name,

    #[command(flatten)]
    pub(crate) device: DeviceArgs,

    /// Return once it is served, and go on in the background; `uzram log NAME` prints its log.
    #[arg(long, help_heading = "Running")]
    pub(crate) background: bool,

    /// Write the server's PID to this file once it is served.
    #[arg(
        long,
        value_name = "FILE",
        help_heading = "Running",
        requires = "background"
    )]
    pub(crate) pidfile: Option<PathBuf>,

    /// Run a shell command once it is served, and stop when that ends, with its exit status. The command finds $uri,
    /// $exportname, $unixsocket and, with --fuse, $disk in its environment.
    #[arg(
        long,
        value_name = "COMMAND",
        help_heading = "Running",
        conflicts_with = "background"
    )]
    pub(crate) run: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct MountArgs {
    /// Directory to mount on; must be empty.
    pub(crate) mountpoint: PathBuf,

    #[command(flatten)]
    pub(crate) device: DeviceArgs,

    /// Name the device [default: made from MOUNTPOINT].
    #[arg(long)]
    pub(crate) name: Option<Name>,

    /// Make this file system, unless --restore or --origin brings one.
    #[arg(long, value_enum, default_value_t = FsType::Ext4)]
    pub(crate) fs: FsType,

    /// Add options for mount(8), as in noatime,nodev.
    #[arg(short, long, value_name = "OPTIONS")]
    pub(crate) options: Option<String>,

    /// Mount without root, by fuse2fs: slower, for this user alone, and ext4.
    #[arg(long, conflicts_with = "user")]
    pub(crate) rootless: bool,
}

impl MountArgs {
    /// Has paths that are relative be so to `dir`.
    pub(crate) fn seen_from(&mut self, dir: &Path) {
        device::see_from(dir, &mut self.mountpoint);
        self.device.seen_from(dir);
    }
}

#[derive(Debug, Args)]
pub(crate) struct UpArgs {
    #[command(flatten)]
    pub(crate) which: ConfiguredArgs,

    /// Serve the one named device in the foreground: for systemd.
    #[arg(long)]
    pub(crate) foreground: bool,

    /// Check the files for faults and start nothing.
    #[arg(long, conflicts_with = "foreground")]
    pub(crate) check: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    #[command(flatten)]
    pub(crate) which: ConfiguredArgs,
}

/// Devices of a configuration file.
#[derive(Debug, Args)]
pub(crate) struct ConfiguredArgs {
    /// Which devices [default: all]; or the file, as with --config.
    #[arg(value_name = "NAME|FILE", value_parser = parse::device_or_file, add = Known::Configured)]
    words: Vec<parse::DeviceOrFile>,

    /// A uzram.toml, or a zram-generator.conf [default: ~/.config/uzram.toml of a user, else /etc/uzram.toml and
    /// /etc/uzram.d/*.toml].
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfiguredArgs {
    /// The devices; none for all.
    pub(crate) fn names(&self) -> Vec<Name> {
        let names = self.words.iter().filter_map(|word| match word {
            parse::DeviceOrFile::Device(name) => Some(name.clone()),
            parse::DeviceOrFile::File(_) => None,
        });
        names.collect()
    }

    /// The file, if one is named.
    pub(crate) fn config(&self) -> anyhow::Result<Option<&Path>> {
        let words = self.words.iter().filter_map(|word| match word {
            parse::DeviceOrFile::File(path) => Some(path),
            parse::DeviceOrFile::Device(_) => None,
        });
        let mut files = self.config.iter().chain(words);
        let file = files.next();
        match files.next() {
            Some(other) => Err(Usage::error(format!(
                "{}: one file at a time",
                other.display()
            ))),
            None => Ok(file.map(PathBuf::as_path)),
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Only this device: its name, its mount point or its block device.
    #[arg(value_name = "NAME", add = Known::Devices)]
    pub(crate) name: Option<Target>,

    /// Refresh every so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub(crate) interval: u64,
}

#[derive(Debug, Args)]
pub(crate) struct MapArgs {
    /// The device: its name, its mount point or its block device.
    #[arg(value_name = "NAME", add = Known::Devices)]
    pub(crate) name: Target,

    /// Draw to this .svg or .png file instead of the terminal.
    #[arg(conflicts_with = "json")]
    pub(crate) file: Option<PathBuf>,

    /// Print one JSON object with the pages of each kind in each part of the device.
    #[arg(long)]
    pub(crate) json: bool,

    /// Divide the device into N parts.
    #[arg(long, value_name = "N", default_value_t = 1024, requires = "json", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub(crate) cells: u64,
}

#[derive(Debug, Args)]
pub(crate) struct UmountArgs {
    /// Where `uzram mount` mounted it.
    #[arg(add = Known::Mountpoints)]
    pub(crate) mountpoint: PathBuf,

    /// Save the device to a file before stopping its server.
    #[arg(long, value_name = "FILE")]
    pub(crate) save: Option<PathBuf>,
}

/// What lies between a served device and a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Transport {
    /// A loop device over the server's FUSE directory.
    Fuse,
    /// The kernel's NBD driver.
    Nbd,
}

#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// The device: its name, its mount point or its block device.
    #[arg(value_name = "NAME", add = Known::Devices)]
    pub(crate) name: Target,

    /// Use the kernel's NBD driver.
    #[arg(long, conflicts_with = "fuse")]
    nbd: bool,

    /// Use a loop device over the server's FUSE directory.
    #[arg(long)]
    fuse: bool,

    /// Set the sector size, 512 or 4096 [default: what the contents need; else the last one; else 4096 for a blank
    /// device, 512 for others].
    #[arg(long, value_name = "BYTES", value_parser = parse::sector_size)]
    #[arg(add = ArgValueCandidates::new(values::sector_sizes))]
    pub(crate) sector_size: Option<SectorSize>,

    /// Fail requests that take this many seconds, and the device with them; 0 waits for ever. For the NBD driver
    /// [default: 180; over an image 0].
    #[arg(long, value_name = "SECONDS", conflicts_with = "fuse")]
    pub(crate) timeout: Option<u32>,
}

impl AttachArgs {
    /// The transport asked for; `None` leaves the choice to us.
    pub(crate) fn transport(&self) -> Option<Transport> {
        match (self.nbd, self.fuse) {
            (true, _) => Some(Transport::Nbd),
            (_, true) => Some(Transport::Fuse),
            (false, false) => None,
        }
    }
}

/// [`Cli`] of `args`, the program's name first.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let mut are_options = true;
    let args = args.into_iter().map(|arg| {
        are_options &= arg != "--";
        match arg.to_str().and_then(|text| text.strip_prefix("--")) {
            Some(option) if are_options && !option.is_empty() => {
                let (name, value) = match option.split_once('=') {
                    Some((name, value)) => (name, format!("={value}")),
                    None => (option, String::new()),
                };
                format!("--{}{value}", spelling::option(name)).into()
            }
            _ => arg,
        }
    });
    Cli::try_parse_from(args)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use uzram::Attribute;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn whatever_can_be_set_is_in_the_help() {
        let command = Cli::command();
        let set = command.find_subcommand("set").expect("a verb");
        let help = set.clone().render_long_help().to_string();
        let words: Vec<_> = help.split([' ', '\n', ',', ';', '.', ':']).collect();
        for attribute in Attribute::ALL.iter().filter(|a| a.is_writable()) {
            assert!(words.contains(&attribute.name()), "{attribute:?} in {help}");
        }
    }

    /// What stands flush is for clap to wrap, and the rest must not need that: also in a man page, which
    /// has five columns more on its left, and takes a caption to end with a colon.
    #[test]
    fn every_verb_teaches_by_example() {
        let command = Cli::command();
        for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let help = verb.get_after_help().map(ToString::to_string);
            let example = format!("\n  uzram {}", verb.get_name());
            assert!(
                help.is_some_and(|help| help.contains(&example)),
                "{}",
                verb.get_name()
            );
        }
        for verb in command.get_subcommands().chain([&command]) {
            let help = verb.get_after_help().map(ToString::to_string);
            let help = help.unwrap_or_default();
            for (line, next) in help.lines().zip(help.lines().skip(1).chain([""])) {
                let most = if line.ends_with(':') { 78 } else { 75 };
                let is_flush = |line: &str| line.starts_with(|c: char| c != ' ');
                let is_heading = line.chars().all(|c| c.is_ascii_uppercase() || c == ' ');
                assert!(is_flush(line) || line.len() <= most, "{line}");
                assert!(!is_flush(line) || is_heading || next.is_empty(), "{line}");
            }
        }
    }
}
