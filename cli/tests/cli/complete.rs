//! What shells complete, asked of the shells.

use std::env;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use crate::terminal::Terminal;
use support::{World, finish};

/// What a shell prints that runs `script`, with `uzram` in its path; `None`, loudly, where there is no such
/// shell.
fn shell(world: &World, shell: &str, script: &str) -> Option<String> {
    let path = env::var("PATH").unwrap();
    if !env::split_paths(&path).any(|dir| dir.join(shell).exists()) {
        // Straight to the descriptor: the harness keeps what a passing test prints.
        let _ = writeln!(std::io::stderr(), "SKIPPED: completions of {shell}");
        return None;
    }
    let mut command = Command::new(shell);
    command
        .args(["-c", script])
        .current_dir(world.path(""))
        .env("UZRAM_RUNDIR", world.rundir())
        .env("HOME", world.path(""))
        .env("PATH", format!("{}:{path}", world.path("tools").display()))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = finish(&mut command);
    assert!(output.status.success(), "{shell}: {output:?}");
    assert!(output.stderr.is_empty(), "{shell}: {output:?}");
    Some(String::from_utf8(output.stdout).unwrap())
}

/// What bash offers after these words, the last of which is not complete.
fn bash(world: &World, words: &[&str]) -> Vec<String> {
    bash_at(world, &words.join(" "), words[words.len() - 1])
}

/// What bash offers for `replaced`, which is how it takes the end of a line for a word.
fn bash_at(world: &World, line: &str, replaced: &str) -> Vec<String> {
    // Which works while bash completes only.
    let script = format!(
        "source <(uzram completions bash)\n\
         compopt() {{ :; }}\n\
         COMP_LINE={}; COMP_POINT=${{#COMP_LINE}}\n\
         _uzram uzram {}\n\
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        quoted(&format!("uzram {line}")),
        quoted(replaced),
    );
    let offered = shell(world, "bash", &script).expect("a shell that is everywhere");
    let words = offered.lines().filter(|word| !word.is_empty());
    words.map(str::to_owned).collect()
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Puts `uzram` in the path of shells.
fn install(world: &World) {
    let tool = world.dir("tools").join("uzram");
    symlink(env!("CARGO_BIN_EXE_uzram"), tool).unwrap();
}

/// What can be listed is offered, wherever bash takes a word apart.
#[test]
fn values_and_files_are_completed() {
    let world = World::new();
    install(&world);
    for (option, typed, values) in [
        ("--pool", "z", &["zsmalloc", "z3fold", "zbud"][..]),
        ("--pool", "zs", &["zsmalloc"]),
        ("--algorithm", "zst", &["zstd"]),
        ("--recompress", "d", &["deflate"]),
        ("--sync", "", &["flush", "never"]),
        ("--backing-keep", "w", &["wipe"]),
        ("--tls", "r", &["require"]),
        ("--nbd", "u", &["unix:"]),
    ] {
        let mut values = values.to_vec();
        values.sort_unstable();
        let sorted = |line: &str, replaced: &str| {
            let mut offered = bash_at(&world, line, replaced);
            offered.sort_unstable();
            offered
        };
        let line = format!("serve a --size 1M {option}");
        assert_eq!(
            sorted(&format!("{line} {typed}"), typed),
            values,
            "{option}"
        );
        assert_eq!(
            sorted(&format!("{line}={typed}"), typed),
            values,
            "{option}"
        );
        // Some have bash take no words apart at `=`.
        let whole = format!("{option}={typed}");
        let prefixed: Vec<_> = values
            .iter()
            .map(|value| format!("{option}={value}"))
            .collect();
        assert_eq!(
            sorted(&format!("{line}={typed}"), &whole),
            prefixed,
            "{option}"
        );
    }
    let offered = |line: &str, replaced: &str| bash_at(&world, line, replaced);
    assert_eq!(offered("completions fi", "fi"), ["fish"]);
    assert_eq!(offered("writeback a type=hu", "hu"), ["huge", "huge_idle"]);
    assert_eq!(offered("recompress a algo=zs", "zs"), ["zstd"]);
    assert_eq!(offered("idle a a", "a"), ["all"]);
    assert_eq!(offered("set a comp_algorithm=zs", "zs"), ["zstd"]);

    fs::write(world.path("my image"), "").unwrap();
    fs::write(world.path("a$b"), "").unwrap();
    world.dir("my dir");
    assert_eq!(offered("save a my", "my"), [r"my\ dir/", r"my\ image"]);
    assert_eq!(offered(r"save a my\ i", r"my\ i"), [r"my\ image"]);
    assert_eq!(offered("save a \"my i", "my i"), ["my image"]);
    assert_eq!(offered("save a a", "a"), [r"a\$b"]);
    assert_eq!(offered("save a 'a", "a"), ["a$b"]);
    assert_eq!(
        offered(r"serve a --backing=my\ i", r"my\ i"),
        [r"my\ image"]
    );
    assert_eq!(
        offered("serve a --nbd unix:my", "my"),
        [r"my\ dir/", r"my\ image"]
    );
    assert_eq!(
        offered("set a backing_dev=my\\ i", r"my\ i"),
        [r"my\ image"]
    );
}

/// Typed into the shells themselves.
#[test]
fn what_is_completed_is_quoted_in_every_shell() {
    let world = World::new();
    install(&world);
    fs::write(world.path("my image"), "").unwrap();
    for (name, start, load) in [
        (
            "bash",
            "bash --norc --noprofile -i",
            "source <(uzram completions bash)",
        ),
        (
            "zsh",
            "zsh -f -i",
            "autoload -Uz compinit; compinit -u -D; source <(uzram completions zsh)",
        ),
        (
            "fish",
            "fish --no-config -i",
            "uzram completions fish | source",
        ),
    ] {
        if shell(&world, name, "true").is_none() {
            continue;
        }
        let Some(terminal) = Terminal::start(&world, start) else {
            return;
        };
        terminal.enter(&format!("{load}; echo load''ed"));
        terminal.until(|screen| screen.contains("loaded"));
        terminal.type_in(r"uzram save vm my\ i");
        terminal.press("Tab");
        terminal.until(|screen| screen.contains(r"uzram save vm my\ image"));
        terminal.press("C-u");
        terminal.type_in("uzram serve vm --backing=my");
        terminal.press("Tab");
        terminal.until(|screen| screen.contains(r"uzram serve vm --backing=my\ image"));
        terminal.press("C-u");
        terminal.type_in("uzram serve vm --pool zs");
        terminal.press("Tab");
        terminal.until(|screen| screen.contains("uzram serve vm --pool zsmalloc"));
    }
}

#[test]
fn devices_that_are_served_are_completed() {
    let world = World::new();
    install(&world);
    let _first = world.serve(&["first", "--size=1M"]);
    let mut second = world.serve(&["second", "--size=1M"]);
    let third = world.serve(&["third one", "--size=1M"]);
    assert_eq!(bash(&world, &["stat", "t"]), [r"third\ one"]);
    assert_eq!(bash_at(&world, "stat 'thi", "thi"), ["third one"]);
    drop(third);
    world.ok(&["detach", "third one"]);
    for verb in [
        "stat",
        "set",
        "stop",
        "detach",
        "save",
        "recompress",
        "top",
        "map",
    ] {
        assert_eq!(bash(&world, &[verb, ""]), ["first", "second"], "{verb}");
    }
    assert_eq!(bash(&world, &["stat", "s"]), ["second"]);
    assert_eq!(bash(&world, &["stat", "first", "mm"]), ["mm_stat"]);
    assert_eq!(bash(&world, &["stat", "first", "--j"]), ["--json"]);
    assert_eq!(bash(&world, &["set", "first", "mem_l"]), ["mem_limit="]);
    assert_eq!(bash(&world, &["train-dict", "--device", "f"]), ["first"]);
    assert_eq!(bash(&world, &["compl"]), ["completions"]);
    assert_eq!(bash(&world, &["mount", "--fs", "b"]), ["btrfs"]);
    let options = bash(&world, &["serve", "new", ""]);
    assert!(options.contains(&"--size".to_owned()), "{options:?}");

    second.kill_9();
    let script = "uzram completions fish | source; complete -C 'uzram stat '";
    if let Some(offered) = shell(&world, "fish", script) {
        let dead = "first\t1 MiB\nsecond\t1 MiB, its server is dead\n";
        assert_eq!(offered, dead);
    }
    let script = "autoload -Uz compinit; compinit -u -D; source <(uzram completions zsh); \
                  print $_comps[uzram]";
    if let Some(function) = shell(&world, "zsh", script) {
        assert_eq!(function, "_clap_dynamic_completer_uzram\n");
    }
    // Shells fail in silence.
    let run = world.rundir();
    fs::rename(&run, world.path("elsewhere")).unwrap();
    let offered = bash(&world, &["stat", ""]);
    assert!(
        offered.iter().all(|word| word.starts_with('-')),
        "{offered:?}"
    );
    fs::rename(world.path("elsewhere"), &run).unwrap();
}
