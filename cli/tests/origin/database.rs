//! A database on a file system on an image, whose server is killed under it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use support::{World, can_mount, signal};

/// Writes rows in transactions and says each number that is committed. In SQLite's words it is so
/// durably only with `extra`, which syncs the directory that a rollback journal is removed from.
const WRITER: &str = r#"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("pragma journal_mode=" + sys.argv[2])
db.execute("pragma synchronous=extra")
db.execute("create table if not exists t (n integer primary key, a blob, b integer)")
n = db.execute("select coalesce(max(n), -1) + 1 from t").fetchone()[0]
while True:
    db.execute("begin")
    for i in range(20):
        db.execute("insert into t values (?, randomblob(500), ?)", (n + i, n))
    db.execute("update t set a = randomblob(700) where n % 17 = ?", (n // 20 % 17,))
    db.execute("commit")
    n += 20
    print(n, flush=True)
"#;

/// Says how many rows there are, if all is as it should be.
const READER: &str = r#"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
rows = db.execute("select count(*), coalesce(max(n), -1) + 1 from t").fetchone()
assert rows[0] == rows[1] and rows[0] % 20 == 0, rows
print(rows[0])
"#;

fn tool(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn what_was_committed_is_there_after_a_kill() {
    if !can_mount("what_was_committed_is_there_after_a_kill") {
        return;
    }
    let world = World::new();
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let image = dir.path().join("image");
    fs::File::create(&image)
        .unwrap()
        .set_len(256 << 20)
        .unwrap();
    tool("mkfs.ext4", &["-q", "-F", "-b4096", text(&image)]);
    let mnt = world.dir("mnt");
    let origin = format!("--origin={}", image.display());
    let mut committed = 0;
    for journal in ["delete", "wal", "delete"] {
        world.ok(&["mount", "--name=db", &origin, "--mem-limit=4M", text(&mnt)]);
        let mut writer = Command::new("python3")
            .args(["-c", WRITER, text(&mnt.join("db")), journal])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = BufReader::new(writer.stdout.take().unwrap()).lines();
        for line in said.by_ref().take(25) {
            committed = line.unwrap().parse::<u64>().unwrap();
        }
        let stat: serde_json::Value =
            serde_json::from_str(&world.ok(&["stat", "db", "--json"])).unwrap();
        assert!(stat["origin_syncs"].as_u64().unwrap() > 10, "{stat}");
        // Anywhere in what comes next, which nobody waits for.
        std::thread::sleep(Duration::from_millis(committed % 37));
        kill_server(&world);
        // Whatever it says after that was committed before the kill, or fails.
        let _ = writer.kill();
        let _ = writer.wait();
        committed = said
            .map_while(Result::ok)
            .filter_map(|line| line.parse().ok())
            .fold(committed, u64::max);
        world.ok(&["umount", text(&mnt)]);

        // The journal is replayed by whoever mounts it; then all is in order.
        tool("mount", &["-o", "loop", text(&image), text(&mnt)]);
        let rows: u64 = tool("python3", &["-c", READER, text(&mnt.join("db"))])
            .trim()
            .parse()
            .unwrap();
        tool("umount", &[text(&mnt)]);
        assert!(
            rows >= committed,
            "{rows} rows of {committed} that were committed"
        );
        tool("e2fsck", &["-fn", text(&image)]);
        committed = rows;
    }
}

fn kill_server(world: &World) {
    let list: serde_json::Value = serde_json::from_str(&world.ok(&["list", "--json"])).unwrap();
    signal(
        u32::try_from(list[0]["pid"].as_u64().unwrap()).unwrap(),
        "KILL",
    );
}
