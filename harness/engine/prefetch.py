"""Reading ahead: images, masks and preprocessing of the next part while the model works on this one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from itertools import chain
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from backbones.base import ClipPixels, Pixels
from backbones.parts.clips import Clip
from harness.data import Sample, content
from harness.data.sample import FileDigest, file_digest
from harness.engine.truth import ClipTruth, ImageTruth, Truth
from harness.metrics.base import Medium
from pruners.base import UserError

DEAD = "DataLoader worker"  # in all that torch says of a worker that is gone
Preprocess = Callable[[NDArray[np.uint8]], Pixels] | Callable[[Clip], ClipPixels]


class Loaded(NamedTuple):
    """One sample, ready for the model.

    Attributes:
        truth: what its expressions name.
        error: why there is nothing, empty if there is.
        content: digest of what was read, as `harness.data.content` has it.
    """

    sample: Sample
    truth: Truth | None
    error: str = ""
    content: str = ""

    def held_to(self, content: str) -> Loaded:
        """The same, if it is what the run began with; otherwise why there is nothing."""
        if self.error or self.content == content:
            return self
        why = f"{self.sample.id} was changed while the run went on; put its image back, or begin a new run."
        return Loaded(self.sample, None, why)


class LoadedMedium(NamedTuple):
    """An image or a clip, ready for the model, with all samples that ask about it.

    Attributes:
        image: (H, W, 3) uint8, of a clip the first frame; None if it could not be read.
        pixels: as the backbone prepares them.
    """

    image: NDArray[np.uint8] | None
    pixels: Pixels | ClipPixels | None
    samples: list[Loaded]

    def again(self) -> LoadedMedium:
        """The same; of samples whose files hold something else by now, why there is nothing."""
        of_file = cache(file_digest)
        return self._replace(
            samples=[
                one if one.error else one._replace(content=content(one.sample, of_file)).held_to(one.content)
                for one in self.samples
            ]
        )


class Parts(Dataset[tuple[int, list[LoadedMedium]]]):
    """Parts of a run; `parts[number]` has the samples of each of its media.

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

    def __getitem__(self, number: int) -> tuple[int, list[LoadedMedium]]:
        return number, [one for samples in self.parts[number] for one in self._load(samples)]

    def _load(self, samples: Sequence[Sample]) -> list[LoadedMedium]:
        """One medium; where it cannot be read, each of its samples by itself, to say so in its own words."""
        first = samples[0]
        try:
            image = first.image()
            pixels = self.preprocess(first.clip() if self.medium == "video" else image)
        except Exception as error:  # whatever an image does to the preprocessing costs that image alone
            if len(samples) > 1:
                return [one for sample in samples for one in self._load([sample])]
            return [LoadedMedium(None, None, [Loaded(first, None, _why(error))])]
        of_file = cache(file_digest)
        return [LoadedMedium(image, pixels, [self._asked(sample, of_file) for sample in samples])]

    def _asked(self, sample: Sample, of_file: FileDigest) -> Loaded:
        of = ClipTruth if self.medium == "video" else ImageTruth
        try:
            return Loaded(sample, of(sample), content=content(sample, of_file))
        except Exception as error:  # a segmentation costs its sample alone
            return Loaded(sample, None, _why(error))


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else repr(error)


def _as_it_is(part: tuple[int, list[LoadedMedium]]) -> tuple[int, list[LoadedMedium]]:
    return part


def read_ahead(
    parts: Parts, keys: Iterable[int], workers: int, pin: bool
) -> Iterator[tuple[int, list[LoadedMedium]]]:
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


def _noting(keys: Iterable[int], raised: list[Exception]) -> Iterator[int]:
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
