"""What the expressions of a sample name: masks of an image, or of a clip as run lengths."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from backbones.parts.clips import BETWEEN, decoded, run_lengths
from harness.data import Sample
from harness.metrics import FOREGROUND, IGNORED

MOST_HELD = 2**28  # bytes of a clip's masks that are kept decoded


class Truth(ABC):
    """The targets of E expressions."""

    @abstractmethod
    def __len__(self) -> int:
        """E."""

    @abstractmethod
    def of(self, places: Sequence[int]) -> NDArray[np.uint8]:
        """(M, T, H, W) targets of some expressions, as metrics take them."""

    def unspoken(self) -> NDArray[np.uint8]:
        """(X, T, H, W) targets that count though no expression means them; of an image none."""
        return self.of(())

    @abstractmethod
    def seen(self, places: Sequence[int], shown: Sequence[int]) -> NDArray[np.bool_]:
        """Referents of some expressions, as `Backbone.views` takes them: (M, H, W) of an image, (V, M, H, W)
        of a clip.

        Args:
            shown: number of the frame that each view shows.
        """

    @abstractmethod
    def runs(self, place: int) -> str:
        """Run lengths of an expression's target, frame by frame."""


class ImageTruth(Truth):
    """Of an image.

    Raises:
        DataError: a segmentation is malformed.
    """

    def __init__(self, sample: Sample) -> None:
        self._masks = sample.masks()

    def __len__(self) -> int:
        return len(self._masks)

    def of(self, places: Sequence[int]) -> NDArray[np.uint8]:
        return self._masks[list(places)][:, None]

    def seen(self, places: Sequence[int], shown: Sequence[int]) -> NDArray[np.bool_]:
        return self._masks[list(places)] == FOREGROUND

    def runs(self, place: int) -> str:
        return run_lengths(self._masks[place] == FOREGROUND)


class ClipTruth(Truth):
    """Of a clip; one frame at a time is rasterised, and run lengths are kept.

    Raises:
        DataError: a segmentation is malformed, or a frame's file of masks cannot be read.
    """

    def __init__(self, sample: Sample) -> None:
        self._size = sample.height, sample.width
        self._dense: dict[tuple[int, ...], NDArray[np.uint8]] = {}
        self._count, self._rest = len(sample.expressions), len(sample.unspoken)
        self._targets: list[list[str]] = []  # frame by frame, of every expression
        self._void: list[list[str]] = []
        for frame in range(len(sample.frames)):
            masks = np.concatenate([sample.masks(frame), sample.unspoken_masks(frame)])
            self._targets.append([run_lengths((one != 0) & (one != IGNORED)) for one in masks])
            self._void.append(
                [run_lengths(one == IGNORED) if (one == IGNORED).any() else "" for one in masks]
            )

    def __len__(self) -> int:
        return self._count

    def of(self, places: Sequence[int]) -> NDArray[np.uint8]:
        if (key := tuple(places)) not in self._dense:
            found = self._decoded(key)
            if sum(one.nbytes for one in self._dense.values()) + found.nbytes > MOST_HELD:
                return found
            self._dense[key] = found  # every cell asks for the same ones again
        return self._dense[key]

    def _decoded(self, places: Sequence[int]) -> NDArray[np.uint8]:
        found = np.zeros((len(places), len(self._targets), *self._size), dtype=np.uint8)
        for mask, place in zip(found, places, strict=True):
            for one, target, void in zip(mask, self._targets, self._void, strict=True):
                one[decoded(target[place], *self._size)[0]] = FOREGROUND
                if void[place]:
                    one[decoded(void[place], *self._size)[0]] = IGNORED
        return found

    def unspoken(self) -> NDArray[np.uint8]:
        return self.of(range(self._count, self._count + self._rest))

    def seen(self, places: Sequence[int], shown: Sequence[int]) -> NDArray[np.bool_]:
        frames = [[decoded(self._targets[t][place], *self._size)[0] for place in places] for t in shown]
        return np.array(frames, dtype=np.bool_)

    def runs(self, place: int) -> str:
        return BETWEEN.join(target[place] for target in self._targets)
