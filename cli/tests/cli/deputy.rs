//! A server that runs as another user, and is in an attacker's hands: what its keeper does not do for it (root).

use std::fs::{self, File};
use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Stdio;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketType, sockopt};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use serde_json::{Value, json};

use crate::keeper::{Pair, closed_world, is_root};
use support::{HANG, World, eventually, finish, signal};

/// The server's way to its keeper, which its code can hand to anybody.
fn link_of(server: u32) -> OwnedFd {
    let pid = Pid::from_raw(server.cast_signed()).unwrap();
    let process = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let open = fs::read_dir(format!("/proc/{server}/fd")).unwrap();
    let numbers = open.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut copies = numbers.filter_map(|number| {
        let number = number.parse().unwrap();
        rustix::process::pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok()
    });
    let is_link = |copy: &OwnedFd| sockopt::socket_type(copy) == Ok(SocketType::SEQPACKET);
    copies.find(is_link).expect("a way to the keeper")
}

fn claim(link: &OwnedFd, path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let text = json!({"Opened": {"path": path, "made": true}}).to_string();
    let files = [file.as_fd()];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&files)));
    let text = [IoSlice::new(text.as_bytes())];
    rustix::net::sendmsg(link, &text, &mut ancillary, SendFlags::empty()).unwrap();
}

fn say(link: &OwnedFd, message: &Value) {
    let text = message.to_string();
    rustix::net::send(link, text.as_bytes(), SendFlags::empty()).unwrap();
}

fn recorded(world: &World) -> String {
    fs::read_to_string(world.rundir().join("vm/record")).unwrap()
}

/// It has both open to write to, as it has a spill.
#[test]
fn no_image_and_no_lock_is_removed_for_a_spill() {
    if !is_root("no_image_and_no_lock_is_removed_for_a_spill") {
        return;
    }
    let world = closed_world();
    let image = world.path("image");
    fs::write(&image, vec![0; 8 << 20]).unwrap();
    fs::write(world.path("spill"), "").unwrap();
    let mut pair = Pair::serve(&world, &["--origin=image"]);
    let link = link_of(pair.server);
    let lock = world.rundir().join("vm/lock");
    for path in [&image, &lock, &world.path("spill")] {
        claim(&link, path);
    }
    // In their order.
    eventually("all is claimed", || recorded(&world).contains("/spill"));
    assert!(
        !recorded(&world).contains("/lock\""),
        "{}",
        recorded(&world)
    );
    for path in [&image, &lock] {
        say(&link, &json!({"Closed": {"path": path}}));
    }
    // What makes no sense is passed over.
    say(&link, &json!("Nonsense"));
    say(&link, &json!({"Closed": {"path": world.path("spill")}}));
    eventually("the last is removed", || !world.path("spill").exists());
    assert!(image.exists() && lock.exists());
    signal(pair.keeper.pid(), "TERM");
    assert_eq!(pair.keeper.ended(HANG), Some(0), "{}", pair.said());
    assert_eq!(fs::metadata(&image).unwrap().len(), 8 << 20);
    assert_eq!(world.leftovers(), [""; 0]);
}

/// As by a process that its code has forked.
#[test]
fn a_keeper_ends_with_its_server_whoever_has_the_way_to_it() {
    if !is_root("a_keeper_ends_with_its_server_whoever_has_the_way_to_it") {
        return;
    }
    for (sent, code) in [("TERM", 0), ("KILL", 1)] {
        let world = closed_world();
        let mut pair = Pair::serve(&world, &["--size=8M", "--backing=spill"]);
        let link = link_of(pair.server);
        signal(pair.server, sent);
        assert_eq!(pair.keeper.ended(HANG), Some(code), "{}", pair.said());
        assert_eq!(world.leftovers(), [""; 0]);
        assert!(!world.path("spill").exists());
        drop(link);
    }
}

/// Neither to type there in root's name, nor to read what root types; nor what the environment has.
#[test]
fn root_s_terminal_and_environment_are_not_the_server_s() {
    const TEST: &str = "root_s_terminal_and_environment_are_not_the_server_s";
    if !is_root(TEST) {
        return;
    }
    let world = closed_world();
    let program = env!("CARGO_BIN_EXE_uzram");
    let serve = format!("'{program}' serve vm --size=8M --user=daemon");
    let mut command = std::process::Command::new("script");
    command
        .args(["--quiet", "--return", "--command", &serve, "/dev/null"])
        .env("UZRAM_RUNDIR", world.rundir())
        .env("TOKEN", "of-root")
        .env_remove("NOTIFY_SOCKET")
        .current_dir(world.path(""))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let Ok(mut script) = command.spawn() else {
        eprintln!("SKIPPED: {TEST}: there is no script(1)");
        return;
    };
    let list = || -> Value { serde_json::from_str(&world.ok(&["list", "--json"])).unwrap() };
    eventually("it is served", || list()[0]["alive"] == true);
    let list = list();
    let of = |key: &str, file: &str| fs::read_to_string(format!("/proc/{}/{file}", list[0][key]));
    let (keeper, server) = ("keeper_pid", "pid");
    // The 7th of all: the second after the state. 0 is none.
    let terminal = |key: &str| {
        let stat = of(key, "stat").unwrap();
        let (_, rest) = stat.rsplit_once(") ").unwrap();
        rest.split(' ').nth(4).unwrap().to_owned()
    };
    let is_written = |key: &str| {
        let info = of(key, "fdinfo/2").unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        u32::from_str_radix(flags.unwrap().trim(), 8).unwrap() & 3
    };
    let environ = of(server, "environ").unwrap();
    let seen = (
        terminal(keeper),
        is_written(keeper),
        of(keeper, "environ").unwrap(),
    );
    assert!(
        seen.0 != "0" && seen.1 == 2 && seen.2.contains("of-root"),
        "{seen:?}"
    );
    assert_eq!((terminal(server).as_str(), is_written(server)), ("0", 1));
    assert!(!environ.contains("of-root"), "{environ}");
    let stopped = finish(world.command(&["stop", "vm"]).stdout(Stdio::piped()));
    assert!(stopped.status.success(), "{stopped:?}");
    script.wait().unwrap();
    assert_eq!(world.leftovers(), [""; 0]);
}
