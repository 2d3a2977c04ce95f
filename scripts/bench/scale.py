"""Scale: one lock for the whole pool against shards, how long locks are held, and large devices."""

import json
import re
import shutil
import statistics
from pathlib import Path

import harness
from harness import OURS, Case, Result

ONE_THREAD = "one thread"
# Frames of the stack while a shard's lock is held: what a read and a write do with it.
LOCKED = re.compile(r"Core>::find$|^find \(inlined\)|store_with_room")
# In the name of a frame of every access.
ACCESS = "burst"


def main() -> None:
    options = harness.arguments(__doc__.splitlines()[0])
    threads = harness.cargo_bench("scale", "threads", options.rounds)
    harness.report("scale threads", threads, options.out)
    harness.report("scale two threads", [doubled(threads, work) for work in ("write", "read")], options.out)
    sizes = harness.cargo_bench("scale", "size", options.rounds)
    for result in sizes:
        result.case.limits = {"1 GiB": 1.10}
    harness.report("scale size", sizes, options.out)
    locks(options)
    print(f"\nraw figures and charts: {options.out}")


def doubled(results: list[Result], work: str) -> Result:
    """What a second thread adds."""
    one, two = (
        next(r.figures[OURS] for r in results if r.case.name == f"4k rand{work}, {count} threads")
        for count in (1, 2)
    )
    case = Case(f"4k rand{work}", "IOPS", lambda _: 0.0, {ONE_THREAD: 1.9})
    return Result(case, {OURS: two, ONE_THREAD: one})


def locks(options) -> None:
    """The share of an access with the lock held, and how many threads that lock can serve."""
    if shutil.which("perf") is None:
        print("\nSKIPPED: how long locks are held: missing perf")
        return
    print("\nscale locks, random accesses of one thread to one shard")
    found = {}
    for work in ("write", "read"):
        shares = sorted(locked(work) for _ in range(options.rounds))
        share = statistics.median(shares)
        found[work] = {"locked": shares, "threads": 1 / share}
        harness.progress("")
        spread = f"{shares[0]:.1%} to {shares[-1]:.1%}"
        print(f"  4k rand{work}: {share:.1%} ({spread}) with the lock held: always, with {1 / share:.0f} threads")
    raw = {"group": "scale locks", "machine": harness.machine(), "results": found}
    (options.out / "scale-locks.json").write_text(json.dumps(raw, indent=1) + "\n")


def locked(work: str) -> float:
    """The share of the samples of accesses that were taken with the lock held."""
    harness.progress(f"locks, {work}")
    with harness.scratch() as directory:
        samples = profile(directory / "perf.data", work)
    accesses = [stack for stack in samples if any(ACCESS in frame for frame in stack)]
    if not accesses:
        raise SystemExit("perf saw no access")
    return sum(any(LOCKED.search(frame) for frame in stack) for stack in accesses) / len(accesses)


def profile(data: Path, work: str) -> list[list[str]]:
    """The stacks of samples in time, innermost frame first, inlined functions included."""
    # A page on the stack is in the way of what is behind it.
    stacks = ["--call-graph", "dwarf,20480", "--freq", "1000"]
    harness.run(["perf", "record", "--quiet", f"--output={data}", *stacks, program(), f"hold-{work}"])
    script = harness.run(["perf", "script", f"--input={data}", "--fields=comm,ip,sym", "--inline"])
    return [
        [line.strip().partition(" ")[2] for line in sample.splitlines()[1:]]
        for sample in script.split("\n\n")
    ]


def program() -> str:
    """The path of `benches/scale.rs`, built."""
    build = ["cargo", "bench", "--locked", "--quiet", "--bench", "scale", "--no-run", "--message-format=json"]
    messages = map(json.loads, harness.run(build).splitlines())
    return next(m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "scale")


main()
