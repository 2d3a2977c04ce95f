"""What the benchmarks share: turns, ratios, raw figures, charts, and servers to run.

A benchmark is groups of cases. A case is run on every contender in turn, round after round, so
that whatever else the machine does falls on all of them alike. A ratio is taken within a round;
reported are its median and, as its spread, the least and the greatest.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterator

OURS = "uzram"

ENDING = (signal.SIGINT, signal.SIGTERM)

PATIENCE = 1800
"""Seconds that a program may take, a build from nothing among them."""


@dataclass
class Case:
    """One kind of work: `run(contender)` returns a figure in `unit`, more being better."""

    name: str
    unit: str
    run: Callable[[str], float] | None = None
    targets: dict[str, float] = field(default_factory=dict)
    """For each peer the ratio to reach."""
    limits: dict[str, float] = field(default_factory=dict)
    """For each peer the ratio not to exceed, where less is better."""


@dataclass
class Result:
    """A case's figures, in the order of the rounds, for each contender."""

    case: Case
    figures: dict[str, list[float]]
    """A contender may have none."""

    def median(self, contender: str) -> float:
        return statistics.median(self.figures[contender])

    def ratios(self, peer: str) -> list[float]:
        """Ours to the peer's, sorted."""
        return sorted(a / b for a, b in zip(self.figures[OURS], self.figures[peer]))


def arguments(description: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--uzram", type=Path, required=True, help="the program to measure")
    parser.add_argument("--out", type=Path, required=True, help="where figures and charts go")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one short round, to see that it works")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
    options.seconds = 1 if options.quick else 4
    options.out.mkdir(parents=True, exist_ok=True)
    unwind_when_told_to_end()
    return options


def unwind_when_told_to_end() -> None:
    """Has the first SIGINT or SIGTERM end the benchmark through its cleanup, which no other cuts short."""

    def end(number, _frame) -> None:
        for each in ENDING:
            signal.signal(each, signal.SIG_IGN)
        progress("")
        raise SystemExit(128 + number)

    for each in ENDING:
        signal.signal(each, end)


@contextlib.contextmanager
def cleaning_up() -> Iterator[None]:
    """Has a signal that ends the benchmark wait for the end of this."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def measure(group: str, cases: list[Case], contenders: list[str], rounds: int) -> list[Result]:
    """Runs every case on every contender in turn, and starts each round with another one."""
    results = [Result(case, {name: [] for name in contenders}) for case in cases]
    for number in range(rounds):
        for result in results:
            for contender in in_turn(contenders, number):
                progress(f"{group}, round {number + 1} of {rounds}: {result.case.name}, {contender}")
                result.figures[contender].append(result.case.run(contender))
    progress("")
    return results


def measure_together(
    group: str, cases: list[Case], contenders: list[str], rounds: int, run: Callable[[str], dict[str, float]]
) -> list[Result]:
    """As `measure`, of one work that gives figures for several cases; a contender may have none for one."""
    results = {case.name: Result(case, {}) for case in cases}
    for number in range(rounds):
        for contender in in_turn(contenders, number):
            progress(f"{group}, round {number + 1} of {rounds}: {contender}")
            for name, figure in run(contender).items():
                results[name].figures.setdefault(contender, []).append(figure)
    progress("")
    return list(results.values())


def in_turn(contenders: list[str], number: int) -> list[str]:
    first = number % len(contenders)
    return contenders[first:] + contenders[:first]


def cargo_bench(bench: str, group: str, rounds: int) -> list[Result]:
    """The cases of a program in `benches/`, each with contenders of its own: lines of JSON."""
    found: dict[str, Result] = {}
    for number in range(rounds):
        progress(f"{group}, round {number + 1} of {rounds}")
        output = run(["cargo", "bench", "--locked", "--quiet", "--bench", bench, "--", group], stderr=None)
        for line in filter(lambda text: text.startswith("{"), output.splitlines()):
            seen = json.loads(line)
            case = Case(seen["case"], seen["unit"])
            result = found.setdefault(case.name, Result(case, {peer: [] for peer in seen["figures"]}))
            for peer, figure in seen["figures"].items():
                result.figures[peer].append(figure)
    progress("")
    return list(found.values())


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def report(group: str, results: list[Result], out: Path) -> None:
    """Prints a table, and writes the group's raw figures and its chart to `out`."""
    contenders = list(dict.fromkeys(name for result in results for name in result.figures))
    print(f"\n{group}")
    first = max(30, *(len(f"{r.case.name}, {r.case.unit}") + 2 for r in results))
    print(f"  {'':<{first}}" + "".join(f"{name:>18}" for name in contenders))
    for result in results:
        medians = {name: shown(result.median(name)) for name in result.figures}
        row = "".join(f"{medians.get(name, '-'):>18}" for name in contenders)
        print(f"  {result.case.name + ', ' + result.case.unit:<{first}}{row}")
        for peer in filter(lambda name: name != OURS, result.figures):
            print(f"    {ratio_line(result, peer)}")
    sys.stdout.flush()
    raw = {
        "group": group,
        "machine": machine(),
        "results": [
            {"case": r.case.name, "unit": r.case.unit, "targets": r.case.targets, "limits": r.case.limits, "figures": r.figures}
            for r in results
        ],
    }
    stem = group.replace(" ", "-")
    (out / f"{stem}.json").write_text(json.dumps(raw, indent=1) + "\n")
    (out / f"{stem}.svg").write_text(chart(group, results))


def ratio_line(result: Result, peer: str) -> str:
    ratios = result.ratios(peer)
    median = statistics.median(ratios)
    digits = 2 if result.median(peer) >= 10 else 3
    line = f"{OURS} / {peer}: {median:.{digits}f} ({ratios[0]:.{digits}f} to {ratios[-1]:.{digits}f})"
    limit = result.case.limits.get(peer)
    if limit is not None:
        return f"{line}, at most {limit:.2f}: {'met' if median <= limit else 'MISSED'}"
    target = result.case.targets.get(peer)
    if target is None:
        return line
    return f"{line}, target {target:.2f}: {'met' if median >= target else 'MISSED'}"


def shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3f}"


def machine() -> dict[str, object]:
    return {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "load": os.getloadavg()[0],
    }


def chart(title: str, results: list[Result]) -> str:
    """Bars of the medians, one panel a case, each on its own scale."""
    bar, gap, left, width = 18, 34, 190, 420
    ours, peers = "#2563eb", ["#9ca3af", "#d1d5db", "#e5e7eb"]
    parts, y = [], 40
    for result in results:
        parts.append(text(10, y, f"{result.case.name}, {result.case.unit}", weight="bold"))
        medians = {name: result.median(name) for name in result.figures}
        longest = max(medians.values()) or 1
        for number, (name, value) in enumerate(medians.items()):
            colour = ours if name == OURS else peers[min(number - 1, len(peers) - 1)]
            y += bar + 4
            length = max(1, round(width * value / longest))
            parts.append(text(left - 8, y, name, anchor="end"))
            parts.append(
                f'<rect x="{left}" y="{y - bar + 4}" width="{length}" height="{bar}" fill="{colour}"/>'
            )
            parts.append(text(left + length + 6, y, shown(value)))
        y += gap
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 100}" height="{y}" '
        'font-family="sans-serif" font-size="13"><rect width="100%" height="100%" fill="white"/>'
    )
    return "\n".join([head, text(10, 20, title, weight="bold"), *parts, "</svg>"]) + "\n"


def text(x: int, y: int, content: str, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-weight="{weight}">{content}</text>'


@contextlib.contextmanager
def scratch(parent: str | None = None) -> Iterator[Path]:
    """A directory with a short path, for sockets; in /tmp or the like, if `parent` is not given."""
    path = Path(tempfile.mkdtemp(prefix="uzram-bench.", dir=parent))
    try:
        yield path
    finally:
        with cleaning_up():
            shutil.rmtree(path)


@contextlib.contextmanager
def running(command: list[str], ready: Callable[[], bool], **options) -> Iterator[subprocess.Popen]:
    """A program from when it is ready until it is terminated. A key that interrupts the benchmark does
    not reach it: it goes when it is its turn."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True, **options)
    try:
        wait_until_ready(command, process, ready)
        yield process
    finally:
        with cleaning_up():
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_ready(command: list[str], process: subprocess.Popen, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"{' '.join(command)}: it did not start")
        time.sleep(0.05)


@contextlib.contextmanager
def serving(uzram: Path, directory: Path, *arguments: str) -> Iterator[tuple[str, dict[str, str]]]:
    """A device `bench` served over NBD: its URI, and the environment to speak to its server in."""
    where = directory / "nbd.sock"
    environment = {"UZRAM_RUNDIR": str(directory / "run"), "PATH": "/usr/sbin:/usr/bin:/bin"}
    command = [str(uzram), "--quiet", "serve", "bench", *arguments, f"--nbd=unix:{where}"]

    def ready() -> bool:
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(where))
            return True
        except OSError:
            return False

    with running(command, ready, env=environment, stderr=subprocess.DEVNULL):
        yield f"nbd+unix:///?socket={where}", environment


def run(command: list[str], **options) -> str:
    """What a program prints; ends the benchmark if it fails."""
    with start(command, **options) as process:
        try:
            output, errors = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise SystemExit(f"{' '.join(command)}: not done after {PATIENCE} s") from None
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: status {process.returncode}\n{errors or ''}")
    return output


@contextlib.contextmanager
def start(command: list[str], **options) -> Iterator[subprocess.Popen]:
    """A program whose output is read. If the benchmark ends first, so does the program, with all that
    it has started."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with subprocess.Popen(command, start_new_session=True, text=True, **options) as process:
        try:
            yield process
        except BaseException:
            end_session(process)
            raise


def end_session(process: subprocess.Popen) -> None:
    for how, patience in ((signal.SIGTERM, 10), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def fio(uri: str, rw: str, bs: str, depth: int, jobs: int, seconds: int, size: str) -> tuple[float, float]:
    """Requests and MiB a second of fio's nbd engine, on data that compresses by 60%."""
    return fio_with(["--ioengine=nbd", f"--uri={uri}"], rw, bs, depth, jobs, seconds, size)


def fio_with(
    where: list[str], rw: str, bs: str, depth: int, jobs: int, seconds: int, size: str
) -> tuple[float, float]:
    """Requests and MiB a second; `seconds` is 0 for a single pass."""
    output = run(
        [
            "fio",
            "--name=bench",
            *where,
            f"--rw={rw}",
            f"--bs={bs}",
            f"--iodepth={depth}",
            f"--numjobs={jobs}",
            f"--size={size}",
            "--buffer_compress_percentage=60",
            "--group_reporting",
            "--output-format=json",
            *([] if seconds == 0 else ["--time_based", f"--runtime={seconds}"]),
        ]
    )
    # Warnings come first, on stdout as well.
    job = json.loads(output[output.index("{") :])["jobs"][0]
    side = job["read" if "read" in rw else "write"]
    return side["iops"], side["bw_bytes"] / (1 << 20)
