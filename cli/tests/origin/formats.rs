//! Images that are not raw, that are only read, and that are not of whole pages.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::client::{Client, PAGE};
use support::{Serve, World, can_mount};

const READ_ONLY: u16 = 1 << 1;

/// Runs a tool that must succeed, in the world's directory.
fn tool(world: &World, program: &str, args: &[&str]) {
    let mut command = Command::new(program);
    let output = command.args(args).current_dir(world.path("")).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
}

fn client(world: &World) -> Client {
    Client::connect(&world.rundir().join("x/nbd.sock")).unwrap()
}

#[test]
fn what_is_not_raw_is_refused_unless_that_is_said() {
    let world = World::new();
    fs::write(world.path("raw"), vec![7; 1 << 20]).unwrap();
    for to in [
        &["qcow2"][..],
        &["vmdk"],
        &["vdi"],
        &["vhdx"],
        &["vpc", "-o", "subformat=dynamic"],
        &["vpc", "-o", "subformat=fixed"],
    ] {
        let convert = [&["convert", "-f", "raw", "-O"], to, &["raw", "image"]].concat();
        tool(&world, "qemu-img", &convert);
        for more in [&[][..], &["--snapshot"], &["--read-only"]] {
            let args = [&["serve", "x", "--origin=image"], more].concat();
            let line = world.refused(1, &args);
            assert!(line.contains("qemu-img convert -O raw"), "{line}");
            assert!(!line.contains("truncate"), "{line}");
        }
    }
    tool(&world, "gzip", &["-kf", "raw"]);
    tool(&world, "xz", &["-kf", "raw"]);
    for (image, remedy) in [("raw.gz", "gzip -dk"), ("raw.xz", "xz -dk")] {
        let origin = format!("--origin={image}");
        let line = world.refused(1, &["serve", "x", &origin]);
        assert!(line.contains(image) && line.contains(remedy), "{line}");
    }
    // A raw disk whose owner knows what it begins with, also as the file of devices has it.
    fs::write(
        world.path("disk"),
        [b"QFI\xfb".as_slice(), &[0; 8188]].concat(),
    )
    .unwrap();
    world.refused(1, &["serve", "x", "--origin=disk"]);
    let toml = "[x]\norigin = \"disk\"\norigin-format = \"raw\"\n";
    fs::write(world.path("uzram.toml"), toml).unwrap();
    world.ok(&["up", "--config=uzram.toml"]);
    let mut read = [0; 4];
    client(&world).read(0, &mut read).unwrap();
    assert_eq!(&read, b"QFI\xfb");
    world.ok_once_unused(&["down", "--config=uzram.toml"]);
    let server = world.serve(&["x", "--origin=disk", "--origin-format=raw"]);
    drop(server);
}

/// The access modes with which a server has a file open: open(2)'s.
fn access_modes(server: &Serve, path: &Path) -> Vec<u32> {
    let proc = format!("/proc/{}", server.pid());
    let fds = fs::read_dir(format!("{proc}/fd")).unwrap().flatten();
    let open = fds.filter(|fd| fs::read_link(fd.path()).is_ok_and(|it| it == path));
    let mode = |fd: fs::DirEntry| {
        let fd = fd.file_name().into_string().unwrap();
        let info = fs::read_to_string(format!("{proc}/fdinfo/{fd}")).unwrap();
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
        u32::from_str_radix(flags.unwrap().trim(), 8).unwrap() & 3
    };
    open.map(mode).collect()
}

#[test]
fn a_read_only_device_only_reads_its_image() {
    let world = World::new();
    let path = world.path("image");
    fs::write(&path, vec![7; 64 * PAGE]).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
    let mut command = world.command(&["serve", "x", "--origin=image", "--read-only"]);
    // Otherwise only root sees what it has open.
    let server = Serve::start(command.env("UZRAM_DUMPABLE", "1"));
    let opened = access_modes(&server, &path);
    assert!(
        !opened.is_empty() && opened.iter().all(|&mode| mode == 0),
        "{opened:?}"
    );
    let mut client = client(&world);
    assert_ne!(client.flags & READ_ONLY, 0);
    assert!(client.write(0, &[1; PAGE], false).is_err());
    assert!(client.trim(0, PAGE).is_err());
    let mut read = [0; PAGE];
    client.read(0, &mut read).unwrap();
    assert_eq!(read, [7; PAGE]);
    drop(client);
    let line = world.refused(1, &["reset", "x"]);
    assert!(line.contains("read-only"), "{line}");
    // It shares the image with others that only read it.
    world.ok_once_unused(&["stop", "x"]);
    drop(server);
    let line = world.refused(
        2,
        &["serve", "x", "--origin=image", "--read-only", "--sync=1"],
    );
    assert!(line.contains("--sync"), "{line}");
    assert!(fs::read(&path).unwrap() == vec![7; 64 * PAGE]);
}

#[test]
fn a_read_only_file_system_serves_a_read_only_device() {
    if !can_mount("a_read_only_file_system_serves_a_read_only_device") {
        return;
    }
    let world = World::new();
    let dir = world.dir("ro");
    fs::write(dir.join("image"), vec![7; 4 * PAGE]).unwrap();
    tool(&world, "mount", &["--bind", "ro", "ro"]);
    tool(&world, "mount", &["-o", "remount,bind,ro", "ro"]);
    world.refused(1, &["serve", "x", "--origin=ro/image"]);
    let server = world.serve(&["x", "--origin=ro/image", "--read-only"]);
    let mut read = [0; PAGE];
    client(&world).read(3 * PAGE as u64, &mut read).unwrap();
    assert_eq!(read, [7; PAGE]);
    drop(server);
}

#[test]
fn an_image_of_any_length_can_be_read() {
    let world = World::new();
    let path = world.path("image");
    let image = vec![7; 5 * PAGE + 100];
    fs::write(&path, &image).unwrap();
    let line = world.refused(1, &["serve", "x", "--origin=image"]);
    assert!(
        line.contains("--snapshot") && line.contains("truncate"),
        "{line}"
    );
    for option in ["--snapshot", "--read-only"] {
        let server = world.serve(&["x", "--origin=image", option]);
        let mut client = client(&world);
        assert_eq!(client.size, 6 * PAGE as u64);
        let mut read = vec![1; 6 * PAGE];
        client.read(0, &mut read).unwrap();
        assert!(read[..image.len()] == image);
        assert!(read[image.len()..].iter().all(|&byte| byte == 0));
        if option == "--snapshot" {
            client
                .write(5 * PAGE as u64 + 50, &[9; 100], false)
                .unwrap();
            client.read(5 * PAGE as u64, &mut read[..PAGE]).unwrap();
            assert_eq!(read[49..151], [[7].as_slice(), &[9; 100], &[0]].concat());
        }
        drop(client);
        world.ok_once_unused(&["stop", "x"]);
        drop(server);
    }
    assert!(fs::read(&path).unwrap() == image);
    // What is advised once is right the next time.
    tool(&world, "truncate", &["-s", "%4K", "image"]);
    drop(world.serve(&["x", "--origin=image"]));
    File::create(&path).unwrap();
    let line = world.refused(1, &["serve", "x", "--origin=image"]);
    assert!(
        line.contains("is empty") && !line.contains("multiple"),
        "{line}"
    );
    File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.write_all_at(&[1; PAGE], 0))
        .unwrap();
    drop(world.serve(&["y", "--origin=image"]));
}
