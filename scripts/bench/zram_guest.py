"""What the kernel's zram, in a guest, and ours write to a backing for the same data."""

import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path

import harness
from harness import OURS, Case, Result

KERNEL = "kernel zram"
SIZE = 64 << 20
PAGE = 4096
# What the guest is made of.
TOOLS = ["busybox", "cpio", "nbd-client", "mkfs.ext4", "e2fsck"]
ROOT = Path(__file__).resolve().parents[2]


def compare(options, directory: Path) -> None:
    """Fills a device, marks all of it as idle, writes that back; once, for nothing varies."""
    guest = options.uzram.parent.parent / "guest"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not (guest / "kernel").is_dir():
        missing.append(str(guest))
    if missing:
        print(f"\nSKIPPED: writeback of the {KERNEL}: missing {', '.join(missing)}; ./scripts/test.sh gets it")
        return
    data = directory / "data"
    programs(data)
    harness.progress("writeback of the kernel's zram")
    theirs = kernel(guest, data, directory / "disk")
    ours = uzram(options.uzram, data, directory)
    harness.progress("")
    names = ("bytes written back", "disk space of them")
    results = [
        Result(Case(name, "KiB", lambda _: 0.0), {OURS: [mine / 1024], KERNEL: [its / 1024]})
        for name, mine, its in zip(names, ours, theirs)
    ]
    harness.report("writeback of 64 MiB of programs", results, options.out)


def programs(data: Path) -> None:
    """The first bytes of this machine's programs, one after the other."""
    left = SIZE
    with data.open("wb") as out:
        files = (path for path in sorted(Path("/usr/bin").iterdir()) if path.is_file())
        # Again from the first, on a machine with few.
        for path in itertools.cycle(list(files)):
            left -= out.write(path.read_bytes()[:left])
            if left == 0:
                return


def kernel(guest: Path, data: Path, disk: Path) -> tuple[int, int]:
    """Bytes that the kernel wrote to the disk, and bytes of it that are in use."""
    with disk.open("wb") as file:
        file.truncate(2 * SIZE)
    script = Path(__file__).with_name("zram-guest.sh")
    runner = ROOT / "cli/tests/guest/run.sh"
    output = harness.run(
        ["bash", str(runner), "--disk", str(data), "--writable", str(disk), str(guest), str(script)],
        # Before `run` gives up: who is killed leaves QEMU behind.
        env={**os.environ, "GUEST_TIMEOUT": "300"},
    )
    lines = [line.split() for line in output.splitlines() if line.startswith("zram: ")]
    told = {words[1]: words[2:] for words in lines}
    print(f"\n{KERNEL}: " + ", ".join(" ".join([name, *words]) for name, words in told.items()))
    same_filled, (in_use, _, pages) = int(told["mm_stat"][5]), map(int, told["bd_stat"])
    complete(KERNEL, pages + same_filled)
    return int(told["sectors"][0]) * 512, in_use * PAGE


def uzram(program: Path, data: Path, directory: Path) -> tuple[int, int]:
    """The same of ours, with a file as its backing."""
    spill = directory / "spill"
    with harness.serving(program, directory, f"--size={SIZE}", f"--backing={spill}") as (uri, environment):

        def verb(*arguments: str) -> str:
            return harness.run([str(program), *arguments], env=environment)

        harness.run(["nbdcopy", str(data), uri])
        verb("idle", "bench", "all")
        verb("writeback", "bench", "type=idle")
        stats = json.loads(verb("stat", "bench", "--json"))
        subprocess.run(["sync", str(spill)], check=True)
        used = spill.stat().st_blocks * 512
        back = directory / "back"
        harness.run(["nbdcopy", uri, str(back)])
        if back.read_bytes() != data.read_bytes():
            raise SystemExit(f"{OURS}: what came back is not what was written")
    complete(OURS, stats["written_back_pages"] + stats["same_pages"])
    return stats["backing_bytes_written"], used


def complete(contender: str, pages: int) -> None:
    """The figures are of the same data only if all of it was written back."""
    if pages != SIZE // PAGE:
        raise SystemExit(f"{contender}: {pages} of {SIZE // PAGE} pages are written back or same-filled")
