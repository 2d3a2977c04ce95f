//! Servers killed at any moment under a busy file system: nothing hangs, and all of it is cleared.
//!
//! `scripts/soak.sh kills [ROUNDS]` runs the long one.

use std::env;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::{Disk, alone, text, within};
use support::{HANG, ended, signal};

#[test]
fn a_few_kills_at_any_moment() {
    kills(8);
}

#[test]
#[ignore = "as many as UZRAM_SOAK_ROUNDS says: scripts/soak.sh runs it"]
fn as_many_kills_as_asked() {
    let rounds = env::var("UZRAM_SOAK_ROUNDS").expect("UZRAM_SOAK_ROUNDS");
    kills(rounds.parse().expect("a number"));
}

fn kills(rounds: u32) {
    let Some(disk) = Disk::new("kills at any moment") else {
        return;
    };
    let _alone = alone();
    let spill = disk.world.path("spill");
    for round in 0..rounds {
        let fs = ["ext4", "xfs", "ext4", "btrfs"][round as usize % 4];
        // As it comes, up to 0.7 s: bits of a number that jumps about.
        let delay = Duration::from_millis(u64::from(round.wrapping_mul(2_654_435_761) >> 16) % 700);
        eprintln!("round {round}: {fs}, killed after {delay:?}");
        #[rustfmt::skip]
        disk.mount(&["--size=512M", "--mem-limit=8M", "--backing=spill", "--fs", fs]);
        let mut busy = Busy::start(&disk);
        thread::sleep(delay);
        if round % 3 == 2 {
            // It gets its own signal first, and dies on the way out.
            signal(disk.pid(), "TERM");
            thread::sleep(delay / 50);
        }
        if disk.owner().is_u64() {
            let _ = Command::new("kill")
                .args(["-KILL", &disk.owner().to_string()])
                .stderr(Stdio::null())
                .status();
            assert!(within(HANG, || disk.owner().is_null()));
        }
        busy.end();
        if round % 2 == 0 {
            disk.world.run(&["umount", "mnt"]);
        } else {
            let mut server = disk.world.serve(&["disk", "--size=1M"]);
            disk.world.ok(&["stop", "disk"]);
            assert_eq!(server.ended(HANG), Some(0));
        }
        assert!(within(HANG, || disk.world.loops().is_empty()));
        disk.nothing_is_left();
        assert!(!spill.exists(), "the spill is left");
    }
}

/// Those who use a file system, in a process group of their own.
struct Busy(Child);

impl Busy {
    fn start(disk: &Disk) -> Self {
        // What they are in goes with the mount: they cannot write beside it.
        let place = disk.world.dir("mnt/busy");
        let script = format!(
            "cd {place} || exit
             (while cp -r {files} ./$((n+=1)) && sync -f .; do rm -r ./$n; done) &
             (while :; do cat */*/* || [ -d . ] || exit; done) &
             (while touch {place}/there; do dd if=/dev/zero of=direct bs=64k count=64 oflag=direct; done) &
             wait",
            place = text(&place),
            files = text(&disk.files),
        );
        let child = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        Self(child)
    }

    /// They can be ended, all of them: nobody waits where no signal reaches.
    fn end(&mut self) {
        self.kill();
        ended(&mut self.0, HANG).expect("it ends");
        let group = self.0.id();
        assert!(
            within(HANG, || members(group).is_empty()),
            "stuck: {:?}",
            members(group)
        );
    }

    fn kill(&self) {
        let _ = Command::new("kill")
            .args(["-KILL", "--", &format!("-{}", self.0.id())])
            .stderr(Stdio::null())
            .status();
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.kill();
        let _ = self.0.wait();
    }
}

/// The processes of a group, but those that have ended and were not collected.
fn members(group: u32) -> Vec<String> {
    let of_group = |stat: &String| {
        // The name before these may have anything in it.
        let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
        let mut fields = fields.split(' ');
        fields.next() != Some("Z") && fields.nth(1) == Some(&group.to_string())
    };
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("stat")).ok())
        .filter(of_group)
        .collect()
}
