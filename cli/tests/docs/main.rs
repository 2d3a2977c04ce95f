//! Runs the commands of README.md and `docs/`, and compares what they print with what the page says.
//!
//! In a page, a block of code of kind `console` has commands, each behind `$ ` or `# `, and their output. A comment
//! before a block says what else there is to it:
//!
//! | comment | meaning |
//! |---|---|
//! | `<!-- not run: REASON -->` | the next block is not run |
//! | `<!-- setup`, lines of shell, `-->` | run first, not shown |
//! | `<!-- file: NAME -->` | the next block, of any kind, is this file |
//! | `<!-- user -->` | the page is run without root |
//!
//! Output is compared with its numbers, sizes and times left out, and a line `...` stands for any lines. A command fails if and
//! only if its output has a line that begins with `uzram: ` and is no warning. Each page has mounts and processes of its own.

mod page;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use page::{Page, Step};
use support::{can_mount, ended};

/// The longest that a page may take; it takes seconds.
const HANG: Duration = Duration::from_secs(600);

/// What surrounds the commands of a page: file systems of its own wherever pages put files, and nothing left at the end.
const PROLOGUE: &str = r#"
set -u
mkdir -p /run/uzram
for dir in /mnt /srv /var/tmp /tmp /run/uzram; do mount -t tmpfs -o mode=1777 tmpfs "$dir"; done
chmod 700 /run/uzram
mkdir -p /tmp/bin /tmp/page /tmp/home
touch /tmp/bin/uzram
mount --bind "$UZRAM" /tmp/bin/uzram
chmod 777 /tmp/page /tmp/home
export PATH=/tmp/bin:$PATH HOME=/tmp/home TMPDIR=/tmp LC_ALL=C
unset UZRAM_RUNDIR UZRAM_LOG NOTIFY_SOCKET LISTEN_FDS LISTEN_PID
cd /tmp/page
clean_up() {
    findmnt -rno TARGET | grep '^/mnt/' | while read -r mount; do uzram umount "$mount"; done
    for device in /run/uzram/*/; do
        name=$(basename "$device")
        uzram detach "$name"
        uzram stop --force "$name"
    done
} >/dev/null 2>&1
trap clean_up EXIT
"#;

/// `/dev/fuse` is for everybody, as most distributions have it.
const OPEN_FUSE: &str = "\
mkdir /tmp/dev
mount -t tmpfs tmpfs /tmp/dev
mknod -m 666 /tmp/dev/fuse c 10 229
mount --bind /tmp/dev/fuse /dev/fuse
";

/// Waits until a server in the background has said what the page shows.
const FUNCTIONS: &str = r#"
set -u
wait_for() {
    for _ in $(seq 3000); do
        grep -qxF ready "$1" && return
        kill -0 "$!" 2>/dev/null || return
        sleep 0.02
    done
}
"#;

/// The files of a run: what each command printed and how it ended.
struct Run {
    dir: tempfile::TempDir,
}

impl Run {
    fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The script of the page's steps.
    fn script(&self, page: &Page) -> String {
        let mut script = FUNCTIONS.to_owned();
        for (number, step) in page.steps.iter().enumerate() {
            let (output, status) = (
                self.path(&format!("{number}.out")),
                self.path(&format!("{number}.status")),
            );
            let (output, status) = (output.display(), status.display());
            script += &match step {
                Step::Setup(lines) => format!("{lines}\n"),
                Step::File { name, text } => {
                    format!("cat >{name} <<'END OF FILE'\n{text}END OF FILE\n")
                }
                Step::Command(command) if command.is_background() => {
                    let line = &command.line;
                    format!(
                        "{{ {line}\n}} >{output} 2>&1 </dev/null\nwait_for {output}\necho 0 >{status}\n"
                    )
                }
                Step::Command(command) => {
                    let line = &command.line;
                    format!("{{ {line}\n}} >{output} 2>&1 </dev/null\necho $? >{status}\n")
                }
            };
        }
        script
    }

    fn run(&self, page: &Page) {
        let (around, commands) = (self.path("around.sh"), self.path("commands.sh"));
        fs::write(&commands, self.script(page)).unwrap();
        let mut script = PROLOGUE.to_owned();
        for mountpoint in page.mountpoints() {
            script += &format!("mkdir -p {mountpoint}\n");
        }
        let commands = commands.display();
        let dir = self.dir.path().display();
        script += &if page.is_user_s {
            format!(
                "mkdir -m 700 /tmp/run\nchown nobody /tmp/run {dir}\n{OPEN_FUSE}XDG_RUNTIME_DIR=/tmp/run setpriv \
                 --reuid=nobody --regid=nogroup --clear-groups bash -s <{commands}\n"
            )
        } else {
            format!(". {commands}\n")
        };
        fs::write(&around, script).unwrap();
        let mut child = Command::new("unshare")
            .args([
                "--mount",
                "--propagation",
                "private",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "bash",
            ])
            .arg(&around)
            .env("UZRAM", env!("CARGO_BIN_EXE_uzram"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        if ended(&mut child, HANG).is_none() {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("the page hangs");
        }
    }

    /// What is different from what the page says.
    fn compare(&self, page: &Page) -> Vec<String> {
        let mut faults = Vec::new();
        for (number, step) in page.steps.iter().enumerate() {
            let Step::Command(command) = step else {
                continue;
            };
            let output =
                fs::read_to_string(self.path(&format!("{number}.out"))).unwrap_or_default();
            // As on a user's machine.
            let output = output
                .replace("/tmp/page/", "")
                .replace("/tmp/home/", "/home/me/")
                .replace("/tmp/run/", "/run/user/1000/");
            let status =
                fs::read_to_string(self.path(&format!("{number}.status"))).unwrap_or_default();
            let succeeded = status.trim() == "0";
            if succeeded == command.fails() || !command.prints(&output) {
                faults.push(format!(
                    "line {}: {}\n  status {}\n  the page says:\n{}\n  it printed:\n{output}",
                    command.at,
                    command.line,
                    status.trim(),
                    command.output.join("\n"),
                ));
            }
        }
        faults
    }
}

fn check(path: &str) {
    let file = root().join(path);
    let page = Page::parse(&fs::read_to_string(&file).unwrap())
        .unwrap_or_else(|fault| panic!("{path}: {fault}"));
    if !page.has_commands() || !can_mount(path) {
        return;
    }
    let run = Run::new();
    run.run(&page);
    let faults = run.compare(&page);
    assert!(faults.is_empty(), "{path}\n{}", faults.join("\n"));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_owned()
}

macro_rules! pages {
    ($($name:ident: $path:literal,)*) => {
        const PAGES: &[&str] = &[$($path),*];
        $(#[test] fn $name() { check($path); })*
    };
}

pages! {
    readme: "README.md",
    security: "SECURITY.md",
    contributing: "CONTRIBUTING.md",
    another_user: "docs/another-user.md",
    architecture: "docs/architecture.md",
    attributes: "docs/attributes.md",
    backing: "docs/backing.md",
    configuration: "docs/configuration.md",
    disk_file: "docs/disk-file.md",
    embedding: "docs/embedding.md",
    images: "docs/images.md",
    memory: "docs/memory.md",
    monitoring: "docs/monitoring.md",
    nbd: "docs/nbd.md",
    performance: "docs/performance.md",
    promises: "docs/promises.md",
    recompression: "docs/recompression.md",
    saving: "docs/saving.md",
    scratch_disk: "docs/scratch-disk.md",
    sectors: "docs/sectors.md",
    swap: "docs/swap.md",
    tls: "docs/tls.md",
    troubleshooting: "docs/troubleshooting.md",
    without_root: "docs/without-root.md",
    zram_generator: "docs/zram-generator.md",
}

#[test]
fn every_page_is_run() {
    for entry in fs::read_dir(root().join("docs")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let path = format!("docs/{name}");
        assert!(
            !name.ends_with(".md") || PAGES.contains(&path.as_str()),
            "{path}"
        );
    }
}

/// Links between pages lead somewhere.
#[test]
fn links_lead_to_files() {
    for path in PAGES {
        let file = root().join(path);
        let text = fs::read_to_string(&file).unwrap();
        for target in page::links(&text) {
            let target = file.parent().unwrap().join(target);
            assert!(target.exists(), "{path}: {}", target.display());
        }
    }
}
