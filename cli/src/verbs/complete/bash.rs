//! Completion for bash, which takes a command line apart in its own way: at `=` and `:` as well, and with
//! quotes left in. So its script hands on the line as it is typed, and what comes back is quoted like what
//! it takes the place of.

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::path::Path;

use clap::Command;
use clap_complete::engine::complete;
use clap_complete::env::EnvCompleter;

use super::line::{Line, Quote};

/// Names the part of the line that what is answered takes the place of, as it is typed.
const REPLACED: &str = "UZRAM_COMPLETE_REPLACED";

/// The shell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bash;

impl EnvCompleter for Bash {
    fn name(&self) -> &'static str {
        "bash"
    }

    fn is(&self, name: &str) -> bool {
        name == self.name()
    }

    fn write_registration(
        &self,
        var: &str,
        name: &str,
        bin: &str,
        completer: &str,
        buf: &mut dyn Write,
    ) -> io::Result<()> {
        // A word that is to go on, a directory or `--size=`, is followed by no space.
        writeln!(
            buf,
            r#"_{name}() {{
    mapfile -t COMPREPLY < <({REPLACED}="$2" {var}=bash {completer} -- "${{COMP_LINE:0:COMP_POINT}}" 2>/dev/null)
    [[ ${{#COMPREPLY[@]}} == 1 && ${{COMPREPLY[0]}} == *[/=:] ]] && compopt -o nospace
}}
complete -o nosort -o bashdefault -F _{name} {bin}"#
        )
    }

    fn write_complete(
        &self,
        cmd: &mut Command,
        args: Vec<OsString>,
        current_dir: Option<&Path>,
        buf: &mut dyn Write,
    ) -> io::Result<()> {
        let text = args.into_iter().next().unwrap_or_default();
        let line = Line::split(&text.to_string_lossy(), Quote::None);
        let replaced = env::var(REPLACED).unwrap_or_default();
        let replaced = Line::split(&replaced, line.open).last().to_owned();
        // Bash lets what is before it stand.
        let Some(kept) = line.last().strip_suffix(&replaced).map(str::to_owned) else {
            return Ok(());
        };
        let index = line.words.len() - 1;
        let words = line.words.into_iter().map(OsString::from).collect();
        for candidate in complete(cmd, words, index, current_dir)? {
            if let Some(rest) = candidate
                .get_value()
                .to_str()
                .and_then(|v| v.strip_prefix(&kept))
            {
                writeln!(buf, "{}", line.open.quoted(rest))?;
            }
        }
        Ok(())
    }
}
