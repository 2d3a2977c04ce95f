"""Density: bytes of memory that the pool takes for each byte of the objects in it."""

import harness

KERNEL = "kernel zram"
TARGET = "target"
# What the kernel's zram was once seen to take, which is not to be exceeded.
TARGETS = {
    "machine code": 1.041,
    "source text": 1.064,
    "process heap": 1.048,
    "overwritten": 1.087,
    "left alone": 1.087,
    "compacted": 1.041,
}


def main() -> None:
    options = harness.arguments(__doc__.splitlines()[0])
    for group in ("fresh", "churn"):
        results = harness.cargo_bench("density", group, options.rounds)
        for result in results:
            result.figures[TARGET] = [TARGETS[result.case.name]] * options.rounds
            result.case.limits = {peer: 1.0 for peer in (KERNEL, TARGET) if peer in result.figures}
        harness.report(f"density {group}", results, options.out)
    print(f"\nraw figures and charts: {options.out}")


main()
