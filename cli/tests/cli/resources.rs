//! What a command has from whoever starts it: descriptors, which nothing in the background keeps, and
//! leave to start threads, without which it fails and undoes what it has begun.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::up_down::configure;
use support::{HANG, Serve, World, can_mount, finish, signal, within};

/// A shell that has `file` open and locked (flock(2)) at two descriptors, and becomes the command that
/// follows its words.
const LOCKED: &str = "exec 7<\"$0\" 9<&7; flock 7 || exit 3; exec \"$@\"";

/// Runs a verb from who has locked a file: nobody has it locked when it has ended.
fn keeps_no_lock(world: &World, words: &[&str]) {
    let file = world.path("locked");
    let locked = File::create(&file).unwrap();
    let mut shell = Command::new("sh");
    shell
        .args(["-c", LOCKED])
        .arg(&file)
        .arg(env!("CARGO_BIN_EXE_uzram"))
        .args(words)
        .current_dir(world.path(""))
        .env("UZRAM_RUNDIR", world.rundir())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = finish(&mut shell);
    assert!(output.status.success(), "{words:?}: {output:?}");
    let free = locked.try_lock();
    free.unwrap_or_else(|error| panic!("{words:?}: {error}"));
}

#[test]
fn nothing_in_the_background_keeps_descriptors_of_its_starter() {
    let world = World::new();
    let config = configure(&world, "[vm]\nsize = \"8M\"\n");
    keeps_no_lock(&world, &["up", config]);
    assert!(world.ok(&["list"]).contains("vm"));
    world.ok(&["down", config]);
    if can_mount("mount of nothing_in_the_background_keeps_descriptors_of_its_starter") {
        world.dir("mnt");
        keeps_no_lock(&world, &["mount", "--size=64M", "mnt"]);
        world.ok(&["umount", "mnt"]);
    }
    assert_eq!(world.leftovers(), [""; 0]);
}

/// A control group in which so many processes and threads can be, and no more.
struct Few {
    world: World,
    group: PathBuf,
}

impl Few {
    fn new(test: &str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let roots = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("uzram-test-{}-{number}", std::process::id());
        let made = roots.iter().map(|root| root.join(&name)).find(|group| {
            let made = fs::create_dir(group).is_ok();
            let is_counted = group.join("pids.max").exists();
            if made && !is_counted {
                fs::remove_dir(group).unwrap();
            }
            made && is_counted
        });
        if made.is_none() {
            eprintln!("SKIPPED: {test} needs a control group of its own that counts processes");
        }
        Some(Self {
            world: World::new(),
            group: made?,
        })
    }

    /// A verb that may have so many processes and threads.
    fn command(&self, most: u32, words: &[&str]) -> Command {
        const ENTER: &str = "echo $$ >\"$0/cgroup.procs\" && exec \"$@\"";
        fs::write(self.group.join("pids.max"), most.to_string()).unwrap();
        let mut command = Command::new("sh");
        command
            .args(["-c", ENTER])
            .arg(&self.group)
            .arg(env!("CARGO_BIN_EXE_uzram"))
            .args(words)
            .current_dir(self.world.path(""))
            .env("UZRAM_RUNDIR", self.world.rundir())
            .env_remove("UZRAM_LOG")
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Nobody is left in it, and nothing of a device.
    fn is_empty(&self) {
        let processes = || fs::read_to_string(self.group.join("cgroup.procs")).unwrap();
        assert!(within(HANG, || processes().is_empty()), "{}", processes());
        assert_eq!(self.world.leftovers(), [""; 0]);
        let expected = ["run", "fuse", "mnt", "uzram.toml"];
        for entry in fs::read_dir(self.world.path("")).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(
                expected.contains(&name.to_str().unwrap()),
                "{name:?} is left"
            );
        }
    }

    /// Has a verb fail with ever more threads until there are enough; how many those are.
    fn enough_for(&self, words: &[&str]) -> u32 {
        let enough = (1..PLENTY).find(|&most| {
            let output = finish(&mut self.command(most, words));
            if output.status.success() {
                return true;
            }
            failed_well(&output, words);
            self.is_empty();
            false
        });
        enough.unwrap_or_else(|| panic!("{words:?} fails with {PLENTY}"))
    }
}

impl Drop for Few {
    fn drop(&mut self) {
        within(HANG, || fs::remove_dir(&self.group).is_ok());
    }
}

/// More threads than anything here begins with.
const PLENTY: u32 = 200;

/// It failed for want of a thread or a process, as anything should.
fn failed_well(output: &Output, words: &[&str]) {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{words:?}: {stderr}");
    assert!(!stderr.contains("panicked"), "{words:?}: {stderr}");
    let last = stderr.lines().last().unwrap();
    assert!(last.starts_with("uzram: "), "{stderr}");
    let reason = "temporarily unavailable";
    assert!(last.contains(reason), "{words:?}: {stderr}");
}

/// Has a server start with ever more threads until there are enough, and end when it has no more.
fn serve_with_ever_more(few: &Few, words: &[&str]) {
    let mut failures = 0;
    for most in 1..PLENTY {
        let mut child = few.command(most, words).spawn().unwrap();
        let mut ready = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut ready).unwrap();
        if ready == "ready\n" {
            let mut server = Serve { child };
            signal(server.pid(), "TERM");
            assert_eq!(server.ended(HANG), Some(0), "{words:?} with {most}");
            few.is_empty();
            break;
        }
        failed_well(&child.wait_with_output().unwrap(), words);
        few.is_empty();
        failures += 1;
    }
    // Each thread was once the one too many.
    assert!((4..PLENTY - 1).contains(&failures), "{words:?}: {failures}");
}

#[test]
fn a_server_for_want_of_a_thread_fails_and_leaves_nothing() {
    let test = "a_server_for_want_of_a_thread_fails_and_leaves_nothing";
    let Some(few) = Few::new(test) else {
        return;
    };
    #[rustfmt::skip]
    serve_with_ever_more(&few, &[
        "serve", "few", "--size=1M", "--mem-limit=1M", "--backing=spill", "--nbd=unix:s",
        "--metrics=file:prom", "--metrics=unix:m",
    ]);
    if can_mount(test) {
        few.world.dir("fuse");
        serve_with_ever_more(&few, &["serve", "few", "--size=1M", "--fuse=fuse"]);
    }
}

#[test]
fn a_command_for_want_of_a_thread_fails_and_leaves_nothing() {
    let test = "a_command_for_want_of_a_thread_fails_and_leaves_nothing";
    let Some(few) = Few::new(test) else {
        return;
    };
    let config = configure(&few.world, "[few]\nsize = \"1M\"\n");
    let enough = few.enough_for(&["up", config]);
    assert!(enough > 6, "{enough}");
    few.world.ok(&["down", config]);
    few.is_empty();
    if can_mount(test) {
        few.world.dir("mnt");
        let enough = few.enough_for(&["mount", "--size=64M", "mnt"]);
        assert!(enough > 6, "{enough}");
        few.world.ok(&["umount", "mnt"]);
        few.is_empty();
    }
}
