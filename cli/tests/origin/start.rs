//! Starts that come to nothing after clients have written: over NBD they may, before all else is ready.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Instant;

use serde_json::Value;

use crate::client::{Client, PAGE};
use support::{HANG, Serve, World, can_mount, ended, signal};

/// The page that is written.
const AT: u64 = 40 * PAGE as u64;

/// Servers that get no further than their metrics, which stand in the directory of a server that is frozen.
struct Held {
    world: World,
    frozen: Serve,
    image: PathBuf,
}

impl Held {
    fn new() -> Self {
        let world = World::new();
        world.dir("frozen");
        let frozen = world.serve(&["frozen", "--size=1M", "--fuse=frozen"]);
        signal(frozen.pid(), "STOP");
        let image = world.path("image");
        File::create(&image)
            .unwrap()
            .set_len(64 * PAGE as u64)
            .unwrap();
        Self {
            world,
            frozen,
            image,
        }
    }

    /// `uzram` with these arguments, and those with which its start is held up.
    fn start(&self, args: &[&str]) -> Starting {
        let origin = format!("--origin={}", self.image.display());
        let held = [&origin, "--nbd=unix:s", "--metrics=file:frozen/m.prom"];
        let mut uzram = self.world.command(&[args, &held].concat());
        let mut child = uzram.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (line, said) = mpsc::channel();
        thread::spawn(move || stderr.lines().try_for_each(|said| line.send(said.unwrap())));
        Starting { child, said }
    }

    /// Writes a page, as soon as somebody serves.
    fn write(&self, starting: &mut Starting) -> Client {
        let begun = Instant::now();
        let mut client = loop {
            match Client::connect(&self.world.path("s")) {
                Ok(client) => break client,
                Err(_) => assert!(begun.elapsed() < HANG, "it serves"),
            }
            assert_eq!(starting.child.try_wait().unwrap(), None);
            thread::yield_now();
        };
        client.write(AT, &[4; PAGE], false).unwrap();
        client
    }

    fn thaw(&self) {
        signal(self.frozen.pid(), "CONT");
    }

    fn written(&self) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        let image = File::open(&self.image).unwrap();
        image.read_exact_at(&mut page, AT).unwrap();
        page
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // A frozen directory would hold up whoever clears the world.
        self.thaw();
    }
}

/// A command that starts a server.
struct Starting {
    child: Child,
    /// Its lines on stderr.
    said: Receiver<String>,
}

impl Starting {
    /// Waits until it says something with these words in it.
    fn says(&mut self, words: &str) {
        let mut before = Vec::new();
        while let Ok(line) = self.said.recv_timeout(HANG) {
            if line.contains(words) {
                return;
            }
            before.push(line);
        }
        panic!("it said {before:?}");
    }

    fn fails(mut self) {
        let status = ended(&mut self.child, HANG).expect("it ends");
        assert_eq!(status.code(), Some(1));
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn limit_files(pid: u32, bytes: &str) {
    let mut prlimit = Command::new("prlimit");
    prlimit.args(["--pid", &pid.to_string(), &format!("--fsize={bytes}")]);
    assert!(prlimit.status().unwrap().success());
}

#[test]
fn a_start_that_fails_brings_home_what_was_written() {
    if !can_mount("a_start_that_fails_brings_home_what_was_written") {
        return;
    }
    let held = Held::new();
    let mut serving = held.start(&["serve", "x"]);
    let client = held.write(&mut serving);
    // Its image takes nothing for a while.
    limit_files(serving.child.id(), "65536:unlimited");
    held.thaw();
    serving.says("still to be written to the image");
    limit_files(serving.child.id(), "unlimited");
    serving.fails();
    assert_eq!(held.written(), [4; PAGE]);
    assert_eq!(left(&held.world), ["frozen"]);
    drop(client);
}

/// What is made in the background is ended by who has it made, but not with data in it.
#[test]
fn a_start_that_is_interrupted_brings_home_what_was_written() {
    if !can_mount("a_start_that_is_interrupted_brings_home_what_was_written") {
        return;
    }
    let held = Held::new();
    held.world.dir("m");
    let mut mounting = held.start(&["mount", "--name=x", "m"]);
    let client = held.write(&mut mounting);
    signal(mounting.child.id(), "INT");
    // Longer than a server without an image is waited for.
    mounting.says("waiting for x to begin to stop");
    held.thaw();
    mounting.fails();
    assert_eq!(held.written(), [4; PAGE]);
    assert_eq!(left(&held.world), ["frozen"]);
    drop(client);
}

/// Whoever interrupts it again does not want to wait for that.
#[test]
fn a_start_that_is_interrupted_twice_gives_up_what_was_written() {
    if !can_mount("a_start_that_is_interrupted_twice_gives_up_what_was_written") {
        return;
    }
    let held = Held::new();
    held.world.dir("m");
    let mut mounting = held.start(&["mount", "--name=x", "m"]);
    let client = held.write(&mut mounting);
    // Its image never takes it.
    limit_files(server_of(&held.world, "x"), "65536:unlimited");
    signal(mounting.child.id(), "INT");
    mounting.says("waiting for x to begin to stop");
    held.thaw();
    mounting.says("waiting for x to write all to");
    signal(mounting.child.id(), "INT");
    mounting.says("what is not in");
    mounting.fails();
    assert_eq!(held.written(), [0; PAGE]);
    assert_eq!(left(&held.world), ["frozen"]);
    drop(client);
}

fn server_of(world: &World, name: &str) -> u32 {
    let list: Value = serde_json::from_str(&world.ok(&["list", "--json"])).unwrap();
    let mut devices = list.as_array().unwrap().iter();
    let device = devices.find(|device| device["name"] == name).unwrap();
    u32::try_from(device["pid"].as_u64().unwrap()).unwrap()
}

/// The devices that have a directory.
fn left(world: &World) -> Vec<String> {
    let entries = fs::read_dir(world.rundir()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let is_device = |name: &String| Path::new(&world.rundir()).join(name).join("lock").exists();
    names.filter(is_device).collect()
}
