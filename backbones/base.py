"""What the harness needs of a model: encode an image once, show its tokens to pruners, ground expressions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from pruners.base import Pruner, Selection, VisualTokens


@dataclass(frozen=True)
class Turn:
    """One question and its teacher-forced answer, templates filled in; the answer contains [SEG]."""

    question: str
    answer: str


class Pixels(NamedTuple):
    """An image as the two vision towers want it.

    Attributes:
        vision: (3, h, h) float32 for the vision tower.
        grounding: (3, H', H') float32 for the grounding encoder.
        resized: height and width after the longest-side resize, before padding.
        original: height and width of the raw image.
    """

    vision: Tensor
    grounding: Tensor
    resized: tuple[int, int]
    original: tuple[int, int]


@dataclass(frozen=True)
class Encoding:
    """What an image costs once, whatever pruners and expressions follow.

    Attributes:
        hidden_states: outputs of the vision tower's embedding and layers up to the penultimate, each (N+1,
            C); the last one is what the projector gets (class token in row 0).
        embedding: (P, g, g) grounding-encoder embedding.
        resized: height and width after the longest-side resize, before padding.
        original: height and width of the raw image.
        signals: answers that pruners have already asked for.
    """

    hidden_states: tuple[Tensor, ...]
    embedding: Tensor
    resized: tuple[int, int]
    original: tuple[int, int]
    signals: dict[Any, Tensor] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True)
class Row:
    """One conversation about one image under one pruner.

    Attributes:
        selections: what the pruner lets into the language model of every view; () of one that acts inside the
            language model alone, where everything enters.
        sample: stable id of the image, for pruners that draw while the model runs.
    """

    encoding: Encoding
    turns: tuple[Turn, ...]
    pruner: Pruner
    budget: int
    selections: tuple[Selection, ...]
    sample: str = ""


@dataclass(frozen=True)
class Grounded:
    """What came out of a row.

    Attributes:
        logits: (M, H, W) float32, one mask per [SEG], at the raw image's size; the mask is where it is
            positive.
        lengths: visual tokens that every layer of the language model saw, read from the tensors that ran.
        retained: (tokens_final,) as in `Selection.indices`.
        error: why there is no answer, in one sentence; empty if there is one. Then nothing else here means
            anything.
        tokens_llm: all tokens that the first layer of the language model sees, text included and fill left
            out; None if the backbone does not say.
    """

    logits: Tensor
    lengths: tuple[int, ...]
    retained: Tensor
    error: str = ""
    tokens_llm: int | None = None

    @property
    def tokens_final(self) -> int:
        """Visual tokens in the language model's last layer."""
        return self.lengths[-1]

    @property
    def tokens_mean(self) -> float:
        """Visual tokens, mean over the language model's layers."""
        return sum(self.lengths) / len(self.lengths)


Picture = NDArray[np.uint8] | Image | str | Path  # (H, W, 3) RGB, a picture of pillow's, or an image file


@dataclass(frozen=True)
class Answer:
    """What one expression got.

    Attributes:
        mask: (H, W) bool at the image's size.
        kept: (N,) bool in raster order, the patches that the language model's last layer still sees; a token
            that a method merged stands for the patch at its centre, and class or mean tokens for none.
        tokens_final: visual tokens in the language model's last layer.
        tokens_mean: their mean over its layers.
        seconds: to choose the tokens and to ground, the image being encoded.
    """

    mask: NDArray[np.bool_]
    kept: NDArray[np.bool_]
    tokens_final: int
    tokens_mean: float
    seconds: float


class Backbone(Protocol):
    """A model that segments what an expression names."""

    name: str
    grid: tuple[int, int]
    num_layers: int
    fingerprint: str
    device: str
    dtype: str
    attn: str

    def preprocess(self, image: NDArray[np.uint8]) -> Pixels:
        """Resize and normalise a raw (H, W, 3) image; no device is touched, so any process can do it
        ahead."""
        ...

    def encode_pixels(self, pixels: Sequence[Pixels]) -> list[Encoding]:
        """Encode preprocessed images."""
        ...

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> list[Encoding]:
        """Encode raw (H, W, 3) images."""
        ...

    def cut_off(self, questions: Sequence[str]) -> int:
        """How many of the questions are longer than what pruners that read text see of one."""
        ...

    def tokens(
        self, encoding: Encoding, turns: Sequence[Turn], sample: str, masks: NDArray[np.bool_] | None = None
    ) -> VisualTokens:
        """The image as a pruner sees it; `masks` (M, H, W) is the truth, for controls that may see it."""
        ...

    def ground(
        self,
        image: Picture,
        expression: str,
        pruner: str | Pruner = "none",
        budget: int = 64,
        truth: NDArray[np.bool_] | None = None,
    ) -> Answer:
        """Segment what one expression names in one image; `truth` (H, W) is for controls that may see it."""
        ...

    def ground_rows(self, rows: Sequence[Row], share: bool = True) -> Iterable[Grounded]:
        """Segment; results in the order of the rows, independent of what else is in the batch, in memory a
        few at a time.

        Args:
            share: compute once what rows have in common; without, every row runs whole.
        """
        ...
