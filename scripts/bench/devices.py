"""Block devices to compare, each made for the benchmark and taken away after it: ours and a handler
that does nothing, both over FUSE and a loop device, and the kernel's zram.

All of it needs root. The kernel's zram is a device of its own, beside those in use.
"""

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Iterator

import harness
from harness import OURS

ZRAM, FLOOR, RINGS = "kernel zram", "no-op FUSE", "uzram, io_uring"
OFFER = Path("/sys/module/fuse/parameters/enable_uring")
CONTROL = Path("/sys/class/zram-control")
PATIENCE = 10
"""Seconds for which a device may still be in use after its last user."""

# As `uzram mount` does it.
MKFS = {
    "ext4": ["-q", "-F", "-b4096", "-m0", "-Enodiscard,assume_storage_prezeroed=1"],
    "btrfs": ["-q", "-f", "-K", "-msingle"],
}


def require() -> None:
    """Ends the benchmark, saying why, where nothing of it can be run."""
    missing = None
    if os.geteuid() != 0:
        missing = "loop devices and mounts need root"
    elif not Path("/dev/fuse").exists():
        missing = "there is no /dev/fuse"
    elif subprocess.run(["losetup", "--find"], capture_output=True).returncode != 0:
        missing = "there is no free loop device"
    if missing:
        print(f"left out: all of it: {missing}")
        sys.exit(0)


def with_zram(others: list[str]) -> list[str]:
    """The contenders, and kernel zram if this machine has it; if not, says so."""
    missing = zram_missing()
    if missing is None:
        return [*others, ZRAM]
    print(f"left out: {ZRAM}: {missing}", flush=True)
    return others


@functools.cache
def zram_missing() -> str | None:
    if not CONTROL.exists() and shutil.which("modprobe"):
        subprocess.run(["modprobe", "zram"], capture_output=True)
    if not CONTROL.exists():
        return "this kernel has no zram, nor a module of it"
    try:
        with new_zram() as (device, sysfs):
            if "lz4" not in (sysfs / "comp_algorithm").read_text().replace("[", " ").replace("]", " ").split():
                return "it lacks lz4"
            return None if device.exists() else f"it has no {device}"
    except OSError as error:
        return f"cannot add a device: {error}"


@contextlib.contextmanager
def new_zram() -> Iterator[tuple[Path, Path]]:
    """A device that is not yet set up, and its directory in sysfs."""
    number = (CONTROL / "hot_add").read_text().strip()
    try:
        yield Path(f"/dev/zram{number}"), Path(f"/sys/block/zram{number}")
    finally:
        insist(f"removing zram{number}", lambda: (CONTROL / "hot_remove").write_text(number))


@contextlib.contextmanager
def zram(size: int) -> Iterator[Path]:
    with new_zram() as (device, sysfs):
        (sysfs / "comp_algorithm").write_text("lz4")
        (sysfs / "disksize").write_text(str(size))
        yield device


@contextlib.contextmanager
def ours(uzram: Path, directory: Path, size: int, name: str = "bench") -> Iterator[Path]:
    """The loop device that `uzram attach` makes."""
    fuse = directory / name
    fuse.mkdir()
    command = [str(uzram), "--quiet", "serve", name, f"--size={size}", f"--fuse={fuse}"]
    environment = environment_in(directory)
    with harness.running(command, (fuse / "disk").exists, env=environment):
        try:
            yield Path(harness.run([str(uzram), "attach", name], env=environment).strip())
        finally:
            verb(uzram, environment, "detach", name)


def with_rings(others: list[str]) -> list[str]:
    """The contenders, and ours over io_uring if the kernel can do that; if not, says so."""
    if OFFER.exists():
        return [*others, RINGS]
    print(f"left out: {RINGS}: this kernel's FUSE has no {OFFER.name}", flush=True)
    return others


@contextlib.contextmanager
def ours_over_rings(uzram: Path, directory: Path, size: int) -> Iterator[Path]:
    """The same, with requests over io_uring, which has to be on offer when it is mounted."""
    before = OFFER.read_text()
    with contextlib.ExitStack() as stack:
        try:
            OFFER.write_text("Y")
            device = stack.enter_context(ours(uzram, directory, size, "rings"))
        finally:
            OFFER.write_text(before)
        yield device


@contextlib.contextmanager
def floor(directory: Path, size: int) -> Iterator[Path]:
    """A loop device like `ours`, on a FUSE file system that keeps nothing."""
    fuse = directory / "floor"
    fuse.mkdir()
    command = [str(floor_program()), str(fuse), str(size)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL}
    with subprocess.Popen(command, start_new_session=True, **pipes) as process:
        try:
            harness.wait_until_ready(command, process, (fuse / "disk").exists)
            with loop_device(fuse / "disk") as device:
                yield device
        finally:
            # It ends, and unmounts, when its input does.
            with harness.cleaning_up():
                process.stdin.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(PATIENCE)
                process.kill()
                subprocess.run(["umount", "--lazy", str(fuse)], capture_output=True)


@contextlib.contextmanager
def loop_device(disk: Path) -> Iterator[Path]:
    """Set up as `uzram attach` does it."""
    losetup = ["losetup", "--find", "--show", "--direct-io=on", "--sector-size=4096", str(disk)]
    device = Path(harness.run(losetup).strip())
    try:
        Path("/sys/block", device.name, "queue/scheduler").write_text("none")
        yield device
    finally:
        insist(f"detaching {device}", lambda: checked(["losetup", "--detach", str(device)]))


@functools.cache
def floor_program() -> Path:
    """`benches/fuse_floor.rs`, built."""
    build = ["cargo", "bench", "--locked", "--quiet", "--no-run", "--bench", "fuse_floor"]
    for line in harness.run([*build, "--message-format=json"]).splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "fuse_floor":
            return Path(message["executable"])
    raise SystemExit("cargo built no fuse_floor")


@contextlib.contextmanager
def mounted(options, contender: str, fs: str, size: int, directory: Path) -> Iterator[tuple[Path, int | None]]:
    """A new file system on a new device of a contender: where it is mounted, and its server's PID."""
    mountpoint = directory / "mnt"
    mountpoint.mkdir(exist_ok=True)
    if contender == ZRAM:
        with zram(size) as device, mounted_zram(device, fs, mountpoint):
            yield mountpoint, None
        return
    environment = environment_in(directory)
    mount = ["mount", f"--size={size}", f"--fs={fs}", "--name=bench", str(mountpoint)]
    try:
        harness.run([str(options.uzram), *mount], env=environment)
        listed = json.loads(harness.run([str(options.uzram), "list", "--json"], env=environment))
        yield mountpoint, listed[0]["pid"]
    finally:
        if os.path.ismount(mountpoint):
            verb(options.uzram, environment, "umount", str(mountpoint))


@contextlib.contextmanager
def mounted_zram(device: Path, fs: str, mountpoint: Path) -> Iterator[None]:
    harness.run([f"mkfs.{fs}", *MKFS[fs], str(device)])
    try:
        harness.run(["mount", "-t", fs, "-o", "discard", str(device), str(mountpoint)])
        yield
    finally:
        if os.path.ismount(mountpoint):
            insist(f"unmounting {mountpoint}", lambda: checked(["umount", str(mountpoint)]))


def environment_in(directory: Path) -> dict[str, str]:
    return {"UZRAM_RUNDIR": str(directory / "run"), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


def verb(uzram: Path, environment: dict[str, str], *words: str) -> None:
    command = [str(uzram), *words]
    insist(" ".join(command), lambda: checked(command, env=environment))


def checked(command: list[str], **options) -> None:
    # Not to be interrupted by a key: it cleans up.
    subprocess.run(command, check=True, capture_output=True, text=True, start_new_session=True, **options)


def insist(what: str, act: Callable[[], object]) -> None:
    """Tries again while a device is in use, as it is when its user has just been ended."""
    deadline = time.monotonic() + PATIENCE
    with harness.cleaning_up():
        while True:
            try:
                act()
                return
            except (OSError, subprocess.CalledProcessError) as error:
                if time.monotonic() > deadline:
                    print(f"{what}: {getattr(error, 'stderr', None) or error}", file=sys.stderr)
                    return
                time.sleep(0.1)


def fio(device: Path, rw: str, bs: str, depth: int, jobs: int, seconds: int, size: int) -> tuple[float, float]:
    """Requests and MiB a second of direct I/O."""
    where = ["--ioengine=libaio", "--direct=1", f"--filename={device}", "--refill_buffers"]
    return harness.fio_with(where, rw, bs, depth, jobs, seconds, str(size))
