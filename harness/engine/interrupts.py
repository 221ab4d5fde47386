"""Ctrl-C and SIGTERM: a run stops between two parts, so that no library is interrupted in the middle of its
work."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Terminated(BaseException):
    """SIGTERM; no `except Exception` may swallow it."""


def terminate(number: int, frame: FrameType | None) -> None:
    """Handler of SIGTERM where nothing has to be finished first."""
    raise Terminated


class Stops:
    """While it is entered, the first signal is remembered, and a second one acts at once.

    An exception out of a signal handler can surface inside a C library, which may turn it into another error;
    then a sound image would be recorded as broken.
    """

    def __init__(self) -> None:
        self._asked: type[BaseException] | None = None
        self._before: dict[int, object] = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        stop = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if self._asked is not None:
            raise stop
        self._asked = stop

    def __enter__(self) -> Stops:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def check(self) -> None:
        """Stop here if that was asked.

        Raises:
            KeyboardInterrupt, Terminated: it was.
        """
        if self._asked is not None:
            raise self._asked
