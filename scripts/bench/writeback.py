"""Writeback: speed of a fill, bytes written, memory, misses, reads of what is spilled, and zram."""

import json
import os
from pathlib import Path

import harness
import zram_guest
from harness import OURS, Case, Result

# Ratios of ours to a peer's: those to reach, and those not to exceed.
PLAIN = "file, direct"
TARGETS = {
    "least live under overwrites": {"used": 0.7},
    "reads of spilled pages, one thread": {PLAIN: 0.8},
    "reads of spilled pages, four threads": {PLAIN: 0.8},
}
LIMITS = {
    "written on a fill": {"evicted": 1.10},
    "written under overwrites": {"evicted": 1.6},
    "most mem_used_total, fill": {"limit": 1.0},
    "most mem_used_total, overwrites": {"limit": 1.0},
    "most RSS, fill": {"allowed": 1.0},
    "most RSS, overwrites": {"allowed": 1.0},
}


def main() -> None:
    options = harness.arguments(__doc__.splitlines()[0])
    for group in ("fill", "churn", "reads", "misses"):
        for results in engine(group, options.rounds):
            harness.report(f"writeback {results[0].case.name}", results, options.out)
    with harness.scratch("/var/tmp") as directory:
        reads(options, directory)
    with harness.scratch("/var/tmp") as directory:
        zram_guest.compare(options, directory)
    print(f"\nraw figures and charts: {options.out}")


def engine(group: str, rounds: int) -> list[list[Result]]:
    """The cases of `benches/writeback.rs`, with what they are to reach."""
    results = harness.cargo_bench("writeback", group, rounds)
    for result in results:
        name = result.case.name
        result.case.targets = dict(TARGETS.get(name, {}))
        result.case.limits = {"exact LRU": 1.0} if group == "misses" else LIMITS.get(name, {})
        if name == "fill to 4x the limit":
            bound(result)
    return [[result] for result in results]


def bound(fill: Result) -> None:
    """Adds the lower, in each round, of the speed without a limit and that of the disk: the better
    of the file's that waits for it and the file's past the page cache."""
    rounds = zip(fill.figures["no limit"], fill.figures["file, fdatasync"], fill.figures[PLAIN])
    fill.figures["lower of both"] = [min(free, max(disk)) for free, *disk in rounds]
    fill.case.targets["lower of both"] = 0.7


def reads(options, directory: Path) -> None:
    """4 KiB random reads of a device that is nearly all spilled, and direct ones of its spill."""
    spill = directory / "spill"
    arguments = ["--size=1G", "--mem-limit=32M", f"--backing={spill}"]
    with harness.serving(options.uzram, directory, *arguments) as (uri, _):
        harness.fio(uri, "write", "1m", 4, 1, 0, "1G")
        cases = [reading(uri, spill, jobs, depth, options) for jobs, depth in ((1, 1), (1, 8), (4, 8))]
        group = "writeback reads of spilled pages"
        results = harness.measure(group, cases, [OURS, PLAIN], options.rounds)
        harness.report(group, results, options.out)


def reading(uri: str, spill: Path, jobs: int, depth: int, options) -> Case:
    def run(contender: str) -> float:
        forget(spill)
        if contender == OURS:
            return harness.fio(uri, "randread", "4k", depth, jobs, options.seconds, "1G")[0]
        output = harness.run(
            ["fio", "--name=bench", f"--filename={spill}", "--readonly", "--direct=1", "--ioengine=libaio"]
            + ["--rw=randread", "--bs=4k", f"--iodepth={depth}", f"--numjobs={jobs}", "--group_reporting"]
            + ["--time_based", f"--runtime={options.seconds}", "--output-format=json"]
        )
        return json.loads(output[output.index("{") :])["jobs"][0]["read"]["iops"]

    return Case(f"4k randread, {jobs} x {depth}", "IOPS", run, {PLAIN: 0.8})


def forget(path: Path) -> None:
    """Drops a file from the page cache: neither contender shall read memory."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)


main()
