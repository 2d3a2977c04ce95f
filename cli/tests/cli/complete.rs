//! What shells complete, asked of the shells.

use std::env;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};

use crate::common::{World, finish};

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
    let quoted: Vec<_> = words.iter().map(|word| format!("'{word}'")).collect();
    let script = format!(
        "source <(uzram completions bash)\n\
         COMP_WORDS=(uzram {}); COMP_CWORD={}; COMP_TYPE=9\n\
         _clap_complete_uzram uzram '{}'\n\
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        quoted.join(" "),
        words.len(),
        words[words.len() - 1],
    );
    let offered = shell(world, "bash", &script).expect("a shell that is everywhere");
    offered
        .split(['\n', '\u{b}'])
        .filter(|word| !word.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn devices_that_are_served_are_completed() {
    let world = World::new();
    symlink(
        env!("CARGO_BIN_EXE_uzram"),
        world.dir("tools").join("uzram"),
    )
    .unwrap();
    let _first = world.serve(&["first", "--size=1M"]);
    let mut second = world.serve(&["second", "--size=1M"]);
    // It would have to be quoted.
    let _quoted = world.serve(&["third one", "--size=1M"]);
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
    assert!(!options.contains(&"--background".to_owned()), "{options:?}");

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
