//! Limits that a device can meet with nowhere for its pages to go.

use std::fs::{self, File};
use std::io::Read;
use std::process::Command;
use std::time::Instant;

use crate::recompress::uri;
use crate::up_down::configure;
use support::{HANG, Serve, World, can_mount};

#[test]
fn a_limit_below_what_a_file_system_can_need_is_refused_without_a_backing() {
    let world = World::new();
    world.dir("mnt");
    fs::write(world.path("image"), vec![7; 64 << 20]).unwrap();
    for args in [
        &["mount", "--size=64M", "--mem-limit=8M", "mnt"][..],
        // Pages that cannot be compressed, and what no allocator can use.
        &["mount", "--size=64M", "--mem-limit=64M", "mnt"],
        &[
            "mount",
            "--origin=image",
            "--snapshot",
            "--mem-limit=8M",
            "mnt",
        ],
    ] {
        let line = world.refused(2, args);
        for words in ["uzram: --mem-limit: ", "--backing", "--allow-enospc"] {
            assert!(line.contains(words), "{args:?}: {line}");
        }
    }
    let table = "[vm]\nsize = \"64M\"\nmem-limit = \"8M\"\n";
    let config = configure(&world, table);
    for more in [&[][..], &["--foreground"]] {
        let line = world.refused(2, &[&["up", config, "vm"], more].concat());
        assert!(
            line.starts_with("uzram: uzram.toml:3: vm: --mem-limit: 8 MiB is "),
            "{line}"
        );
    }
    for remedy in ["allow-enospc = true", "backing = \"spill\""] {
        let config = configure(&world, &format!("{table}{remedy}\n"));
        let output = world.run(&["up", config]);
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
        world.ok(&["down", config]);
    }
    assert!(world.leftovers().is_empty(), "{:?}", world.leftovers());
}

/// What `cp` was told is well is lost, and a sync is the only one to hear of it; but it was asked for.
#[test]
fn a_file_system_that_may_lose_data_has_it_in_its_log() {
    if !can_mount("a_file_system_that_may_lose_data_has_it_in_its_log") {
        return;
    }
    let world = World::new();
    let mnt = world.dir("mnt");
    let args = [
        "mount",
        "--name=m",
        "--size=64M",
        "--mem-limit=8M",
        "--allow-enospc",
        "mnt",
    ];
    world.ok(&args);
    let mut file = File::create(mnt.join("file")).unwrap();
    let random = File::open("/dev/urandom").unwrap();
    std::io::copy(&mut random.take(32 << 20), &mut file).unwrap();
    file.sync_all().unwrap_err();
    drop(file);
    let log = || fs::read_to_string(world.rundir().join("m/log")).unwrap();
    let said = "WARN writes fail with ENOSPC, as the memory limit is reached and there is no backing to spill to: \
                uzram set NAME backing_dev=PATH, or ";
    let begun = Instant::now();
    while !log().contains(said) {
        assert!(begun.elapsed() < HANG, "{}", log());
    }
    world.ok(&["umount", "mnt"]);
    assert!(world.leftovers().is_empty(), "{:?}", world.leftovers());
}

/// As in zram a device is served whatever its limit is. That it is met is in the log, where whoever looks for
/// a file system's lost data finds it.
#[test]
fn writes_that_fail_at_the_limit_are_in_the_log_with_the_remedy() {
    let world = World::new();
    let log = || fs::read_to_string(world.path("log")).unwrap();
    let start = |more: &[&str]| {
        let mut args = vec![
            "serve",
            "vm",
            "--size=64M",
            "--mem-limit=1M",
            "--nbd=unix:s",
        ];
        args.extend(more);
        let mut command = world.command(&args);
        Serve::start(command.stderr(File::create(world.path("log")).unwrap()))
    };
    // What is said last before it is ready.
    let serves = || {
        let begun = Instant::now();
        while !log().contains("serving vm") {
            assert!(begun.elapsed() < HANG, "{}", log());
        }
    };
    let server = start(&["--allow-enospc"]);
    serves();
    // Of other things a machine may well be warned.
    for words in ["--mem-limit:", "writes fail"] {
        assert!(!log().contains(words), "{}", log());
    }
    drop(server);

    let _server = start(&[]);
    serves();
    assert!(
        log().contains("--mem-limit: 1 MiB is less than the "),
        "{}",
        log()
    );
    assert!(log().contains("uzram set vm backing_dev=PATH"), "{}", log());
    let mut data = vec![0; 8 << 20];
    let random = File::open("/dev/urandom").unwrap();
    (&random).read_exact(&mut data).unwrap();
    fs::write(world.path("data"), data).unwrap();
    let copied = || {
        let mut nbdcopy = Command::new("nbdcopy");
        let data = world.path("data");
        nbdcopy
            .args([data.to_str().unwrap(), &uri(&world)])
            .output()
            .unwrap()
    };
    assert!(!copied().status.success() && !copied().status.success());
    let warnings = || log().matches("writes fail with ENOSPC, as ").count();
    let begun = Instant::now();
    while warnings() == 0 {
        assert!(begun.elapsed() < HANG, "{}", log());
    }
    assert!(
        log().contains("uzram set NAME backing_dev=PATH"),
        "{}",
        log()
    );
    let failed = world.ok(&["stat", "vm", "--json"]);
    let failed: serde_json::Value = serde_json::from_str(&failed).unwrap();
    let failed = failed["failed_writes"].as_u64().unwrap();
    assert!(
        (warnings() as u64) < failed,
        "{failed} writes failed\n{}",
        log()
    );

    // The remedy.
    world.ok(&["set", "vm", "backing_dev=spill"]);
    let copied = copied();
    assert!(copied.status.success(), "{copied:?}");
}
