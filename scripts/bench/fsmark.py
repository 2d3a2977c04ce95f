"""fs_mark, as zsmalloc's writeback series ran it, on `uzram mount` against kernel zram.

32 threads write and sync 500 files of 100 kB each, which fills 2 GiB to 80%.
"""

import cost
import devices
import harness
from devices import ZRAM
from harness import OURS, Case

SIZE = 2 << 30
FILES = "files"


def main() -> None:
    options = harness.arguments(__doc__.splitlines()[0])
    devices.require()
    contenders = devices.with_zram([OURS])
    with harness.scratch() as directory:
        for fs in devices.MKFS:

            def run(contender: str) -> dict[str, float]:
                with devices.mounted(options, contender, fs, SIZE, directory) as (mountpoint, server):
                    # It leaves a log where it is run.
                    command = ["fs_mark", "-s", "100000", "-n", "500", "-t", "32", "-k", "-d", str(mountpoint)]
                    output, figures = cost.of(command, server, cwd=directory)
                return {FILES: files_a_second(output), **figures}

            cases = [Case(FILES, "files/s", targets={ZRAM: 1.0}), *cost.cases({})]
            results = harness.measure_together(f"fsmark {fs}", cases, contenders, options.rounds, run)
            harness.report(f"fsmark {fs}", results, options.out)
    print(f"\nraw figures and charts: {options.out}")


def files_a_second(output: str) -> float:
    """The fourth column, below its title."""
    lines = [line.split() for line in output.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) != 2 or lines[0][3] != "Files/sec":
        raise SystemExit(f"fs_mark printed what is not understood:\n{output}")
    return float(lines[1][3])


main()
