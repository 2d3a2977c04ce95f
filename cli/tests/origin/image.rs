//! The image after an orderly end, while it fails, and under many snapshots.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::client::{Client, PAGE, SEND_FLUSH, SEND_FUA};
use support::full_pipe;
use support::noise;
use support::{HANG, Serve, World, eventually, one_line, signal};

/// A world with an image in it of so many pages full of 7.
fn image(pages: usize) -> (World, PathBuf, String) {
    let world = World::new();
    let path = world.path("image");
    fs::write(&path, vec![7; pages * PAGE]).unwrap();
    let origin = format!("--origin={}", path.display());
    (world, path, origin)
}

/// One whose pages take no space yet.
fn sparse_image(pages: usize) -> (World, PathBuf, String) {
    let (world, path, origin) = image(0);
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len((pages * PAGE) as u64).unwrap();
    (world, path, origin)
}

fn page(path: &PathBuf, page: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    let file = File::open(path).unwrap();
    file.read_exact_at(&mut bytes, page * PAGE as u64).unwrap();
    bytes
}

#[test]
fn an_orderly_end_writes_all() {
    for (sync, flushes) in [("flush", true), ("never", false), ("3600", false)] {
        let (world, path, origin) = image(64);
        let sync = format!("--sync={sync}");
        let mut server = world.serve(&["x", &origin, &sync]);
        let mut client = Client::connect(&world.rundir().join("x/nbd.sock")).unwrap();
        assert_eq!(client.size, 64 * PAGE as u64);
        let flush_flags = client.flags & (SEND_FLUSH | SEND_FUA);
        assert_eq!(flush_flags != 0, flushes);
        client.write(5 * PAGE as u64, &[1; PAGE], false).unwrap();
        assert_eq!(page(&path, 5), [7; PAGE]);
        world.ok(&["sync", "x"]);
        assert_eq!(page(&path, 5), [1; PAGE]);
        client.write(6 * PAGE as u64, &[2; PAGE], false).unwrap();
        client.trim(7 * PAGE as u64, PAGE).unwrap();
        let stat: serde_json::Value =
            serde_json::from_str(&world.ok(&["stat", "x", "--json"])).unwrap();
        assert_eq!(
            (&stat["dirty_pages"], &stat["origin_writes"]),
            (&2.into(), &1.into())
        );
        assert!(world.ok(&["stat", "x"]).contains("dirty"));
        drop(client);
        world.ok_once_unused(&["stop", "x"]);
        assert_eq!(server.ended(HANG), Some(0));
        assert_eq!(page(&path, 6), [2; PAGE]);
        assert_eq!(page(&path, 7), [0; PAGE]);
        assert_eq!(page(&path, 8), [7; PAGE]);
        assert!(world.leftovers().is_empty());
    }
}

/// Of several that stop it none must give up what the first waits for, also while the server has not
/// got to its stop: it has to wait a while for its `ready` to be taken.
#[test]
fn stopping_it_twice_at_once_writes_all() {
    let (world, path, origin) = image(64);
    let mut serving = world.command(&["serve", "x", &origin]);
    let (_unread, full) = full_pipe();
    let mut server = start_unread(&world, serving.stdout(full));
    let mut client = Client::connect(&world.rundir().join("x/nbd.sock")).unwrap();
    client.write(5 * PAGE as u64, &[1; PAGE], false).unwrap();
    drop(client);
    is_left(&world);
    let mut stops = [0; 4].map(|_| world.command(&["stop", "x"]).spawn().unwrap());
    assert_eq!(server.ended(HANG), Some(0));
    for stop in &mut stops {
        let ended = support::ended(stop, HANG).expect("it ends");
        assert_eq!(ended.code(), Some(0));
    }
    assert_eq!(page(&path, 5), [1; PAGE]);
    assert!(world.leftovers().is_empty());
}

/// Waits until its server has seen that all connections are closed.
fn is_left(world: &World) {
    let control = UnixStream::connect(world.rundir().join("x/control.sock")).unwrap();
    control.set_read_timeout(Some(HANG)).unwrap();
    let mut control = BufReader::new(control);
    let begun = Instant::now();
    loop {
        control
            .get_mut()
            .write_all(b"{\"op\":\"users\"}\n")
            .unwrap();
        let mut users = String::new();
        control.read_line(&mut users).unwrap();
        if users.contains("[]") {
            break;
        }
        assert!(begun.elapsed() < HANG, "{users}");
    }
}

/// Starts a server whose `ready` nobody hears; it is there once its control socket is.
fn start_unread(world: &World, command: &mut Command) -> Serve {
    let mut server = Serve {
        child: command.spawn().unwrap(),
    };
    eventually("started", || {
        assert!(server.child.try_wait().unwrap().is_none());
        world.rundir().join("x/control.sock").exists()
    });
    server
}

/// Those who start a server may not read what it says: that holds up no page on its way to the image.
#[test]
fn with_its_output_full_an_end_writes_all() {
    let (world, path, origin) = image(64);
    let (_unread, full) = full_pipe();
    let mut serving = world.command(&["serve", "x", &origin, "-vv"]);
    serving.stderr(full.try_clone().unwrap()).stdout(full);
    let mut server = start_unread(&world, &mut serving);
    let mut client = Client::connect(&world.rundir().join("x/nbd.sock")).unwrap();
    client.write(5 * PAGE as u64, &[1; PAGE], false).unwrap();
    signal(server.pid(), "TERM");
    assert_eq!(server.ended(HANG), Some(0));
    assert_eq!(page(&path, 5), [1; PAGE]);
    assert!(world.leftovers().is_empty());
}

/// A client that asks for much and reads nothing waits for its answer behind the data.
#[test]
fn with_answers_that_nobody_reads_an_end_writes_all() {
    let (world, path, origin) = sparse_image(1 << 20);
    let mut server = world.serve(&["x", &origin]);
    let mut client = Client::connect(&world.rundir().join("x/nbd.sock")).unwrap();
    client.write(5 * PAGE as u64, &[1; PAGE], false).unwrap();
    let mut silent = UnixStream::connect(world.rundir().join("x/control.sock")).unwrap();
    let ask = b"{\"op\":\"map\",\"first\":0,\"pages\":1048576,\"cells\":1024}\n";
    silent.write_all(&ask.repeat(64)).unwrap();
    // The first answer is under way, and stays so.
    silent.read_exact(&mut [0]).unwrap();
    signal(server.pid(), "TERM");
    assert_eq!(server.ended(HANG), Some(0));
    assert_eq!(page(&path, 5), [1; PAGE]);
    drop(silent);
}

/// The metrics may stand in another's directory, who has put there what never ends.
#[test]
fn with_its_metrics_taken_over_an_end_writes_all() {
    for place in ["mkfifo m.prom", "ln -s /dev/zero m.prom"] {
        let (world, path, origin) = image(64);
        let mut server = world.serve(&["x", &origin, "--metrics=file:m.prom"]);
        let mut client = Client::connect(&world.rundir().join("x/nbd.sock")).unwrap();
        client.write(5 * PAGE as u64, &[1; PAGE], false).unwrap();
        let mut taking = Command::new("sh");
        taking.args(["-c", &format!("rm m.prom; {place}")]);
        assert!(
            taking
                .current_dir(world.path(""))
                .status()
                .unwrap()
                .success()
        );
        signal(server.pid(), "TERM");
        assert_eq!(server.ended(HANG), Some(0));
        assert_eq!(page(&path, 5), [1; PAGE]);
        // It is not ours to remove.
        assert!(fs::symlink_metadata(world.path("m.prom")).is_ok());
    }
}

#[test]
fn one_server_writes_and_what_is_no_image_is_refused() {
    let (world, path, origin) = image(64);
    let _server = world.serve(&["x", &origin]);
    let said = world.refused(1, &["serve", "y", &origin]);
    assert!(said.contains("in use by another device"), "{said}");
    let said = world.refused(1, &["serve", "y", &origin, "--snapshot"]);
    assert!(said.contains("in use by another device"), "{said}");
    world.refused(1, &["serve", "y", "--origin=/nonexistent"]);
    let odd = world.path("odd");
    fs::write(&odd, [1; 100]).unwrap();
    let said = world.refused(1, &["serve", "y", &format!("--origin={}", odd.display())]);
    assert!(said.contains("truncate -s %4K"), "{said}");
    world.refused(2, &["serve", "y", &origin, "--size=1M"]);
    let said = world.refused(1, &["reset", "x"]);
    assert!(said.contains("image"), "{said}");
    let said = world.refused(1, &["set", "x", "disksize=1M"]);
    assert!(said.contains("one size"), "{said}");
    assert_eq!(page(&path, 0), [7; PAGE]);
}

#[test]
fn many_snapshots_of_one_image_leave_it_alone() {
    let (world, path, origin) = image(512);
    let names = ["a", "b", "c"];
    let servers = names.map(|name| {
        let backing = format!("--backing={}", world.path(name).display());
        world.serve(&[name, &origin, "--snapshot", "--mem-limit=256K", &backing])
    });
    let mut clients =
        names.map(|name| Client::connect(&world.rundir().join(name).join("nbd.sock")).unwrap());
    let written: Vec<Vec<u8>> = (0..3).map(|seed| noise(seed, 400 * PAGE)).collect();
    for (client, data) in clients.iter_mut().zip(&written) {
        client.write(0, data, true).unwrap();
        client.trim(450 * PAGE as u64, 10 * PAGE).unwrap();
        client.flush().unwrap();
    }
    for (client, data) in clients.iter_mut().zip(&written) {
        let mut found = vec![0; 512 * PAGE];
        client.read(0, &mut found).unwrap();
        assert!(found[..400 * PAGE] == data[..]);
        assert!(found[400 * PAGE..450 * PAGE].iter().all(|&byte| byte == 7));
        assert!(found[450 * PAGE..460 * PAGE].iter().all(|&byte| byte == 0));
        assert!(found[460 * PAGE..].iter().all(|&byte| byte == 7));
    }
    drop(clients);
    for (args, words) in [
        (["sync", "a"].as_slice(), "never writes to its image"),
        (&["save", "a", "saved"], "copy the device"),
        (&["stop", "a", "--save=saved"], "copy the device"),
    ] {
        let line = one_line(&world.once_unused(args), 1, args);
        assert!(line.contains(words), "{line}");
    }
    drop(servers);
    assert!(fs::read(&path).unwrap() == vec![7; 512 * PAGE]);
}

/// The file cannot grow: the pages stay in memory, a flush says so, and it is tried again.
#[test]
fn an_image_without_space_loses_nothing() {
    let (world, path, origin) = sparse_image(64);
    let mut command = world.command(&["serve", "x", &origin]);
    let mut server = Serve::start(&mut command);
    // Writes past the first 16 pages are refused: EFBIG.
    let limit = |bytes: &str| {
        let pid = server.pid().to_string();
        let set = Command::new("prlimit")
            .args(["--pid", &pid, &format!("--fsize={bytes}")])
            .status();
        assert!(set.unwrap().success());
    };
    limit("65536:unlimited");
    let mut client = Client::connect(&world.rundir().join("x/nbd.sock")).unwrap();
    client.write(3 * PAGE as u64, &[3; PAGE], false).unwrap();
    client.write(40 * PAGE as u64, &[4; PAGE], false).unwrap();
    assert!(client.flush().is_err());
    let said = world.refused(1, &["sync", "x"]);
    assert!(said.contains("write to the image"), "{said}");
    let mut found = vec![0; PAGE];
    client.read(40 * PAGE as u64, &mut found).unwrap();
    assert_eq!(found, [4; PAGE]);
    assert_eq!(page(&path, 3), [3; PAGE]);
    // Nor does the end lose it: it takes as long as that takes.
    signal(server.pid(), "TERM");
    std::thread::sleep(Duration::from_secs(6));
    assert!(
        server.child.try_wait().unwrap().is_none(),
        "it gave its data up"
    );
    let pid = server.pid().to_string();
    let set = Command::new("prlimit")
        .args(["--pid", &pid, "--fsize=unlimited"])
        .status();
    assert!(set.unwrap().success());
    assert_eq!(server.ended(HANG), Some(0));
    assert_eq!(page(&path, 40), [4; PAGE]);
}

#[test]
fn a_second_signal_gives_up_what_is_not_in_the_image() {
    let (world, _, origin) = sparse_image(64);
    let mut server = world.serve(&["x", &origin]);
    let pid = server.pid().to_string();
    let set = Command::new("prlimit")
        .args(["--pid", &pid, "--fsize=0:unlimited"])
        .status();
    assert!(set.unwrap().success());
    let mut client = Client::connect(&world.rundir().join("x/nbd.sock")).unwrap();
    client.write(0, &[3; PAGE], false).unwrap();
    signal(server.pid(), "TERM");
    std::thread::sleep(Duration::from_secs(1));
    assert!(
        server.child.try_wait().unwrap().is_none(),
        "it gave its data up"
    );
    signal(server.pid(), "TERM");
    assert_eq!(server.ended(Duration::from_secs(10)), Some(1));
}

#[test]
fn an_image_cut_short_by_another_fails_where_it_is_short() {
    let (world, path, origin) = image(64);
    let _server = world.serve(&["x", &origin]);
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(32 * PAGE as u64).unwrap();
    let mut client = Client::connect(&world.rundir().join("x/nbd.sock")).unwrap();
    let mut found = vec![0; PAGE];
    client.read(31 * PAGE as u64, &mut found).unwrap();
    assert_eq!(found, [7; PAGE]);
    assert!(client.read(32 * PAGE as u64, &mut found).is_err());
    // It would grow again, and what is between read as zeroes; but what was written is kept.
    assert!(client.write(40 * PAGE as u64, &[1; PAGE], true).is_err());
    client.read(40 * PAGE as u64, &mut found).unwrap();
    assert_eq!(found, [1; PAGE]);
    file.set_len(64 * PAGE as u64).unwrap();
    client.write(32 * PAGE as u64, &[1; PAGE], true).unwrap();
    client.read(32 * PAGE as u64, &mut found).unwrap();
    assert_eq!(found, [1; PAGE]);
}
