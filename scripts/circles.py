#!/usr/bin/env python3
"""Fails on a circle of more than two files that import each other, and names its files.

An import is a path to another file of the same crate, in a `use` or in the code; one that leads through a re-export
leads to the file that defines the name. A `mod` line is none, nor a re-export of what the file does not use itself,
nor what a file takes from those above it in its own module (`super::NAME`): those say what the module's files share.
What tests import does not count.

    scripts/circles.py      what is wrong, if anything
    scripts/circles.py -v   all circles, those of two files too, with the names that tie them
"""

import pathlib
import re
import sys

CRATES = ("src/lib.rs", "cli/src/main.rs")
MOST = 2

# Comments, strings, characters.
NO_CODE = re.compile(r'//[^\n]*|/\*.*?\*/|r#".*?"#|"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])\'', re.S)
FOR_TESTS = re.compile(r"#\[cfg\((?:test|fuzzing|any\(test[^\]]*|all\(test[^\]]*)\)\]")
MODULE = re.compile(r"^\s*(?:pub(?:\([^)]*\))?\s+)?mod\s+(\w+)\s*;", re.M)
USE = re.compile(r"^\s*(pub(?:\([^)]*\))?\s+)?use\s+([^;]+);", re.M)
PATH = re.compile(r"(?<![\w:$])(?:\w+::)+\w+")


def code(text):
    """What of a file is compiled outside tests, without comments and strings."""
    text = NO_CODE.sub(" ", text)
    kept, at = [], 0
    while found := FOR_TESTS.search(text, at):
        kept.append(text[at : found.start()])
        at = end_of_item(text, found.end())
    return "".join(kept) + text[at:]


def end_of_item(text, at):
    """Where the item ends that begins at `at`: behind its block, or its semicolon or comma."""
    depth = 0
    for at in range(at, len(text)):
        if text[at] in "{([":
            depth += 1
        elif text[at] in "})]":
            depth -= 1
        if depth < 0:
            return at
        if depth == 0 and text[at] in "};,":
            break
    return at + 1


def leaves(tree):
    """Each path of a use tree, as its parts, with the name that it has in the file."""
    prefix, brace, inner = tree.partition("{")
    if not brace:
        path, _, alias = tree.partition(" as ")
        parts = [part.strip() for part in path.split("::")]
        if parts[-1] == "self":
            parts.pop()
        return [(parts, alias.strip() or "".join(parts[-1:]))]
    prefix = [part.strip() for part in prefix.split("::") if part.strip()]
    found = []
    for branch in branches(inner[: inner.rindex("}")]):
        found += [(prefix + parts, name or prefix[-1]) for parts, name in leaves(branch)]
    return found


def branches(text):
    """The parts of `text` between its outermost commas."""
    depth, start = 0, 0
    for at, char in enumerate(text + ","):
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            if text[start:at].strip():
                yield text[start:at]
            start = at + 1


class File:
    """A file of a crate, which is a module, and the files that its `mod` lines name."""

    def __init__(self, path, parent, folder):
        self.path, self.parent = path, parent
        text = code(path.read_text())
        self.modules = {}
        for name in MODULE.findall(text):
            for file in (folder / f"{name}.rs", folder / name / "mod.rs"):
                if file.exists():
                    self.modules[name] = File(file, self, folder / name)
        self.names, self.exported, self.globs = {}, set(), []
        for exported, tree in USE.findall(text):
            for parts, name in leaves(tree):
                if name == "*":
                    self.globs.append(parts[:-1])
                    continue
                self.names[name] = parts
                if exported:
                    self.exported.add(name)
        self.text = USE.sub("", text)

    def files(self):
        yield self
        for module in self.modules.values():
            yield from module.files()

    def above(self):
        return [self.parent, *self.parent.above()] if self.parent else []

    def find(self, parts, seen=()):
        """The file that defines what a path means here, or None for a path into another crate."""
        first, rest = parts[0], parts[1:]
        if first == "crate":
            return (self.above() or [self])[-1].find_member(rest, seen)
        if first == "self":
            return self.find_member(rest, seen)
        if first == "super" and self.parent:
            is_super = rest[:1] == ["super"]
            return self.parent.find(rest, seen) if is_super else self.parent.find_member(rest, seen)
        if first in self.modules or (first in self.names and (self, first) not in seen):
            return self.find_member(parts, seen)
        return None

    def find_member(self, parts, seen):
        if not parts:
            return self
        first, rest = parts[0], parts[1:]
        if first in self.modules:
            return self.modules[first].find_member(rest, seen)
        if first in self.names and (self, first) not in seen:
            target = self.names[first]
            return None if target[0] == first else self.find(target + rest, (*seen, (self, first)))
        if (self, "*") not in seen:
            for target in self.globs:
                found = self.find(target, (*seen, (self, "*")))
                if found and re.search(rf"\b(?:fn|struct|enum|trait|type|const|static)\s+{first}\b", found.text):
                    return found
        return self

    def imports(self):
        """Which files this one takes names from, and which names."""
        paths = [path.split("::") for path in PATH.findall(self.text)] + self.globs
        for name, parts in self.names.items():
            if name not in self.exported or re.search(rf"\b{name}\b", self.text):
                paths.append(parts)
        taken = {}
        for parts in paths:
            file = self.find(parts)
            if file and file is not self and file not in self.above():
                taken.setdefault(file, set()).add(parts[-1])
        return taken


def circles(arrows):
    """The sets of files of which each leads to each other (Tarjan's strongly connected components)."""
    order, low, path, found = {}, {}, [], []

    def visit(file):
        order[file] = low[file] = len(order)
        path.append(file)
        for other in arrows[file]:
            if other not in order:
                visit(other)
                low[file] = min(low[file], low[other])
            elif other in path:
                low[file] = min(low[file], order[other])
        if low[file] == order[file]:
            at = path.index(file)
            if len(path) - at > 1:
                found.append(path[at:])
            del path[at:]

    for file in arrows:
        if file not in order:
            visit(file)
    return found


def main():
    verbose = "-v" in sys.argv[1:]
    bad = False
    for crate in map(pathlib.Path, CRATES):
        arrows = {file: file.imports() for file in File(crate, None, crate.parent).files()}
        for circle in circles(arrows):
            if len(circle) <= MOST and not verbose:
                continue
            bad |= len(circle) > MOST
            print(f"{crate}: {len(circle)} files import each other in a circle:")
            for file in circle:
                for other in set(circle) & set(arrows[file]):
                    print(f"    {file.path} -> {other.path}: {', '.join(sorted(arrows[file][other]))}")
    return bad


if __name__ == "__main__":
    sys.exit(main())
