"""The loop device of `uzram attach` against kernel zram, and against a FUSE handler that does nothing.

Ours is also measured over io_uring, where the kernel has that. What the handler is above ours is
the engine's; what kernel zram is above the handler, the transport's.
"""

import contextlib
from pathlib import Path

import devices
import harness
from devices import FLOOR, RINGS, ZRAM
from harness import OURS, Case

SIZE = 1 << 30


def main() -> None:
    options = harness.arguments(__doc__.splitlines()[0])
    devices.require()
    contenders = devices.with_zram(devices.with_rings([OURS, FLOOR]))
    with harness.scratch() as directory, contextlib.ExitStack() as stack:
        makers = {
            OURS: lambda: devices.ours(options.uzram, directory, SIZE),
            RINGS: lambda: devices.ours_over_rings(options.uzram, directory, SIZE),
            FLOOR: lambda: devices.floor(directory, SIZE),
            ZRAM: lambda: devices.zram(SIZE),
        }
        made = {name: stack.enter_context(makers[name]()) for name in contenders}
        for name in contenders:
            harness.progress(f"filling {name}")
            devices.fio(made[name], "write", "1m", 4, 1, 0, SIZE)
        results = harness.measure("fuse", cases(options, made), contenders, options.rounds)
        harness.report("fuse", results, options.out)
    print(f"\nraw figures and charts: {options.out}")


def cases(options, made: dict[str, Path]) -> list[Case]:
    def case(name: str, rw: str, bs: str, depth: int, jobs: int, targets: dict[str, float]) -> Case:
        small = bs == "4k"

        def run(contender: str) -> float:
            iops, mib = devices.fio(made[contender], rw, bs, depth, jobs, options.seconds, SIZE)
            return iops if small else mib

        return Case(name, "IOPS" if small else "MiB/s", run, targets)

    return [
        case("4k randwrite, depth 32, 1 job", "randwrite", "4k", 32, 1, {ZRAM: 1.0}),
        case("4k randread, depth 32, 1 job", "randread", "4k", 32, 1, {ZRAM: 0.85}),
        case("4k randwrite, depth 32, 2 jobs", "randwrite", "4k", 32, 2, {ZRAM: 0.9}),
        case("4k randread, depth 32, 2 jobs", "randread", "4k", 32, 2, {ZRAM: 0.65}),
        case("1M write, depth 4, 1 job", "write", "1m", 4, 1, {ZRAM: 1.25}),
        case("1M read, depth 4, 1 job", "read", "1m", 4, 1, {ZRAM: 1.1}),
        case("4k randwrite, depth 1", "randwrite", "4k", 1, 1, {FLOOR: 0.95}),
        case("4k randread, depth 1", "randread", "4k", 1, 1, {FLOOR: 0.95}),
    ]


main()
