"""The library alone: what it adds to the codec, how it scales to two threads and with the device."""

import harness

CODEC, ONE_THREAD, SMALL = "lz4_flex", "one thread", "of 1 GiB"
GROUPS = {
    "engine": lambda name: "64 GiB" not in name and "threads" not in name,
    "engine two threads": lambda name: "threads" in name,
    "engine size": lambda name: "64 GiB" in name,
}


def main() -> None:
    options = harness.arguments(__doc__.splitlines()[0])
    found = harness.cargo_bench("engine", "--json", options.rounds)
    for result in found:
        result.case.targets = targets(result.case.name)
    for group, belongs in GROUPS.items():
        results = [result for result in found if belongs(result.case.name)]
        harness.report(group, results, options.out)
    print(f"\nraw figures and charts: {options.out}")


def targets(case: str) -> dict[str, float]:
    if "threads" in case:
        return {ONE_THREAD: 1.9}
    if "64 GiB" in case:
        return {SMALL: 0.9}
    return {CODEC: 0.9 if case.endswith("write") else 0.85}


main()
