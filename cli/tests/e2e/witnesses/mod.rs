//! Programs that know what must come back, side by side on a file system whose device evicts all the
//! time; then the file system's own check, and theirs once more.
//!
//! `scripts/soak.sh witnesses [MINUTES]` runs the long one.

use std::env;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::rig::{Background, MIB, MountPoint, Scratch, run, skip_without_mounts, stat, tool};

const LIMIT: u64 = 16 * MIB;
const SHORT: Duration = Duration::from_secs(4);
/// More than the time they are told to take: they set up, and verify at the end.
const TIMEOUT: Duration = Duration::from_secs(300);

/// The file systems, and how each is checked.
const FILE_SYSTEMS: [(&str, &str, &[&str]); 3] = [
    ("ext4", "e2fsck", &["-f", "-n"]),
    ("btrfs", "btrfs", &["check", "--readonly"]),
    ("xfs", "xfs_repair", &["-n"]),
];

#[test]
fn a_few_seconds_on_each_file_system() {
    for fs in FILE_SYSTEMS {
        bear_witness(fs, SHORT, &[fio, stress, ledger]);
    }
}

#[test]
#[ignore = "as long as UZRAM_SOAK_SECONDS says: scripts/soak.sh runs it"]
fn as_long_as_asked() {
    let seconds = env::var("UZRAM_SOAK_SECONDS").expect("UZRAM_SOAK_SECONDS");
    let each = Duration::from_secs(seconds.parse::<u64>().expect("seconds") / 3);
    for fs in FILE_SYSTEMS {
        bear_witness(fs, each, &[fio, stress, ledger, fsx, postgres]);
    }
}

/// What a witness runs, in a directory of its own and for so long.
type Witness = fn(&Path, Duration) -> Command;

fn bear_witness(
    (fs, checker, check_args): (&str, &str, &[&str]),
    duration: Duration,
    witnesses: &[Witness],
) {
    if skip_without_mounts(fs) {
        return;
    }
    let scratch = Scratch::new();
    let spill = scratch.arg("spill");
    #[rustfmt::skip]
    let options = ["--size", "2G", "--mem-limit", "16M", "--backing", &spill, "--fs", fs];
    let mount = MountPoint::new(&scratch, fs, &options);
    let device = mount.device();

    let witnesses: Vec<_> = witnesses
        .iter()
        .enumerate()
        .map(|(i, witness)| {
            let dir = mount.dir().join(i.to_string());
            std::fs::create_dir(&dir).expect("a directory");
            let mut command = witness(&dir, duration);
            command.current_dir(&dir);
            let log = scratch.path().join(format!("log-{i}"));
            let output = std::fs::File::create(&log).expect("a log");
            command.stdout(output.try_clone().expect("another handle"));
            command.stderr(output);
            (Background::start(&mut command), format!("{command:?}"), log)
        })
        .collect();
    for (mut witness, command, log) in witnesses {
        let status = witness.wait(duration + TIMEOUT);
        let said = std::fs::read_to_string(log).unwrap_or_default();
        assert!(
            status.is_some_and(|status| status.success()),
            "{fs}: {command}: {status:?}\n{said}"
        );
    }

    // `uzram umount` would take the data away: this is the file system alone.
    run(tool("umount").arg(mount.dir()));
    run(tool(checker).args(check_args).arg(&device));
    run(Command::new("mount").arg(&device).arg(mount.dir()));
    run(&mut ledger_verb("check", &mount.dir().join("2")));

    stat(&scratch, mount.name()).check_spilling(LIMIT);
    mount.umount();
}

/// Random writes past the page cache, each verified by its checksum.
fn fio(dir: &Path, duration: Duration) -> Command {
    let mut command = tool("fio");
    command
        .args(["--name=witness", "--rw=randwrite", "--bs=4k", "--size=160M"])
        .args(["--ioengine=libaio", "--iodepth=8", "--direct=1"])
        .args([
            "--verify=crc32c",
            "--verify_fatal=1",
            "--verify_backlog=512",
        ])
        .args(["--buffer_compress_percentage=50", "--time_based"])
        .arg(format!("--runtime={}", duration.as_secs()))
        .arg("--directory")
        .arg(dir);
    command
}

/// Files made, renamed, punched, copied and synced, and looked at again.
fn stress(dir: &Path, duration: Duration) -> Command {
    let mut command = tool("stress-ng");
    command
        .args([
            "--verify",
            "--hdd=1",
            "--hdd-bytes=64M",
            "--hdd-opts=fadv-dontneed,wr-rnd,rd-rnd",
        ])
        .args([
            "--fpunch=1",
            "--rename=1",
            "--dentry=1",
            "--sync-file=1",
            "--sync-file-bytes=16M",
        ])
        .args([
            "--copy-file=1",
            "--copy-file-bytes=128M",
            "--readahead=1",
            "--readahead-bytes=32M",
        ])
        .arg(format!("--timeout={}", duration.as_secs()))
        .arg("--temp-path")
        .arg(dir);
    command
}

/// A database in a file, whose accounts must add up.
fn ledger(dir: &Path, duration: Duration) -> Command {
    let mut command = ledger_verb("run", dir);
    command.arg(duration.as_secs().to_string());
    command
}

fn ledger_verb(verb: &str, dir: &Path) -> Command {
    let mut command = tool("python3");
    command
        .arg(beside("ledger.py"))
        .arg(verb)
        .arg(dir.join("ledger.db"));
    command
}

/// The file system exerciser, compared after each operation with what a file should hold.
fn fsx(dir: &Path, duration: Duration) -> Command {
    let program = env::var_os("UZRAM_FSX").expect("UZRAM_FSX, the path of fsx");
    let mut command = tool("timeout");
    // Without an end of its own it goes on until it finds something.
    command
        .args(["--preserve-status", "--signal=INT"])
        .arg(duration.as_secs().to_string())
        .args([
            "sh",
            "-c",
            r#"trap 'exit 0' INT; while "$@"; do :; done; exit 1"#,
            "sh",
        ])
        .arg(program)
        .args(["-q", "-N", "2000", "-P", "/var/tmp"])
        .arg(dir.join("fsx"));
    command
}

/// A database server, with a bank's load.
fn postgres(dir: &Path, duration: Duration) -> Command {
    let id = run(tool("id").args(["-u", "postgres"]));
    let id = id.trim().parse().expect("a number");
    chown(dir, Some(id), None).expect("root may");
    let mut command = tool("setpriv");
    command
        .args(["--reuid=postgres", "--regid=postgres", "--clear-groups"])
        .arg(beside("postgres.sh"))
        .arg(dir)
        .arg(duration.as_secs().to_string());
    command
}

fn beside(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/e2e/witnesses")
        .join(file)
}
