"""Reading ahead: images, masks and preprocessing of the next part while the model works on this one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from backbones.base import ClipPixels, Pixels
from backbones.parts.clips import Clip
from harness.data import Sample, content
from harness.engine.truth import ClipTruth, ImageTruth, Truth
from harness.metrics.base import Medium
from pruners.base import UserError

Key = tuple[int, int]  # number of the split, number of the part in it
DEAD = "DataLoader worker"  # in all that torch says of a worker that is gone
Preprocess = Callable[[NDArray[np.uint8]], Pixels] | Callable[[Clip], ClipPixels]


class Loaded(NamedTuple):
    """One image or clip, ready for the model.

    Attributes:
        image: (H, W, 3) uint8, of a clip the first frame.
        truth: what its expressions name.
        error: why there is nothing, empty if there is.
        content: digest of what was read, as `harness.data.content` has it.
    """

    sample: Sample
    image: NDArray[np.uint8] | None
    pixels: Pixels | ClipPixels | None
    truth: Truth | None
    error: str = ""
    content: str = ""

    def held_to(self, content: str) -> Loaded:
        """The same, if it is what the run began with; otherwise why there is nothing."""
        if self.error or self.content == content:
            return self
        why = f"{self.sample.id} was changed while the run went on; put its image back, or begin a new run."
        return Loaded(self.sample, None, None, None, why)

    def again(self) -> Loaded:
        """The same, if its files still hold what was read; otherwise why there is nothing."""
        return self if self.error else self._replace(content=content(self.sample)).held_to(self.content)


class Parts(Dataset[tuple[Key, list[Loaded]]]):
    """Parts of all splits; `parts[split][number]` are the samples of one.

    Args:
        preprocess: a backbone's, of images or of clips.
        medium: what the samples are.
    """

    def __init__(
        self,
        parts: Sequence[Sequence[Sequence[Sample]]],
        preprocess: Preprocess,
        medium: Medium = "image",
    ) -> None:
        self.parts, self.medium = parts, medium
        self.preprocess: Callable[[Any], Pixels | ClipPixels] = preprocess

    def __getitem__(self, key: Key) -> tuple[Key, list[Loaded]]:
        return key, [self._load(sample) for sample in self.parts[key[0]][key[1]]]

    def _load(self, sample: Sample) -> Loaded:
        try:
            image = sample.image()
            of = ClipTruth if self.medium == "video" else ImageTruth
            seen = sample.clip() if self.medium == "video" else image
            return Loaded(sample, image, self.preprocess(seen), of(sample), content=content(sample))
        except UserError as error:
            return Loaded(sample, None, None, None, str(error))
        except Exception as error:  # whatever an image does to the preprocessing costs that image alone
            return Loaded(sample, None, None, None, repr(error))


def _as_it_is(part: tuple[Key, list[Loaded]]) -> tuple[Key, list[Loaded]]:
    return part


def read_ahead(
    parts: Parts, keys: Iterable[Key], workers: int, pin: bool
) -> Iterator[tuple[Key, list[Loaded]]]:
    """Load parts in the order of `keys`, which is drawn from as parts are needed, at most two parts per
    worker ahead.

    Args:
        workers: processes that load; 0 loads in this one, when asked.
        pin: pinned memory, for copies to a GPU that overlap with its work.

    Raises:
        UserError: a loading process was killed.
    """
    keys = iter(keys)
    own: list[Exception] = []  # what the drawing of keys raises is none of the loader's faults
    for first in keys:  # no worker is started for nothing
        loader = DataLoader(
            parts,
            batch_size=None,
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            sampler=_noting(chain([first], keys), own),  # type: ignore[arg-type]
            num_workers=workers,
            pin_memory=pin,
            prefetch_factor=2 if workers else None,
        )
        try:
            yield from _told_when_asked(loader) if workers else loader
        except (RuntimeError, OSError, EOFError) as error:
            if not workers or (error in own and DEAD not in str(error)):
                raise
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"A process that reads images ahead was killed or ran out of memory ({reason}); nothing "
                f"recorded is lost, give the same command again, with fewer than --workers {workers}."
            ) from error


def _noting(keys: Iterable[Key], raised: list[Exception]) -> Iterator[Key]:
    try:
        yield from keys
    except Exception as error:
        raised.append(error)
        raise


class _Watch:
    """A handler of SIGCHLD that raises the death of a worker where a part is waited for, and nowhere else.

    torch's own raises wherever this process is: amid a forward pass, it would be taken for the fault of an
    image. Without any, a message that the worker had written in part would be waited for without end.
    """

    def __init__(self, theirs: Any) -> None:
        self.theirs: Any = theirs.theirs if isinstance(theirs, _Watch) else theirs
        self.waiting = False
        self.died: RuntimeError | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        try:
            if callable(self.theirs):
                self.theirs(number, frame)
        except RuntimeError as error:
            self.died = error
            if self.waiting:
                raise


def _told_when_asked(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's parts; a worker's death is raised here."""
    found = iter(loader)  # the first one of a process sets torch's handler
    watch = _Watch(signal.getsignal(signal.SIGCHLD))
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, watch)  # and stays: the loader is taken down after its last part
    while True:
        watch.waiting = True  # before the look at `died`, so that no death falls between the two
        try:
            if watch.died is not None:
                raise watch.died
            part = next(found)
        except StopIteration:
            return
        finally:
            watch.waiting = False
        yield part
