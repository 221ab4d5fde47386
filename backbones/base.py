"""What the harness needs of a model: encode an image once, show its views to pruners, ground expressions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image
from torch import Tensor

from backbones.parts import geometry
from backbones.parts.clips import Clip
from backbones.parts.geometry import Region
from backbones.registry import Family
from pruners.base import Pruner, Selection, View
from pruners.errors import UserError
from pruners.plugins import source_of

if TYPE_CHECKING:
    from backbones.costs import Staged
    from backbones.image_answer import Answer
    from backbones.probes import Probes

Picture = NDArray[np.uint8] | Image | str | Path  # (H, W, 3) RGB, a picture of pillow's, or an image file
READ, DRAWN = "language model", "masks"  # what is done for a row, as `Backbone.tell` says it


@dataclass(frozen=True)
class Turn:
    """One question and its teacher-forced answer, templates filled in; the answer contains [SEG]."""

    question: str
    answer: str


@dataclass(frozen=True)
class Conversation:
    """Turns that the language model sees together.

    Attributes:
        turns: templated question and answer, in order.
        expressions: for each turn, the position of its expression among those of the sample.
    """

    turns: tuple[Turn, ...]
    expressions: tuple[int, ...]


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


class ClipPixels(NamedTuple):
    """A clip as the vision towers want it.

    Attributes:
        vision: (V, 3, h, h) float32, the frames that the vision tower sees: one view each.
        video: (V, 3, h', h') float32, the same frames for the video encoder.
        shown: number of the frame that each view shows.
        clip: all frames, for the mask decoder; decoded when they are asked for.
        original: height and width of the raw frames.
    """

    vision: Tensor
    video: Tensor
    shown: tuple[int, ...]
    clip: Clip
    original: tuple[int, int]


@dataclass(frozen=True)
class Encoding:
    """What an image costs once, whatever pruners and expressions follow.

    Attributes:
        hidden_states: all that a choice of tokens follows from. Of a tower with layers: outputs of its
            embedding and layers up to the penultimate, each (N+1, C), or (N, C) without a class token; the
            last one is what the projector gets (class token in row 0).
        embedding: what the mask decoder gets of the image, e.g. (P, g, g) of a grounding encoder.
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
class ClipEncoding(Encoding):
    """What a clip costs once: as of an image, with views in the first place.

    Attributes:
        hidden_states: each (V, N+1, C) or (V, N, C).
        embedding: (V, M, C') what the video encoder says of the same frames.
        shown: number of the frame that each view shows.
        clip: all frames, for the mask decoder.
    """

    shown: tuple[int, ...] = ()
    clip: Clip | None = None


@dataclass(frozen=True)
class Row:
    """One conversation about one image under one pruner.

    Attributes:
        selections: what the pruner lets into the language model of every view; () of one that acts inside the
            language model alone, where everything enters.
        sample: stable id of the image, for pruners that draw while the model runs.
        positions: position ids of what the pruner lets in: "compact" or "kept"; of a pruner with a rule of
            its own, that one.
        answers: "forced" if the turns' answers are given, "generated" if the model writes its own.
    """

    encoding: Encoding
    turns: tuple[Turn, ...]
    pruner: Pruner
    budget: int
    selections: tuple[Selection, ...]
    sample: str = ""
    positions: str = "compact"
    answers: str = "forced"

    @property
    def selection(self) -> Selection | None:
        """The choice where there is one view; None of a layer-stage pruner."""
        if len(self.selections) > 1:
            raise ValueError(f"there are {len(self.selections)} views, each with a choice of its own")
        return self.selections[0] if self.selections else None


@dataclass(frozen=True)
class Grounded:
    """What came out of a row.

    Attributes:
        logits: (M, H, W) float32, one mask per [SEG], at the raw image's size; the mask is where it is
            positive.
        lengths: visual tokens that every layer of the language model saw, read from the tensors that ran.
        retained: (tokens_final,) as in `Selection.indices`; of several views, patches are numbered through.
        error: why there is no answer, in one sentence; empty if there is one. Then nothing else here means
            anything.
        tokens_llm: all tokens that the first layer of the language model sees, text included and fill left
            out; None if the backbone does not say.
        said: for every turn, whether the model wrote a [SEG] of its own; without one its mask is empty. None
            where answers are forced.
        seg_logprob: (M,) log-probability of every [SEG] at its place, given all that stands before it; NaN
            where the model wrote none; None if the backbone does not say.
        words: what the model wrote for every turn; None where answers are forced.
        runs: of a clip, instead of logits, for each of the M [SEG] the run lengths of every frame's mask at
            the raw size (`backbones.parts.clips.run_lengths`); `logits` then is (M, 0).
    """

    logits: Tensor
    lengths: tuple[int, ...]
    retained: Tensor
    error: str = ""
    tokens_llm: int | None = None
    said: tuple[bool, ...] | None = None
    seg_logprob: Tensor | None = None
    words: tuple[str, ...] | None = None
    runs: tuple[tuple[str, ...], ...] | None = None

    @property
    def tokens_final(self) -> int:
        """Visual tokens in the language model's last layer."""
        return self.lengths[-1]

    @property
    def tokens_mean(self) -> float:
        """Visual tokens, mean over the language model's layers."""
        return sum(self.lengths) / len(self.lengths)


def _silent(step: str, rows: float) -> None:
    """Tells nobody."""


class Backbone(Family, ABC):
    """A loaded model that segments what an expression names.

    Attributes:
        tell: is called while rows are grounded, with READ or DRAWN and for how many more rows that is done (a
            part of one, too), for a progress bar; a backbone that never calls it shows each row as it ends.
        fingerprint: 16 hex digits of all that its answers depend on: weights, numbers, vocabularies.
        device, dtype, attn: where and how it runs, as in `Runtime`.
        grid: rows and columns of a view's patches.
        num_layers: of the language model.
    """

    fingerprint: str
    device: str
    dtype: str
    attn: str
    grid: tuple[int, int]
    num_layers: int
    tell: Callable[[str, float], None] = staticmethod(_silent)

    @property
    def staged(self) -> Staged | None:
        """Its forward pass in named stages that a meter can watch; None where costs are not known."""
        return None

    @property
    def probes(self) -> Probes | None:
        """What a diagnosis reads; None where there is nothing to read."""
        return None

    # -- what every model has of its own

    @abstractmethod
    def preprocess(self, image: NDArray[np.uint8]) -> Pixels:
        """Resize and normalise a raw (H, W, 3) image; no device is touched, so any process can do it
        ahead."""

    def preprocess_clip(self, clip: Clip) -> ClipPixels:
        """The frames that the towers see, resized and normalised; no device is touched.

        Raises:
            UserError: a frame cannot be read, or the backbone sees images alone.
        """
        raise UserError(f"{self.name} sees images alone; give a video backbone or another data set.")

    @abstractmethod
    def encode_pixels(self, pixels: Sequence[Any]) -> list[Encoding]:
        """Encode preprocessed images, or clips.

        Raises:
            UserError: what the model says of an image is not finite in this precision.
        """

    @abstractmethod
    def views(
        self, encoding: Encoding, turns: Sequence[Turn], sample: str, masks: NDArray[np.bool_] | None = None
    ) -> list[View]:
        """The image as a pruner sees it, in the order of `regions`; signals are computed when first read.

        Args:
            turns: the conversation, for signals of its text.
            sample: seed of a pruner's draws.
            masks: (M, H, W) the truth, for controls that may see it; of a clip (V, M, H, W), that of every
                view's frame.
        """

    @abstractmethod
    def ground_rows(self, rows: Sequence[Row], share: bool = True) -> Iterable[Grounded]:
        """Segment; results in the order of the rows, independent of what else is in the batch, in memory a
        few at a time.

        Args:
            share: compute once what rows have in common; without, every row runs whole.

        Raises:
            UserError: what the layers saw is not what a row's pruner had stated.
        """

    # -- what most models share

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> list[Encoding]:
        """Encode raw (H, W, 3) images."""
        return self.encode_pixels([self.preprocess(image) for image in images])

    def turn(self, expression: str) -> Turn:
        """One expression in this model's words; by default the bare expression."""
        return Turn(expression.strip(), "[SEG]")

    def turn_of(self, expression: str, form: str) -> Turn:
        """One expression of a data set that tells forms apart; by default as any other.

        Args:
            form: "phrase" for the name of a thing, "sentence" for a question or a wish that stands by itself.
        """
        return self.turn(expression)

    def conversations(
        self,
        sample_id: str,
        expressions: Sequence[str],
        protocol: str,
        seed: int,
        forms: Sequence[str] = (),
    ) -> list[Conversation]:
        """Conversations of one image.

        Args:
            sample_id: what draws follow from, together with the seed.
            expressions: all of the image, as the data set has them.
            protocol: one of `protocols`.
            seed: source of the draws of protocols that are `drawn`.
            forms: of the expressions, as in `turn_of`; () where a data set does not tell them apart.

        Returns:
            `each`: one conversation of one turn per expression, in order.

        Raises:
            UnknownProtocol: no such protocol.
        """
        self.check_protocol(protocol)
        turns = map(self.turn_of, expressions, forms) if forms else map(self.turn, expressions)
        return [Conversation((turn,), (position,)) for position, turn in enumerate(turns)]

    @property
    def forks(self) -> bool:
        """Whether processes that are forked from this one may evaluate with it, each with one thread, and are
        faster than one process with as many threads."""
        return False

    def cut_off(self, questions: Sequence[str]) -> int:
        """How many of the questions are longer than what pruners that read text see of one."""
        return 0

    def regions(self, height: int, width: int) -> tuple[Region, ...]:
        """The region of a raw image, or of a clip's frame, that each view covers.

        Raises:
            UserError: the geometry is 'regions', and the class does not define this.
        """
        found = geometry.regions(self.geometry, height, width)
        if not found:
            raise UserError(
                f"The backbone {self.name} ({source_of(type(self))}) has the geometry 'regions' and names "
                f"none; define regions(height, width)."
            )
        return found

    def regions_of(self, encoding: Encoding) -> tuple[Region, ...]:
        """The region of each view of an encoded medium; as `regions`, unless the encoding says how many views
        there are."""
        return self.regions(*encoding.original)

    def patch_shares(
        self, masks: NDArray[np.bool_], number: int = 0, size: tuple[int, int] | None = None
    ) -> Tensor:
        """(N,) share of every patch of a view that the union of (M, H, W) masks covers.

        Args:
            number: of the view; those of a clip are frame after frame, each with the regions of a frame.
            size: height and width of the raw medium; by default that of the masks.
        """
        regions = self.regions(*(size or masks.shape[1:]))
        region = regions[number % len(regions)]
        return torch.from_numpy(geometry.covered(masks, region, self.grid)).float().to(self.device)

    def ground(
        self,
        image: Picture,
        expression: str,
        pruner: str | Pruner = "none",
        budget: int = 64,
        truth: NDArray[np.bool_] | None = None,
    ) -> Answer:
        """Segment what an expression names.

        Args:
            image: (H, W, 3) uint8 RGB, a pillow image, or an image file.
            expression: e.g. "the red star left of the ring".
            pruner: as on the command line, e.g. "litelvlm" or "fastv(layer=3)"; "none" keeps all tokens.
            budget: visual tokens that the language model gets; `none` has none.
            truth: (H, W) bool, for controls that may see it.

        Raises:
            UserError: the image cannot be read, the pruner is unknown or reads what this model cannot answer,
                or it cannot end at the budget.
        """
        from backbones.image_answer import answer, as_pixels, one_pruner

        chosen = one_pruner(pruner) if isinstance(pruner, str) else pruner
        return answer(self, self.encode([as_pixels(image)])[0], expression, chosen, budget, truth)
