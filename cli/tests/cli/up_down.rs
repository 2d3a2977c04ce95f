//! `uzram up` and `down`, and servers of swap.

use std::fs;
use std::process::Command;

use crate::recompress::{copy, uri};
use crate::scrub::fill;
use support::{HANG, Serve, World, can_mount, ended, eventually, signal};

/// Names the file of devices that [`configure`] writes.
pub(crate) const CONFIG: &str = "--config=uzram.toml";

/// Writes a file of devices; returns the option that names it.
pub(crate) fn configure(world: &World, table: &str) -> &'static str {
    fs::write(world.path("uzram.toml"), table).unwrap();
    CONFIG
}

#[test]
fn devices_of_a_file_come_and_go() {
    let world = World::new();
    let dir = world.dir("etc");
    let table = "[vm]\nsize = \"64M\"\nnbd = \"unix:../s\"\n\n[other]\nsize = \"8M\"\n";
    fs::write(dir.join("uzram.toml"), table).unwrap();
    let config = "--config=etc/uzram.toml";
    let said = world.ok(&["up", config]);
    let socket = format!("vm (64 MiB) is served on unix:{}/../s\n", dir.display());
    assert!(
        said.contains(&socket) && said.contains("other (8 MiB)"),
        "{said}"
    );
    assert!(world.path("s").exists());
    fill(&world);
    let said = world.ok(&["up", "vm", config]);
    assert_eq!(said, "vm is up already\n");
    let line = world.refused(1, &["down", "mv", config]);
    assert!(line.contains("mv") && line.contains("vm, other"), "{line}");
    assert_eq!(world.ok(&["down", config]), "");
    assert_eq!(
        world.ok(&["down", config]),
        "other is not up\nvm is not up\n"
    );
    assert!(world.leftovers().is_empty(), "{:?}", world.leftovers());
}

#[test]
fn a_device_that_fails_keeps_no_other_from_coming_or_going() {
    let world = World::new();
    let table = "[a]\nsize = \"8M\"\n\n[b]\nsize = \"8M\"\nmem-limit = 5\n\n[c]\nsize = \"8M\"\n\n\
                 [d]\nsize = \"8M\"\nnbd = \"unix:missing/s\"\n";
    let config = configure(&world, table);
    let output = world.run(&["up", config]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let lines: Vec<_> = said.lines().collect();
    let [b, d] = lines[..] else { panic!("{said}") };
    assert!(
        b.starts_with("uzram: uzram.toml:6: b: --mem-limit: "),
        "{said}"
    );
    assert!(
        d.starts_with("uzram: uzram.toml:13: d: --nbd: there ") && d.contains("mkdir"),
        "{said}"
    );
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(said.lines().count(), 2, "{said}");
    assert!(
        said.contains("a (8 MiB) is served") && said.contains("c (8 MiB) is served"),
        "{said}"
    );
    let said = world.ok(&["down", config]);
    assert_eq!(said, "d is not up\nb is not up\n");
    assert!(world.leftovers().is_empty(), "{:?}", world.leftovers());
}

#[test]
fn a_device_in_use_keeps_no_other_from_going() {
    if !can_mount("a_device_in_use_keeps_no_other_from_going") {
        return;
    }
    let world = World::new();
    let mnt = world.dir("mnt");
    let table = "[a]\nsize = \"8M\"\n\n[m]\nsize = \"8M\"\nmountpoint = \"mnt\"\n";
    let config = configure(&world, table);
    world.ok(&["up", config]);
    let open = fs::File::create(mnt.join("file")).unwrap();
    let line = world.refused(1, &["down", config]);
    assert!(line.contains("fuser -vm"), "{line}");
    drop(open);
    assert_eq!(world.ok(&["down", config]), "a is not up\n");
    assert!(world.leftovers().is_empty(), "{:?}", world.leftovers());
}

#[test]
fn what_is_wrong_in_a_file_is_named() {
    let world = World::new();
    let table = "[vm]\nsize = \"64M\"\nbacking-size = \"1G\"\n";
    fs::write(world.path("a.toml"), table).unwrap();
    let line = world.refused(2, &["up", "--config=a.toml"]);
    assert!(
        line.contains("a.toml:1: vm: ") && line.contains("--backing"),
        "{line}"
    );
    fs::write(world.path("b.toml"), "[vm]\nsize = \"1G\"\nmem-limit = 5\n").unwrap();
    let line = world.refused(2, &["up", "--config=b.toml"]);
    assert!(line.contains("b.toml:3: vm: --mem-limit: "), "{line}");
    let generator = "[zram0]\ncompression-algorithm = lzo-rle\n";
    fs::write(world.path("zram-generator.conf"), generator).unwrap();
    let line = world.refused(2, &["up", "--config=zram-generator.conf"]);
    assert!(
        line.contains("zram-generator.conf:2: compression-algorithm: "),
        "{line}"
    );
    let ignored = "[disk]\n[zram0]\nzram-sise = 1\nzram-size = 0\n";
    fs::write(world.path("zram-generator.conf"), ignored).unwrap();
    let output = world.run(&["up", "--config=zram-generator.conf"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains("describes no devices"), "{printed}");
    let begins = ["1: [disk] is ignored", "3: zram-sise is ignored"];
    assert_eq!(said.lines().count(), begins.len(), "{said}");
    for (line, begin) in said.lines().zip(begins) {
        let begin = format!("uzram: warning: zram-generator.conf:{begin}");
        assert!(line.starts_with(&begin), "{line}");
    }
    let line = world.refused(1, &["up", "--config=missing.toml"]);
    assert!(line.contains("missing.toml"), "{line}");
}

/// The image of a device with `save` is what it begins with, also where it has been made larger.
#[test]
fn what_is_to_be_saved_outlives_down() {
    let world = World::new();
    let dir = world.dir("etc");
    let table =
        "[vm]\nsize = \"64M\"\nnbd = \"unix:../s\"\nsave = \"../vm.image\"\nverify-image = true\n";
    fs::write(dir.join("uzram.toml"), table).unwrap();
    let config = "--config=etc/uzram.toml";
    let said = world.ok(&["up", config]);
    assert!(
        said.ends_with("vm.image by: uzram down --config etc/uzram.toml vm\n"),
        "{said}"
    );
    let data = fill(&world);
    world.ok(&["set", "vm", "disksize=96M"]);
    let said = world.ok(&["down", config]);
    assert!(
        said.contains(" saved, ") && world.path("vm.image").exists(),
        "{said}"
    );
    assert!(world.leftovers().is_empty(), "{:?}", world.leftovers());

    let is_back = || {
        world.ok(&["up", config]);
        copy(&world, &uri(&world), "copy");
        let copied = fs::read(world.path("copy")).unwrap();
        assert_eq!(copied.len(), 96 << 20);
        assert!(copied[..data.len()] == data[..]);
    };
    is_back();
    // Over the image that it is still being restored from.
    world.ok(&["down", config]);
    is_back();
    let listed = || -> serde_json::Value {
        let list: Vec<_> = serde_json::from_str(&world.ok(&["list", "--json"])).unwrap();
        list.into_iter().next().expect("a device")
    };
    let pid = listed()["pid"].as_u64().unwrap();
    signal(pid.try_into().unwrap(), "KILL");
    let begun = std::time::Instant::now();
    while listed()["alive"] == true {
        assert!(begun.elapsed() < HANG);
    }
    let output = world.run(&["down", config]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(
        said.starts_with("uzram: warning: the server of vm is dead: "),
        "{said}"
    );
    is_back();
    world.ok(&["down", config]);
}

#[test]
fn what_is_not_kept_is_said() {
    let world = World::new();
    let saved = |key: &str, value: &str| format!("[vm]\nsize = \"8M\"\n{key} = \"{value}\"\n");
    fs::write(world.path("save.toml"), saved("save", "image")).unwrap();
    fs::write(world.path("restore.toml"), saved("restore", "image")).unwrap();
    world.ok(&["up", "--config=save.toml"]);
    world.ok(&["down", "--config=save.toml"]);
    let said = world.ok(&["up", "--config=restore.toml"]);
    assert!(
        said.contains("vm begins with image each time: what is written"),
        "{said}"
    );
    assert_eq!(world.ok(&["down", "--config=restore.toml"]), "");
    let line = world.refused(2, &["up", "vm", "--foreground", "--config=save.toml"]);
    assert!(line.contains("save.toml:3: vm: save: "), "{line}");
    fs::write(world.path("a.toml"), saved("save", "missing/image")).unwrap();
    let line = world.refused(1, &["up", "--config=a.toml"]);
    let remedy = format!("mkdir {} first", world.path("missing").display());
    assert!(
        line.contains("a.toml:3: vm: save: ") && line.contains(&remedy),
        "{line}"
    );
}

/// Whatever is where a device is saved to, and is not what this device began with, stays.
#[test]
fn an_image_that_a_device_did_not_begin_with_is_kept() {
    let world = World::new();
    let table = "[vm]\nsize = \"8M\"\nsave = \"image\"\n";
    let config = configure(&world, table);
    let down = || {
        let output = world.run(&["down", config]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{said}");
        said
    };
    world.ok(&["up", config]);
    fs::write(world.path("image"), "of another").unwrap();
    let said = down();
    let image = world.path("image").display().to_string();
    assert!(
        said.starts_with(&format!("uzram: warning: {image} "))
            && said.ends_with(&format!(" kept as {image}.old\n")),
        "{said}"
    );
    let kept = || fs::read_to_string(world.path("image.old")).unwrap();
    assert_eq!(kept(), "of another");

    world.ok(&["up", config]);
    assert_eq!(down(), "");
    assert!(!world.path("image.old.2").exists());
    world.ok(&["up", config]);
    world.ok(&["save", "vm", "image"]);
    assert!(down().ends_with(&format!(" kept as {image}.old.2\n")));
    assert_eq!(kept(), "of another");

    // There may be an image where one cannot look.
    let name = "x".repeat(300);
    configure(&world, &format!("[vm]\nsize = \"8M\"\nsave = \"{name}\"\n"));
    let line = world.refused(1, &["up", config]);
    let there = world.path("x").display().to_string();
    assert!(
        line.contains(&format!("toml:3: vm: save: cannot examine {there}")),
        "{line}"
    );
    assert!(world.leftovers().is_empty(), "{:?}", world.leftovers());
}

/// Of `uzram down | head -1`: that it has read enough leaves nothing undone.
#[test]
fn without_a_reader_of_the_report_the_device_is_stopped_all_the_same() {
    let world = World::new();
    let table = "[vm]\nsize = \"8M\"\nsave = \"down\"\n";
    let config = configure(&world, table);
    let (up, down) = (["up", config], ["down", config]);
    let mut ways = vec![
        (&up[..], &down[..], "down"),
        (&up[..], &["stop", "vm", "--save=stop"][..], "stop"),
    ];
    world.dir("mnt");
    if can_mount("the mounted half of without_a_reader_of_the_report") {
        let mount = &["mount", "--size=8M", "mnt"][..];
        ways.push((mount, &["umount", "mnt", "--save=umount"], "umount"));
    }
    for (start, end, image) in ways {
        world.ok(start);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = world.command(end);
        let mut child = command.stdout(writer).spawn().unwrap();
        let status = ended(&mut child, HANG).expect("it hangs");
        assert!(status.success() && world.path(image).exists(), "{end:?}");
        assert!(world.leftovers().is_empty(), "{:?}", world.leftovers());
    }
}

#[test]
fn down_takes_down_no_other_device() {
    if !can_mount("down_takes_down_no_other_device") {
        return;
    }
    let world = World::new();
    let mnt = world.dir("mnt");
    let table = "[m]\nsize = \"8M\"\nmountpoint = \"mnt\"\nsave = \"image\"\n";
    let config = configure(&world, table);
    world.ok(&["up", config]);
    fs::write(mnt.join("file"), "of m").unwrap();
    let umount = Command::new("umount").arg(&mnt).status().unwrap();
    assert!(umount.success());
    world.ok(&["mount", "--size=8M", "--name=other", "mnt"]);
    let line = world.refused(1, &["down", config]);
    assert!(
        line.contains("other is mounted on ") && line.contains(" not m: uzram umount "),
        "{line}"
    );
    assert!(!world.path("image").exists() && !mnt.join("file").exists());

    world.ok(&["umount", "mnt"]);
    let line = world.refused(1, &["up", config]);
    let remedy = "not mounted: uzram down --config uzram.toml m first";
    assert!(line.contains(remedy), "{line}");
    world.ok(&["down", config]);
    world.ok(&["up", config]);
    assert_eq!(fs::read_to_string(mnt.join("file")).unwrap(), "of m");
    world.ok(&["down", config]);
    assert!(world.leftovers().is_empty(), "{:?}", world.leftovers());
}

#[test]
fn after_a_save_that_failed_down_is_the_way() {
    if !can_mount("after_a_save_that_failed_down_is_the_way") {
        return;
    }
    let world = World::new();
    world.dir("mnt");
    let table = "[m]\nsize = \"8M\"\nmountpoint = \"mnt\"\nbacking = \"spill\"\nsave = \"image\"\n";
    let config = configure(&world, table);
    world.ok(&["up", config]);
    fs::hard_link(world.path("spill"), world.path("image")).unwrap();
    let line = world.refused(1, &["down", config]);
    let again = "still served with all its data: uzram down --config uzram.toml m tries again";
    assert!(line.contains(again), "{line}");
    assert!(!world.path("image.old").exists());
    let line = world.refused(1, &["up", config]);
    assert!(
        line.contains("uzram.toml:1: m: it is served, and not mounted: "),
        "{line}"
    );
    fs::remove_file(world.path("image")).unwrap();
    world.ok(&["down", config]);
    assert!(world.path("image").exists());
    assert!(world.leftovers().is_empty(), "{:?}", world.leftovers());
}

#[test]
fn a_file_system_outlives_down() {
    if !can_mount("a_file_system_outlives_down") {
        return;
    }
    let world = World::new();
    let mnt = world.dir("mnt");
    let table = "[m]\nsize = \"8M\"\nmountpoint = \"mnt\"\nsave = \"image\"\n";
    let config = configure(&world, table);
    let said = world.ok(&["up", config]);
    assert!(
        said.contains("to take it down: uzram down --config uzram.toml m\n"),
        "{said}"
    );
    fs::write(mnt.join("file"), "kept").unwrap();
    let open = fs::File::open(mnt.join("file")).unwrap();
    world.refused(1, &["down", config]);
    assert!(!world.path("image").exists());
    drop(open);
    world.ok(&["down", config]);
    world.ok(&["up", config]);
    assert_eq!(fs::read_to_string(mnt.join("file")).unwrap(), "kept");
    world.ok(&["down", config]);
    assert!(world.leftovers().is_empty(), "{:?}", world.leftovers());
}

/// Memory that is locked still goes back to the kernel when its pages are discarded.
#[test]
fn a_server_of_swap_keeps_its_memory_and_gives_it_back() {
    let world = World::new();
    if !rustix::process::geteuid().is_root() {
        let line = world.refused(1, &["serve", "vm", "--size=64M", "--swap"]);
        assert!(line.contains("--swap needs root"), "{line}");
        return;
    }
    let log = world.path("log");
    let mut command = world.command(&["serve", "vm", "--size=64M", "--nbd=unix:s", "--swap"]);
    let server = Serve::start(command.stderr(fs::File::create(&log).unwrap()));
    let score = fs::read_to_string(format!("/proc/{}/oom_score_adj", server.pid())).unwrap();
    // A container may have taken that right from root, which is said.
    let said = fs::read_to_string(&log).unwrap();
    let stays = format!("--swap: the OOM score stays {}", score.trim());
    assert!(
        score.trim() == "-1000" || said.contains(&stays),
        "{score} {said}"
    );
    let locked = || {
        let status = fs::read_to_string(format!("/proc/{}/status", server.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
        let kib: u64 = line
            .unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap();
        kib
    };
    assert!(locked() > 0);
    fill(&world);
    let rss = || {
        let json: serde_json::Value =
            serde_json::from_str(&world.ok(&["stat", "vm", "--json"])).unwrap();
        json["rss_bytes"].as_u64().unwrap()
    };
    let full = rss();
    assert!(full > 48 << 20, "{full}");
    world.ok(&["reset", "vm"]);
    eventually("given back", || rss() <= full - (40 << 20));
}

#[test]
fn what_has_a_mountpoint_is_mounted() {
    if !can_mount("what_has_a_mountpoint_is_mounted") {
        return;
    }
    let world = World::new();
    let mnt = world.dir("mnt");
    let generator = format!(
        "[zram7]\nzram-size = min(ram, 64)\ncompression-algorithm = zstd(level=3)\nmount-point = {}\nfs-type = ext4\n\
         options = discard,noatime,nodev\n",
        mnt.display()
    );
    fs::write(world.path("zram-generator.conf"), generator).unwrap();
    let config = "--config=zram-generator.conf";
    let said = world.ok(&["up", config]);
    assert!(said.starts_with("zram7 (64 MiB) is mounted on "), "{said}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts
        .lines()
        .find(|line| line.contains(mnt.to_str().unwrap()))
        .unwrap();
    assert!(
        mount.contains("noatime") && mount.contains("nodev") && mount.contains("discard"),
        "{mount}"
    );
    let algorithms = world.ok(&["stat", "zram7", "comp_algorithm"]);
    assert!(algorithms.contains("[zstd:3]"), "{algorithms}");
    let line = world.refused(2, &["up", "--foreground", "zram7", config]);
    assert!(line.contains("mountpoint"), "{line}");
    assert_eq!(world.ok(&["down", config]), "");
    assert!(world.leftovers().is_empty(), "{:?}", world.leftovers());
}
