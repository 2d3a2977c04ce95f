//! What those verbs take that ask a server, clear up, or are about the command itself.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use clap_complete::Shell;
use clap_complete::engine::{ArgValueCandidates, ArgValueCompleter};

use super::known::Known;
use super::target::Target;
use super::{parse, values};
use crate::base::name::Name;

#[derive(Debug, Args)]
pub(crate) struct NameArgs {
    /// The device: its name, its mount point or its block device.
    #[arg(value_name = "NAME", add = Known::Devices)]
    pub(crate) name: Target,
}

#[derive(Debug, Args)]
pub(crate) struct CompactArgs {
    /// The devices: their names, mount points or block devices.
    #[arg(value_name = "NAME", required = true, add = Known::Devices)]
    pub(crate) names: Vec<Target>,

    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Debug, Args)]
pub(crate) struct JobArgs {
    /// The device: its name, its mount point or its block device.
    #[arg(value_name = "NAME", add = Known::Devices)]
    pub(crate) name: Target,

    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

/// How it is said what was done.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct ReportArgs {
    /// Print what was done as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Shell to complete for.
    pub(crate) shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Directory to write to.
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct WipeArgs {
    /// The file.
    pub(crate) path: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ClearArgs {
    /// What to do.
    pub(crate) step: ClearStep,

    /// The file, as the record has it.
    pub(crate) file: String,
}

/// A step of clearing the file of a spill.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ClearStep {
    /// Overwrite it.
    Wipe,
    /// Remove it, or empty it if it was there before.
    Clear,
}

impl ClearStep {
    /// As it is typed.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Wipe => "wipe",
            Self::Clear => "clear",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct IdleArgs {
    /// The device: its name, its mount point or its block device.
    #[arg(value_name = "NAME", add = Known::Devices)]
    pub(crate) name: Target,

    /// All pages, or those that were neither written nor read for so many seconds.
    #[arg(value_name = "all|SECONDS", default_value = "all", value_parser = parse::idle)]
    #[arg(add = ArgValueCandidates::new(values::idle))]
    pub(crate) which: String,

    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Debug, Args)]
pub(crate) struct WritebackArgs {
    /// The device: its name, its mount point or its block device.
    #[arg(value_name = "NAME", add = Known::Devices)]
    pub(crate) name: Target,

    /// Which: type=idle, type=huge, type=huge_idle, page_index=N, page_indexes=LOW-HIGH.
    #[arg(required = true, value_name = "PAGES", value_parser = parse::selection)]
    #[arg(add = ArgValueCandidates::new(values::selections))]
    pub(crate) which: Vec<String>,

    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Debug, Args)]
pub(crate) struct RecompressArgs {
    /// The device: its name, its mount point or its block device.
    #[arg(value_name = "NAME", add = Known::Devices)]
    pub(crate) name: Target,

    /// Which, and how: type=idle, type=huge, type=huge_idle, threshold=BYTES, max_pages=N, algo=NAME,
    /// priority=N.
    #[arg(value_name = "PARAMETER", value_parser = parse::recompression)]
    #[arg(add = ArgValueCandidates::new(values::recompressions))]
    pub(crate) which: Vec<String>,

    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// The devices: their names, mount points or block devices.
    #[arg(value_name = "NAME", required_unless_present = "all", add = Known::Devices)]
    pub(crate) names: Vec<Target>,

    /// Stop all devices.
    #[arg(long, conflicts_with = "names")]
    pub(crate) all: bool,

    /// Stop it even if it is mounted, attached or in use by clients, but not while this machine swaps to it.
    #[arg(long)]
    pub(crate) force: bool,

    /// Save it to a file first, all of it: nobody may be using it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["force", "all"])]
    pub(crate) save: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// The device: its name, its mount point or its block device.
    #[arg(value_name = "NAME", add = Known::Devices)]
    pub(crate) name: Target,

    /// The image; one that is there, or that a symbolic link there leads to, is replaced once the new one is
    /// complete.
    pub(crate) file: PathBuf,

    /// Print one JSON object, sizes in bytes.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Print a JSON array, sizes in bytes.
    #[arg(long)]
    pub(crate) json: bool,

    /// Print these columns, in this order: name,size,where.
    #[arg(
        short,
        long,
        value_name = "COLUMNS",
        value_delimiter = ',',
        ignore_case = true,
        conflicts_with = "json"
    )]
    pub(crate) output: Vec<Column>,

    /// Print sizes in bytes.
    #[arg(short, long)]
    pub(crate) bytes: bool,

    /// Leave out the heading.
    #[arg(short, long)]
    pub(crate) noheadings: bool,
}

/// A column of `uzram list`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Column {
    /// Its name.
    Name,
    /// Bytes in the device.
    Size,
    /// Data on it.
    Stored,
    /// Compressed bytes of that in memory.
    Compr,
    /// Memory that its pages take.
    Memory,
    /// Its memory limit.
    Limit,
    /// Bytes that its spill takes.
    Backing,
    /// How pages are compressed.
    Algorithm,
    /// Its server.
    Pid,
    /// Where it is mounted, attached or served.
    Where,
}

impl Column {
    /// As it is typed.
    pub(crate) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// The device: its name, its mount point or its block device.
    #[arg(value_name = "NAME", add = Known::Devices)]
    pub(crate) name: Target,

    /// Go on with what is logged from then on, until interrupted or the server ends.
    #[arg(short, long)]
    pub(crate) follow: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatArgs {
    /// The device: its name, its mount point or its block device.
    #[arg(value_name = "NAME", add = Known::Devices)]
    pub(crate) name: Target,

    /// Print only these attributes, as in the FUSE directory: disksize, mem_limit, mm_stat, bd_stat, io_stat...; or
    /// show more devices.
    #[arg(value_name = "ATTRIBUTE|NAME", value_parser = parse::attribute_or_device)]
    #[arg(add = ArgValueCandidates::new(values::readable))]
    pub(crate) others: Vec<parse::AttributeOrDevice>,

    /// Print one JSON object, sizes in bytes.
    #[arg(long)]
    pub(crate) json: bool,

    /// How long operations took: the median, the slowest of a hundred...
    #[arg(long, conflicts_with = "json")]
    pub(crate) latency: bool,

    /// Print again every second, until interrupted.
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SetArgs {
    /// The device: its name, its mount point or its block device.
    #[arg(value_name = "NAME", add = Known::Devices)]
    pub(crate) name: Target,

    /// What to set, as in mem_limit=1G: disksize, mem_limit, mem_used_max, comp_algorithm,
    /// recomp_algorithm, algorithm_params, backing_dev, backing_size, writeback_limit,
    /// writeback_limit_enable, writeback_daily_limit, sector_size; or what has a verb as well, as in idle=all: compact,
    /// idle, writeback, recompress, reset.
    #[arg(required = true, value_name = "KEY=VALUE", value_parser = parse::assignment)]
    #[arg(add = ArgValueCompleter::new(values::assignments))]
    pub(crate) assignments: Vec<parse::Assignment>,

    /// With a smaller disksize: forget what is beyond it.
    #[arg(long)]
    pub(crate) discard_tail: bool,

    /// With backing_dev: overwrite what the file or block device holds, whatever it is.
    #[arg(long)]
    pub(crate) backing_force: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TrainDictArgs {
    /// The dictionary; a file that is there is replaced.
    pub(crate) output: PathBuf,

    /// Files to learn from.
    #[arg(required_unless_present = "device", conflicts_with = "device")]
    pub(crate) files: Vec<PathBuf>,

    /// Learn from the pages that are in the memory of this device.
    #[arg(long, value_name = "NAME", add = Known::Devices)]
    pub(crate) device: Option<Name>,

    /// Most bytes of the dictionary, with an optional K.
    #[arg(long, default_value = "64K", value_parser = parse::size)]
    pub(crate) size: u64,
}
