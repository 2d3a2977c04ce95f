//! A device that somebody uses is not stopped without a word: who that is is said.

use std::fs::File;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::recompress::uri;
use crate::up_down::configure;
use support::{HANG, World, can_mount, ended};

/// Whoever reads a device over NBD and comes to no end, since nobody reads what it writes.
struct Reader(Child);

impl Reader {
    fn start(uri: &str) -> Self {
        let mut copy = Command::new("nbdcopy")
            .args([uri, "-"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // It is connected.
        let pipe = copy.stdout.as_mut().unwrap();
        pipe.read_exact(&mut [0]).unwrap();
        Self(copy)
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Its end, by itself.
    fn ended(&mut self) {
        drop(self.0.stdout.take());
        ended(&mut self.0, HANG).expect("it ends");
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_device_with_clients_is_stopped_by_force_alone() {
    let world = World::new();
    let mut server = world.serve(&["vm", "--size=64M", "--nbd=unix:s", "--nbd=tcp:127.0.0.1:0"]);
    let mut reader = Reader::start(&uri(&world));
    let line = world.refused(1, &["stop", "vm"]);
    let who = format!("vm is in use by nbdcopy (PID {}) over NBD", reader.pid());
    assert!(line.contains(&who), "{line}");
    assert!(line.contains("uzram stop --force vm"), "{line}");
    let line = world.refused(1, &["stop", "vm", "--save=image"]);
    assert!(
        line.contains(&who) && !world.path("image").exists(),
        "{line}"
    );
    drop(reader);

    let list: serde_json::Value = serde_json::from_str(&world.ok(&["list", "--json"])).unwrap();
    let places = list[0].to_string();
    let port = places.split("tcp:127.0.0.1:").nth(1).unwrap();
    let port = port.split('"').next().unwrap();
    reader = Reader::start(&format!("nbd://127.0.0.1:{port}/vm"));
    // The one before is in use until the server has seen that it has gone.
    let begun = Instant::now();
    loop {
        let line = world.refused(1, &["stop", "vm"]);
        if line.contains("vm is in use by 127.0.0.1:") {
            break;
        }
        assert!(line.contains(&who) && begun.elapsed() < HANG, "{line}");
    }
    world.ok(&["stop", "--force", "vm"]);
    assert_eq!(server.ended(HANG), Some(0));
    reader.ended();
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn a_device_whose_file_is_open_is_in_use() {
    if !can_mount("a_device_whose_file_is_open_is_in_use") {
        return;
    }
    let world = World::new();
    world.dir("fuse");
    let mut server = world.serve(&["vm", "--size=64M", "--fuse=fuse"]);
    let open = File::open(world.path("fuse/disk")).unwrap();
    let line = world.refused(1, &["stop", "vm"]);
    let pid = format!("(PID {}) over FUSE", std::process::id());
    assert!(line.contains(&pid), "{line}");
    drop(open);
    world.ok_once_unused(&["stop", "vm"]);
    assert_eq!(server.ended(HANG), Some(0));
    assert_eq!(world.leftovers(), [""; 0]);
}

#[test]
fn down_and_umount_leave_who_is_connected_in_peace() {
    let world = World::new();
    let config = configure(&world, "[vm]\nsize = \"64M\"\nnbd = \"unix:s\"\n");
    world.ok(&["up", config]);
    let mut reader = Reader::start(&uri(&world));
    let who = format!("vm is in use by nbdcopy (PID {})", reader.pid());
    let line = world.refused(1, &["down", config]);
    assert!(line.contains(&who), "{line}");
    reader.ended();
    world.ok_once_unused(&["down", config]);
    if !can_mount("umount of down_and_umount_leave_who_is_connected_in_peace") {
        return;
    }
    world.dir("mnt");
    world.ok(&["mount", "--size=64M", "--name=vm", "--nbd=unix:s", "mnt"]);
    reader = Reader::start(&uri(&world));
    let who = format!("vm is in use by nbdcopy (PID {})", reader.pid());
    let line = world.refused(1, &["umount", "mnt"]);
    assert!(line.contains(&who), "{line}");
    assert_eq!(world.mounts()[0], world.path("mnt").to_str().unwrap());
    reader.ended();
    world.ok_once_unused(&["umount", "mnt"]);
    assert_eq!(world.leftovers(), [""; 0]);
}
