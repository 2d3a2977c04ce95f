//! Images from the command line: saved, restored, damaged, and of no room.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::export::nbdsh_at;
use crate::recompress::{copy, fill, uri};
use support::is_saving;
use support::{HANG, Serve, World, ended, signal};

fn is_on(world: &World, data: &[u8]) {
    copy(world, &uri(world), "copy");
    let copied = fs::read(world.path("copy")).unwrap();
    assert!(copied[..data.len()] == *data);
    assert!(copied[data.len()..].iter().all(|&byte| byte == 0));
}

#[test]
fn what_was_saved_comes_back() {
    let world = World::new();
    let spills = ["--mem-limit=2M", "--backing=spill", "--backing-encrypt"];
    let mut args = vec!["vm", "--size=64M", "--nbd=unix:s"];
    args.extend(spills);
    let server = world.serve(&args);
    let data = fill(&world);
    let said = world.ok(&["save", "vm", "image", "--json"]);
    let saved: Value = serde_json::from_str(&said).unwrap();
    let image = world.path("image");
    let metadata = fs::metadata(&image).unwrap();
    assert_eq!(saved["bytes"], metadata.len());
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert!(saved["pages"].as_u64().unwrap() <= data.len() as u64 / 4096);
    assert!(metadata.len() < data.len() as u64 * 3 / 4);
    let line = world.refused(1, &["save", "vm", "spill"]);
    assert!(line.contains("is the backing"), "{line}");
    let said = world.ok(&["stop", "vm", "--save", "image"]);
    assert!(
        said.contains(" saved, ") && said.ends_with(" in image\n"),
        "{said}"
    );
    drop(server);

    let args = ["vm", "--restore=image", "--nbd=unix:s"];
    let server = world.serve(&args);
    is_on(&world, &data);
    assert_eq!(world.ok(&["stat", "vm", "disksize"]), "67108864\n");
    world.ok(&["stop", "vm"]);
    drop(server);

    let mut args = vec!["vm", "--restore=image", "--size=96M", "--nbd=unix:s"];
    args.extend(spills);
    let _server = world.serve(&args);
    is_on(&world, &data);
    assert_eq!(world.ok(&["stat", "vm", "disksize"]), "100663296\n");
}

#[test]
fn a_device_in_use_is_not_stopped_with_an_image() {
    let world = World::new();
    let _server = world.serve(&["vm", "--size=64M", "--nbd=unix:s"]);
    let client = std::os::unix::net::UnixStream::connect(world.path("s")).unwrap();
    let mut greeting = [0; 18];
    Read::read_exact(&mut &client, &mut greeting).unwrap();
    // EXPORT_NAME of the default export, without the zeroes after it.
    let mut hello = 3u32.to_be_bytes().to_vec();
    hello.extend(b"IHAVEOPT\0\0\0\x01\0\0\0\0");
    std::io::Write::write_all(&mut &client, &hello).unwrap();
    let mut export = [0; 10];
    Read::read_exact(&mut &client, &mut export).unwrap();
    let line = world.refused(1, &["stop", "vm", "--save=image"]);
    assert!(line.contains("in use"), "{line}");
    assert!(!world.path("image").exists());
    world.ok(&["save", "vm", "image"]);
}

/// The server is held still while it writes the file, so that the save cannot end before the signal.
#[test]
fn ctrl_c_stops_a_save_in_the_server() {
    let world = World::new();
    let log = world.path("log");
    let mut command = world.command(&["serve", "vm", "--size=64M", "--nbd=unix:s"]);
    command.env("UZRAM_DUMPABLE", "1");
    let server = Serve::start(command.stderr(File::create(&log).unwrap()));
    fill(&world);
    let images = world.dir("images");
    let files = || fs::read_dir(&images).unwrap().count();
    let is_stopped = || fs::read_to_string(&log).unwrap().contains("nobody waits");
    let mut tries = 0..50;
    while !is_stopped() {
        tries.next().expect("each save ends before its signal");
        let mut save = world
            .command(&["save", "vm", "images/image"])
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while !is_saving(server.pid(), &images) && files() == 0 && begun.elapsed() < HANG {}
        signal(server.pid(), "STOP");
        signal(save.id(), "INT");
        // It asks what has become of the save.
        std::thread::sleep(Duration::from_millis(300));
        signal(server.pid(), "CONT");
        let status = ended(&mut save, HANG).unwrap();
        let mut said = String::new();
        save.stderr.unwrap().read_to_string(&mut said).unwrap();
        // Whoever asks next is refused until the save has ended.
        while world.run(&["save", "vm", "other"]).status.code() != Some(0) {
            assert!(begun.elapsed() < HANG);
        }
        if images.join("image").exists() {
            // It was complete before the signal.
            assert!(status.success(), "{said}");
        } else {
            assert_eq!(status.code(), Some(1));
            assert_eq!(said, "uzram: interrupted: nothing was saved\n");
            while !is_stopped() {
                assert!(begun.elapsed() < HANG, "the server does not notice");
            }
        }
        let _ = fs::remove_file(images.join("image"));
        assert_eq!(files(), 0);
    }
    let data = fs::read(world.path("data")).unwrap();
    is_on(&world, &data);
}

/// The server is held still while it writes the file, so that the save cannot end before the kill.
#[test]
fn a_killed_save_leaves_nothing_and_says_that_the_data_is_gone() {
    let world = World::new();
    let images = world.dir("images");
    let left = || fs::read_dir(&images).unwrap().count();
    for args in [
        &["save", "vm", "images/image"][..],
        &["stop", "vm", "--save", "images/image"],
    ] {
        let mut tries = 0..50;
        loop {
            tries.next().expect("each save ends before the kill");
            let mut server = world.command(&["serve", "vm", "--size=64M", "--nbd=unix:s"]);
            let mut server = Serve::start(server.env("UZRAM_DUMPABLE", "1"));
            fill(&world);
            let mut save = world.command(args).spawn().unwrap();
            let begun = Instant::now();
            while !is_saving(server.pid(), &images) && left() == 0 && begun.elapsed() < HANG {}
            signal(server.pid(), "STOP");
            server.kill_9();
            let code = ended(&mut save, HANG).unwrap().code();
            let mut said = String::new();
            save.stderr.unwrap().read_to_string(&mut said).unwrap();
            if images.join("image").exists() {
                assert_eq!(code, Some(0), "it was complete before the kill: {said}");
                world.run(&["detach", "vm"]);
                fs::remove_file(images.join("image")).unwrap();
                continue;
            }
            assert_eq!(code, Some(1));
            assert!(said.starts_with("uzram: the server of vm ended"), "{said}");
            let clear = "clear what it left with: uzram detach vm\n";
            assert!(said.lines().count() == 1 && said.ends_with(clear), "{said}");
            assert!(said.contains("what was on vm is lost"), "{said}");
            assert_eq!(left(), 0);
            world.ok(&["detach", "vm"]);
            break;
        }
    }
}

#[test]
fn a_save_to_a_link_replaces_what_it_leads_to() {
    let world = World::new();
    let _server = world.serve(&["vm", "--size=64M", "--nbd=unix:s"]);
    let images = world.dir("images");
    fs::write(images.join("image"), "old").unwrap();
    let link = world.path("link");
    symlink("images/image", &link).unwrap();
    let data = fill(&world);
    world.ok(&["save", "vm", "link"]);
    let is_link = || fs::symlink_metadata(&link).unwrap().is_symlink();
    assert!(is_link() && fs::metadata(images.join("image")).unwrap().len() > 3);
    fs::rename(images.join("image"), world.path("image")).unwrap();
    for verb in [&["save", "vm", "link"][..], &["stop", "vm", "--save=link"]] {
        let line = world.refused(1, verb);
        assert!(line.contains("leads nowhere"), "{line}");
    }
    assert!(is_link() && fs::read_dir(&images).unwrap().next().is_none());
    is_on(&world, &data);
}

/// Changes a byte of a file; returns what it was.
fn flip(file: &File, at: u64) -> u8 {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
    byte[0]
}

pub(crate) fn saved_image(world: &World) -> File {
    let mut server = world.serve(&["vm", "--size=64M", "--nbd=unix:s"]);
    fill(world);
    world.ok(&["save", "vm", "image"]);
    world.ok(&["stop", "vm"]);
    assert_eq!(server.ended(HANG), Some(0));
    let mut open = File::options();
    open.read(true).write(true);
    open.open(world.path("image")).unwrap()
}

#[test]
fn a_damaged_image_is_refused_with_what_and_where() {
    let world = World::new();
    let image = saved_image(&world);
    let path = world.path("image");
    let args = ["serve", "vm", "--restore=image", "--nbd=unix:s"];
    let refused = || {
        let line = world.refused(1, &args);
        assert!(line.contains(path.to_str().unwrap()), "{line}");
        line
    };
    let byte = flip(&image, 2_000_000);
    let output = world.run(&[&args[..], &["--verify-image"]].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    let (log, line) = said.trim_end().rsplit_once('\n').unwrap();
    let (_, at) = log.split_once("its record at byte ").expect("where");
    let at: u64 = at.split_once(' ').unwrap().0.parse().unwrap();
    assert!((1_990_000..=2_000_000).contains(&at), "{said}");
    assert!(
        line.starts_with("uzram: ") && line.contains(" intact: 1 damaged: "),
        "{said}"
    );
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    image.write_all_at(&[byte], 2_000_000).unwrap();
    let len = image.metadata().unwrap().len();
    let byte = flip(&image, len - 100);
    assert!(refused().contains("damaged in an index, bytes "));
    image.write_all_at(&[byte], len - 100).unwrap();
    image.set_len(len - 1).unwrap();
    assert!(refused().contains("cut off"));
    fs::write(&path, "text").unwrap();
    assert!(refused().contains("no image"));
    assert_eq!(world.leftovers(), [""; 0]);
    let line = world.refused(2, &["serve", "vm", "--size=4M", "--verify-image"]);
    assert!(line.contains("--restore"), "{line}");
}

#[test]
fn a_page_that_is_damaged_in_the_image_is_the_only_one_lost() {
    let world = World::new();
    let image = saved_image(&world);
    flip(&image, 2_000_000);
    let log = world.path("log");
    let args = [
        "serve",
        "vm",
        "--restore=image",
        "--mem-limit=1M",
        "--nbd=unix:s",
    ];
    let mut command = world.command(&args);
    let _server = Serve::start(command.stderr(File::create(&log).unwrap()));
    for verb in [&["stat", "vm"][..], &["list"]] {
        assert!(world.ok(verb).contains("to restore"), "{verb:?}");
    }
    let line = world.refused(1, &["scrub", "vm"]);
    let (_, page) = line.trim_end().rsplit_once("1 damaged: ").unwrap();
    let at: u64 = page.parse().unwrap();
    let said = fs::read_to_string(&log).unwrap();
    let where_ = format!("page {at} is lost: its record at byte ");
    assert!(
        said.contains(&where_) && said.contains("/image is damaged"),
        "{said}"
    );
    let script = format!(
        "h.connect_uri(uri)\n\
         h.pread(4096, {})\n\
         try:\n  h.pread(4096, {})\n\
         except nbd.Error as error: assert error.errno == 'EIO'\n\
         else: raise SystemExit('what is damaged was read')",
        (at + 1) * 4096,
        at * 4096
    );
    nbdsh_at(&uri(&world), &script);
}

#[test]
fn sizes_and_files_that_make_no_sense_are_refused() {
    let world = World::new();
    let _server = world.serve(&["vm", "--size=64M", "--nbd=unix:s"]);
    world.ok(&["save", "vm", "image"]);
    let line = world.refused(2, &["serve", "b", "--restore=image", "--size=32M"]);
    assert!(
        line.contains("--size: ") && line.contains("of 64 MiB: "),
        "{line}"
    );
    let line = world.refused(1, &["serve", "b", "--restore=missing"]);
    assert!(line.contains("missing"), "{line}");
    world.refused(1, &["save", "vm", "missing/image"]);
    world.dir("directory");
    let line = world.refused(1, &["save", "vm", "directory"]);
    assert!(line.contains("not a regular file"), "{line}");
    let line = world.refused(2, &["serve", "b"]);
    assert!(line.contains("--size <SIZE> (or --restore FILE"), "{line}");
    let line = world.refused(1, &["save", "nobody", "image"]);
    assert!(line.contains("uzram list"), "{line}");
}

/// A file system of a megabyte.
struct Tiny<'a>(&'a World);

impl Drop for Tiny<'_> {
    fn drop(&mut self) {
        let at = self.0.path("tiny");
        let _ = Command::new("umount").arg(at).status();
    }
}

#[test]
fn without_room_the_old_image_stays() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: without_room_the_old_image_stays needs root");
        return;
    }
    let world = World::new();
    let at = world.dir("tiny");
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1M", "tmpfs"])
        .arg(&at)
        .status();
    if !mounted.unwrap().success() {
        eprintln!("skipped: without_room_the_old_image_stays cannot mount a tmpfs");
        return;
    }
    let _tiny = Tiny(&world);
    let _server = world.serve(&["vm", "--size=64M", "--nbd=unix:s"]);
    world.ok(&["save", "vm", "tiny/image"]);
    let old = fs::read(world.path("tiny/image")).unwrap();
    let data = fill(&world);
    let line = world.refused(1, &["save", "vm", "tiny/image"]);
    assert!(line.contains("No space left"), "{line}");
    assert!(fs::read(world.path("tiny/image")).unwrap() == old);
    assert_eq!(fs::read_dir(&at).unwrap().count(), 1);
    is_on(&world, &data);
}

#[test]
fn a_restore_that_is_ended_leaves_no_spill() {
    let world = World::new();
    let mut server = world.serve(&["vm", "--size=64M", "--nbd=unix:s"]);
    crate::scrub::fill(&world);
    let image = world.path("image");
    world.ok(&["save", "vm", image.to_str().unwrap()]);
    world.ok(&["stop", "vm"]);
    assert_eq!(server.ended(HANG), Some(0));
    // Damaged, so that what is seen of the server is seen before it is ready.
    flip(
        &File::options().read(true).write(true).open(&image).unwrap(),
        10_000,
    );

    let spill = world.path("spill");
    let args = [
        "serve",
        "vm",
        "--restore=image",
        "--verify-image",
        "--mem-limit=4M",
        "--backing=spill",
    ];
    // It may be over before the signal.
    let (mut tries, mut was_interrupted) = (0, false);
    while !was_interrupted {
        let killed = tries == 0;
        tries += 1;
        assert!(tries < 50, "it is never interrupted");
        let mut restore = world.command(&args).spawn().unwrap();
        let record = world.rundir().join("vm/record");
        let names_the_spill = || {
            let record = fs::read(&record).ok()?;
            let record: Value = serde_json::from_slice(&record).ok()?;
            record["spills"][0]["path"].as_str().map(str::to_owned)
        };
        while names_the_spill().is_none() {
            assert!(
                restore.try_wait().unwrap().is_none(),
                "nobody would find it"
            );
        }
        if killed {
            restore.kill().unwrap();
        } else {
            signal(restore.id(), "TERM");
        }
        let status = ended(&mut restore, HANG).expect("it ends");
        if !killed {
            let (mut out, mut err) = (String::new(), String::new());
            restore.stdout.unwrap().read_to_string(&mut out).unwrap();
            restore.stderr.unwrap().read_to_string(&mut err).unwrap();
            was_interrupted = err.ends_with("uzram: interrupted before it was ready\n");
            assert!(was_interrupted || err.ends_with("1 damaged: 2\n"), "{err}");
            assert_eq!((status.code(), out.as_str()), (Some(1), ""));
        }
        if killed {
            world.ok(&["detach", "vm"]);
        }
        assert!(!spill.exists(), "killed: {killed}");
        assert_eq!(world.leftovers(), [""; 0]);
    }
}
