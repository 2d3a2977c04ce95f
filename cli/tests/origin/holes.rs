//! Holes of an image, which nobody is to read for nothing.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::client::{Client, PAGE};
use support::{World, finish};

/// What nbdinfo(1) says of the allocation: where each extent is, how long it is, and whether it is a
/// hole.
fn map(world: &World) -> Vec<(u64, u64, bool)> {
    let socket = world.rundir().join("x/nbd.sock");
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let mut nbdinfo = Command::new("nbdinfo");
    nbdinfo.args(["--map", "--json", &uri]);
    let output = finish(nbdinfo.stdout(Stdio::piped()).stderr(Stdio::piped()));
    assert!(output.status.success(), "{output:?}");
    let extents: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let of = |extent: &Value, key: &str| extent[key].as_u64().unwrap();
    extents
        .iter()
        .map(|it| (of(it, "offset"), of(it, "length"), of(it, "type") == 3))
        .collect()
}

#[test]
fn holes_of_an_image_are_holes_of_the_device() {
    let world = World::new();
    let (page, mib) = (PAGE as u64, 1 << 20);
    let image = File::create(world.path("image")).unwrap();
    image.set_len(64 * mib).unwrap();
    image.write_all_at(&[7; PAGE], 3 * mib).unwrap();
    image.write_all_at(&[7; PAGE], 40 * mib).unwrap();
    let holes = [
        (0, 3 * mib, true),
        (3 * mib, page, false),
        (3 * mib + page, 37 * mib - page, true),
        (40 * mib, page, false),
        (40 * mib + page, 24 * mib - page, true),
    ];
    for option in ["--snapshot", "--sync=flush"] {
        let server = world.serve(&["x", "--origin=image", option]);
        assert_eq!(map(&world), holes, "{option}");
        let mut client = Client::connect(&world.rundir().join("x/nbd.sock")).unwrap();
        // They stay holes when somebody has read them, in small pieces in order or in large ones.
        let mut read = vec![1; 1 << 20];
        for at in 0..64 {
            client.read(at * mib, &mut read).unwrap();
        }
        for at in 0..1024 {
            client.read(at * page, &mut read[..PAGE]).unwrap();
            let is_data = at == 3 * mib / page;
            assert!(read[..PAGE].iter().all(|&byte| (byte == 7) == is_data));
        }
        assert_eq!(map(&world), holes, "{option}: read");
        // Written, and nowhere but in memory; discarded, which is a hole once it is in the image.
        client.write(10 * mib, &[1; PAGE], false).unwrap();
        client.trim(40 * mib, PAGE).unwrap();
        let now = map(&world);
        assert!(now.contains(&(10 * mib, page, false)), "{option}: {now:?}");
        let holds = |at: u64| {
            let there = |it: &&(u64, u64, bool)| (it.0..it.0 + it.1).contains(&at);
            now.iter().find(there).is_some_and(|it| !it.2)
        };
        assert!(holds(3 * mib) && !holds(20 * mib), "{option}: {now:?}");
        client.flush().unwrap();
        if option == "--sync=flush" {
            let now = map(&world);
            let last = (10 * mib + page, 54 * mib - page, true);
            assert_eq!(now.last(), Some(&last), "{now:?}");
        }
        drop(client);
        world.ok_once_unused(&["stop", "x"]);
        drop(server);
    }
}
