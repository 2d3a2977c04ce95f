"""The allocators beside one another: `uzram` is zsmalloc, the default."""

import harness


def main() -> None:
    options = harness.arguments(__doc__.splitlines()[0])
    for result in harness.cargo_bench("pools", "pools", options.rounds):
        harness.report(f"pools {result.case.name}", [result], options.out)
    print(f"\nraw figures and charts: {options.out}")


main()
