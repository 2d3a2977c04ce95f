//! What a shell is told when it asks how a word may go on: by the script that `uzram completions` prints,
//! which runs uzram with the words so far. So it knows the devices of the moment.
//!
//! What cannot be found out is left out: nobody sees an error of it.

mod bash;
mod dequoted;
mod line;

use std::env;

use clap::{Arg, Command, CommandFactory};
use clap_complete::CompleteEnv;
use clap_complete::engine::{ArgValueCandidates, CompletionCandidate};
use clap_complete::env::{Elvish, Fish, Powershell, Shells, Zsh};

use self::dequoted::Dequoted;
use self::line::{Line, Quote};
use crate::args::{Cli, Known};
use crate::base::output;
use crate::base::table::bytes;
use crate::runtime::rundir::{RunDir, RunRoot};
use crate::settings::config::Files;

/// Names the shell that asks.
const VARIABLE: &str = "UZRAM_COMPLETE";

/// Those that can ask.
const SHELLS: Shells<'_> = Shells(&[
    &bash::Bash,
    &Elvish,
    &Dequoted::last(Fish),
    &Powershell,
    &Dequoted::all(Zsh),
]);

/// Answers a shell that asks, and ends the process; returns if none does. To be called before anything
/// is written.
pub(crate) fn answer_shell() {
    CompleteEnv::with_factory(command)
        .var(VARIABLE)
        .shells(SHELLS)
        .complete();
}

/// The command line, with the options of a verb behind the devices that it may be given, unless the word
/// that is completed, the last, is to be an option.
fn command() -> Command {
    let mut command = Cli::command();
    command.build();
    command = command.mut_subcommands(|verb| verb.mut_args(with_candidates));
    // Bash asks with a whole line, the others with words.
    let asked = env::args_os().next_back().unwrap_or_default();
    if Line::split(&asked.to_string_lossy(), Quote::None)
        .last()
        .starts_with('-')
    {
        return command;
    }
    let hide = |option: Arg| match option.is_positional() {
        true => option,
        false => option.hide(true),
    };
    let is_known = |word: &Arg| word.get::<ArgValueCandidates>().is_some();
    command.mut_subcommands(|verb| {
        let takes_known = verb.get_positionals().any(is_known);
        if takes_known {
            verb.mut_args(hide)
        } else {
            verb
        }
    })
}

/// Has what is known of the machine be looked up.
fn with_candidates(word: Arg) -> Arg {
    let Some(known) = word.get::<Known>().copied() else {
        return word;
    };
    word.add(match known {
        Known::Devices => ArgValueCandidates::new(devices),
        Known::Mountpoints => ArgValueCandidates::new(mountpoints),
        Known::Configured => ArgValueCandidates::new(configured),
    })
}

/// Prints the script that has `shell` ask.
pub(crate) fn print_script(shell: &str) -> anyhow::Result<()> {
    let Some(shell) = SHELLS.completer(shell) else {
        anyhow::bail!("nothing is known of {shell}");
    };
    let mut script = Vec::new();
    shell.write_registration(VARIABLE, "uzram", "uzram", "uzram", &mut script)?;
    output::text(&String::from_utf8(script)?)
}

/// The names of the devices that are served, or were until their server was killed.
fn devices() -> Vec<CompletionCandidate> {
    let shown = |dir: RunDir| {
        let size = bytes(dir.record()?.size);
        let help = match dir.holder().ok()? {
            Some(_) => size,
            None => format!("{size}, its server is dead"),
        };
        candidate(dir.name().as_str(), help)
    };
    dirs().into_iter().filter_map(shown).collect()
}

/// Where `uzram mount` has mounted something.
fn mountpoints() -> Vec<CompletionCandidate> {
    let shown = |dir: RunDir| {
        let mountpoint = dir.record()?.mountpoint?;
        candidate(mountpoint.to_str()?, dir.name().to_string())
    };
    dirs().into_iter().filter_map(shown).collect()
}

/// The devices of the configuration files, if they are where they usually are.
fn configured() -> Vec<CompletionCandidate> {
    let files = Files::read(None);
    let names = files.into_iter().flat_map(|files| files.names());
    let shown = |name: String| candidate(&name, "configured".to_owned());
    names.filter_map(shown).collect()
}

fn dirs() -> Vec<RunDir> {
    let dirs = RunRoot::locate().and_then(|root| root.dirs());
    dirs.unwrap_or_default()
}

/// A word that would be taken for an option is left out.
fn candidate(word: &str, help: String) -> Option<CompletionCandidate> {
    let is_option = word.starts_with('-');
    (!is_option).then(|| CompletionCandidate::new(word).help(Some(help.into())))
}
