"""What a command costs: elapsed and processor time, its own, the server's and the whole machine's."""

import os
import resource
import time
from pathlib import Path

import harness
from harness import Case

TICKS = os.sysconf("SC_CLK_TCK")
ELAPSED, USER, SYSTEM = "elapsed", "user", "system"
SERVER_USER, SERVER_SYSTEM = "user, the server's", "system, the server's"
SYSTEM_WITH_SERVER, BUSY = "system, with the server's", "processors busy"


def cases(elapsed_limits: dict[str, float]) -> list[Case]:
    """The cases that `of` gives figures for; all in seconds, less being better."""
    names = [USER, SYSTEM, SERVER_USER, SERVER_SYSTEM, SYSTEM_WITH_SERVER, BUSY]
    return [Case(ELAPSED, "s", limits=elapsed_limits), *(Case(name, "s") for name in names)]


def of(command: list[str], server: int | None, **options) -> tuple[str, dict[str, float]]:
    """What a command prints, and what it cost.

    Kernel threads, which compress for kernel zram and carry requests for a loop device, are in none
    but the processors' time, and so is all that the machine did besides, unless it was niced.
    """
    machine, served, own, begun = busy(), process(server), children(), time.monotonic()
    output = harness.run(command, **options)
    elapsed = time.monotonic() - begun
    user, system = (after - before for after, before in zip(children(), own))
    figures = {ELAPSED: elapsed, USER: user, SYSTEM: system, SYSTEM_WITH_SERVER: system}
    if server is not None:
        figures[SERVER_USER], figures[SERVER_SYSTEM] = (
            after - before for after, before in zip(process(server), served)
        )
        figures[SYSTEM_WITH_SERVER] += figures[SERVER_SYSTEM]
    figures[BUSY] = busy() - machine
    return output, figures


def children() -> tuple[float, float]:
    """User and system time of all that was started and has ended, and of what that had started."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime, usage.ru_stime


def process(pid: int | None) -> tuple[float, float]:
    if pid is None:
        return 0.0, 0.0
    # Its name, in parentheses, may hold anything; user and system time are fields 14 and 15.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / TICKS, int(fields[12]) / TICKS


def busy() -> float:
    user, _nice, system, _idle, _wait, interrupts, soft, *_ = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + system + interrupts + soft) / TICKS
