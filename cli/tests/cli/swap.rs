//! Devices of a file that this machine swaps to.

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::up_down::{CONFIG, configure};
use support::{HANG, Serve, World, can_mount, ended, eventually, finish, one_line, signal, within};

/// Swaps to a device `vm` with these keys, and returns what `up` says; `None`, and says so, where nobody
/// may swap.
fn up(world: &World, keys: &str) -> Option<String> {
    configure(world, &format!("[vm]\n{keys}"));
    let output = world.run(&["up", CONFIG]);
    let complaint = String::from_utf8_lossy(&output.stderr);
    if complaint.contains("Operation not permitted") {
        eprintln!("SKIPPED: no swap here: {complaint}");
        return None;
    }
    assert!(output.status.success(), "{complaint}");
    Some(String::from_utf8(output.stdout).unwrap())
}

/// The swap areas on loop devices of this test, with their priorities.
fn swaps(world: &World) -> Vec<(String, String)> {
    let ours: Vec<_> = world
        .loops()
        .into_iter()
        .map(|(device, _)| device)
        .collect();
    let table = fs::read_to_string("/proc/swaps").unwrap();
    let fields = table.lines().map(|line| line.split_whitespace());
    let areas = fields
        .filter_map(|mut fields| Some((fields.next()?.to_owned(), fields.last()?.to_owned())));
    areas.filter(|(device, _)| ours.contains(device)).collect()
}

/// The one swap area of this test.
fn area(world: &World) -> String {
    let areas = swaps(world);
    assert_eq!(areas.len(), 1, "it is not swapped to");
    areas[0].0.clone()
}

#[test]
fn what_has_a_swap_priority_is_swapped_to() {
    if !can_mount("what_has_a_swap_priority_is_swapped_to") {
        return;
    }
    let world = World::new();
    let Some(said) = up(&world, "size = \"16M\"\nswap-priority = 7\n") else {
        return;
    };
    let [(device, priority)] = &swaps(&world)[..] else {
        panic!("{said}");
    };
    assert_eq!(priority, "7");
    let whole = format!(
        "vm (16 MiB) is swapped to, as {device}, priority 7; to take it down: uzram down --config \
         uzram.toml vm\n"
    );
    assert_eq!(said, whole);
    for args in [
        &["stop", "vm"][..],
        &["stop", "--force", "vm"],
        &["detach", "vm"],
    ] {
        let line = world.refused(1, args);
        assert!(
            line.contains(&format!("swapoff {device} first")),
            "{args:?}: {line}"
        );
    }
    assert_eq!(world.ok(&["down", CONFIG]), "");
    assert!(swaps(&world).is_empty());
    assert!(world.leftovers().is_empty(), "{:?}", world.leftovers());
}

/// A dead device would be swapped to beside the new one.
#[test]
fn up_takes_down_the_swap_of_a_killed_server() {
    if !can_mount("up_takes_down_the_swap_of_a_killed_server") {
        return;
    }
    let world = World::new();
    let keys = "size = \"16M\"\nswap-priority = 3\n";
    if up(&world, keys).is_none() {
        return;
    }
    signal(pid(&world), "KILL");
    let device = &area(&world);
    for args in [
        &["stop", "vm"][..],
        &["stop", "--force", "vm"],
        &["detach", "vm"],
    ] {
        let line = world.refused(1, args);
        assert!(
            line.contains(&format!("swapoff {device} first")),
            "{args:?}: {line}"
        );
    }
    world.ok(&["up", CONFIG]);
    // A priority that no other test has.
    assert_eq!(areas_of("3").len(), 1);
    let device = &area(&world);
    tool(&["swapoff", device]);
    let line = world.refused(1, &["up", CONFIG]);
    assert!(line.contains("not swapped to: uzram down"), "{line}");
    world.ok(&["down", CONFIG]);
    assert!(world.leftovers().is_empty(), "{:?}", world.leftovers());
}

/// The next server of the name cannot bring back what was swapped to the last.
#[test]
fn who_takes_the_place_of_a_killed_server_says_what_is_swapped_to() {
    if !can_mount("who_takes_the_place_of_a_killed_server_says_what_is_swapped_to") {
        return;
    }
    let world = World::new();
    if up(&world, "size = \"16M\"\nswap-priority = 6\n").is_none() {
        return;
    }
    let device = &area(&world);
    let _area = Area(device.clone());
    let killed = pid(&world);
    signal(killed, "KILL");
    let exe = format!("/proc/{killed}/exe");
    eventually("gone", || !Path::new(&exe).exists());
    let log = world.path("log");
    let mut command = world.command(&["serve", "vm", "--size=1M"]);
    let _server = Serve::start(command.stderr(fs::File::create(&log).unwrap()));
    let said = fs::read_to_string(&log).unwrap();
    let line = format!(
        "the server of {device} was killed, and what was swapped to it is lost: swapoff {device}"
    );
    assert!(said.contains(&line), "{said}");
}

#[test]
fn a_server_that_is_told_to_end_brings_back_what_was_swapped() {
    if !can_mount("a_server_that_is_told_to_end_brings_back_what_was_swapped") {
        return;
    }
    let world = World::new();
    if up(&world, "size = \"16M\"\nswap-priority = 4\n").is_none() {
        return;
    }
    let device = &area(&world);
    let _area = Area(device.clone());
    signal(pid(&world), "TERM");
    eventually("brought back", || areas_of("4").is_empty());
}

/// Ctrl-C ends uzram and what it waits for, and the device is as it was.
#[test]
fn a_swapoff_is_interrupted_and_that_is_said() {
    if !can_mount("a_swapoff_is_interrupted_and_that_is_said") {
        return;
    }
    let world = World::new();
    let keys = "size = \"16M\"\nswap-priority = 5\n";
    if up(&world, keys).is_none() {
        return;
    }
    let device = &area(&world);
    let table = format!("[other]\nsize = \"8M\"\n[vm]\n{keys}");
    configure(&world, &table);
    world.ok(&["up", CONFIG, "other"]);
    let tools = world.dir("tools");
    let pid = tools.join("pid");
    let (stub, shown) = (tools.join("swapoff"), pid.display());
    let script =
        format!("#!/bin/sh\necho $$ > {shown}.new\nmv {shown}.new {shown}\nexec sleep 600\n");
    fs::write(&stub, script).unwrap();
    fs::set_permissions(&stub, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = world.command(&["down", CONFIG]);
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", tools.display()));
    let mut down = command.spawn().unwrap();
    eventually("begun", || pid.exists());
    signal(down.id(), "INT");
    let status = ended(&mut down, HANG).expect("it ends");
    let mut said = String::new();
    down.stderr.unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    let lines = format!(
        "uzram: {device} is still swapped to: interrupted\nuzram: interrupted: left as they were: other\n"
    );
    assert_eq!(said, lines);
    let swapoff = fs::read_to_string(&pid).unwrap();
    assert!(!Path::new("/proc").join(swapoff.trim()).exists());
    world.ok(&["down", CONFIG]);
    assert!(world.leftovers().is_empty(), "{:?}", world.leftovers());
}

/// A swap area that is given up, also by a test that fails.
struct Area(String);

impl Drop for Area {
    fn drop(&mut self) {
        let _ = Command::new("swapoff").arg(&self.0).output();
    }
}

#[test]
fn a_server_that_leaves_swap_behind_says_so() {
    if !can_mount("a_server_that_leaves_swap_behind_says_so") {
        return;
    }
    let world = World::new();
    let stub = world.dir("tools").join("swapoff");
    fs::write(&stub, "#!/bin/sh\necho there is no memory >&2\nexit 1\n").unwrap();
    fs::set_permissions(&stub, fs::Permissions::from_mode(0o755)).unwrap();
    world.dir("fuse");
    let log = world.path("log");
    let mut command = world.command(&["serve", "vm", "--size=16M", "--fuse=fuse"]);
    let path = std::env::var("PATH").unwrap();
    command
        .env("PATH", format!("{}:{path}", world.path("tools").display()))
        .stderr(fs::File::create(&log).unwrap());
    let mut server = Serve::start(&mut command);
    let device = world.ok(&["attach", "vm"]).trim().to_owned();
    tool(&["mkswap", &device]);
    let swapped = Command::new("swapon").arg(&device).output().unwrap();
    if !swapped.status.success() {
        eprintln!("SKIPPED: no swap here: {swapped:?}");
        return;
    }
    let _area = Area(device.clone());
    signal(server.pid(), "TERM");
    assert_eq!(server.ended(HANG), Some(0));
    let said = fs::read_to_string(&log).unwrap();
    let line = format!("{device} is still swapped to: swapoff failed: there is no memory");
    assert!(said.contains(&line) && said.contains("is lost"), "{said}");
}

fn tool(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{words:?}: {output:?}");
}

/// The process of the only server.
fn pid(world: &World) -> u32 {
    let devices: Value = serde_json::from_str(&world.ok(&["list", "--json"])).unwrap();
    u32::try_from(devices[0]["pid"].as_u64().unwrap()).unwrap()
}

/// The swap areas with a priority, of this test or not.
fn areas_of(priority: &str) -> Vec<String> {
    let table = fs::read_to_string("/proc/swaps").unwrap();
    let mut areas: Vec<_> = table.lines().map(str::to_owned).collect();
    areas.retain(|area| area.split_whitespace().last() == Some(priority));
    areas
}

#[test]
fn a_step_of_swapping_that_fails_undoes_the_others() {
    if !can_mount("a_step_of_swapping_that_fails_undoes_the_others") {
        return;
    }
    let world = World::new();
    let tools = world.dir("tools");
    let table = "[vm]\nsize = \"16M\"\nswap-priority = 7\n";
    configure(&world, table);
    let path = std::env::var("PATH").unwrap();
    for tool in ["swapon", "mkswap"] {
        let stub = tools.join(tool);
        fs::write(&stub, "#!/bin/sh\necho it is forbidden >&2\nexit 1\n").unwrap();
        fs::set_permissions(&stub, fs::Permissions::from_mode(0o755)).unwrap();
        let args = ["up", CONFIG];
        let mut command = world.command(&args);
        command.env("PATH", format!("{}:{path}", tools.display()));
        let line = one_line(&finish(&mut command), 1, &args);
        let words = format!("uzram.toml:1: vm: {tool} failed: it is forbidden");
        assert!(line.contains(&words), "{line}");
        assert!(world.leftovers().is_empty(), "{:?}", world.leftovers());
    }
}

/// A group of processes that may have so much memory; gone when dropped.
struct Group(PathBuf);

impl Group {
    /// `None`, and says so, where there can be none.
    fn new(limit: &str) -> Option<Self> {
        let name = format!("uzram-swap-{}", std::process::id());
        for (root, file) in [
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            ("/sys/fs/cgroup", "memory.max"),
        ] {
            let group = Path::new(root).join(&name);
            if !Path::new(root).join("cgroup.procs").exists() || fs::create_dir(&group).is_err() {
                continue;
            }
            let group = Self(group);
            if fs::write(group.0.join(file), limit).is_ok() {
                return Some(group);
            }
        }
        eprintln!("SKIPPED: no control group for memory here");
        None
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        within(HANG, || {
            let processes = fs::read_to_string(self.0.join("cgroup.procs")).unwrap_or_default();
            for process in processes.lines() {
                let _ = Command::new("kill").args(["-9", process]).status();
            }
            fs::remove_dir(&self.0).is_ok()
        });
    }
}

/// `tail` keeps all that it may have to print, which is three times what it may have in memory. The
/// device has less, and spills.
#[test]
fn a_job_with_too_little_memory_finds_what_was_swapped() {
    const COPIES: usize = 6;
    if !can_mount("a_job_with_too_little_memory_finds_what_was_swapped") {
        return;
    }
    let world = World::new();
    let Some(group) = Group::new("32M") else {
        return;
    };
    let keys = "size = \"512M\"\nmem-limit = \"16M\"\nbacking = \"spill\"\nswap-priority = 32000\n";
    if up(&world, keys).is_none() {
        return;
    }
    let mut data = fs::read(std::env::current_exe().unwrap()).unwrap();
    data.truncate(16 << 20);
    fs::write(world.path("data"), &data).unwrap();
    let joins = group.0.join("cgroup.procs");
    let job = format!(
        "echo $$ > {}; cat {} | timeout {} tail -c {}",
        joins.display(),
        "data ".repeat(COPIES),
        HANG.as_secs(),
        data.len() * COPIES
    );
    let mut child = Command::new("sh")
        .args(["-c", &job])
        .current_dir(world.path(""))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut copy = vec![0; data.len()];
    for _ in 0..COPIES {
        stdout.read_exact(&mut copy).unwrap();
        assert!(copy == data);
    }
    assert!(ended(&mut child, HANG).unwrap().success());
    let stats: Value = serde_json::from_str(&world.ok(&["stat", "vm", "--json"])).unwrap();
    for counter in ["bd_writes", "bd_reads"] {
        assert!(stats[counter].as_u64() > Some(1000), "{stats}");
    }
    assert_eq!(world.ok(&["down", CONFIG]), "");
    assert!(world.leftovers().is_empty(), "{:?}", world.leftovers());
}
