"""What a command is doing, on stderr: a tqdm bar on a terminal; elsewhere (`| tee`, nohup, CI) a line at once
and one every 30 s, each with done, total, elapsed time and what is left.

A thread keeps the clock going while one step takes long. Of a launcher's processes the first one alone
speaks.

    with stage("painting RefShapes", total=96, unit="image") as progress:
        for scene in scenes:
            paint(scene)
            progress.advance()

Importing this module imports nothing heavy.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

LINE_EVERY = 30.0  # seconds between two lines where there is no terminal
DRAW_EVERY = 1.0  # seconds between two looks at the clock on one
KEPT = 10.0  # seconds after which a stage leaves its bar on the terminal
Item = TypeVar("Item")

# held by whoever writes, so that no process is forked in the middle of a line
_writing = threading.RLock()
os.register_at_fork(
    before=_writing.acquire, after_in_parent=_writing.release, after_in_child=_writing.release
)
_open: list[Stage] = []  # what is going on, the innermost last
_muted = False
stopped = threading.Event()  # Ctrl-C was raised; a library's bare `except` may have swallowed that


def speaks() -> bool:
    """Whether this process may write there: it is alone, or a launcher's first."""
    from harness.engine.ranks import VARIABLES

    if _muted:
        return False
    for rank, world, _ in VARIABLES:
        if rank in os.environ and world in os.environ:
            return os.environ[rank].strip() == "0"
    return True


def mute() -> None:
    """Let this process say nothing any more: it was forked from one that speaks."""
    global _muted
    _muted = True


def say(*sentences: str) -> None:
    """Print sentences at once, above a bar that is there."""
    if not speaks():
        return
    with _writing:
        bar = next((one.bar for one in reversed(_open) if one.bar is not None), None)
        if bar is not None:
            bar.clear()
        for sentence in sentences:
            sys.stderr.write(f"{sentence}\n")  # in one piece, beside what other processes write
            sys.stderr.flush()
        if bar is not None:
            bar.refresh()


def on_terminal() -> bool:
    """Whether stderr is a terminal."""
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):  # replaced, or closed
        return False


def _size() -> dict[str, Any]:
    """How tqdm is to see the terminal's size: as it is at any time, or as usual where it has none, as that of
    `docker exec -t` and of `script` may."""
    try:
        columns, lines = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return {"dynamic_ncols": True}
    return {"dynamic_ncols": True} if columns and lines else {"ncols": columns or 80, "nrows": lines or 24}


class Stage:
    """One thing that a command does, while it is entered; made by `stage`.

    Attributes:
        done: how much of it; may be a part of a unit.
        total: how much there is; None where nobody knows.
    """

    def __init__(
        self, what: str, total: float | None, unit: str, done: float, note: str, quiet: bool
    ) -> None:
        self.what, self.total, self.unit, self.done, self.note = what, total, unit, done, note
        self.bar: tqdm[Any] | None = None
        self._before = done  # what was there when this began
        self._quiet = quiet or not speaks()
        self._begin = 0.0
        self._ended = threading.Event()

    def advance(self, by: float = 1, note: str | None = None) -> None:
        """So much more is done.

        Args:
            note: what is going on inside, in a few words; by default as before.
        """
        self.at(self.done + by, note)

    def at(self, done: float, note: str | None = None) -> None:
        """So much is done, whoever did it.

        Raises:
            KeyboardInterrupt: Ctrl-C was pressed, and whoever it reached went on.
        """
        if stopped.is_set() and threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        self.done = done if self.total is None else min(done, self.total)
        if note is not None:
            self.note = note
        # the thread may be drawing; then it draws this, too, or will
        if self.bar is not None and time.monotonic() - self._drawn >= self.bar.mininterval:
            self._draw()

    def more(self, total: float) -> None:
        """There is so much more to do than was known."""
        self.total = (self.total or 0) + total

    def line(self) -> str:
        """What there is to say now, for a log."""
        elapsed = time.monotonic() - self._begin
        said = f"{self.what}: "
        if self.total is not None:
            said += f"{_number(self.done)} of {_number(self.total)} {self.unit}, "
        said += f"{_clock(elapsed)} elapsed"
        if (left := self._left(elapsed)) is not None:
            said += f", about {_clock(left)} left"
        return f"{said} ({self.note})" if self.note else said

    def _left(self, elapsed: float) -> float | None:
        """Seconds that are left at the pace so far; None where there is none yet."""
        mine = self.done - self._before
        if self.total is None or mine <= 0 or elapsed < 1:
            return None
        return elapsed * (self.total - self.done) / mine

    def __enter__(self) -> Stage:
        self._begin = self._drawn = time.monotonic()
        if self._quiet:
            return self
        if on_terminal():
            self.bar = self._made()
        else:
            begun = f"{self.what}: {_number(self.total)} {self.unit}" if self.total else self.what
            already = f", {_number(self.done)} done already" if self.done else ""
            say(f"{begun}{already}{f' ({self.note})' if self.note else ''} ...")
        _open.append(self)
        threading.Thread(target=self._watch, daemon=True, name="progress").start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._ended.set()
        if self not in _open:
            return
        with _writing:
            _open.remove(self)
            elapsed = time.monotonic() - self._begin
            if self.bar is not None:
                self.bar.leave = elapsed >= KEPT
                self._draw()
                self.bar.close()
            elif kind is None and elapsed >= LINE_EVERY:
                say(f"{self.what}: done in {_clock(elapsed)}")

    def _watch(self) -> None:
        """Keep the clock going, in a thread of its own."""
        while not self._ended.wait(DRAW_EVERY if self.bar is not None else LINE_EVERY):
            with _writing:
                if self._ended.is_set() or _open[-1:] != [self]:
                    continue  # an inner stage speaks
                if self.bar is not None:
                    self._draw()
                else:
                    say(self.line())

    # -- the bar

    def _made(self) -> tqdm[Any]:
        from tqdm import tqdm

        counted = "{l_bar}{bar}| {n:.0f}/{total:.0f} {unit} [{elapsed}<{remaining}]{postfix}"
        bar = tqdm(
            desc=self.what,
            total=self.total,
            initial=self.done,  # type: ignore[arg-type]
            unit=self.unit,
            bar_format="{desc}: {elapsed}{postfix}" if self.total is None else counted,
            postfix=self.note or None,
            **_size(),
            smoothing=0,  # parts end together: the pace since the beginning is the one that holds
            file=sys.stderr,
        )
        return bar

    def _draw(self) -> None:
        with _writing:
            if self.bar is None:
                return
            if self.total is not None and self.bar.total is not None:
                self.bar.total = self.total  # type: ignore[assignment]
            self.bar.n = self.done  # type: ignore[assignment]
            self.bar.set_postfix_str(self.note, refresh=False)
            self.bar.refresh()
            self._drawn = time.monotonic()


def stage(
    what: str,
    total: float | None = None,
    unit: str = "",
    done: float = 0,
    *,
    note: str = "",
    quiet: bool = False,
) -> Stage:
    """Show that something is done, and how far it is, while the result is entered.

    Args:
        what: in a few words, as "measuring costs".
        total: how much there is to do, None where nobody knows.
        unit: of what, in the plural of a log line, as "images".
        done: how much was there already.
        note: what is going on inside, in a few words.
        quiet: show nothing.
    """
    return Stage(what, total, unit, done, note, quiet)


def each(items: Iterable[Item], what: str, total: int | None = None, unit: str = "images") -> Iterator[Item]:
    """The items, one after the other, and how far that is; `total` by default their number."""
    count = total if total is not None else len(items)  # type: ignore[arg-type]
    with stage(what, count, unit) as progress:
        for item in items:
            yield item
            progress.advance()


def _number(value: float | None) -> str:
    return f"{int(value or 0):,}"


def _clock(seconds: float) -> str:
    hours, rest = divmod(int(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
