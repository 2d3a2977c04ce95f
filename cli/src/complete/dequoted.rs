//! Completion for shells that ask with words as they are typed, quotes and all, and quote the answer
//! themselves.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;

use clap::Command;
use clap_complete::env::EnvCompleter;

use super::line::{Line, Quote};

/// Such a shell.
pub(super) struct Dequoted<S>(pub(super) S);

impl<S: EnvCompleter> EnvCompleter for Dequoted<S> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn is(&self, name: &str) -> bool {
        self.0.is(name)
    }

    fn write_registration(
        &self,
        var: &str,
        name: &str,
        bin: &str,
        completer: &str,
        buf: &mut dyn Write,
    ) -> io::Result<()> {
        self.0.write_registration(var, name, bin, completer, buf)
    }

    fn write_complete(
        &self,
        cmd: &mut Command,
        args: Vec<OsString>,
        current_dir: Option<&Path>,
        buf: &mut dyn Write,
    ) -> io::Result<()> {
        let dequoted = args.into_iter().map(|arg| match arg.to_str() {
            Some(text) => Line::split(text, Quote::None).last().into(),
            None => arg,
        });
        self.0
            .write_complete(cmd, dequoted.collect(), current_dir, buf)
    }
}
