"""A device over an image against the same image served by `qemu-nbd --cache=writeback`, and by `nbdkit
file` with its cache filter.

The peers have all the memory of the machine for their page cache; ours has a limit, a quarter of the
image. What is written to disk is counted on a loop device that has nothing but the image on it, after
a flush.
"""

import contextlib
import json
import os
import socket
import subprocess
from pathlib import Path

import harness
from harness import OURS, Case

IMAGE_MIB = 1024
LIMIT = "256M"
QEMU, NBDKIT = "qemu-nbd", "nbdkit cache"
CONTENDERS = [OURS, QEMU, NBDKIT]

DATABASE = """
import os, sqlite3, sys, time
path, seconds = sys.argv[1], float(sys.argv[2])
db = sqlite3.connect(path, isolation_level=None)
db.execute("pragma journal_mode=wal")
db.execute("pragma synchronous=full")
db.execute("pragma cache_size=-2000")
db.execute("create table t (n integer primary key, a blob)")
db.execute("begin")
text = (open(sqlite3.__file__, "rb").read() * 100)[:200000]
for n in range(50000):
    db.execute("insert into t values (?, ?)", (n, text[n * 7 % 190000 :][:1000]))
db.execute("commit")
n, done, end = 1, 0, time.monotonic() + seconds
while time.monotonic() < end:
    db.execute("begin")
    for _ in range(5):
        n = n * 6364136223846793005 % 2**63
        db.execute("update t set a = ? where n = ?", (text[n % 190000 :][:1000], n % 50000))
        n = n * 6364136223846793005 % 2**63
        db.execute("select a from t where n = ?", (n % 50000,)).fetchone()
    db.execute("commit")
    done += 1
print(done / seconds)
"""


def main() -> None:
    options = harness.arguments(__doc__.splitlines()[0])
    with harness.scratch("/var/tmp") as directory:
        speed(options, directory)
        if os.geteuid() == 0 and Path("/dev/fuse").exists() and Path("/dev/loop-control").exists():
            amplification(options, directory)
            database(options, directory)
        else:
            print("\nleft out: what needs root, /dev/fuse and loop devices")
    print(f"\nraw figures and charts: {options.out}")


def speed(options, directory: Path) -> None:
    def case(name: str, unit: str, *arguments: str, side: str) -> Case:
        def run(contender: str) -> float:
            with serving(options, directory, contender) as uri:
                fill(uri)
                return fio(uri, options.seconds, *arguments)[side][unit]

        return Case(name, {"iops": "IOPS", "mib": "MiB/s"}[unit], run)

    small, large = ["--bs=4k", "--iodepth=32"], ["--bs=1m", "--iodepth=4"]
    hot = ["--random_distribution=zipf:1.1"]
    cases = [
        case("4k random write", "iops", "--rw=randwrite", *small, side="write"),
        case("4k random write, zipf 1.1", "iops", "--rw=randwrite", *hot, *small, side="write"),
        case("the same, a flush each 32", "iops", "--rw=randwrite", "--fsync=32", *hot, *small, side="write"),
        case("4k random read, zipf 1.1", "iops", "--rw=randread", *hot, *small, side="read"),
        case("1M write", "mib", "--rw=write", *large, side="write"),
        case("1M read", "mib", "--rw=read", *large, side="read"),
    ]
    compare("speed over an image", cases, options)


def amplification(options, directory: Path) -> None:
    """What is written to disk for a fixed amount of writes, of which most go to a few pages."""
    megabytes = 32 if options.quick else 256

    def case(name: str, *more: str) -> Case:
        def run(contender: str) -> float:
            with own_disk(directory) as (disk, written), serving(options, disk, contender) as uri:
                fill(uri)
                before = written()
                work = ["--rw=randwrite", "--bs=4k", "--iodepth=32", "--random_distribution=zipf:1.1"]
                fio(uri, 0, *work, f"--io_size={megabytes}m", "--end_fsync=1", *more)
                return (written() - before) / (megabytes << 20)

        return Case(name, "bytes", run)

    cases = [case("written for each byte, one flush"), case("a flush each 256 writes", "--fsync=256")]
    compare("write amplification", cases, options)


def database(options, directory: Path) -> None:
    """SQLite on ext4, on a loop device, over nbdfuse."""

    def run(contender: str) -> float:
        with serving(options, directory, contender) as uri, mounted(uri, directory) as files:
            path = files / "db"
            command = ["python3", "-c", DATABASE, str(path), str(options.seconds * 2)]
            return float(harness.run(command))

    compare("database", [Case("SQLite, 5 updates each", "transactions/s", run)], options)


def compare(group: str, cases: list[Case], options) -> None:
    results = harness.measure(group, cases, CONTENDERS, options.rounds)
    harness.report(group, results, options.out)


def fill(uri: str) -> None:
    fio(uri, 0, "--rw=write", "--bs=1m", "--iodepth=4", f"--io_size={IMAGE_MIB}m", "--end_fsync=1")


def fio(uri: str, seconds: int, *arguments: str) -> dict[str, dict[str, float]]:
    """Requests and MiB a second, of writes and of reads; `seconds` is 0 for a fixed amount."""
    times = [] if seconds == 0 else ["--time_based", f"--runtime={seconds}"]
    command = ["fio", "--name=bench", "--ioengine=nbd", f"--uri={uri}", f"--size={IMAGE_MIB}m"]
    more = ["--buffer_compress_percentage=60", "--output-format=json", *times, *arguments]
    output = harness.run([*command, *more])
    job = json.loads(output[output.index("{") :])["jobs"][0]
    figures = lambda side: {"iops": job[side]["iops"], "mib": job[side]["bw_bytes"] / (1 << 20)}
    return {side: figures(side) for side in ("read", "write")}


@contextlib.contextmanager
def serving(options, directory: Path, contender: str):
    """A new image, served; its URI."""
    image, where = directory / "image", directory / "nbd.sock"
    image.unlink(missing_ok=True)
    where.unlink(missing_ok=True)
    with image.open("wb") as file:
        file.truncate(IMAGE_MIB << 20)
    commands = {
        OURS: [
            str(options.uzram),
            "--quiet",
            "serve",
            "bench",
            f"--origin={image}",
            f"--mem-limit={LIMIT}",
            f"--nbd=unix:{where}",
        ],
        QEMU: [
            *("qemu-nbd", "--persistent", "--shared=8", "--format=raw", "--cache=writeback"),
            *("--discard=unmap", f"--socket={where}", str(image)),
        ],
        NBDKIT: ["nbdkit", "--foreground", f"--unix={where}", "--filter=cache", "file", str(image)],
    }

    def ready() -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(where))
            return True
        except OSError:
            return False

    environment = {
        "UZRAM_RUNDIR": str(directory / "run"),
        "PATH": "/usr/sbin:/usr/bin:/bin",
        "TMPDIR": str(directory),
    }
    quiet = subprocess.DEVNULL
    with harness.running(commands[contender], ready, env=environment, stderr=quiet):
        yield f"nbd+unix:///?socket={where}"


@contextlib.contextmanager
def own_disk(directory: Path):
    """A directory on a disk of its own, and what tells the bytes written to that."""
    file, disk = directory / "disk", directory / "own"
    disk.mkdir(exist_ok=True)
    with file.open("wb") as made, contextlib.ExitStack() as stack:
        # Room for a cache of the image beside it.
        made.truncate((2 * IMAGE_MIB + 512) << 20)
        stack.callback(file.unlink)
        loop = harness.run(["losetup", "--find", "--show", "--direct-io=on", str(file)]).strip()
        stack.callback(lambda: subprocess.run(["losetup", "--detach", loop]))
        harness.run(["mkfs.ext4", "-q", "-F", "-Elazy_itable_init=0,nodiscard", loop])
        harness.run(["mount", loop, str(disk)])
        stack.callback(lambda: subprocess.run(["umount", str(disk)]))

        def written() -> int:
            harness.run(["sync", "--file-system", str(disk)])
            return int(Path(f"/sys/block/{Path(loop).name}/stat").read_text().split()[6]) * 512

        yield disk, written


@contextlib.contextmanager
def mounted(uri: str, directory: Path):
    """ext4 on a loop device over nbdfuse; the directory it is mounted on."""
    fuse, files = directory / "fuse", directory / "files"
    for each in (fuse, files):
        each.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        disk = fuse / "nbd"
        stack.enter_context(harness.running(["nbdfuse", str(fuse), uri], disk.exists))
        stack.callback(lambda: subprocess.run(["umount", str(fuse)], stderr=subprocess.DEVNULL))
        loop = harness.run(["losetup", "--find", "--show", "--direct-io=on", str(disk)]).strip()
        stack.callback(lambda: subprocess.run(["losetup", "--detach", loop]))
        harness.run(["mkfs.ext4", "-q", "-F", "-Enodiscard", loop])
        harness.run(["mount", loop, str(files)])
        stack.callback(lambda: subprocess.run(["umount", str(files)]))
        yield files


main()
