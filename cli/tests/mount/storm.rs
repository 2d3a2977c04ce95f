//! Commands on one name beside each other, and commands that are killed: as if one came after the other,
//! and nothing that nobody knows of.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::iter;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use crate::{HANG, alone, text, within};
use support::{World, can_mount, ended, finish};

const CONFIG: &str = "--config=uzram.toml";

/// A device `vm` of a file, that is mounted on `mnt`.
fn world() -> World {
    let world = World::new();
    world.dir("mnt");
    let table = "[vm]\nsize = \"64M\"\nmountpoint = \"mnt\"\n";
    fs::write(world.path("uzram.toml"), table).unwrap();
    world
}

/// A losetup first in the PATH, which notes each loop device that this world's commands attach, and its number
/// among all that were ever attached; that PATH.
fn noting(world: &World) -> OsString {
    const LOSETUP: &str = "#!/bin/sh\n\
        PATH=${PATH#*:}:/usr/sbin:/sbin:/usr/local/sbin\n\
        device=$(losetup \"$@\") || exit\n\
        [ -n \"$device\" ] || exit 0\n\
        loop=${device##*/}\n\
        echo \"$loop $(cat \"/sys/block/$loop/diskseq\")\" >>\"${0%/*}/attached\"\n\
        echo \"$device\"\n";
    let bin = world.dir("bin");
    let losetup = bin.join("losetup");
    fs::write(&losetup, LOSETUP).unwrap();
    fs::set_permissions(&losetup, fs::Permissions::from_mode(0o755)).unwrap();
    let path = env::var_os("PATH").unwrap_or_default();
    env::join_paths(iter::once(bin).chain(env::split_paths(&path))).unwrap()
}

/// What was noted, each with its line break.
fn attached(world: &World) -> String {
    fs::read_to_string(world.path("bin/attached")).unwrap_or_default()
}

/// Loop devices whose file has gone are nobody's to find: those of this world, by name.
fn orphans(world: &World) -> Vec<String> {
    let is_orphan = |name: &str, number: &str| {
        let of = |file: &str| fs::read_to_string(format!("/sys/block/{name}/{file}"));
        of("loop/backing_file").is_ok_and(|file| file == "/disk\n")
            && of("diskseq").unwrap_or_default().trim() == number
    };
    let attached = attached(world);
    let attached = attached.lines().filter_map(|line| line.split_once(' '));
    let orphans = attached.filter(|(name, number)| is_orphan(name, number));
    orphans.map(|(name, _)| name.to_owned()).collect()
}

/// Whether the device is there: a living server, one loop device, mounted and to be written to; or nothing
/// at all.
fn is_up(world: &World) -> bool {
    let Some(mounted) = world.mounts().first().cloned() else {
        assert_eq!(world.leftovers(), [""; 0]);
        return false;
    };
    let mnt = world.path("mnt");
    assert_eq!(mounted, text(&mnt));
    assert_eq!(world.mounts().len(), 2, "{:?}", world.mounts());
    assert_eq!(world.loops().len(), 1, "{:?}", world.loops());
    assert_eq!(world.ok(&["stat", "vm", "initstate"]), "1\n");
    fs::write(mnt.join("file"), "written").unwrap();
    fs::File::open(mnt.join("file"))
        .unwrap()
        .sync_all()
        .unwrap();
    true
}

/// What a command did, as it says: 1 if it made the device, -1 if it took it down, 0 if it did neither.
fn done(world: &World, words: &[&str]) -> i32 {
    let output = finish(&mut world.command(words));
    let said = String::from_utf8(output.stdout).unwrap();
    let failed = String::from_utf8(output.stderr).unwrap();
    match (words[0], output.status.code()) {
        ("up" | "mount", Some(0)) if said.contains("is mounted on") => 1,
        ("up", Some(0)) if said == "vm is up already\n" => 0,
        ("down", Some(0)) if said == "vm is not up\n" => 0,
        ("down" | "umount", Some(0)) => -1,
        ("mount", Some(1)) if failed.contains("mounted there already") => 0,
        ("umount", Some(1)) if failed.contains("nothing is mounted") => 0,
        (_, code) => panic!("{words:?}: {code:?}: {said}{failed}"),
    }
}

#[test]
fn commands_on_one_name_come_one_after_the_other() {
    const ROUNDS: usize = 12;
    if !can_mount("commands_on_one_name_come_one_after_the_other") {
        return;
    }
    let _alone = alone();
    let world = world();
    let commands: [&[&str]; 5] = [
        &["up", CONFIG],
        &["down", CONFIG],
        &["mount", "--name=vm", "--size=64M", "mnt"],
        &["umount", "mnt"],
        &["up", CONFIG],
    ];
    let mut was_up = false;
    for round in 0..ROUNDS {
        let changes: i32 = thread::scope(|scope| {
            let running: Vec<_> = (0..4)
                .map(|worker| {
                    let words = commands[(round * 3 + worker * (round % 4 + 1)) % commands.len()];
                    let world = &world;
                    scope.spawn(move || done(world, words))
                })
                .collect();
            running.into_iter().map(|one| one.join().unwrap()).sum()
        });
        let is_up = is_up(&world);
        assert_eq!(
            i32::from(is_up) - i32::from(was_up),
            changes,
            "round {round}"
        );
        was_up = is_up;
    }
    done(&world, &["down", CONFIG]);
    assert!(!is_up(&world));
}

#[test]
fn down_clears_what_a_killed_up_has_begun() {
    const ROUNDS: u64 = 14;
    if !can_mount("down_clears_what_a_killed_up_has_begun") {
        return;
    }
    let _alone = alone();
    let world = world();
    let path = noting(&world);
    for round in 0..ROUNDS {
        let mut command = world.command(&["up", CONFIG]);
        let mut up = command
            .env("PATH", &path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // As it comes: the later ones may be up.
        thread::sleep(Duration::from_millis(round * round * 3));
        let _ = up.kill();
        ended(&mut up, HANG).unwrap();
        world.ok(&["down", CONFIG]);
        assert_eq!(world.leftovers(), [""; 0], "round {round}");
        // One that was in use to the end goes when its last user has gone.
        let none = || orphans(&world).is_empty();
        assert!(within(HANG, none), "round {round}: {:?}", orphans(&world));
    }
    // They would have been noted.
    let up = finish(world.command(&["up", CONFIG]).env("PATH", &path));
    assert!(up.status.success(), "{up:?}");
    let (device, _) = world.loops().remove(0);
    let name = device.trim_start_matches("/dev/");
    let number = fs::read_to_string(format!("/sys/block/{name}/diskseq")).unwrap_or_default();
    let (noted, line) = (attached(&world), format!("{name} {}", number.trim()));
    assert_eq!(noted.lines().last(), Some(line.as_str()), "{noted}");
    world.ok(&["down", CONFIG]);
}
