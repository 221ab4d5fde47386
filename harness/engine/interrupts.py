"""Ctrl-C and SIGTERM. A run stops between two parts, so that no library is interrupted in the middle of its
work; a second Ctrl-C does not wait for that.

Importing this module imports nothing heavy.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType

from harness.engine.ranks import VARIABLES
from harness.progress import on_terminal, speaks, stopped

INTERRUPTED, TERMINATED = 130, 143  # exit codes after Ctrl-C and SIGTERM
GRACE = 0.7  # seconds that a second Ctrl-C gives the libraries before the process ends without them
NOW = "stopping; Ctrl-C again to stop without waiting for it"
AFTER = "stopping after {}; Ctrl-C again to stop now"

_kept: list[str] | None = None  # options with which the command finds what it has recorded
_word = NOW  # what a first Ctrl-C is answered with
_keys: Keys | None = None  # of this process, while the command line runs


class Terminated(BaseException):
    """SIGTERM; no `except Exception` may swallow it."""


def terminate(number: int, frame: FrameType | None) -> None:
    """Handler of SIGTERM where nothing has to be finished first."""
    raise Terminated


def goes_on(*words: str) -> None:
    """From now on something is recorded, and the same command goes on with it.

    Args:
        words: options that it needs to find it again.
    """
    global _kept
    _kept = list(words)


def farewell() -> str:
    """What is said last: how to go on, or to begin again."""
    program = Path(sys.argv[0])
    start = ["python", "-m", "harness"] if program.suffix == ".py" else [program.name]
    words = sys.argv[1:]
    if _kept is not None and "--out" in _kept:  # anew would be anew once more
        words = [word for word in words if word != "--force"]
    command = shlex.join([*start, *words, *(_kept or ())])
    if any(world in os.environ for _, world, _ in VARIABLES):
        command = "the same command, under its launcher"
    if _kept is None:
        return f"stopped, nothing was recorded; to begin again: {command}"
    return f"stopped, nothing recorded is lost; to go on: {command}"


def interrupted() -> bool:
    """Whether Ctrl-C was pressed since the command began: an import or a C library that it hits may raise
    any error."""
    return _keys is not None and not _keys.unanswered


class Keys:
    """While it is entered, every Ctrl-C is answered at once, and the second one ends the process.

    Python runs a handler between two of its own steps, which a long forward pass delays; so a thread reads
    the signals, through `signal.set_wakeup_fd`. Every record is whole however a process ends, see
    `harness.store.journal`.

    Args:
        farewell: makes what is said last.
    """

    def __init__(self, farewell: Callable[[], str]) -> None:
        self.farewell = farewell
        self.unanswered = [True]  # until the first Ctrl-C; the thread or the handler takes it out
        self._process = os.getpid()
        self._before: object = None
        self._pipe: tuple[int, int] | None = None
        self._woken = -1  # what signals were written to before, as by an event loop

    def __enter__(self) -> Keys:
        global _keys, _kept
        _kept = None
        stopped.clear()
        if threading.current_thread() is not threading.main_thread():
            return self
        self._before = signal.getsignal(signal.SIGINT)
        if self._before is not signal.SIG_IGN:  # nohup and a shell's `&` in a script
            signal.signal(signal.SIGINT, self._raise)
        read, write = self._pipe = os.pipe()
        os.set_blocking(write, False)
        self._woken = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(read,), daemon=True, name="keys").start()
        _keys = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _keys
        if self._pipe is None:
            return
        signal.set_wakeup_fd(self._woken)
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)  # type: ignore[arg-type]
        os.close(self._pipe[1])  # the thread reads the end of the pipe
        _keys = None
        stopped.clear()

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._process:  # a process that reads images ahead goes with its parent
            self.answer()
            stopped.set()
            raise KeyboardInterrupt

    def answer(self) -> None:
        """Answer the first Ctrl-C, once."""
        with suppress(IndexError):
            self.unanswered.pop()
            _tell(_word)

    def _listen(self, read: int) -> None:
        count = 0
        with suppress(OSError):
            while heard := os.read(read, 64):
                for _ in range(heard.count(signal.SIGINT)):
                    count += 1
                    self.answer()
                    if count == 2:
                        threading.Timer(GRACE, self._end).start()
        os.close(read)

    def _end(self) -> None:
        if _keys is self:  # not gone by itself
            _tell(self.farewell())
            os._exit(INTERRUPTED)


def _tell(sentence: str) -> None:
    """Write a sentence without Python's own buffers, which the main thread may be in the middle of."""
    if speaks():
        with suppress(OSError):
            os.write(2, f"{chr(10) if on_terminal() else ''}{sentence}\n".encode())


os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1) if _keys is not None else None)


class Stops:
    """While it is entered, the first signal is remembered, and a second one acts at once.

    An exception out of a signal handler can surface inside a C library, which may turn it into another error;
    then a sound image would be recorded as broken.

    Args:
        unit: what is finished first, in words.
        forked: whether SIGTERM is the word of the process that it was forked from, which may have stopped for
            the same Ctrl-C: then it is no second signal.
    """

    def __init__(self, unit: str = "these images", forked: bool = False) -> None:
        self._forked = forked
        self._asked: type[BaseException] | None = None
        self._torn = False  # whether a second signal was raised amid the work
        self._before: dict[int, object] = {}
        self._unit, self._process, self._word = unit, os.getpid(), _word

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        stop = Terminated if number == signal.SIGTERM else KeyboardInterrupt
        if self._asked is not None:
            if self._forked and number == signal.SIGTERM:
                return
            self._torn = True
            raise stop
        self._asked = stop
        if number == signal.SIGINT:
            _keys.answer() if _keys is not None else _tell(_word)

    def __enter__(self) -> Stops:
        global _word
        if threading.current_thread() is threading.main_thread():
            self._word, _word = _word, AFTER.format(self._unit)
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        global _word
        if threading.current_thread() is threading.main_thread():
            _word = self._word
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def check(self) -> None:
        """Stop here if that was asked.

        Raises:
            KeyboardInterrupt, Terminated: it was.
        """
        if self._asked is not None:
            raise self._asked

    def check_torn(self) -> None:
        """Stop here if a second signal came: a library may have made another error of it, so that what was
        computed is no result.

        Raises:
            KeyboardInterrupt, Terminated: one did.
        """
        if self._torn:
            self.check()
