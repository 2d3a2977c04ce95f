//! RUNDIR in hostile hands, and in careless ones: what is not uzram's is neither believed nor touched.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::up_down::configure;
use support::{HANG, Serve, World, can_mount, finish, one_line};

/// Every verb that reads a device's directory, or would make or remove it.
const VERBS: [&[&str]; 17] = [
    &["serve", "Documents", "--size=1M"],
    &["stop", "Documents"],
    &["stop", "--force", "Documents"],
    &["detach", "Documents"],
    &["stat", "Documents"],
    &["set", "Documents", "mem_limit=0"],
    &["compact", "Documents"],
    &["idle", "Documents"],
    &["writeback", "Documents", "type=idle"],
    &["recompress", "Documents", "type=idle"],
    &["scrub", "Documents"],
    &["sync", "Documents"],
    &["reset", "Documents"],
    &["save", "Documents", "image"],
    &["map", "Documents"],
    &["train-dict", "--device=Documents", "dict"],
    &["stop", "--save=image", "Documents"],
];

/// And those that read them all.
const OF_ALL: [&[&str]; 3] = [&["list"], &["metrics"], &["list", "--json"]];

/// What is below a directory: paths, modes and contents.
fn tree(dir: &Path) -> Vec<(PathBuf, u32, Option<String>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let meta = fs::symlink_metadata(&path).unwrap();
        if meta.is_dir() {
            found.extend(tree(&path));
        }
        found.push((path.clone(), meta.mode(), fs::read_to_string(path).ok()));
    }
    found.sort();
    found
}

fn run_in(world: &World, rundir: impl AsRef<OsStr>, args: &[&str]) -> Output {
    finish(world.command(args).env("UZRAM_RUNDIR", rundir))
}

/// Has each verb refuse the directory `Documents` in `rundir`, and all of that stay as it is.
fn refuse_documents(world: &World, rundir: &Path, says: &str) {
    let before = tree(rundir);
    for args in VERBS {
        let line = one_line(&run_in(world, rundir, args), 1, args);
        assert!(line.contains(says), "{args:?}: {line}");
        assert_eq!(tree(rundir), before, "{args:?}");
    }
}

#[test]
fn a_directory_of_somebody_else_s_making_stays() {
    let world = World::new();
    let home = world.dir("h");
    let documents = home.join("Documents");
    fs::create_dir(&documents).unwrap();
    refuse_documents(&world, &home, "was not made by uzram");

    fs::set_permissions(&documents, fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(documents.join("a"), "x").unwrap();
    refuse_documents(&world, &home, "was not made by uzram");

    fs::create_dir_all(documents.join("deep/tree")).unwrap();
    fs::write(documents.join("deep/tree/a"), "x").unwrap();
    for name in ["lock", "log", "record"] {
        fs::write(documents.join(name), "").unwrap();
    }
    refuse_documents(&world, &home, "was not made by uzram");
    for args in OF_ALL {
        let output = run_in(&world, &home, args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(!said.contains("Documents"), "{args:?}: {said}");
    }

    // The same in a link's place, whoever made it.
    fs::rename(&documents, world.path("elsewhere")).unwrap();
    symlink(world.path("elsewhere"), &documents).unwrap();
    let there = tree(&world.path("elsewhere"));
    refuse_documents(&world, &home, "is a symbolic link");
    assert_eq!(tree(&world.path("elsewhere")), there);

    fs::remove_file(&documents).unwrap();
    fs::write(&documents, "x").unwrap();
    refuse_documents(&world, &home, "is not a directory");
}

/// A directory that was put there with a record of its own choosing: what that names stays, too.
#[test]
fn a_record_in_a_directory_of_somebody_else_is_not_believed() {
    let world = World::new();
    let home = world.dir("h");
    let (documents, file) = (home.join("Documents"), world.path("file"));
    fs::create_dir(&documents).unwrap();
    fs::write(&file, "").unwrap();
    let mut server = world.serve(&["x", "--size=1M", "--metrics=file:m.prom"]);
    fs::copy(world.rundir().join("x/record"), documents.join("record")).unwrap();
    world.ok(&["stop", "x"]);
    assert_eq!(server.ended(HANG), Some(0));
    fs::write(world.path("m.prom"), "uzram_up{device=\"Documents\"} 1\n").unwrap();
    refuse_documents(&world, &home, "was not made by uzram");
    assert!(world.path("m.prom").exists());
}

#[test]
fn a_rundir_that_is_a_link_is_not_followed() {
    let world = World::new();
    let home = world.dir("home");
    fs::create_dir(home.join("Documents")).unwrap();
    fs::write(home.join("Documents/a"), "x").unwrap();
    symlink(&home, world.rundir()).unwrap();
    let before = tree(&home);
    for rundir in [world.rundir(), world.path("run/")] {
        for args in VERBS.iter().chain(&OF_ALL) {
            let line = one_line(&run_in(&world, &rundir, args), 1, args);
            assert!(line.contains("is a symbolic link"), "{args:?}: {line}");
        }
    }
    assert_eq!(tree(&home), before);
    fs::remove_file(world.rundir()).unwrap();
}

/// Links on the way to RUNDIR are as `/var/run` is.
#[test]
fn links_above_rundir_are_followed_if_they_are_ours() {
    let world = World::new();
    world.dir("real");
    symlink("real", world.path("a")).unwrap();
    symlink(world.path("a"), world.path("b")).unwrap();
    let rundir = world.path("b/run");
    let serve = |rundir: &Path| {
        let args = ["serve", "x", "--size=1M"];
        Serve::start(world.command(&args).env("UZRAM_RUNDIR", rundir))
    };
    let mut server = serve(&rundir);
    let socket = world.path("real/run/x/nbd.sock");
    assert!(socket.exists());
    let listed = String::from_utf8(run_in(&world, &rundir, &["list"]).stdout).unwrap();
    assert!(listed.contains(socket.to_str().unwrap()), "{listed}");
    assert!(run_in(&world, "real/run", &["stop", "x"]).status.success());
    assert_eq!(server.ended(HANG), Some(0));

    symlink("c", world.path("c")).unwrap();
    let line = one_line(
        &run_in(&world, world.path("c/run"), &["list"]),
        1,
        &["list"],
    );
    assert!(line.contains("cannot follow"), "{line}");
    if is_root("links_above_rundir_are_followed_if_they_are_ours") {
        lchown(world.path("a"), Some(65534), Some(65534)).unwrap();
        for args in VERBS.iter().chain(&OF_ALL) {
            let line = one_line(&run_in(&world, &rundir, args), 1, args);
            assert!(
                line.contains("another user's symbolic link"),
                "{args:?}: {line}"
            );
        }
    }
}

/// A server in the background runs elsewhere.
#[test]
fn a_relative_rundir_is_where_the_command_runs() {
    let world = World::new();
    let config = configure(&world, "[x]\nsize = \"16M\"\n");
    world.dir("mnt");
    let run = |args: &[&str]| {
        let output = run_in(&world, "run", args);
        assert!(output.status.success(), "{args:?}: {output:?}");
    };
    run(&["up", config]);
    assert!(world.rundir().join("x/nbd.sock").exists());
    run(&["stop", "x"]);
    if can_mount("a_relative_rundir_is_where_the_command_runs") {
        run(&["mount", "--size=16M", "--name=x", "mnt"]);
        assert!(world.rundir().join("x/control.sock").exists());
        run(&["umount", "mnt"]);
    }
    assert_eq!(world.leftovers(), [""; 0]);
}

/// What a server leaves is removed by the names that it gives things, and by those alone.
#[test]
fn what_others_put_into_a_device_s_directory_stays() {
    let world = World::new();
    let mut server = world.serve(&["mine", "--size=1M"]);
    let dir = world.rundir().join("mine");
    fs::create_dir(dir.join("tree")).unwrap();
    fs::write(dir.join("tree/a"), "x").unwrap();
    fs::write(dir.join("notes"), "x").unwrap();
    server.kill_9();
    for verb in [&["stop", "mine"][..], &["detach", "mine"]] {
        let line = world.refused(1, verb);
        assert!(line.contains("notes") && line.contains("tree"), "{line}");
        assert_eq!(fs::read_to_string(dir.join("notes")).unwrap(), "x");
        assert_eq!(fs::read_to_string(dir.join("tree/a")).unwrap(), "x");
    }
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 2);
    let mut server = world.serve(&["mine", "--size=1M"]);
    fs::remove_dir_all(dir.join("tree")).unwrap();
    fs::remove_file(dir.join("notes")).unwrap();
    world.ok(&["stop", "mine"]);
    assert_eq!(server.ended(HANG), Some(0));
    assert_eq!(world.leftovers(), [""; 0]);
}

/// A kill at any moment of a start leaves what the next command clears.
#[test]
fn a_directory_that_was_only_just_made_is_cleared() {
    let world = World::new();
    let dir = world.rundir().join("early");
    fs::DirBuilder::new()
        .mode(0o700)
        .create(world.rundir())
        .unwrap();
    let files: [&[&str]; 4] = [&[], &["lock"], &["lock", "record.new"], &["record.new"]];
    for verb in [&["stop", "early"][..], &["detach", "early"]] {
        for files in files {
            fs::DirBuilder::new().mode(0o1700).create(&dir).unwrap();
            for file in files {
                fs::write(dir.join(file), "").unwrap();
            }
            world.ok(verb);
            assert_eq!(world.leftovers(), [""; 0], "{files:?}");
        }
    }
    fs::DirBuilder::new().mode(0o1700).create(&dir).unwrap();
    let mut server = world.serve(&["early", "--size=1M"]);
    world.ok(&["stop", "early"]);
    assert_eq!(server.ended(HANG), Some(0));
}

/// Versions before the mark made a lock and a record, and nothing but what they knew.
#[test]
fn a_directory_of_an_older_version_is_ours_if_it_holds_nothing_else() {
    let world = World::new();
    let dir = world.rundir().join("old");
    let unmark = || fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    let mut server = world.serve(&["old", "--size=1M"]);
    unmark();
    assert!(world.ok(&["list"]).contains("old"));
    world.ok(&["stop", "old"]);
    assert_eq!(server.ended(HANG), Some(0));
    assert_eq!(world.leftovers(), [""; 0]);

    world.serve(&["old", "--size=1M"]).kill_9();
    unmark();
    fs::write(dir.join("notes"), "").unwrap();
    let line = world.refused(1, &["detach", "old"]);
    assert!(line.contains("was not made by uzram"), "{line}");
    fs::remove_file(dir.join("notes")).unwrap();
    let mut server = world.serve(&["old", "--size=1M"]);
    assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o7777, 0o1700);
    world.ok(&["stop", "old"]);
    assert_eq!(server.ended(HANG), Some(0));
}

#[test]
fn another_user_s_rundir_is_not_believed() {
    let test = "another_user_s_rundir_is_not_believed";
    if !is_root(test) {
        return;
    }
    let world = World::new();
    let mut server = world.serve(&["Documents", "--size=1M"]);
    let run = world.rundir();
    lchown(&run, Some(65534), Some(65534)).unwrap();
    for args in VERBS.iter().chain(&OF_ALL) {
        let line = one_line(&run_in(&world, &run, args), 1, args);
        assert!(line.contains("belongs to another user"), "{args:?}: {line}");
    }
    let line = world.refused(1, &["umount", "."]);
    assert!(line.contains("belongs to another user"), "{line}");
    // Shells fail in silence.
    let mut shell = world.command(&["--", "uzram", "stat", ""]);
    let offered = finish(
        shell
            .env("COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", "2"),
    );
    let offered = String::from_utf8(offered.stdout).unwrap();
    assert!(!offered.contains("Documents"), "{offered}");
    lchown(&run, Some(0), Some(0)).unwrap();

    lchown(run.join("Documents"), Some(65534), Some(65534)).unwrap();
    let line = world.refused(1, &["stop", "--force", "Documents"]);
    assert!(line.contains("belongs to another user"), "{line}");
    assert!(world.ok(&["list"]).contains("no devices"));
    lchown(run.join("Documents"), Some(0), Some(0)).unwrap();
    world.ok(&["stop", "Documents"]);
    assert_eq!(server.ended(HANG), Some(0));
}

/// The whole attack: a link that another user has put where a victim's RUNDIR is made.
#[test]
fn a_link_planted_in_tmp_does_not_lead_to_the_victim_s_home() {
    let test = "a_link_planted_in_tmp_does_not_lead_to_the_victim_s_home";
    if !is_root(test) {
        return;
    }
    let world = World::new();
    // Users of no other test's.
    let victim = 1_000_000_000 + std::process::id();
    let attacker = 2_000_000_000 + std::process::id();
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    mode(&world.path(""), 0o755);
    let home = world.dir("home");
    fs::create_dir(home.join("Documents")).unwrap();
    fs::write(home.join("Documents/a"), "x").unwrap();
    for path in ["home", "home/Documents", "home/Documents/a"] {
        lchown(world.path(path), Some(victim), Some(victim)).unwrap();
    }
    let as_user = |uid: u32, words: &[&OsStr]| {
        let mut command = Command::new("setpriv");
        command
            .args([format!("--reuid={uid}"), format!("--regid={uid}")])
            .args(["--clear-groups", "--"])
            .args(words)
            .env_remove("UZRAM_RUNDIR")
            .env_remove("XDG_RUNTIME_DIR")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        finish(&mut command)
    };
    let program = OsStr::new(env!("CARGO_BIN_EXE_uzram"));
    if !as_user(victim, &[program, "--version".as_ref()])
        .status
        .success()
    {
        eprintln!("SKIPPED: {test}: other users cannot run {program:?}");
        return;
    }
    let planted = Planted(format!("/tmp/uzram-{victim}").into());
    let link = as_user(
        attacker,
        &[
            "ln".as_ref(),
            "-s".as_ref(),
            home.as_ref(),
            planted.0.as_ref(),
        ],
    );
    assert!(link.status.success(), "{link:?}");
    let before = tree(&home);
    for args in VERBS.iter().chain(&OF_ALL) {
        let words = args.iter().map(OsStr::new);
        let words: Vec<_> = [program].into_iter().chain(words).collect();
        let line = one_line(&as_user(victim, &words), 1, args);
        assert!(line.contains("is a symbolic link"), "{args:?}: {line}");
        assert_eq!(tree(&home), before, "{args:?}");
    }
}

/// Something in /tmp.
struct Planted(PathBuf);

impl Drop for Planted {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn is_root(test: &str) -> bool {
    let root = fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0);
    if !root {
        eprintln!("SKIPPED: {test} needs root");
    }
    root
}
