"""A software build on `uzram mount` against kernel zram: this project's library and all it needs.

The sources and what is built are on the device. Nothing of the sources is in the page cache at the
start, and all that was built is on the device at the end.
"""

import os
import shutil
import subprocess
from pathlib import Path

import cost
import devices
import harness
from devices import ZRAM
from harness import OURS

SIZE = 2 << 30
ROOT = Path(__file__).resolve().parents[2]
SOURCES = ["Cargo.toml", "Cargo.lock", "src", "cli", "benches"]
QUICK = ["serde_json"]
CONFIG = """\
[source.crates-io]
replace-with = "vendored"
[source.vendored]
directory = "vendor"
"""


def main() -> None:
    options = harness.arguments(__doc__.splitlines()[0])
    devices.require()
    contenders = devices.with_zram([OURS])
    packages = QUICK if options.quick else ["uzram"]
    with harness.scratch() as directory, harness.scratch("/var/tmp") as sources:
        collect(sources)
        for fs in devices.MKFS:

            def run(contender: str) -> dict[str, float]:
                with devices.mounted(options, contender, fs, SIZE, directory) as (mountpoint, server):
                    return build(sources, mountpoint / "uzram", packages, server)

            cases = cost.cases({ZRAM: 1.01})
            results = harness.measure_together(f"build {fs}", cases, contenders, options.rounds, run)
            harness.report(f"build {fs}", results, options.out)
    print(f"\nraw figures and charts: {options.out}")


def collect(sources: Path) -> None:
    """All that a build without the network needs."""
    harness.progress("collecting the sources")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, sources / name)
    (sources / ".cargo").mkdir()
    (sources / ".cargo/config.toml").write_text(CONFIG)
    harness.run(["cargo", "vendor", "--locked", "--quiet", str(sources / "vendor")], cwd=ROOT)


def build(sources: Path, where: Path, packages: list[str], server: int | None) -> dict[str, float]:
    shutil.copytree(sources, where, symlinks=True)
    forget(where)
    environment = {
        **os.environ,
        "CARGO_INCREMENTAL": "0",
        "CARGO_PROFILE_DEV_OPT_LEVEL": "0",
        "CARGO_TARGET_DIR": str(where / "target"),
    }
    words = " ".join(f"-p {package}" for package in packages)
    script = f"cargo build --quiet --frozen --lib {words} && sync --file-system ."
    return cost.of(["sh", "-c", script], server, cwd=where, env=environment)[1]


def forget(directory: Path) -> None:
    """Drops the files below a directory from the page cache."""
    subprocess.run(["sync", "--file-system", str(directory)], check=True)
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            file = os.open(path, os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)


main()
