//! Completion for shells that ask with words as they are typed, quotes and all, or with the last one so, and
//! quote the answer themselves.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;

use clap::Command;
use clap_complete::env::EnvCompleter;

use super::line::{Line, Quote};

/// Such a shell.
pub(super) struct Dequoted<S> {
    shell: S,
    typed: Typed,
}

/// The words that a shell hands on as they are typed. Of the others it takes the quotes away itself.
enum Typed {
    All,
    Last,
}

impl<S> Dequoted<S> {
    pub(super) const fn all(shell: S) -> Self {
        let typed = Typed::All;
        Self { shell, typed }
    }

    pub(super) const fn last(shell: S) -> Self {
        let typed = Typed::Last;
        Self { shell, typed }
    }

    fn dequoted(&self, mut args: Vec<OsString>) -> Vec<OsString> {
        let first = match self.typed {
            Typed::All => 0,
            Typed::Last => args.len().saturating_sub(1),
        };
        for arg in &mut args[first..] {
            if let Some(text) = arg.to_str() {
                *arg = Line::split(text, Quote::None).last().into();
            }
        }
        args
    }
}

impl<S: EnvCompleter> EnvCompleter for Dequoted<S> {
    fn name(&self) -> &'static str {
        self.shell.name()
    }

    fn is(&self, name: &str) -> bool {
        self.shell.is(name)
    }

    fn write_registration(
        &self,
        var: &str,
        name: &str,
        bin: &str,
        completer: &str,
        buf: &mut dyn Write,
    ) -> io::Result<()> {
        self.shell
            .write_registration(var, name, bin, completer, buf)
    }

    fn write_complete(
        &self,
        cmd: &mut Command,
        args: Vec<OsString>,
        current_dir: Option<&Path>,
        buf: &mut dyn Write,
    ) -> io::Result<()> {
        let args = self.dequoted(args);
        self.shell.write_complete(cmd, args, current_dir, buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_taken_away_once() {
        let words = |words: [&str; 3]| words.map(OsString::from).to_vec();
        let typed = words(["uzram", r"my\ image", r"'a b\ c"]);
        let zsh = Dequoted::all(()).dequoted(typed.clone());
        assert_eq!(zsh, words(["uzram", "my image", r"a b\ c"]));
        let fish = Dequoted::last(()).dequoted(typed);
        assert_eq!(fish, words(["uzram", r"my\ image", r"a b\ c"]));
        assert!(Dequoted::last(()).dequoted(Vec::new()).is_empty());
    }
}
