//! The `uzram` command: serves compressed RAM block devices, and mounts and manages them.
//!
//! ```text
//! args ── settings ── runtime ── verbs      what is typed, what it means, what is there, what is done
//!   └────────┴───────────┴─────────┴── base: output, failures, names, files
//! ```
//!
//! Imports go to the left and down only.
//!
//! Exit codes: see `failure`.

mod args;
mod base;
mod runtime;
mod settings;
mod verbs;

use std::io;
use std::process::ExitCode;
use std::thread;

use anyhow::Result;
use clap::error::ErrorKind;
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, LoggingArgs, Verb};
use crate::base::failure::{CommandFailed, Said, Usage};
use crate::base::output::StdoutGone;
use crate::base::{capabilities, failure, inherited, output, stderr};
use crate::runtime::rundir::RunRoot;
use crate::settings::Settings;
use crate::verbs::{
    attach, background, clear_spill, compact, complete, detach, down, idle, list, log, man, map,
    metrics, mount, recompress, reset, save, scrub, serve, set, stat, stop, sync, top, train,
    umount, up, wipe_spill, writeback,
};

/// What the command's own thread has, bytes: the first thread's stack is as the user's limit has it.
const STACK: usize = 2 << 20;

fn main() -> ExitCode {
    let _last_lines = stderr::Flushed;
    let thread = thread::Builder::new().name("uzram".to_owned());
    match thread.stack_size(STACK).spawn(command) {
        Ok(command) => {
            // All that this thread does is wait, whatever rights the other gives up.
            capabilities::renounce();
            // A panic has been said.
            command.join().unwrap_or(ExitCode::from(101))
        }
        Err(error) => {
            failure::say(&format!("cannot start a thread: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn command() -> ExitCode {
    stderr::take_panics();
    inherited::keep_from_children();
    complete::answer_shell();
    let cli = match args::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    output::be(cli.logging.quiet, cli.logging.verbose);
    // In the background the log goes to a file.
    let is_background = matches!(&cli.verb, Verb::ServeDetached(_));
    let has_colours = !is_background && output::has_colours(&io::stderr());
    match start_logging(cli.logging, has_colours).and_then(|()| run(cli)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<StdoutGone>() => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is::<Said>() && !error.is::<CommandFailed>() {
                failure::complain(&error);
            }
            ExitCode::from(failure::exit_code(&error))
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    let root = RunRoot::locate()?;
    match cli.verb {
        Verb::ServeDetached(_) => serve::serve_detached(&root),
        Verb::ServeKept(_) => serve::serve_kept(),
        Verb::Serve(args) if args.background || args.run.is_some() => {
            background::serve(args, &root)
        }
        Verb::Serve(args) => {
            let own = root.dir(&args.name).sockets();
            serve::run(
                &Settings::resolve(args.name, args.device, &own)?,
                &root,
                false,
            )
        }
        Verb::Mount(args) => mount::mount(args, inherited::take()?, None, &root),
        Verb::Umount(args) => umount::umount(&args, &root),
        Verb::Up(args) => up::up(&args, &root),
        Verb::Down(args) => down::down(&args, &root),
        Verb::Attach(args) => attach::attach(&args, &root),
        Verb::Detach(args) => detach::detach(&args, &root),
        Verb::List(args) => list::list(&args, &root),
        Verb::Stat(args) => stat::stat(&args, &root),
        Verb::Top(args) => top::top(&args, &root),
        Verb::Map(args) => map::map(&args, &root),
        Verb::Metrics => metrics::metrics(&root),
        Verb::Set(args) => set::set(&args, &root),
        Verb::Compact(args) => compact::compact(&args, &root),
        Verb::Scrub(args) => scrub::scrub(&args, &root),
        Verb::Save(args) => save::save(&args, &root),
        Verb::Idle(args) => idle::idle(&args, &root),
        Verb::Writeback(args) => writeback::writeback(&args, &root),
        Verb::Recompress(args) => recompress::recompress(&args, &root),
        Verb::Sync(args) => sync::sync(&args, &root),
        Verb::TrainDict(args) => train::train_dict(&args, &root),
        Verb::Reset(args) => reset::reset(&args, &root),
        Verb::WipeSpill(args) => wipe_spill::wipe_spill(&args),
        Verb::ClearSpill(args) => clear_spill::clear_spill(&args),
        Verb::Completions(args) => complete::print_script(&args.shell.to_string()),
        Verb::Man(args) => man::man(&args),
        Verb::Log(args) => log::log(&args, &root),
        Verb::Stop(args) => stop::stop(&args, &root),
    }
}

/// Shows help where it was asked for; otherwise says in one line what is wrong.
fn refuse(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // A reader of the help that goes away has read enough.
            let _ = error.print();
        }
        _ => failure::say(&failure::clap_line(error)),
    }
    ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
}

fn start_logging(args: LoggingArgs, has_colours: bool) -> Result<()> {
    let level = match (args.quiet, args.verbose) {
        (true, _) => "error",
        // fuser warns of every request it leaves to us to refuse.
        (false, 0) => "warn,uzram=info,fuser=error",
        (false, 1) => "debug",
        (false, _) => "trace",
    };
    let filter = match std::env::var("UZRAM_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text)
            .map_err(|e| Usage::error(format!("UZRAM_LOG: {text:?} is no log filter: {e}")))?,
        _ => EnvFilter::new(level),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr::Log { has_colours })
        .with_ansi(false)
        .with_target(false)
        .init();
    Ok(())
}
