//! `uzram mount --rootless`, by a user with no right but to open `/dev/fuse`, in namespaces of its own.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use support::{HANG, World, can_mount, finish, one_line, program};

use crate::{text, tool, within};

/// nobody, nogroup.
const USER: u32 = 65534;

/// Its processes end with the first one, and its mounts with them.
const NAMESPACE: &str = r#"
set -e
mkdir dev
mount -t tmpfs tmpfs dev
mknod -m 666 dev/fuse c 10 229
mount --bind dev/fuse /dev/fuse
touch uzram
mount --bind "$1" uzram
echo ready
sleep infinity &
wait
"#;

struct User {
    world: World,
    namespace: Child,
    mnt: PathBuf,
    files: PathBuf,
}

impl User {
    fn new(test: &str) -> Option<Self> {
        if !can_mount(test) {
            return None;
        }
        for needed in ["fuse2fs", "fusermount3", "nsenter", "setpriv", "unshare"] {
            let look = format!("command -v {needed}");
            let found = Command::new("sh").args(["-c", &look]).output().unwrap();
            if !found.status.success() {
                eprintln!("SKIPPED: {test} needs {needed}");
                return None;
            }
        }
        let world = World::new();
        let (mnt, files) = (world.dir("mnt"), world.dir("files"));
        let sources = concat!(env!("CARGO_MANIFEST_DIR"), "/src");
        tool("cp", &["-r", sources, text(&files)]);
        let mut part = File::open(program()).unwrap().take(16 << 20);
        let mut copy = File::create(files.join("program")).unwrap();
        std::io::copy(&mut part, &mut copy).unwrap();
        for dir in [&world.path(""), &mnt] {
            chown(dir, Some(USER), Some(USER)).unwrap();
        }
        let mut namespace = Command::new("unshare")
            .args(["--mount", "--propagation=private", "--pid", "--fork"])
            .args(["--kill-child", "--mount-proc", "sh", "-c", NAMESPACE, "sh"])
            .arg(program())
            .current_dir(world.path(""))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = namespace.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let user = Self {
            world,
            namespace,
            mnt,
            files,
        };
        assert_eq!(line, "ready\n");
        Some(user)
    }

    /// A program that the user runs.
    fn command(&self, program: &str, args: &[&str]) -> Command {
        let of = |namespace| format!("/proc/{}/ns/{namespace}", self.namespace.id());
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--mount={}", of("mnt")))
            .arg(format!("--pid={}", of("pid_for_children")))
            .arg(format!("--wdns={}", self.world.path("").display()))
            .args([
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
            ])
            .arg(program)
            .args(args)
            .env("UZRAM_RUNDIR", self.world.rundir())
            .env_remove("UZRAM_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, program: &str, args: &[&str]) -> Output {
        finish(&mut self.command(program, args))
    }

    fn ok(&self, program: &str, args: &[&str]) -> String {
        let output = self.run(program, args);
        assert!(output.status.success(), "{program} {args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn uzram(&self, args: &[&str]) -> String {
        self.ok("./uzram", args)
    }

    fn refused(&self, code: i32, args: &[&str]) -> String {
        one_line(&self.run("./uzram", args), code, args)
    }

    fn mount(&self, options: &[&str]) -> String {
        let mut args = vec!["mount", "--rootless", "--name=disk"];
        args.extend(options);
        args.push("mnt");
        self.uzram(&args)
    }

    fn fill(&self) {
        self.ok("cp", &["-r", text(&self.files), "mnt"]);
    }

    fn compare(&self) {
        self.ok("diff", &["-r", text(&self.files), "mnt/files"]);
    }

    fn list(&self) -> Value {
        let list: Value = serde_json::from_str(&self.uzram(&["list", "--json"])).unwrap();
        list[0].clone()
    }

    /// Ends the server, or the program that serves the file system.
    fn signal(&self, signal: &str, whom: &str) {
        self.ok(
            "pkill",
            &[&format!("-{signal}"), "-U", "65534", "--exact", whom],
        );
        let has_ended = || {
            self.run(
                "pgrep",
                &["-U", "65534", "--runstates=DRST", "--exact", whom],
            )
            .stdout
            .is_empty()
        };
        assert!(within(HANG, has_ended), "{whom} does not end");
    }

    /// Nothing mounted, nothing running, nothing in RUNDIR.
    fn nothing_is_left(&self) {
        let running = || self.ok("ps", &["-U", "65534", "-o", "state=,comm="]);
        let are_gone = || {
            running()
                .lines()
                .all(|line| line.starts_with('Z') || line.ends_with(" ps"))
        };
        assert!(within(HANG, are_gone), "{}", running());
        let mounts = self.ok("cat", &["/proc/self/mountinfo"]);
        let world = self.world.path("");
        let left = mounts
            .lines()
            .filter(|line| line.contains(" - fuse") && line.contains(text(&world)));
        assert_eq!(left.count(), 0, "{mounts}");
        let names = fs::read_dir(self.world.rundir()).into_iter().flatten();
        assert_eq!(names.count(), 0);
        assert!(fs::read_dir(&self.mnt).unwrap().next().is_none());
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _ = self.namespace.kill();
        let _ = self.namespace.wait();
    }
}

#[test]
fn a_user_mounts_saves_and_mounts_again() {
    let Some(user) = User::new("a_user_mounts_saves_and_mounts_again") else {
        return;
    };
    let said = user.mount(&["--size=256M", "--mem-limit=8M", "--backing=spill"]);
    let umount = format!("; to take it down: uzram umount {}\n", user.mnt.display());
    assert!(said.starts_with("disk (256 MiB) is mounted on "), "{said}");
    assert!(
        said.contains(", ext4 on ") && said.ends_with(&umount),
        "{said}"
    );
    user.fill();
    user.ok("sync", &["-f", "mnt"]);
    user.compare();
    let owner = user.ok("stat", &["--format=%u", "mnt", "mnt/files"]);
    assert_eq!(owner, "65534\n65534\n");
    let list = user.list();
    assert_eq!(list["mountpoints"][0].as_str(), Some(text(&user.mnt)));
    assert_eq!(list["devices"], serde_json::json!([]));
    assert!(
        list["stats"]["written_back_pages"].as_u64().unwrap() > 0,
        "{list}"
    );
    assert!(user.uzram(&["list"]).contains(text(&user.mnt)));
    assert!(user.uzram(&["stat", "./mnt"]).contains("disk"));

    for args in [
        &["stop", "disk"][..],
        &["reset", "disk"],
        &["detach", "disk"],
    ] {
        let line = user.refused(1, args);
        assert!(line.contains("uzram umount "), "{args:?}: {line}");
    }
    let line = user.refused(1, &["save", "disk", "mnt/image"]);
    assert!(line.contains("lies on disk itself"), "{line}");
    user.compare();

    user.uzram(&["umount", "mnt", "--save=image"]);
    user.nothing_is_left();
    assert!(!user.world.path("spill").exists());
    user.mount(&["--restore=image", "-o", "noatime"]);
    user.compare();
    let mounts = user.ok("grep", &["fuse.ext4", "/proc/self/mountinfo"]);
    assert!(mounts.contains("noatime"), "{mounts}");
    user.uzram(&["umount", "mnt"]);
    user.mount(&["--restore=image", "--read-only"]);
    user.compare();
    assert!(!user.run("touch", &["mnt/new"]).status.success());
    user.uzram(&["umount", "mnt"]);
    user.nothing_is_left();
}

/// What fuse2fs holds goes to the image before the server ends.
#[test]
fn over_an_image_what_a_user_wrote_is_there_in_the_end() {
    let Some(user) = User::new("over_an_image_what_a_user_wrote_is_there_in_the_end") else {
        return;
    };
    let image = user.world.path("image.raw");
    File::create(&image).unwrap().set_len(256 << 20).unwrap();
    tool(
        "mkfs.ext4",
        &[
            "-q",
            "-O^has_journal",
            "-Eroot_owner=65534:65534",
            text(&image),
        ],
    );
    chown(&image, Some(USER), Some(USER)).unwrap();
    for end in ["umount", "TERM"] {
        user.mount(&["--origin=image.raw"]);
        match end {
            "umount" => user.fill(),
            _ => user.compare(),
        }
        user.ok("cp", &["-r", text(&user.files), &format!("mnt/{end}")]);
        match end {
            "umount" => drop(user.uzram(&["umount", "mnt"])),
            signal => user.signal(signal, "uzram"),
        }
        user.nothing_is_left();
        tool("fsck.ext4", &["-f", "-n", text(&image)]);
    }
    user.mount(&["--origin=image.raw"]);
    for end in ["umount", "TERM"] {
        user.ok("diff", &["-r", text(&user.files), &format!("mnt/{end}")]);
    }
    user.uzram(&["umount", "mnt"]);
}

#[test]
fn a_user_clears_what_is_dead() {
    let Some(user) = User::new("a_user_clears_what_is_dead") else {
        return;
    };
    for (whom, clear) in [
        ("uzram", &["umount", "mnt"][..]),
        ("uzram", &["detach", "disk"]),
        ("fuse2fs", &["umount", "mnt"]),
    ] {
        user.mount(&["--size=64M"]);
        user.fill();
        user.signal("KILL", whom);
        if whom == "uzram" {
            let line = user.refused(1, &["stat", "disk"]);
            assert!(line.contains("uzram umount "), "{line}");
        }
        user.uzram(clear);
        user.nothing_is_left();
    }
    // Also where it is in use.
    user.mount(&["--size=64M"]);
    let mut open = user.command("sh", &["-c", "exec 3>mnt/open; echo; exec sleep infinity"]);
    let mut open = open.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(open.stdout.as_mut().unwrap())
        .read_line(&mut line)
        .unwrap();
    let line = user.refused(1, &["umount", "mnt"]);
    assert!(line.contains("fuser -vm"), "{line}");
    user.signal("KILL", "uzram");
    user.uzram(&["umount", "mnt"]);
    user.mount(&["--size=64M"]);
    user.fill();
    user.signal("KILL", "sleep");
    open.wait().unwrap();
    user.compare();
    user.uzram(&["umount", "mnt"]);
    user.nothing_is_left();
}

#[test]
fn what_a_user_cannot_mount_is_undone() {
    let Some(user) = User::new("what_a_user_cannot_mount_is_undone") else {
        return;
    };
    let foreign = user.world.dir("foreign");
    fs::write(user.world.path("empty.raw"), [0; 1 << 20]).unwrap();
    for (code, args, says) in [
        (
            1,
            &["--size=64M", "-o", "nonsense", "mnt"][..],
            "fuse2fs failed: fuse: unknown option",
        ),
        (
            1,
            &["--size=64M", text(&foreign)],
            "fuse2fs failed: fusermount",
        ),
        (
            1,
            &["--origin=empty.raw", "--snapshot", "mnt"],
            "empty.raw: there is no file system",
        ),
        (
            2,
            &["--size=64M", "--fs=btrfs", "mnt"],
            "--rootless: fuse2fs mounts ext4 alone",
        ),
        (
            2,
            &["--size=64M", "--user=daemon", "mnt"],
            "cannot be used with",
        ),
        (1, &["--size=64M", "missing"], "mkdir"),
    ] {
        let mut words = vec!["mount", "--rootless"];
        words.extend(args);
        let line = user.refused(code, &words);
        assert!(line.contains(says), "{args:?}: {line}");
        user.nothing_is_left();
    }
    let line = user.refused(1, &["mount", "--size=64M", "mnt"]);
    assert!(line.contains("uzram mount --rootless"), "{line}");
    let line = user.refused(1, &["umount", "mnt"]);
    assert!(line.contains("umount needs root"), "{line}");
}

#[test]
fn without_fuse2fs_its_package_is_named() {
    let world = World::new();
    world.dir("mnt");
    let bin = world.dir("bin");
    let args = ["mount", "--rootless", "--size=64M", "mnt"];
    let output = finish(world.command(&args).env("PATH", &bin));
    let line = one_line(&output, 1, &args);
    assert!(
        Path::new("/usr/sbin/fuse2fs").exists() || line.contains("apt-get install fuse2fs"),
        "{line}"
    );
    assert!(!world.rundir().exists());
}
