//! What verbs say and how they exit: typos, refusals, warnings, and nothing under `--quiet`.

use std::fs;
use std::process::Command;

use crate::{recompress, scrub};
use support::World;

#[test]
fn man_pages_are_clean() {
    let world = World::new();
    let pages = world.dir("man");
    world.ok(&["man", "man"]);
    let pages = fs::read_dir(pages).unwrap();
    let pages: Vec<_> = pages.map(|page| page.unwrap().path()).collect();
    assert!(pages.len() > 20, "{pages:?}");
    // Of a tree without git there is no day to tell.
    let mut lint = Command::new("mandoc");
    let Ok(said) = lint.args(["-Tlint"]).args(&pages).output() else {
        eprintln!("SKIPPED: man_pages_are_clean needs mandoc");
        return;
    };
    let said = String::from_utf8(said.stdout).unwrap() + &String::from_utf8(said.stderr).unwrap();
    let flaws: Vec<_> = said
        .lines()
        .filter(|line| !line.contains("missing date"))
        .collect();
    assert!(flaws.is_empty(), "{}", flaws.join("\n"));
}

#[test]
fn typos_get_a_suggestion() {
    let world = World::new();
    let _server = world.serve(&["scratch", "--size=1M"]);
    for (code, args, meant) in [
        (2, &["serv", "a", "--size=1M"][..], "serve"),
        (2, &["compat", "scratch"], "compact"),
        (2, &["serve", "a", "--sise=1M"], "--size"),
        (
            2,
            &["serve", "a", "--size=1M", "--mem-limt=1M"],
            "--mem-limit",
        ),
        (2, &["mount", "--size=1G", "--fs=ext", "mnt"], "ext4"),
        (2, &["set", "scratch", "mem-limt=1M"], "mem_limit"),
        (2, &["stat", "scratch", "mmstat"], "mm_stat"),
        (1, &["stat", "scrach"], "scratch"),
        (1, &["stop", "scrach"], "scratch"),
        (1, &["detach", "scrach"], "scratch"),
    ] {
        let line = world.refused(code, args);
        let question = format!("; did you mean {meant}?\n");
        assert!(line.ends_with(&question), "{args:?}: {line}");
    }
    let table = "[vm]\nsize = \"1M\"\nmem-limt = \"1M\"\n";
    fs::write(world.path("a.toml"), table).unwrap();
    let line = world.refused(2, &["up", "--config=a.toml"]);
    assert!(
        line.ends_with("mem-limt: there is no such key; did you mean mem-limit?\n"),
        "{line}"
    );
}

/// Refusals of one kind have one code, whoever refuses: the command line, a file, or a server.
#[test]
fn what_never_makes_sense_exits_2_and_what_does_not_now_exits_1() {
    let world = World::new();
    let _server = world.serve(&["vm", "--size=1M", "--nbd=unix:s"]);
    let image = world.path("image");
    fs::write(&image, [7; 8192]).unwrap();
    let _over = world.serve(&["over", "--origin=image"]);
    fs::write(world.path("no-dict"), [7; 4096]).unwrap();
    fs::write(
        world.path("a.toml"),
        "[a]\nsize = 5\n[b]\nsize = \"1M\"\nfs = 7\n",
    )
    .unwrap();
    fs::write(world.path("b.toml"), "[a]\nsize = 5\n[b]\nsize = 6\n").unwrap();
    for (code, args) in [
        (2, &["set", "vm", "mem_limit=lots"][..]),
        (2, &["set", "vm", "mem_limit=4K"]),
        (2, &["set", "vm", "disksize=5"]),
        (2, &["set", "vm", "comp_algorithm=lzo"]),
        (2, &["train-dict", "d", "image", "--size=1"]),
        (2, &["train-dict", "d", "--device=vm", "--size=1"]),
        (2, &["up", "--config=a.toml"]),
        (2, &["writeback", "vm", "page_indexes=9-1"]),
        // As things stand.
        (1, &["set", "vm", "disksize=1T"]),
        (1, &["set", "vm", "disksize=4K", "reset=1", "disksize=9T"]),
        (1, &["set", "vm", "backing_dev=."]),
        (1, &["set", "over", "backing_dev=spill"]),
        (1, &["set", "vm", "algorithm_params=priority=1 level=1"]),
        (1, &["set", "vm", "algorithm_params=algo=zstd level=1"]),
        (1, &["recompress", "vm"]),
        (1, &["writeback", "vm", "page_index=999999"]),
        (1, &["train-dict", "d", "--device=vm"]),
        (1, &["train-dict", "d", "image"]),
        (1, &["save", "over", "saved"]),
        (1, &["stop", "over", "--save=saved"]),
        (1, &["save", "vm", "."]),
        (1, &["stop", "vm", "--save=."]),
        (1, &["sync", "vm"]),
        (1, &["serve", "b", "--size=1M", "--backing=."]),
        (1, &["serve", "b", "--restore=no-dict"]),
        (1, &["serve", "vm", "--size=1M"]),
    ] {
        world.refused(code, args);
    }
    let output = world.run(&["up", "--config=b.toml"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn quiet_verbs_say_nothing_of_what_they_did() {
    let world = World::new();
    let _server = world.serve(&[
        "vm",
        "--size=64M",
        "--mem-limit=32M",
        "--backing=spill",
        "--nbd=unix:s",
    ]);
    scrub::fill(&world);
    fs::write(world.path("a.toml"), "[a]\nsize = \"8M\"\n").unwrap();
    for args in [
        &["idle", "vm"][..],
        &["writeback", "vm", "type=huge"],
        &["recompress", "vm", "algo=zstd:1"],
        &["compact", "vm"],
        &["scrub", "vm"],
        &["save", "vm", "image"],
        &["set", "vm", "mem_limit=16M", "backing_size=1G"],
        &["up", "--config=a.toml"],
        &["up", "--config=a.toml"],
        &["down", "--config=a.toml"],
        &["down", "--config=a.toml"],
        &["reset", "vm"],
        &["stop", "vm", "--save=image"],
        &["list"],
    ] {
        let output = world.run(&[&["-q"], args].concat());
        assert!(output.status.success(), "{args:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{args:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{args:?}: {output:?}");
    }
    // But what they are there to print, and errors.
    let _server = world.serve(&["vm", "--size=64M", "--nbd=unix:s"]);
    assert_eq!(world.ok(&["-q", "stat", "vm", "disksize"]), "67108864\n");
    assert_eq!(world.ok(&["-q", "idle", "vm", "--json"]), "{\"pages\":0}\n");
    assert_eq!(world.ok(&["-q", "list"]), "vm\n");
    world.refused(1, &["-q", "stat", "mv"]);
}

/// As in zram it is accepted, and fails whoever writes more.
#[test]
fn a_limit_that_is_not_to_be_reached_is_set_with_a_warning() {
    let world = World::new();
    let _server = world.serve(&["vm", "--size=64M", "--nbd=unix:s"]);
    scrub::fill(&world);
    let warned = |args: &[&str]| {
        let output = world.run(args);
        assert!(
            output.status.success() && output.stdout.is_empty(),
            "{output:?}"
        );
        String::from_utf8(output.stderr).unwrap()
    };
    let said = warned(&["set", "vm", "mem_limit=16M"]);
    assert!(
        said.starts_with("uzram: warning: mem_limit: vm has 48"),
        "{said}"
    );
    assert!(
        said.contains("16 MiB") && said.contains("backing_dev="),
        "{said}"
    );
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(world.ok(&["stat", "vm", "mem_limit"]), "16777216\n");
    let copy = || {
        let data = world.path("data");
        let mut nbdcopy = Command::new("nbdcopy");
        nbdcopy
            .args([data.to_str().unwrap(), &recompress::uri(&world)])
            .output()
            .unwrap()
    };
    assert!(!copy().status.success());
    assert_eq!(warned(&["-q", "set", "vm", "mem_limit=15M"]), "");
    assert_eq!(warned(&["set", "vm", "mem_limit=64M"]), "");
    // What can be spilled will be.
    let spills = ["set", "vm", "backing_dev=spill", "mem_limit=16M"];
    assert_eq!(warned(&spills), "");
    assert!(copy().status.success());
}

/// Sizes as people write them, and either name of a thing, wherever one is asked for.
#[test]
fn sizes_and_names_are_understood_in_every_place() {
    let world = World::new();
    let table = "[b]\ndisksize = \"0.5GiB\"\nmem_limit = \"10%\"\nnbd = \"unix:b.sock\"\n";
    fs::write(world.path("b.toml"), table).unwrap();
    let _a = world.serve(&["a", "--disksize=1GB", "--mem_limit=ram / 4"]);
    world.ok(&["up", "--config=b.toml"]);
    let attribute = |name: &str, attribute: &str| -> u64 {
        world.ok(&["stat", name, attribute]).trim().parse().unwrap()
    };
    assert_eq!(attribute("a", "size"), 1_000_001_536, "whole pages");
    assert_eq!(attribute("b", "disksize"), 512 << 20);
    let memory = attribute("a", "mem_limit") * 4;
    assert!(attribute("b", "mem-limit").abs_diff(memory / 10) < 1 << 20);
    world.ok(&[
        "set",
        "a",
        "mem-limit=1.5MiB",
        "algorithm=zstd",
        "size=2GiB",
    ]);
    assert_eq!(attribute("a", "mem_limit"), 3 << 19);
    assert_eq!(attribute("a", "disksize"), 2 << 30);
    assert!(world.ok(&["stat", "a", "algorithm"]).contains("[zstd]"));
    world.refused(2, &["set", "a", "mem_limit=1.5.G"]);
    world.refused(2, &["serve", "c", "--size=half"]);
}

/// What people type who know other tools.
#[test]
fn other_tools_words_lead_on() {
    let world = World::new();
    let _server = world.serve(&["vm", "--size=1M"]);
    for (args, said) in [
        (&["help", "serve"][..], "Usage: uzram serve"),
        (&["ls"], "vm"),
        (&["status", "vm"], "stored"),
        (&["info", "vm"], "stored"),
        (&["-V"], "uzram 0."),
        (&["--version"], "\nalgorithms: lz4, "),
        (&["--version"], "\nfeatures: nbd, tls, fuse, encrypt\n"),
    ] {
        let text = world.ok(args);
        assert!(text.contains(said), "{args:?}: {text}");
    }
    for (verb, way) in [
        ("create", "uzram serve NAME --size SIZE"),
        ("delete", "uzram stop NAME"),
        ("resize", "uzram set NAME disksize=SIZE"),
        ("version", "uzram --version"),
    ] {
        let line = world.refused(2, &[verb, "vm"]);
        assert!(line.contains(way), "{line}");
    }
    world.ok(&["rm", "vm"]);
}

/// A device by where it is, and several at once.
#[test]
fn a_device_has_a_path_and_verbs_take_several() {
    let world = World::new();
    let fuse = world.dir("fuse");
    let _a = world.serve(&["a", "--size=1M"]);
    let b = world.serve(&["b", "--size=2M", "--algorithm=zstd:3"]);
    let text = world.ok(&["stat", "a", "b", "disksize", "mem_limit"]);
    assert_eq!(text, "a\n1048576\n0\n\nb\n2097152\n0\n");
    assert_eq!(
        world.ok(&["compact", "a", "b", "--json"]).lines().count(),
        2
    );
    let line = world.refused(2, &["stat", "a", "nobody"]);
    assert!(line.contains("nobody: no such attribute"), "{line}");
    let output = world.run(&["compact", "a", "nobody", "b", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        output.stdout.iter().filter(|&&byte| byte == b'\n').count(),
        2
    );
    let line = world.refused(1, &["stat", fuse.to_str().unwrap()]);
    assert!(line.contains("no device of uzram is there"), "{line}");

    assert_eq!(world.ok(&["list", "-q"]), "a\nb\n");
    let columns = [
        "list",
        "--noheadings",
        "--bytes",
        "--output=Name,size,algorithm,limit",
    ];
    assert_eq!(
        world.ok(&columns),
        "a  1048576  lz4     0\nb  2097152  zstd:3  0\n"
    );
    let stat: serde_json::Value =
        serde_json::from_str(&world.ok(&["stat", "b", "--json"])).unwrap();
    assert_eq!(stat["name"], "b");
    assert_eq!(stat["algorithm"], "zstd:3");
    assert_eq!(stat["backing"], serde_json::Value::Null);
    assert_eq!(stat["pid"], b.pid());

    let line = world.refused(2, &["stop", "a", "b", "--save=image"]);
    assert!(line.contains("one by one"), "{line}");
    world.refused(2, &["stop", "--all", "a"]);
    world.ok(&["stop", "--all"]);
    assert_eq!(world.ok(&["list", "-q"]), "");
    world.ok(&["stop", "--all"]);
}

/// The log of a server in the background is to be had by its name.
#[test]
fn a_log_is_printed_and_followed() {
    let world = World::new();
    fs::write(world.path("a.toml"), "[a]\nsize = \"1M\"\n").unwrap();
    let _b = world.serve(&["b", "--size=1M"]);
    world.ok(&["up", "--config=a.toml"]);
    let text = world.ok(&["log", "a"]);
    assert!(text.contains("serving a"), "{text}");
    let line = world.refused(1, &["log", "b"]);
    assert!(line.contains("not in the background"), "{line}");
    let mut command = world.command(&["log", "--follow", "a"]);
    let follower = command.spawn().unwrap();
    world.ok(&["stop", "a"]);
    let output = follower.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("stopping a"),
        "{text}"
    );
}

/// A configuration file as an argument, one without devices, and one that is only looked at.
#[test]
fn a_configuration_is_checked_or_named_by_its_path() {
    let world = World::new();
    fs::write(world.path("empty.toml"), "# nothing yet\n").unwrap();
    for verb in ["up", "down"] {
        let said = world.ok(&[verb, "./empty.toml"]);
        assert!(said.contains("empty.toml describes no devices"), "{said}");
    }
    let table = "[a]\nsize = \"1M\"\n[b]\nsize = \"1G\"\nmem-limit = \"1M\"\n";
    fs::write(world.path("two.toml"), table).unwrap();
    let line = world.refused(2, &["up", "--check", "two.toml"]);
    assert!(
        line.contains("two.toml:3: b: ") || line.contains("two.toml:5: b: "),
        "{line}"
    );
    assert_eq!(world.ok(&["list", "-q"]), "", "nothing was started");
    let said = world.ok(&["up", "--check", "two.toml", "a"]);
    assert!(said.contains("no fault found"), "{said}");
    world.ok(&["up", "two.toml", "a"]);
    assert_eq!(world.ok(&["list", "-q"]), "a\n");
    world.ok(&["down", "two.toml", "a"]);
    world.refused(2, &["up", "--config=two.toml", "empty.toml"]);
}

/// `--background` returns when the device is served; `--run` serves it as long as a command runs.
#[test]
fn a_server_goes_to_the_background_or_runs_a_command() {
    let world = World::new();
    let args = ["serve", "a", "--size=1M", "--background", "--pidfile=pid"];
    let said = world.ok(&args);
    assert!(said.starts_with("a (1 MiB) is served on unix:"), "{said}");
    let stat: serde_json::Value =
        serde_json::from_str(&world.ok(&["stat", "a", "--json"])).unwrap();
    let pid = fs::read_to_string(world.path("pid")).unwrap();
    assert_eq!(pid.trim(), stat["pid"].to_string());
    let line = world.refused(1, &args);
    assert!(line.contains("already being served"), "{line}");
    assert_eq!(world.ok(&["list", "-q"]), "a\n", "the first is served on");
    world.ok(&["stop", "a"]);
    // Where others may make links, one may lead anywhere.
    fs::write(world.path("precious"), "precious").unwrap();
    fs::remove_file(world.path("pid")).unwrap();
    std::os::unix::fs::symlink("precious", world.path("pid")).unwrap();
    let line = world.refused(1, &args);
    assert!(line.contains("symbolic link"), "{line}");
    assert_eq!(fs::read(world.path("precious")).unwrap(), b"precious");
    assert_eq!(world.ok(&["list", "-q"]), "");

    let run = |command: &str| world.run(&["serve", "b c", "--size=1M", "--run", command]);
    let output = run("nbdinfo --size \"$uri\" && test -S \"$unixsocket\" && echo \"$exportname\"");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "1048576\nb c\n");
    let output = run("exit 7");
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    assert!(output.stderr.is_empty(), "{output:?}");
    assert_eq!(world.ok(&["list", "-q"]), "", "it is gone with its command");
    world.refused(2, &["serve", "a", "--size=1M", "--pidfile=pid"]);
}
