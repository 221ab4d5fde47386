"""What costs ask of a model: its forward pass in named stages that a meter can watch, and, for costs that
follow from shapes alone, its parts without weights.

Both are capabilities: `Backbone.staged` and `Settings.shapes`. The meters and formulas are those of whoever
asks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from pruners.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from backbones.base import Turn
    from backbones.parts.clips import Clip
    from backbones.parts.contexts import Context
    from backbones.parts.cuts import Choose, Cutting
    from backbones.parts.faithful import Stage
    from pruners.base import Pruner, Selection, View


@dataclass(frozen=True)
class Shape:
    """The numbers of a language model that its cost follows from: decoder layers with four projections and a
    gated feed-forward part of three matrices.

    Attributes:
        width, inner: of the states, and inside the feed-forward part.
        heads, key_heads, head_width: of attention; several heads may share a key.
        vocabulary: rows of the last matrix.
    """

    width: int
    inner: int
    layers: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """From transformers' configuration of a Llama, or of another model that names its numbers so."""
        heads = config.num_attention_heads
        head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
        return cls(
            config.hidden_size,
            config.intermediate_size,
            config.num_hidden_layers,
            heads,
            config.num_key_value_heads,
            head_width,
            config.vocab_size,
        )

    @property
    def layer_weights(self) -> int:
        """Matrix elements of one decoder layer."""
        query, key = self.heads * self.head_width, self.key_heads * self.head_width
        return 2 * self.width * (query + key) + 3 * self.width * self.inner


@dataclass(frozen=True)
class Prompt:
    """The lengths of a conversation.

    Attributes:
        text: tokens of the language model's sequence that are not visual.
        before: of these, how many stand before the image.
        turns: expressions, each with a question, an answer and a mask.
        words: tokens of a question as pruners that read text see it.
        sentence: language-model tokens behind the image that all conversations begin with.
    """

    text: int
    before: int
    turns: int = 1
    words: int = 0
    sentence: int = 0

    def __post_init__(self) -> None:
        if self.text <= self.before:
            raise UserError(
                f"--text-tokens {self.text} is too few: {self.before} stand before the image, so give "
                f"{self.before + 1} or more."
            )

    @property
    def after(self) -> int:
        """Text tokens behind the image."""
        return self.text - self.before

    @property
    def common(self) -> int:
        """Text tokens behind the image that all conversations have there; a word is left to every turn."""
        return max(0, min(self.sentence, self.after - self.turns))

    def alone(self) -> Prompt:
        """One of its expressions asked alone: the sentence about the image and an even share of the words
        behind it."""
        own = max(1, round((self.after - self.common) / self.turns))
        return replace(self, text=self.before + self.common + own, turns=1)


# -- a loaded model


class Inputs(Protocol):
    """What a model is given for one image and one conversation; preparing it belongs to no stage."""

    @property
    def prompt(self) -> Prompt:
        """The conversation's lengths."""


@dataclass(frozen=True)
class Passed:
    """What a forward pass did.

    Attributes:
        lengths: sequence length that every layer of the language model saw.
        logits: (M, H, W) float32 masks at the raw image's size, one per turn; of a clip, of all its frames,
            frame by frame. None where the stages that are fixed did not run.
    """

    lengths: tuple[int, ...]
    logits: Tensor | None


@dataclass(frozen=True)
class Traced:
    """The language model's layers as a function that a tracer can follow.

    Attributes:
        weights: module whose parameters `run` uses.
        run: visual tokens (1, n, width) to the last states (1, n', width).
        example: what to trace it with.
    """

    weights: nn.Module
    run: Callable[[Tensor], Tensor]
    example: Tensor


class Staged(ABC):
    """A loaded model's forward pass, one image or clip and one conversation, as its release runs it.

    Attributes:
        stages: their names in the order in which they run. "prefill" is the decoder layers; what a pruner
            computes is "pruner", inside "prefill" where it cuts there.
        fixed: those of them that do the same whatever the pruner and its budget, and that `forward` can leave
            out, as towers and mask decoders are; none where it cannot.
        shape: of the language model.
        patches: visual tokens of a view.
        device: as in `Runtime`.
        dtype: of the language model.
    """

    stages: ClassVar[tuple[str, ...]]
    fixed: ClassVar[tuple[str, ...]] = ()
    shape: Shape
    patches: int
    device: str
    dtype: torch.dtype

    @abstractmethod
    def length(self, turns: Sequence[Turn]) -> int:
        """Text tokens of a conversation."""

    def shown(self, clip: Clip) -> tuple[int, ...]:
        """Numbers of the frames of a clip that are its views."""
        return (0,)

    @abstractmethod
    def prepare(
        self,
        image: Any,
        turns: Sequence[Turn],
        sample: str = "",
        masks: NDArray[np.bool_] | None = None,
    ) -> Inputs:
        """Pixels and tokens on the model's device.

        Args:
            image: (H, W, 3) uint8 RGB, or a `Clip` if the model sees clips.
            sample: seed of a pruner's draws.
            masks: (M, H, W) the truth, for controls that may see it; of a clip (T, M, H, W) of the frames
                that are `shown`.
        """

    def see(self, inputs: Any) -> Any:
        """What the fixed stages in front of the pruner make of an image or clip; of a model that has some."""
        raise NotImplementedError(f"{type(self).__name__} names no stages as fixed")

    @abstractmethod
    def forward(
        self,
        inputs: Any,
        pruner: Pruner,
        budget: int,
        stage: Stage = nullcontext,
        checked: bool = True,
        seen: Any = None,
    ) -> Passed:
        """Run every stage once.

        Args:
            inputs: what `prepare` made.
            stage: entered around each, with its name; "pruner" of a cut inside of "prefill".
            checked: False for clocks and memory meters: a choice that was checked before is taken as it is.
            seen: what `see` made of the inputs: then the fixed stages, in front and behind, are left out.
                Given only where there are some.
        """

    @abstractmethod
    def traced(self, inputs: Any, pruner: Pruner, budget: int, entering: int, choose: Choose) -> Traced:
        """The language model's layers alone.

        Args:
            inputs: what `prepare` made.
            entering: visual tokens that enter.
            choose: asks the pruner at its cuts.
        """

    @abstractmethod
    def shapes(self, inputs: Any = None) -> Shapes:
        """The same model without weights.

        Args:
            inputs: what `prepare` made, where costs follow from how long a clip is.
        """


# -- a model without weights

Over = Literal["image", "questions", "conversation", "entering", "sequence", "marks"]
FIXED: tuple[Over, ...] = ("image", "questions", "conversation")  # no pruner changes these


@dataclass(frozen=True)
class CostPart:
    """A part of a model beside its language model's layers.

    Attributes:
        name: of its column, as in `harness cost`.
        over: how often it runs, over how many tokens. "image": once per image or clip, whatever is asked;
            "questions": once per conversation, for pruners that read its text; "conversation": once per
            conversation; "entering": over the visual tokens on their way into the language model, in front of
            a pool if it has one; "sequence": over all that leave it, and nothing reads the result; "marks":
            likewise, read at one token per turn.
        run: runs it on the meta device; takes the number of tokens, 0 where there are none.
        title: in a sentence, of one that no pruner changes.
        times: how often it runs one after the other, as once for every frame.
        more: what else it runs, and how often. Work that is linear in what is remembered is given by a few
            runs: then a number may be negative, and 0 is of a run that only tells how much memory it takes.
        frames: of a clip, among which its work is shared out; 0 where it is not of single frames.
    """

    name: str
    over: Over
    run: Callable[[int], object]
    title: str = ""
    times: int = 1
    more: tuple[tuple[int, Callable[[int], object]], ...] = ()
    frames: int = 0

    @property
    def runs(self) -> tuple[tuple[int, Callable[[int], object]], ...]:
        """All that it runs, and how often."""
        return ((self.times, self.run), *self.more)


class Layers(ABC):
    """The first layers of a language model, of whatever tensors are made where they are built."""

    @abstractmethod
    def run(self, hidden: Tensor) -> object:
        """All of them over states (1, n, width), nothing pruned."""

    @abstractmethod
    def prefill(
        self,
        before: Tensor,
        visual: Tensor,
        after: Tensor,
        cut: Cutting | None = None,
        context: Context | None = None,
        stage: Stage = nullcontext,
    ) -> tuple[int, ...]:
        """From embeddings to the last norm; the sequence length that every layer saw.

        Args:
            before, after: (1, a) and (1, b) ids on the two sides of the image.
            visual: (1, n, width) features behind the projector, with the tail that the context states.
            cut: what leaves the sequence on the way.
            context: which patches the visual tokens are, and where they stand.
            stage: entered around what a pruner computes.
        """


class Shapes(ABC):
    """A model by its numbers.

    Attributes:
        shape: of the language model.
        grid: rows and columns of a view's patches, as pruners see them.
        tail: tokens of the language model behind those of the views, which no pruner sees.
        places: tokens that the language model has positions for; None where that bounds nothing.
    """

    shape: Shape
    grid: tuple[int, int]
    tail: int = 0
    places: int | None = None

    @abstractmethod
    def prompt(self, text: int | None = None, checkpoint: str | Path | None = None) -> Prompt:
        """A usual conversation.

        Args:
            text: its text tokens; without, what a tokenizer counts, and a usual number where there is none.
            checkpoint: folder of the tokenizer, instead of the model's own.

        Raises:
            UserError: too few tokens, or files of the tokenizer are missing or damaged.
        """

    @abstractmethod
    def parts(self, prompt: Prompt, dtype: torch.dtype) -> tuple[CostPart, ...]:
        """All parts but the language model's layers.

        Args:
            dtype: of weights and states.
        """

    def sent(self, count: int) -> int:
        """Tokens of a view that the language model gets of so many that a pruner left; another number where
        they are pooled on the way."""
        return count

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of a whole view's tokens in the language model."""
        return self.grid

    def projected(self, chosen: Sequence[Selection], views: int) -> int:
        """Tokens that a part over "entering" sees.

        Args:
            chosen: of every view; empty where nothing chooses before the language model.
        """
        return sum(one.tokens for one in chosen) if chosen else views * self.grid[0] * self.grid[1]

    def notes(self, prompt: Prompt) -> tuple[str, ...]:
        """What else figures of this model rest on, a sentence each."""
        return ()

    @abstractmethod
    def layers(self, count: int, attn: str, dtype: torch.dtype) -> Layers:
        """The language model's first layers; attn is "eager" or "sdpa"."""

    @abstractmethod
    def views(self, prompt: Prompt) -> list[View]:
        """An image of random numbers at full size as pruners see it, on the CPU, the same whenever it is
        asked for. Signals cost what the model's own do."""
