#!/usr/bin/env python3
"""Fails where docs/architecture.md names a file, or a function of a file, that is not there, or its table of unsafe code
is not true.

    scripts/walks.py      what is wrong, if anything
    scripts/walks.py -v   how many files each section goes through
"""

import pathlib
import re
import sys

PAGE = pathlib.Path("docs/architecture.md")
UNSAFE = re.compile(r"\bunsafe (?:\{|impl\b|fn\b|extern\b)")
ROW = re.compile(r"^\| `([^`]+)` \| (\d+) \|", re.M)
NAMED = re.compile(r"`((?:[\w-]+/)*[\w-]+\.(?:rs|py|sh))(?::(\w+))?`")


def find(name):
    """The file that the page calls `name`: below src/, or below the root."""
    for root in ("src", "."):
        path = pathlib.Path(root, name)
        if path.is_file():
            return path
    return None


def unsafe_code():
    """How often a file of the crates has unsafe code, for those that have any."""
    counts = {}
    for root in ("src", "cli/src"):
        for path in pathlib.Path(root).rglob("*.rs"):
            if count := len(UNSAFE.findall(path.read_text())):
                counts[path] = count
    return counts


def main():
    bad = False
    said = {find(name): int(count) for name, count in ROW.findall(PAGE.read_text())}
    there = unsafe_code()
    for path in sorted({*said, *there} - {None}):
        if said.get(path, 0) != there.get(path, 0):
            print(f"{PAGE}: {path} has unsafe code {there.get(path, 0)} times, the table says {said.get(path, 0)}")
            bad = True
    title, files = "", {}
    for number, line in enumerate(PAGE.read_text().splitlines(), 1):
        if line.startswith("#"):
            title = line.lstrip("# ")
        for name, function in NAMED.findall(line):
            path = find(name)
            if not path:
                print(f"{PAGE}:{number}: there is no {name}")
                bad = True
                continue
            if function:
                files.setdefault(title, {})[path] = None
                if not re.search(rf"\bfn {function}\b", path.read_text()):
                    print(f"{PAGE}:{number}: {path} has no function {function}")
                    bad = True
    if "-v" in sys.argv[1:]:
        for title, paths in files.items():
            print(f"{len(paths):3} {title}")
    return bad


if __name__ == "__main__":
    sys.exit(main())
