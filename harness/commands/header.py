"""What a command says before anything is loaded, and how many threads torch gets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness.engine import threads
from harness.progress import say, stage


@contextmanager
def begin(first: str, asked: int | None = None, *more: str) -> Iterator[None]:
    """Choose the number of threads and say what begins; it is entered while torch and whatever needs it are
    imported.

    Args:
        first: what runs, without a full stop; device and threads are added.
        asked: what `--threads` says.
        more: lines below it.
    """
    chosen = threads.choose(asked)
    threads.apply(chosen)
    say(f"{first}, {chosen}", *more)
    with stage("loading torch and the methods"):
        yield
    threads.apply(chosen)  # once more: MKL takes no more from the environment than the machine has cores


def sweep_header(asked: dict[str, Any], again: bool) -> tuple[str, ...]:
    """What a sweep is asked for, as it was written.

    Args:
        asked: values of the options.
        again: whether they come from a file, but for those that are given.
    """
    limit = asked["limit"]
    images = "as many images as by default" if limit is None else f"{limit or 'all'} images"
    budgets = str(asked["budgets"])
    count = len([one for one in budgets.split(",") if one.strip()])
    first = f"{asked['backbones']} on device {asked['device']}"
    pruners = f"pruners {asked['pruners']} at {count} budget{'s' * (count != 1)} ({budgets})"
    where = f"into {asked['out']}" if asked["out"] else "into a folder below results/runs"
    if again:
        return first, f"as {asked['again']} says, and as the command line says, {where}"
    costs = {"off": "the report", None: "costs, then the report"}.get(
        asked["costs"], f"{asked['costs']} costs, then the report"
    )
    data = f"{asked['datasets']} data sets" if asked["datasets"] == "all" else f"data {asked['datasets']}"
    return first, f"{pruners} on {data}, {images} of each split, {where}; then {costs}"
