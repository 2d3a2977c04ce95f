//! `attach` and `detach` of a server's loop device.

use std::path::Path;

use crate::tool;
use support::{HANG, World, can_mount};

#[test]
fn attach_and_detach() {
    if !can_mount("attach_and_detach") {
        return;
    }
    let world = World::new();
    let mut plain = world.serve(&["plain", "--size=1M"]);
    if !Path::new("/dev/nbd0").exists() {
        let line = world.refused(1, &["attach", "plain"]);
        assert!(line.contains("--fuse DIR"), "{line}");
    }
    let line = world.refused(1, &["attach", "--fuse", "plain"]);
    assert!(line.contains("--fuse"), "{line}");
    plain.kill_9();

    world.dir("fuse");
    let mut server = world.serve(&["disk", "--size=8M", "--fuse=fuse"]);
    let line = world.refused(1, &["detach", "disk"]);
    assert!(line.contains("not attached"), "{line}");
    let line = world.refused(1, &["attach", "disk", "--timeout=5"]);
    assert!(line.contains("--nbd"), "{line}");
    let device = world.ok(&["attach", "disk"]);
    let device = device.trim();
    let of = format!("of={device}");
    tool(
        "dd",
        &["if=/dev/urandom", &of, "bs=1M", "count=8", "conv=fsync"],
    );
    let list = world.ok(&["list"]);
    assert!(
        list.contains(device) && list.contains(&server.pid().to_string()),
        "{list}"
    );
    let line = world.refused(1, &["attach", "disk"]);
    assert!(line.contains("already"), "{line}");
    let line = world.refused(1, &["stop", "disk"]);
    assert!(line.contains("uzram detach"), "{line}");
    let line = world.refused(1, &["reset", "disk"]);
    assert!(line.contains("uzram detach"), "{line}");
    world.ok(&["detach", "disk"]);
    assert_eq!(world.loops(), []);
    world.ok(&["reset", "disk"]);

    world.ok(&["attach", "disk"]);
    world.ok(&["stop", "--force", "disk"]);
    assert_eq!(server.ended(HANG), Some(0));
    assert_eq!(world.loops(), []);

    let mut server = world.serve(&["disk", "--size=8M", "--fuse=fuse"]);
    world.ok(&["attach", "disk"]);
    server.kill_9();
    world.ok(&["detach", "disk"]);
    world.ok(&["detach", "plain"]);
    assert_eq!(world.leftovers(), [""; 0]);
}
