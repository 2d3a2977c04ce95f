//! Devices described in a file: `uzram.toml`, a table for each device whose keys are the options of
//! `uzram serve` and `uzram mount`; or zram-generator.conf, read as zram-generator does.
//!
//! Either becomes the words of a command line, so that a value means the same in all three. An error
//! names the file, the line and the key.

mod files;
mod saved;
mod toml;
mod zram_generator;

pub(crate) use self::files::Files;

use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf, absolute};
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};
use clap::{ArgAction, CommandFactory};

use crate::args::{self, Cli, MountArgs, ServeArgs, Verb};
use crate::base::failure::{self, Usage};
use crate::base::name::Name;
use crate::base::{ram, suggest};
use crate::settings::swap_priority::SwapPriority;

/// The key of a device that is mounted; on the command line it stands alone.
const MOUNTPOINT: &str = "mountpoint";

/// The key of a device that is saved by `down`, and then begins with that image; the command line has
/// nothing like it.
const SAVE: &str = "save";

/// The key of a device that is swapped to; the command line has nothing like it.
const SWAP_PRIORITY: &str = "swap-priority";

/// The key of a device that may meet its limit with nowhere to spill to.
const ALLOW_ENOSPC: &str = "allow-enospc";

/// Most bytes of a file: of tables as long as they get, some hundred thousand.
const MAX_LEN: usize = 16 << 20;

/// What a key is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Value {
    /// Words, one for each time the option would be given.
    Words(Vec<String>),
    Flag(bool),
}

impl Value {
    /// The first word, if it is no flag.
    fn word(&self) -> Option<&str> {
        match self {
            Self::Words(words) => words.first().map(String::as_str),
            Self::Flag(_) => None,
        }
    }
}

/// A key of a device, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key {
    line: usize,
    name: String,
    value: Value,
}

/// A device, and where its part of the file starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    line: usize,
    /// The directory of its file, from which its paths are.
    dir: PathBuf,
    pub(crate) name: Name,
    keys: Vec<Key>,
}

/// What a device of the file is to be.
pub(crate) enum Wanted {
    Served(ServeArgs),
    Mounted(MountArgs),
    SwappedTo(ServeArgs, SwapPriority),
}

/// A file and its devices, in their order.
#[derive(Debug)]
pub(crate) struct Config {
    path: PathBuf,
    entries: Vec<Entry>,
    /// What is ignored in it, or not as it seems.
    warnings: Vec<Wrong>,
}

impl Config {
    /// Reads `path`: zram-generator's form if it ends in `.conf`, else TOML.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let text = match uzram::read_named_file(path, MAX_LEN) {
            Err(uzram::Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {
                bail!("there is no {shown}: see uzram up --help for one")
            }
            text => String::from_utf8(text?).with_context(|| format!("cannot read {shown}"))?,
        };
        let parsed = match path.extension().is_some_and(|end| end == "conf") {
            true => zram_generator::parse(&text, ram::mib()?),
            false => toml::parse(&text).map(|entries| Parsed {
                entries,
                warnings: Vec::new(),
            }),
        };
        let Parsed {
            mut entries,
            warnings,
        } = parsed.map_err(|error| error.in_file(path))?;
        let whole = absolute(path).with_context(|| format!("cannot make sense of {shown}"))?;
        for entry in &mut entries {
            entry.dir = whole.parent().unwrap_or(&whole).to_owned();
        }
        let config = Self {
            path: path.to_owned(),
            entries,
            warnings,
        };
        for entry in &config.entries {
            config.check_keys(entry)?;
        }
        Ok(config)
    }

    /// Warns of what is ignored in it.
    pub(crate) fn warn(&self) {
        for Wrong { line, reason } in &self.warnings {
            failure::warn(&format!("{}:{line}: {reason}", self.path.display()));
        }
    }

    /// What the entry asks for.
    pub(crate) fn wanted(&self, entry: &Entry) -> Result<Wanted> {
        let words = entry.check_image().and_then(|()| entry.words());
        let words = words.map_err(|error| self.explain(entry, error))?;
        match args::parse(words).map(|cli| cli.verb) {
            Ok(Verb::Serve(mut args)) => {
                args.device.seen_from(&entry.dir);
                Ok(match entry.swap_priority() {
                    Some(priority) => Wanted::SwappedTo(args, priority),
                    None => Wanted::Served(args),
                })
            }
            Ok(Verb::Mount(mut args)) => {
                args.seen_from(&entry.dir);
                Ok(Wanted::Mounted(args))
            }
            Ok(_) => bail!("{} is neither served nor mounted", entry.name),
            Err(error) => Err(self.explain(entry, Usage::error(failure::clap_line(&error)))),
        }
    }

    /// `error` about an entry, with the place in the file that it is about.
    pub(crate) fn explain(&self, entry: &Entry, error: anyhow::Error) -> anyhow::Error {
        let text = failure::one_line(&error);
        let about = entry.keys.iter().find(|key| is_about(&text, &key.name));
        let line = match about {
            // The error says which key.
            Some(key) => key.line,
            None => entry.line,
        };
        error.context(format!("{}:{line}: {}", self.path.display(), entry.name))
    }

    fn check_keys(&self, entry: &Entry) -> Result<()> {
        let verb = if entry.is_mounted() { "mount" } else { "serve" };
        for key in &entry.keys {
            let wrong = |reason: String| {
                let Key { line, name, .. } = key;
                Usage::error(format!("{}:{line}: {name}: {reason}", self.path.display()))
            };
            if key.name == MOUNTPOINT {
                continue;
            }
            if key.name == SAVE {
                entry
                    .check_save()
                    .map_err(|reason| wrong(reason.to_owned()))?;
                continue;
            }
            if key.name == SWAP_PRIORITY {
                if entry.is_mounted() {
                    return Err(wrong("what has a mountpoint is no swap space".to_owned()));
                }
                if entry.swap_priority().is_none() {
                    return Err(wrong("use a number from -1 to 32767".to_owned()));
                }
                continue;
            }
            let is_flag = flag_of(verb, &key.name).ok_or_else(|| {
                wrong(match flag_of("mount", &key.name) {
                    Some(_) => format!("only what is mounted has one: add {MOUNTPOINT} = \"DIR\""),
                    None => no_such_key(verb, &key.name),
                })
            })?;
            match (is_flag, &key.value) {
                (true, Value::Words(_)) => return Err(wrong("use true or false".to_owned())),
                (false, Value::Flag(_)) => return Err(wrong("it takes a value".to_owned())),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Entry {
    /// Whether a flag is set.
    fn is_set(&self, flag: &str) -> bool {
        let mut keys = self.keys.iter();
        keys.any(|key| key.name == flag && key.value == Value::Flag(true))
    }

    pub(crate) fn is_mounted(&self) -> bool {
        self.key(MOUNTPOINT).is_some()
    }

    fn key(&self, name: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// The image that it begins with each time, if there is one and it is never saved.
    pub(crate) fn fixed_image(&self) -> Option<&str> {
        match self.key(SAVE) {
            Some(_) => None,
            None => self.key("restore")?.value.word(),
        }
    }

    /// How it is to be swapped to, if it is.
    pub(crate) fn swap_priority(&self) -> Option<SwapPriority> {
        SwapPriority::parse(self.key(SWAP_PRIORITY)?.value.word()?)
    }

    /// The command line that makes the device.
    fn words(&self) -> Result<Vec<OsString>> {
        let name = self.name.as_str();
        let mut words = vec!["uzram".to_owned()];
        match self.is_mounted() {
            true => words.extend(["mount".to_owned(), format!("--name={name}")]),
            false => words.push("serve".to_owned()),
        }
        let mut last = name;
        let keys = self.keys_now()?;
        for Key { name, value, .. } in &keys {
            match value {
                Value::Words(_) if name == SAVE => {}
                Value::Words(_) if name == MOUNTPOINT => last = value.word().unwrap_or_default(),
                // Said twice it would be refused.
                Value::Words(_) if name == SWAP_PRIORITY && self.is_set("swap") => {}
                Value::Words(_) if name == SWAP_PRIORITY => words.push("--swap".to_owned()),
                Value::Words(values) => {
                    words.extend(values.iter().map(|value| format!("--{name}={value}")));
                }
                Value::Flag(true) => words.push(format!("--{name}")),
                Value::Flag(false) => {}
            }
        }
        words.extend(["--".to_owned(), last.to_owned()]);
        Ok(words.into_iter().map(OsString::from).collect())
    }
}

/// Whether an error's text is about the key `name`, or the option of that name.
fn is_about(text: &str, name: &str) -> bool {
    if text
        .strip_prefix(name)
        .is_some_and(|rest| rest.starts_with(": "))
    {
        return true;
    }
    let option = format!("--{name}");
    text.match_indices(&option).any(|(at, _)| {
        let next = text[at + option.len()..].chars().next();
        !next.is_some_and(|c| c == '-' || c.is_ascii_alphanumeric())
    })
}

/// The options of a verb that a device's table can have, and whether each is a flag. A file has many
/// keys, so the command line is looked through once.
fn keys_of(verb: &str) -> &'static [(String, bool)] {
    static SERVED: OnceLock<Vec<(String, bool)>> = OnceLock::new();
    static MOUNTED: OnceLock<Vec<(String, bool)>> = OnceLock::new();
    let keys = if verb == "mount" { &MOUNTED } else { &SERVED };
    keys.get_or_init(|| options_of(verb))
}

fn options_of(verb: &str) -> Vec<(String, bool)> {
    const ELSEWHERE: [&str; 7] = [
        "name",
        "help",
        "verbose",
        "quiet",
        "background",
        "pidfile",
        "run",
    ];
    let mut command = Cli::command();
    command.build();
    let verb = command.find_subcommand(verb);
    let options = verb.into_iter().flat_map(clap::Command::get_arguments);
    let shown = options.filter(|option| !option.is_hide_set());
    let named = shown.filter_map(|option| {
        let name = option.get_long()?;
        let is_flag = matches!(option.get_action(), ArgAction::SetTrue);
        Some((name.to_owned(), is_flag))
    });
    let mut keys: Vec<_> = named
        .filter(|(name, _)| !ELSEWHERE.contains(&name.as_str()))
        .collect();
    keys.sort();
    keys
}

/// Whether the key is a flag; `None` if there is no such key.
fn flag_of(verb: &str, key: &str) -> Option<bool> {
    let found = keys_of(verb).iter().find(|(name, _)| name == key);
    found.map(|(_, is_flag)| *is_flag)
}

fn no_such_key(verb: &str, key: &str) -> String {
    let mut names: Vec<_> = keys_of(verb)
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    names.extend([MOUNTPOINT, SAVE, SWAP_PRIORITY]);
    match suggest::nearest(key, &names) {
        Some(meant) => format!("there is no such key{}", suggest::question(meant)),
        None => format!("there is no such key: the keys are {}", names.join(", ")),
    }
}

/// What a file says.
#[derive(Debug)]
struct Parsed {
    entries: Vec<Entry>,
    warnings: Vec<Wrong>,
}

/// What is wrong with a line.
#[derive(Debug)]
struct Wrong {
    line: usize,
    reason: String,
}

impl Wrong {
    fn new(line: usize, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self { line, reason }
    }

    fn in_file(self, path: &Path) -> anyhow::Error {
        Usage::error(format!("{}:{}: {}", path.display(), self.line, self.reason))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::args::Sink;
    use uzram::nbd::Address;

    fn config(text: &str) -> (tempfile::TempDir, Result<Config>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("uzram.toml");
        fs::write(&path, text).unwrap();
        let config = Config::read(&path).and_then(|config| {
            saved::check_images(std::slice::from_ref(&config))?;
            Ok(config)
        });
        (dir, config)
    }

    #[test]
    fn keys_are_options() {
        let (_dir, config) = config(
            "[vm]\nsize = \"2G\"\nnbd = [\"unix:/tmp/s\", \"tcp:127.0.0.1:10809\"]\nread-only = true\n\
             insecure = false\nslow = 20\n\n[scratch]\nsize = 4096000\nmountpoint = \"/mnt/x\"\nfs = \"xfs\"\n",
        );
        let config = config.unwrap();
        let [vm, scratch] = &config.entries[..] else {
            panic!("{config:?}");
        };
        let Wanted::Served(vm) = config.wanted(vm).unwrap() else {
            panic!("not served");
        };
        assert_eq!((vm.name.as_str(), vm.device.size), ("vm", Some(2 << 30)));
        assert_eq!(vm.device.export.nbd.len(), 2);
        assert!(vm.device.read_only && !vm.device.export.insecure);
        assert_eq!(vm.device.watch.slow, Some(20));
        let Wanted::Mounted(scratch) = config.wanted(scratch).unwrap() else {
            panic!("not mounted");
        };
        assert_eq!(scratch.mountpoint, Path::new("/mnt/x"));
        assert_eq!(scratch.name.unwrap().as_str(), "scratch");
    }

    /// Wherever the command runs: nothing changes directory to read them.
    #[test]
    fn relative_paths_are_from_the_file() {
        let (dir, read) = config(
            "[a]\nsize = 4096\nbacking = \"b/s\"\nnbd = \"unix:n\"\nmetrics = [\"file:m\", \"tcp:h:1\"]\nsave = \"i\"\n\
             [c]\nsize = 4096\nmountpoint = \"at\"\ntls-certificates = \"/abs\"\n",
        );
        let config = read.unwrap();
        let at = |name| dir.path().join(name);
        assert_eq!(config.entries[0].save(), Some(at("i")));
        let Wanted::Served(served) = config.wanted(&config.entries[0]).unwrap() else {
            panic!("not served");
        };
        assert_eq!(served.device.backing, Some(at("b/s")));
        assert_eq!(served.device.export.nbd, [Address::Unix(at("n"))]);
        assert_eq!(served.device.watch.metrics[0], Sink::File(at("m")));
        let Wanted::Mounted(mounted) = config.wanted(&config.entries[1]).unwrap() else {
            panic!("not mounted");
        };
        assert_eq!(mounted.mountpoint, at("at"));
        let certificates = mounted.device.export.tls_certificates;
        assert_eq!(certificates, Some("/abs".into()));
    }

    #[test]
    fn what_has_a_priority_is_swapped_to() {
        let (_dir, config) = config(
            "[a]\nsize = \"2G\"\nswap-priority = 100\n[b]\nsize = \"2G\"\nswap-priority = -1\nswap = true\n",
        );
        let config = config.unwrap();
        for (entry, number) in config.entries.iter().zip(["100", "-1"]) {
            let Wanted::SwappedTo(args, priority) = config.wanted(entry).unwrap() else {
                panic!("not swapped to");
            };
            assert!(args.device.swap);
            assert_eq!(Some(priority), SwapPriority::parse(number));
        }
    }

    /// Each of these keys once cost a look through the command line, the file and the other tables.
    #[test]
    fn many_devices_take_no_longer_each_than_one() {
        const TABLES: usize = 20_000;
        let table = |n| format!("[d{n}]\nsize = 4096\nbacking = \"/b/{n}\"\nsave = \"/s/{n}\"\n");
        let text: String = (0..TABLES).map(table).collect();
        let (_dir, config) = config(&text);
        let config = config.unwrap();
        assert_eq!(config.entries.len(), TABLES);
        let last = config.entries.last().unwrap();
        assert_eq!(last.line, 4 * (TABLES - 1) + 1);
    }

    #[test]
    fn errors_name_the_line_and_the_key() {
        for (text, words) in [
            ("[a\n", &[":1: "][..]),
            ("size = 1\n", &[":1: ", "[NAME]"]),
            (
                "[a]\n\nsiez = \"1G\"\n",
                &[":3: siez: ", "did you mean size?"],
            ),
            (
                "[a]\nbackground = true\n",
                &[":2: background: ", "backing-size", "mountpoint", "save"],
            ),
            (
                "[a]\nsize = 1\nsave = true\n",
                &[":3: save: use the path of a file"],
            ),
            (
                "[a]\norigin = \"i\"\nsave = \"j\"\n",
                &[":3: save: ", "origin"],
            ),
            (
                "[a]\nsize = 1\nswap-priority = 1\nsave = \"j\"\n",
                &[":4: save: "],
            ),
            (
                "[a]\nsize = 1\nsave = \"j\"\n[b]\nsize = 1\nsave = \"./j\"\n",
                &[":3: save: it is the save of b, in line 6"],
            ),
            (
                "[a]\nrestore = \"j\"\n[b]\nsize = 1\nsave = \"j\"\n",
                &[":5: save: it is the restore of a, in line 2"],
            ),
            (
                "[a]\nsize = 1\nbacking = \"./j\"\nsave = \"j\"\n",
                &[":4: save: it is the backing of a, in line 3"],
            ),
            ("[a]\nsize = true\n", &[":2: size: it takes a value"]),
            ("[a]\nsize = 1.5\n", &[":2: size: "]),
            (
                "[a]\nread-only = \"yes\"\n",
                &[":2: read-only: use true or false"],
            ),
            (
                "[a]\nsize = \"1G\"\nmem-limit = \"lots\"\n",
                &[":3: a: ", "--mem-limit", "lots"],
            ),
            (
                "[a]\nsize = \"1G\"\nfs = \"ext4\"\n",
                &[":3: fs: only what is mounted", "mountpoint"],
            ),
            ("\n[a]\nshards = 1\n", &[":2: a: ", "--size"]),
            ("[a b]\nsize = 1\n", &[":1: "]),
            (
                "[a]\nsize = 1\nswap-priority = 32768\n",
                &[":3: swap-priority: ", "32767"],
            ),
            ("[a]\nswap-priority = true\n", &[":2: swap-priority: "]),
            (
                "[a]\nmountpoint = \"/m\"\nswap-priority = 5\n",
                &[":3: swap-priority: ", "mountpoint"],
            ),
            ("[\"a/b\"]\nsize = 1\n", &[":1: "]),
        ] {
            let (_dir, config) = config(text);
            let error = config.and_then(|config| config.wanted(&config.entries[0]).map(drop));
            let error = error.expect_err(text);
            let said = failure::one_line(&error);
            assert_eq!(failure::exit_code(&error), 2, "{said}");
            for word in words {
                assert!(said.contains(word), "{word:?} in {said:?}");
            }
        }
    }
}
