"""Reading ahead: images, masks and preprocessing of the next part while the model works on this one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from backbones.base import Pixels
from harness.data import Sample
from pruners.base import UserError

Key = tuple[int, int]  # number of the split, number of the part in it
Preprocess = Callable[[NDArray[np.uint8]], Pixels]


class Loaded(NamedTuple):
    """One image, ready for the model.

    Attributes:
        image: (H, W, 3) uint8.
        truth: (E, H, W) uint8.
        error: why there is nothing, empty if there is.
    """

    sample: Sample
    image: NDArray[np.uint8] | None
    pixels: Pixels | None
    truth: NDArray[np.uint8] | None
    error: str = ""


class Parts(Dataset[tuple[Key, list[Loaded]]]):
    """Parts of all splits; `parts[split][number]` are the samples of one."""

    def __init__(self, parts: Sequence[Sequence[Sequence[Sample]]], preprocess: Preprocess) -> None:
        self.parts, self.preprocess = parts, preprocess

    def __getitem__(self, key: Key) -> tuple[Key, list[Loaded]]:
        return key, [self._load(sample) for sample in self.parts[key[0]][key[1]]]

    def _load(self, sample: Sample) -> Loaded:
        try:
            image, truth = sample.image(), sample.masks()
            return Loaded(sample, image, self.preprocess(image), truth)
        except UserError as error:
            return Loaded(sample, None, None, None, str(error))
        except Exception as error:  # whatever an image does to the preprocessing costs that image alone
            return Loaded(sample, None, None, None, repr(error))


def _as_it_is(part: tuple[Key, list[Loaded]]) -> tuple[Key, list[Loaded]]:
    return part


def read_ahead(parts: Parts, keys: Iterable[Key], workers: int, pin: bool) -> Iterator[tuple[Key, list[Loaded]]]:
    """Load parts in the order of `keys`, which is drawn from as parts are needed, at most two parts per worker ahead.

    Args:
        workers: processes that load; 0 loads in this one, when asked.
        pin: pinned memory, for copies to a GPU that overlap with its work.

    Raises:
        UserError: a loading process was killed.
    """
    keys = iter(keys)
    for first in keys:  # no worker is started for nothing
        loader = DataLoader(
            parts,
            batch_size=None,
            collate_fn=_as_it_is,  # type: ignore[arg-type]
            sampler=chain([first], keys),  # type: ignore[arg-type]
            num_workers=workers,
            pin_memory=pin,
            prefetch_factor=2 if workers else None,
        )
        try:
            yield from _unsignalled(loader)
        except RuntimeError as error:
            if not workers or "DataLoader worker" not in str(error):
                raise
            raise UserError(
                "A process that reads images ahead was killed, as happens when memory ends; nothing recorded is lost, "
                f"give the same command again, with fewer than --workers {workers}."
            ) from error


def _unsignalled(loader: DataLoader[Any]) -> Iterator[Any]:
    """The loader's parts. A worker's death is told where the next part is asked for.

    torch's handler of SIGCHLD would raise wherever this process is at that moment: amid a forward pass, where it would
    be taken for the fault of an image.
    """
    before = signal.getsignal(signal.SIGCHLD)
    found = iter(loader)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
    yield from found
