//! Which configuration files there are, and the devices of all of them.

use std::collections::HashMap;
use std::env;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{Config, Entry, saved};
use crate::base::failure::Usage;
use crate::base::name::Name;

/// Where the devices of a machine are described.
const MACHINE: &str = "/etc/uzram.toml";

/// Where more files stand, such as those of packages, which end in `.toml`.
const MORE: &str = "/etc/uzram.d";

/// Files and their devices, in their order. Invariant: no two devices have one name, or save to one file.
#[derive(Debug)]
pub(crate) struct Files {
    configs: Vec<Config>,
}

impl Files {
    /// Reads the file that is asked for; else a user's own, if there is one; else the machine's.
    pub(crate) fn read(asked: Option<&Path>) -> Result<Self> {
        let paths = match asked {
            Some(path) => vec![path.to_owned()],
            None => places(own().as_deref(), Path::new(MACHINE), Path::new(MORE))?,
        };
        let configs: Result<Vec<_>> = paths.iter().map(|path| Config::read(path)).collect();
        let files = Self { configs: configs? };
        files.check_names()?;
        saved::check_images(&files.configs)?;
        Ok(files)
    }

    fn check_names(&self) -> Result<()> {
        let mut seen = HashMap::new();
        for (config, entry) in self.entries() {
            if let Some(other) = seen.insert(&entry.name, config) {
                return Err(Usage::error(format!(
                    "{}:{}: {}: it is in {} as well: use another name",
                    config.path.display(),
                    entry.line,
                    entry.name,
                    other.path.display()
                )));
            }
        }
        Ok(())
    }

    fn entries(&self) -> impl Iterator<Item = (&Config, &Entry)> {
        let configs = self.configs.iter();
        configs.flat_map(|config| config.entries.iter().map(move |entry| (config, entry)))
    }

    /// Warns of what is ignored in them.
    pub(crate) fn warn(&self) {
        self.configs.iter().for_each(Config::warn);
    }

    /// The devices called `names`, or all.
    pub(crate) fn select(&self, names: &[Name]) -> Result<Vec<(&Config, &Entry)>> {
        for name in names {
            if !self.entries().any(|(_, entry)| entry.name == *name) {
                bail!(
                    "{} has no device {name}; it has: {}",
                    self.shown(),
                    self.names().join(", ")
                );
            }
        }
        let entries = self.entries();
        let wanted = entries.filter(|(_, entry)| names.is_empty() || names.contains(&entry.name));
        Ok(wanted.collect())
    }

    /// What their devices are called.
    pub(crate) fn names(&self) -> Vec<String> {
        self.entries()
            .map(|(_, entry)| entry.name.to_string())
            .collect()
    }

    /// The files, for a message.
    pub(crate) fn shown(&self) -> String {
        let paths = self
            .configs
            .iter()
            .map(|config| config.path.display().to_string());
        paths.collect::<Vec<_>>().join(" and ")
    }
}

/// A user's own file. Root has none: what is in a home directory may be another's.
fn own() -> Option<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return None;
    }
    let from = |variable| env::var_os(variable).filter(|value| !value.is_empty());
    let dir = from("XDG_CONFIG_HOME").map(PathBuf::from);
    let dir = dir.or_else(|| Some(Path::new(&from("HOME")?).join(".config")))?;
    Some(dir.join("uzram.toml"))
}

/// The files to read, of which there must be one.
fn places(own: Option<&Path>, machine: &Path, more: &Path) -> Result<Vec<PathBuf>> {
    if let Some(own) = own.filter(|own| own.exists()) {
        return Ok(vec![own.to_owned()]);
    }
    let mut places = Vec::new();
    let shown = more.display();
    match fs::read_dir(more) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        entries => {
            for entry in entries.with_context(|| format!("cannot read {shown}"))? {
                places.push(
                    entry
                        .with_context(|| format!("cannot read {shown}"))?
                        .path(),
                );
            }
        }
    }
    places.retain(|path| path.extension().is_some_and(|end| end == "toml"));
    places.sort();
    if machine.exists() {
        places.insert(0, machine.to_owned());
    }
    if places.is_empty() {
        let own = own.map_or_else(String::new, |own| format!(", no {}", own.display()));
        bail!(
            "there is no {}{own}: name a file, or see uzram up --help for one",
            machine.display()
        );
    }
    Ok(places)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_s_own_file_goes_before_the_machine_s_and_those_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let [own, machine, more] =
            ["own.toml", "uzram.toml", "uzram.d"].map(|name| dir.path().join(name));
        let found = || places(Some(&own), &machine, &more);
        let error = found().unwrap_err().to_string();
        assert!(
            error.contains("own.toml") && error.contains("uzram.toml"),
            "{error}"
        );
        fs::create_dir(&more).unwrap();
        assert!(found().is_err());
        for name in ["b.toml", "a.toml", "a.toml.bak", "README"] {
            fs::write(more.join(name), "").unwrap();
        }
        assert_eq!(found().unwrap(), [more.join("a.toml"), more.join("b.toml")]);
        fs::write(&machine, "").unwrap();
        assert_eq!(found().unwrap()[0], machine);
        assert_eq!(found().unwrap().len(), 3);
        fs::write(&own, "").unwrap();
        assert_eq!(found().unwrap(), std::slice::from_ref(&own));
    }

    #[test]
    fn no_two_files_have_one_name_or_one_image() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a.toml"), dir.path().join("b.toml"));
        fs::write(&a, "[a]\nsize = 1\nsave = \"j\"\n").unwrap();
        for (text, said) in [
            ("[a]\nsize = 1\n", "b.toml:1: a: it is in"),
            ("[b]\nsize = 1\nsave = \"j\"\n", "save: it is the save of"),
        ] {
            fs::write(&b, text).unwrap();
            let configs = vec![Config::read(&a).unwrap(), Config::read(&b).unwrap()];
            let checked = Files { configs };
            let error = checked
                .check_names()
                .and_then(|()| saved::check_images(&checked.configs));
            let error = error.unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
