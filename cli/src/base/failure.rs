//! What a failed command says and how it exits.
//!
//! Exit codes: 2 for what is wrong on any machine and any device: words that are unknown, values that
//! make no sense, a configuration file that has them. 1 for what this machine lacks, and what a device, a
//! file or whoever uses them refuses as things stand. Either way stderr gets exactly one line.

use std::fmt;

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::base::output;

use crate::base::stderr;

use crate::base::{suggest, wording};

/// The exit code of what is wrong on any machine.
pub(crate) const USAGE: u8 = 2;

/// The command line asks for something that makes no sense on any machine.
#[derive(Debug)]
pub(crate) struct Usage(String);

impl Usage {
    /// An error that exits 2 with `message`.
    pub(crate) fn error(message: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(Self(message.into()))
    }
}

impl fmt::Display for Usage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// Whatever failed has been said.
#[derive(Debug)]
pub(crate) struct Said {
    /// What we exit with because of it.
    pub(crate) code: u8,
}

impl Said {
    /// Of several failures, of which all or not all were asked for wrongly.
    pub(crate) fn all(usage: bool) -> Self {
        Self {
            code: if usage { USAGE } else { 1 },
        }
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it failed, as was said")
    }
}

impl std::error::Error for Said {}

/// The command of a `--run` failed, which has said why; the exit code is its own.
#[derive(Debug)]
pub(crate) struct CommandFailed(u8);

impl CommandFailed {
    /// An error that exits with `status`, or 1 if there is none that one can exit with.
    pub(crate) fn error(status: Option<i32>) -> anyhow::Error {
        let status = status.and_then(|status| u8::try_from(status).ok());
        anyhow::Error::new(Self(status.unwrap_or(1)))
    }
}

impl fmt::Display for CommandFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the command ended with status {}", self.0)
    }
}

impl std::error::Error for CommandFailed {}

/// Says on stderr what failed.
pub(crate) fn complain(error: &anyhow::Error) {
    say(&one_line(error));
}

/// Says on stderr what is wrong.
pub(crate) fn say(line: &str) {
    stderr::line(&format!("uzram: {line}"));
}

/// Says on stderr what the user should know, unless only errors are to be said.
pub(crate) fn warn(line: &str) {
    if !output::is_quiet() {
        say(&format!("warning: {line}"));
    }
}

/// 2 if the user asked for something impossible, otherwise 1; or as another process has ended that said it.
pub(crate) fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(said) = error.downcast_ref::<Said>() {
        return said.code;
    }
    if let Some(CommandFailed(status)) = error.downcast_ref() {
        return *status;
    }
    let usage = error.chain().any(|cause| {
        cause.is::<Usage>() || cause.downcast_ref().is_some_and(uzram::Error::is_usage)
    });
    if usage { USAGE } else { 1 }
}

/// `error` with its causes, on one line; a cause that its parent already quotes is left out.
pub(crate) fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = match cause.downcast_ref() {
            Some(uzram::Error::InvalidConfig { option, reason }) => {
                format!("{}: {reason}", wording::option(option))
            }
            _ => cause.to_string(),
        };
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    join_lines(&text)
}

/// clap's message without its usage block, on one line; of its tips, which may be wrong, only what is spelt
/// much like what was typed.
pub(crate) fn clap_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let message = text
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.trim_start().starts_with("tip:"))
        .collect::<Vec<_>>()
        .join("\n");
    let mut line = join_lines(&message);
    // Clap names one of several that would do.
    if error.kind() == ErrorKind::MissingRequiredArgument && line.contains(" --size ") {
        line.push_str(" (or --restore FILE, or --origin IMAGE)");
    }
    if let Some(way) = way_to(error) {
        line = way;
    } else if let Some(meant) = suggestion(error) {
        line.push_str(&suggest::question(&meant));
    }
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}

/// How to do here what another tool has a verb for.
fn way_to(error: &clap::Error) -> Option<String> {
    const WAYS: [(&[&str], &str); 4] = [
        (
            &["create", "add", "new", "start", "run", "init"],
            "uzram serve NAME --size SIZE serves a device, uzram mount --size SIZE DIR mounts one",
        ),
        (
            &["delete", "remove", "destroy", "kill", "shutdown"],
            "uzram stop NAME ends a device, uzram umount DIR one that uzram mount made",
        ),
        (
            &["resize", "grow"],
            "uzram set NAME disksize=SIZE makes a device larger",
        ),
        (&["version"], "uzram --version prints it"),
    ];
    let Some(ContextValue::String(typed)) = error.get(ContextKind::InvalidSubcommand) else {
        return None;
    };
    let (_, way) = WAYS
        .iter()
        .find(|(verbs, _)| verbs.contains(&typed.as_str()))?;
    Some(format!("there is no verb {typed}: {way}"))
}

/// The option, verb or value that was meant, of what clap supposes, which is easily satisfied.
fn suggestion(error: &clap::Error) -> Option<String> {
    const KINDS: [(ContextKind, ContextKind); 3] = [
        (ContextKind::InvalidArg, ContextKind::SuggestedArg),
        (
            ContextKind::InvalidSubcommand,
            ContextKind::SuggestedSubcommand,
        ),
        (ContextKind::InvalidValue, ContextKind::SuggestedValue),
    ];
    KINDS.iter().find_map(|(typed, supposed)| {
        let ContextValue::String(typed) = error.get(*typed)? else {
            return None;
        };
        match error.get(*supposed)? {
            ContextValue::String(word) => suggest::nearest(typed, [word.clone()]),
            ContextValue::Strings(words) => suggest::nearest(typed, words.clone()),
            _ => None,
        }
    })
}

fn join_lines(text: &str) -> String {
    let lines: Vec<_> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    lines.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_joined_once_and_on_one_line() {
        let error = anyhow::anyhow!("no such file\n  at all")
            .context("cannot open x")
            .context("cannot start: cannot open x");
        assert_eq!(
            one_line(&error),
            "cannot start: cannot open x: no such file at all"
        );
    }

    #[test]
    fn exit_codes() {
        assert_eq!(exit_code(&Usage::error("x").context("y")), 2);
        assert_eq!(exit_code(&anyhow::anyhow!("x")), 1);
        let error = uzram::Error::InvalidConfig {
            option: "size",
            reason: "bad".to_owned(),
        };
        assert_eq!(exit_code(&error.into()), 2);
    }
}
