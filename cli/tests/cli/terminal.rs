//! What draws on a terminal, in a terminal: tmux is one that can be read.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::{recompress, save, scrub};
use support::{HANG, World, eventually, finish, signal};

/// A terminal of 100 columns and 36 lines; closed when dropped.
pub(crate) struct Terminal {
    /// One of its own: tmux goes on for a moment after it was told to end, and whoever comes
    /// to its socket then is turned away.
    socket: PathBuf,
}

impl Terminal {
    /// Runs `uzram ARGS` in it, says how that ended, and stays; `None`, loudly, without tmux.
    fn run(world: &World, args: &str) -> Option<Self> {
        let program = env!("CARGO_BIN_EXE_uzram");
        let script = format!("{program} {args}; echo ended with $?; exec sleep 600");
        Self::start(world, &script)
    }

    /// Runs a script in it, with `uzram` in its path; `None`, loudly, without tmux.
    pub(crate) fn start(world: &World, script: &str) -> Option<Self> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let terminal = Self {
            socket: world.path(&format!("tmux{number}")),
        };
        let path = std::env::var("PATH").unwrap();
        let started = terminal
            .tmux(&[
                "-f",
                "/dev/null",
                "new-session",
                "-d",
                "-x",
                "100",
                "-y",
                "36",
            ])
            .current_dir(world.path(""))
            .env("PATH", format!("{}:{path}", world.path("tools").display()))
            .env("HOME", world.path(""))
            .env("UZRAM_RUNDIR", world.rundir())
            .env("LC_ALL", "C.UTF-8")
            .env("TERM", "xterm-256color")
            .args(["sh", "-c", script])
            .output();
        match started {
            Ok(output) => assert!(output.status.success(), "{output:?}"),
            Err(error) => {
                // Straight to the descriptor: the harness keeps what a passing test prints.
                let _ = writeln!(std::io::stderr(), "SKIPPED: {script} in tmux: {error}");
                return None;
            }
        }
        Some(terminal)
    }

    fn tmux(&self, args: &[&str]) -> Command {
        let mut command = Command::new("tmux");
        command.arg("-S").arg(&self.socket).args(args);
        command
    }

    fn screen(&self) -> String {
        let output = self.tmux(&["capture-pane", "-p"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The screen once it is as wanted, which it must become.
    pub(crate) fn until(&self, wanted: impl Fn(&str) -> bool) -> String {
        let begun = Instant::now();
        loop {
            let screen = self.screen();
            if wanted(&screen) {
                // For whoever wants to see it: cargo test -- --nocapture.
                println!("{screen}");
                return screen;
            }
            assert!(begun.elapsed() < HANG, "{screen}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The process of the program.
    fn program(&self) -> u32 {
        let shell = self
            .tmux(&["display", "-p", "#{pane_pid}"])
            .output()
            .unwrap();
        let shell = String::from_utf8(shell.stdout).unwrap();
        let children = format!("/proc/{0}/task/{0}/children", shell.trim());
        std::fs::read_to_string(children)
            .unwrap()
            .trim()
            .parse()
            .unwrap()
    }

    pub(crate) fn press(&self, key: &str) {
        let output = self.tmux(&["send-keys", key]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    pub(crate) fn type_in(&self, text: &str) {
        let output = self.tmux(&["send-keys", "-l", text]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    pub(crate) fn enter(&self, line: &str) {
        self.type_in(line);
        self.press("Enter");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]).output();
    }
}

/// Writes once more unless it is seen: what is shown of it is so for a second only.
fn writes_until(world: &World, seen: bool) -> bool {
    if !seen {
        scrub::fill(world);
    }
    seen
}

#[test]
fn top_shows_devices_rates_and_pages() {
    let world = World::new();
    let _a = world.serve(&["a", "--size=1M"]);
    let _vm = world.serve(&[
        "vm",
        "--size=64M",
        "--mem-limit=32M",
        "--backing=spill",
        "--nbd=unix:s",
    ]);
    scrub::fill(&world);
    let Some(terminal) = Terminal::run(&world, "top --interval 1") else {
        return;
    };
    let screen = terminal.until(|screen| screen.contains("reads") && screen.contains("empty"));
    for words in [
        "NAME",
        "SPILLED",
        "BACKING",
        "WRITE/S",
        "1 MiB",
        "64 MiB",
        "32 MiB",
        "memory 0 B",
        "q quit",
    ] {
        assert!(screen.contains(words), "{words} in\n{screen}");
    }
    // The second device: random data, of which the first written is spilled.
    terminal.press("Down");
    let screen = terminal.until(|screen| screen.contains("wwwwwwww") && screen.contains("HHHH"));
    assert!(screen.contains("...."), "{screen}");
    assert!(!screen.contains("TO RESTORE"), "{screen}");
    let screen = terminal.until(|screen| writes_until(&world, screen.contains("99% below")));
    assert!(
        screen.lines().all(|line| line.chars().count() <= 100),
        "{screen}"
    );
    terminal.press("q");
    terminal.until(|screen| screen.contains("ended with 0"));
    let line = world.refused(1, &["top"]);
    assert!(line.contains("uzram list --json"), "{line}");
}

#[test]
fn top_shows_what_is_still_to_be_restored() {
    let world = World::new();
    save::saved_image(&world);
    // Without a backing that is never done.
    let _server = world.serve(&["vm", "--restore=image", "--mem-limit=1M", "--nbd=unix:s"]);
    let Some(terminal) = Terminal::run(&world, "top") else {
        return;
    };
    terminal.until(|screen| {
        let line = |start: &str| {
            let mut lines = screen.lines();
            let line = lines.find(|line| line.starts_with(start));
            line.unwrap_or_default().trim_end_matches(['│', ' '])
        };
        line("│NAME").ends_with("TO RESTORE") && line("│vm").ends_with(" MiB")
    });
}

#[test]
fn top_keeps_up_with_a_key_that_is_held_down() {
    let world = World::new();
    let _server = world.serve(&["vm", "--size=1M"]);
    let Some(terminal) = Terminal::run(&world, "top --interval 3600") else {
        return;
    };
    terminal.until(|screen| screen.contains("q quit"));
    // More than are read at once. At ten keys a second they would take longer than anything may.
    let keys = ["send-keys", "-N", "3000", "j", ";", "send-keys", "q"];
    let output = terminal.tmux(&keys).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    terminal.until(|screen| screen.contains("ended with 0"));
}

#[test]
fn top_leaves_the_terminal_as_it_was_whatever_ends_it() {
    let world = World::new();
    let _server = world.serve(&["vm", "--size=1M"]);
    for name in ["TERM", "INT", "HUP"] {
        let interval = "top --interval 3600";
        let Some(terminal) = Terminal::run(&world, interval) else {
            return;
        };
        terminal.until(|screen| screen.contains("q quit"));
        signal(terminal.program(), name);
        let screen = terminal.until(|screen| screen.contains("ended with 1"));
        assert!(screen.contains("uzram: interrupted"), "{screen}");
        // What it drew was on a screen of its own.
        assert!(!screen.contains("q quit"), "{screen}");
    }
}

#[test]
fn top_ends_with_its_terminal() {
    let world = World::new();
    let _server = world.serve(&["vm", "--size=1M"]);
    let Some(terminal) = Terminal::run(&world, "top") else {
        return;
    };
    terminal.until(|screen| screen.contains("q quit"));
    let pid = terminal.program();
    drop(terminal);
    eventually("ended", || !is_running(pid, "top"));
}

/// Whether the process is there, is not only yet to be collected, and was called with `verb`.
fn is_running(pid: u32, verb: &str) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|byte| *byte == 0)
        .any(|word| word == verb.as_bytes())
}

#[test]
fn a_map_fits_the_terminal_and_goes_to_files() {
    let world = World::new();
    let _server = world.serve(&["vm", "--size=64M", "--nbd=unix:s"]);
    scrub::fill(&world);
    if let Some(terminal) = Terminal::run(&world, "map vm") {
        let screen = terminal.until(|screen| screen.contains("ended with 0"));
        let full = "█".repeat(100);
        let lines = screen.lines().filter(|line| *line == full).count();
        assert!((14..=16).contains(&lines), "{screen}");
        assert!(
            screen.contains("█ in memory, stored raw, 12,288 pages"),
            "{screen}"
        );
    }
    let text = world.ok(&["map", "vm"]);
    assert!(
        text.contains("HHHH") && text.contains(". empty, 4,096 pages"),
        "{text}"
    );
    world.ok(&["map", "vm", "map.svg"]);
    world.ok(&["map", "vm", "map.png"]);
    let svg = std::fs::read_to_string(world.path("map.svg")).unwrap();
    assert!(
        svg.starts_with("<svg ") && svg.contains(">empty: 4,096 pages, 16 MiB<"),
        "{svg}"
    );
    assert!(
        std::fs::read(world.path("map.png"))
            .unwrap()
            .starts_with(b"\x89PNG")
    );
    let json = world.ok(&["map", "vm", "--json", "--cells=4"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        json["cells"],
        serde_json::json!([
            [0, 0, 4096, 0],
            [0, 0, 4096, 0],
            [0, 0, 4096, 0],
            [0, 0, 0, 0]
        ])
    );
    let line = world.refused(2, &["map", "vm", "map.jpg"]);
    assert!(line.contains(".svg or .png"), "{line}");
}

#[test]
fn what_takes_long_says_how_far_it_is() {
    let world = World::new();
    let _server = world.serve(&["vm", "--size=64M", "--nbd=unix:s"]);
    recompress::fill(&world);
    let Some(terminal) = Terminal::run(&world, "recompress vm algo=zstd:19") else {
        return;
    };
    let screen = terminal.until(|screen| screen.contains("made smaller"));
    assert!(screen.contains("memory"), "{screen}");
    let screen = terminal.until(|screen| screen.contains("ended with 0"));
    // What it showed meanwhile is gone.
    assert_eq!(screen.matches("made smaller").count(), 1, "{screen}");
}

#[test]
fn watched_latencies_stay_in_place() {
    let world = World::new();
    let _server = world.serve(&["vm", "--size=64M", "--nbd=unix:s"]);
    scrub::fill(&world);
    let Some(terminal) = Terminal::run(&world, "stat vm --latency --watch") else {
        return;
    };
    // At first what there was, then what came in the last second.
    terminal.until(|screen| writes_until(&world, screen.contains(" us")));
    let screen = terminal.until(|screen| screen.contains("P99.9") && !screen.contains(" us"));
    assert_eq!(screen.matches("P99.9").count(), 1, "{screen}");
}

/// All that a server says on a terminal of its own, in which `NO_COLOR` has this value, if any.
fn said_on_a_terminal(world: &World, no_color: Option<&str>) -> String {
    let mut command = Command::new("script");
    command
        .args(["--quiet", "--return", "--command"])
        .arg(concat!(env!("CARGO_BIN_EXE_uzram"), " serve a --size=1M"))
        .arg("/dev/null")
        .current_dir(world.path(""))
        .env("UZRAM_RUNDIR", world.rundir())
        .env_remove("UZRAM_LOG")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(value) = no_color {
        command.env("NO_COLOR", value);
    }
    thread::scope(|scope| {
        let server = scope.spawn(|| finish(&mut command));
        eventually("served", || {
            assert!(!server.is_finished());
            world.run(&["stat", "a"]).status.success()
        });
        world.ok(&["stop", "a"]);
        let output = server.join().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    })
}

#[test]
fn the_log_has_colours_on_a_terminal_unless_they_are_not_wanted() {
    let world = World::new();
    for (no_color, coloured) in [(None, true), (Some(""), true), (Some("1"), false)] {
        let said = said_on_a_terminal(&world, no_color);
        assert!(
            said.contains("serving a, 1 MiB") && said.contains("stopping a"),
            "{said:?}"
        );
        let levels = said.matches("\u{1b}[32mINFO\u{1b}[0m").count();
        assert_eq!(
            levels,
            if coloured { 2 } else { 0 },
            "{no_color:?}: {said:?}"
        );
        assert_eq!(said.contains('\u{1b}'), coloured, "{no_color:?}: {said:?}");
    }
}
