"""Several processes of one thread each instead of one process of several threads.

A small model's products are too small to be shared by threads, which then wait for each other most of the
time; parts of a run are independent of each other. So the process forks when the model and the data are
loaded, and each process claims parts as those of a launcher do.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from harness import progress
from harness.engine.ranks import Place

DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux: sent to a process when its parent ends


@contextmanager
def forked(count: int, work: Callable[[Place], object]) -> Iterator[Place]:
    """While it is entered, `count` processes work: this one, which is given its place, and others that do
    `work` at theirs. All of them have one thread; this one has as many as before afterwards.

    The others say nothing, and this process does what they leave. On an error, Ctrl-C included, they finish
    the part that they are at and go.
    """
    if count < 2:
        yield Place()
        return
    threads, mine = torch.get_num_threads(), os.getpid()
    torch.set_num_threads(1)
    sys.stdout.flush()
    sys.stderr.flush()
    others = []
    try:
        for rank in range(1, count):
            try:
                child = os.fork()
            except OSError:  # too many processes, or too little memory for one more
                break
            if not child:
                _end_with(mine, lambda rank=rank: work(Place(rank, count)))  # type: ignore[misc]
            others.append(child)
        yield Place(0, count)
    except BaseException:
        for child in others:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGTERM)
        raise
    finally:
        for child in others:
            with suppress(ChildProcessError):
                os.waitpid(child, 0)
        torch.set_num_threads(threads)


def _end_with(parent: int, work: Callable[[], object]) -> None:
    """Work in a process that was forked, and end it; it goes on no longer than its parent."""
    try:
        progress.mute()
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() == parent:
            work()
    finally:
        os._exit(0)  # whatever it raised: nothing of the parent's is cleaned up here
