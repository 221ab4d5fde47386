"""How many threads torch gets: as many as there are processors that nobody else keeps busy.

A thread that waits for the others of its pool spins, and the pool waits for its slowest thread: on a machine
that others keep busy, two threads take longer than one (`python -m tests.bench.threads`, docs/scale.md). So
the number follows from what this process may use (affinity, the container's quota), what the others leave
free of it, and how many of a launcher's workers share that. Results do not depend on it.

Importing this module imports nothing heavy: the number has to stand in the environment before torch is there.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

GIVEN = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # what torch reads by itself
SPIN = "GOMP_SPINCOUNT"
WAITING = (SPIN, "OMP_WAIT_POLICY")  # who sets one of these has decided how threads wait
# processes of a launcher on this machine, as torchrun, deepspeed and srun say it
WORKERS = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_NTASKS_PER_NODE")
WINDOW = 0.2  # seconds over which is looked at who keeps the processors busy
MOST = 8  # threads per processor of the machine: what more asks for is a mistake
SLACK = 0.3  # of a processor: one that others keep busy for less than this counts as free
PROC, SYS = Path("/proc"), Path("/sys")


@dataclass(frozen=True)
class Processors:
    """What a process may use.

    Attributes:
        machine: logical processors that there are.
        allowed: numbers of those that its affinity allows.
        cores: physical cores among them; two hardware threads of one share its arithmetic.
        quota: processors' worth of time that its control group may use; None for any.
    """

    machine: int
    allowed: tuple[int, ...]
    cores: int
    quota: float | None = None

    @property
    def usable(self) -> float:
        """Processors' worth of time on cores of its own."""
        return min(self.cores, math.inf if self.quota is None else self.quota)

    def __str__(self) -> str:
        told = f"{len(self.allowed)} of {self.machine} processors allowed"
        if self.cores < len(self.allowed):
            told += f" ({self.cores} cores)"
        return told if self.quota is None else f"{told}, container's quota {self.quota:g}"


@dataclass(frozen=True)
class Choice:
    """A number of threads, and why.

    Attributes:
        given: by the environment, which torch reads itself.
    """

    threads: int
    why: str
    given: bool = False

    def __str__(self) -> str:
        return f"{self.threads} thread{'s' * (self.threads != 1)}: {self.why}"


def processors() -> Processors:
    """What this process may use."""
    machine = os.cpu_count() or 1
    try:
        allowed = tuple(sorted(os.sched_getaffinity(0)))
    except (AttributeError, OSError):  # not Linux
        allowed = tuple(range(machine))
    return Processors(machine, allowed, _cores(allowed), quota())


def _cores(allowed: tuple[int, ...]) -> int:
    found = set()
    for number in allowed:
        place = SYS / f"devices/system/cpu/cpu{number}/topology"
        try:
            found.add((place / "thread_siblings_list").read_text())
        except OSError:
            return len(allowed)
    return len(found)


def quota() -> float | None:
    """Processors' worth of time that this process's control group, or one above it, may use; of version 1 or
    2 of control groups."""
    try:
        lines = (PROC / "self/cgroup").read_text().splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            found += [_limit_2(folder) for folder in _upwards(SYS / "fs/cgroup", path)]
            found += [_limit_2(folder) for folder in _upwards(SYS / "fs/cgroup/unified", path)]
        elif "cpu" in controllers.split(","):
            for base in (SYS / "fs/cgroup/cpu", SYS / "fs/cgroup/cpu,cpuacct"):
                found += [_limit_1(folder) for folder in _upwards(base, path)]
    return min((one for one in found if one is not None), default=None)


def _upwards(base: Path, path: str) -> list[Path]:
    """Folders of a group and all above it; in a container the group's own is the base."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [base.joinpath(*parts[:count]) for count in range(len(parts), -1, -1)]


def _limit_2(folder: Path) -> float | None:
    with suppress(OSError, ValueError):
        limit, period = (folder / "cpu.max").read_text().split()
        return int(limit) / int(period) if limit != "max" else None
    return None


def _limit_1(folder: Path) -> float | None:
    with suppress(OSError, ValueError):
        limit = int((folder / "cpu.cfs_quota_us").read_text())
        return limit / int((folder / "cpu.cfs_period_us").read_text()) if limit > 0 else None
    return None


@dataclass(frozen=True)
class Look:
    """A look at the clocks of the processors: seconds in which each was busy, and this process's own."""

    at: float
    busy: Mapping[int, float]
    own: float

    @classmethod
    def now(cls) -> Look:
        """The present one; of no processor where the system does not tell."""
        busy: dict[int, float] = {}
        own = time.process_time()
        with suppress(OSError, ValueError, IndexError, AttributeError):
            tick = os.sysconf("SC_CLK_TCK")
            for line in (PROC / "stat").read_text().splitlines():
                name, *spent = line.split()
                if name.startswith("cpu") and name != "cpu":
                    user, nice, system, _, _, irq, soft, *rest = map(int, spent)
                    stolen = rest[0] if rest else 0  # by other guests of the host
                    busy[int(name[3:])] = (user + nice + system + irq + soft + stolen) / tick
        return cls(time.monotonic(), busy, own)


_begun = Look.now()


def others(allowed: tuple[int, ...], before: Look | None = None) -> float | None:
    """How many of the allowed processors others keep busy; None where the system does not tell.

    Read off the processors' clocks over a short while, this process's own time taken away. The load average
    is of the whole machine and of the last minute, the command that was stopped a moment ago included; it is
    asked where there are no clocks.

    Args:
        before: when the while began; by default when the command did.
    """
    before = before or _begun
    if (rest := WINDOW - (time.monotonic() - before.at)) > 0:
        time.sleep(rest)
    now = Look.now()
    known = [number for number in allowed if number in now.busy and number in before.busy]
    if not known:
        try:
            return min(os.getloadavg()[0], len(allowed))
        except (AttributeError, OSError):
            return None
    busy = sum(now.busy[number] - before.busy[number] for number in known) - (now.own - before.own)
    return max(0.0, min(float(len(known)), busy / (now.at - before.at)))


def workers(environment: Mapping[str, str]) -> int:
    """How many processes of a launcher share this machine's processors with this one, itself included."""
    if "SLURM_CPUS_PER_TASK" in environment:  # srun has bound every task to its own
        return 1
    for name in WORKERS:
        with suppress(ValueError):
            return max(1, int(environment.get(name, "")))
    return 1


def choose(
    asked: int | None = None,
    environment: Mapping[str, str] | None = None,
    there: Processors | None = None,
    busy: float | None = None,
) -> Choice:
    """The number of threads for this process.

    Args:
        asked: what `--threads` says.
        environment: by default the process's.
        there, busy: what it may use, and how many processors others keep busy; by default what is the case.
    """
    environment = os.environ if environment is None else environment
    if asked is not None:
        return Choice(asked, "as --threads says")
    # torchrun says 1 where nobody said anything
    by_torchrun = "TORCHELASTIC_RUN_ID" in environment and environment.get(GIVEN[0]) == "1"
    for name in GIVEN:
        with suppress(ValueError):
            if (number := int(environment.get(name, "").split(",")[0])) > 0 and not by_torchrun:
                return Choice(number, f"{name} says so", given=True)
    there = there or processors()
    busy = others(there.allowed) if busy is None else busy
    sharing = workers(environment)
    # workers that begin together look busy to each other
    taken = max(0.0, (busy or 0.0) - (sharing - 1))
    free = min(there.usable, there.cores - taken)
    threads = max(1, math.floor(free / sharing + SLACK))
    why = f"{there}, others keep {taken:.1f} busy"
    return Choice(threads, why if sharing == 1 else f"{why}, {sharing} workers share them")


def apply(choice: Choice) -> None:
    """Give torch its threads: through the environment, for what it loads and the processes that are started,
    and directly where it is imported already.

    None of them spins unless the environment says so: the machine may become busy later.
    """
    if not choice.given:
        for name in GIVEN:
            os.environ[name] = str(choice.threads)
    if not any(name in os.environ for name in WAITING):
        os.environ[SPIN] = "0"
    if (torch := sys.modules.get("torch")) is not None and not choice.given:
        torch.set_num_threads(choice.threads)
