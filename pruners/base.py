"""What a pruner is, what it may read, and what it returns. Imports torch alone.

A tower-stage pruner sees one image's visual tokens after the vision tower and returns a `Selection`; a
layer-stage pruner sees one row of attention inside the language model and returns the visual tokens that
stay. Both end at exactly the budget: the number of visual tokens that the language model gets.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch

from pruners.errors import Fault, ImpossibleBudget, UndeclaredNeed, UserError, nearest
from pruners.written import check_types, text_of

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "CLS",
    "LAYER_KINDS",
    "LLM_PATCHES",
    "LLM_TEXT_EMBEDS",
    "PLAIN_KINDS",
    "POOLED",
    "PROJECTED_PATCHES",
    "REFERENT",
    "TEXT_EMBEDS",
    "Fault",
    "ImpossibleBudget",
    "LayerPruner",
    "Need",
    "Pruner",
    "ScorePruner",
    "Selection",
    "UndeclaredNeed",
    "UserError",
    "View",
    "VisualTokens",
    "nearest",
    "others",
    "outliers",
    "precise",
    "top",
]
CLS, POOLED = -1, -2  # marks in Selection.indices of tokens that are no single patch


@dataclass(frozen=True)
class Need:
    """One signal of the backbone.

    Kinds with a layer of the vision tower (-1 the last, -2 the one whose output the projector gets; H heads,
    C channels, N patches). Where the tower has no class token, there are no cls_* kinds, and the other kinds
    have N rows and columns instead of N+1:
        cls_attention: (H, N+1) softmax of the class token's row over all tokens, class token in column 0.
        cls_query: (C,) query projection of the class token, with bias, unscaled, heads concatenated.
        keys, values: (N+1, C) key and value projections of all tokens, class token in row 0.
        attention: (H, N+1, N+1) softmax of every token's row over all tokens, in at least float32.
        received_attention: (H, N+1) what each token receives: mean of the rows of `attention`.
        hidden: (N+1, C) output of the layer.
    Kinds without:
        projected_patches: (N, P) patches through post_layernorm and visual_projection, not normalised.
        text_embeds: (M, P) CLIP text embeddings of the conversation's M questions, not normalised.
        llm_patches: (N, W) patches behind the projector, as they would enter the language model.
        llm_text_embeds: (T, W) input embeddings in the language model of the T tokens of the M questions, one
            question after the other.
        referent: (N,) share of each patch that the truth masks cover; for controls that may see the truth.
    """

    kind: str
    layer: int | None = None


PROJECTED_PATCHES, TEXT_EMBEDS, REFERENT = Need("projected_patches"), Need("text_embeds"), Need("referent")
LLM_PATCHES, LLM_TEXT_EMBEDS = Need("llm_patches"), Need("llm_text_embeds")
LAYER_KINDS = ("cls_attention", "cls_query", "keys", "values", "attention", "received_attention", "hidden")
PLAIN_KINDS = tuple(
    need.kind for need in (PROJECTED_PATCHES, TEXT_EMBEDS, LLM_PATCHES, LLM_TEXT_EMBEDS, REFERENT)
)
MAX_SEED = 2**32 - 1


class View:
    """One grid of patches as a tower-stage pruner sees it: of an image, a tile or a frame; signals are
    computed when they are read.

    Args:
        patches: (N, C) features that the projector would get, raster order.
        cls: (C,) the class token beside them; None where the tower has none.
        grid: rows and columns, N = rows * columns.
        num_heads: attention heads of the vision tower.
        answer: computes a declared signal.
        sample: stable id of the image and expression, the seed of random draws.
        declared: the signals that may be read; None allows all.
        number, of: which view this is, counted from 0, and how many the medium has.
        region: top, left, bottom, right of the raw medium that the grid covers, as shares of its height and
            width; beyond 0..1 where padding is seen, smaller than 1 behind a crop.
    """

    def __init__(
        self,
        patches: Tensor,
        cls: Tensor | None,
        grid: tuple[int, int],
        num_heads: int,
        answer: Callable[[Need], Tensor],
        sample: str = "",
        declared: frozenset[Need] | None = None,
        *,
        number: int = 0,
        of: int = 1,
        region: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0),
    ) -> None:
        self.patches, self.cls, self.grid, self.num_heads, self.sample = patches, cls, grid, num_heads, sample
        self.number, self.of, self.region = number, of, region
        self._answer, self._declared = answer, declared

    def __len__(self) -> int:
        return len(self.patches)

    def only(self, needs: frozenset[Need]) -> View:
        """The same view, answering nothing but `needs`."""
        return View(
            self.patches,
            self.cls,
            self.grid,
            self.num_heads,
            self._answer,
            self.sample,
            needs,
            number=self.number,
            of=self.of,
            region=self.region,
        )

    def signal(self, need: Need) -> Tensor:
        """The signal, or UndeclaredNeed if the pruner did not declare it."""
        if self._declared is not None and need not in self._declared:
            declared = ", ".join(sorted(map(str, self._declared))) or "nothing"
            raise UndeclaredNeed(f"reads {need}, which its `needs` do not declare; they declare {declared}")
        return self._answer(need)

    def cls_attention(self, layer: int) -> Tensor:
        """(H, N+1) attention row of the class token."""
        return self.signal(Need("cls_attention", layer))

    def cls_query(self, layer: int) -> Tensor:
        """(C,) query of the class token."""
        return self.signal(Need("cls_query", layer))

    def keys(self, layer: int) -> Tensor:
        """(N+1, C) keys."""
        return self.signal(Need("keys", layer))

    def values(self, layer: int) -> Tensor:
        """(N+1, C) values."""
        return self.signal(Need("values", layer))

    def attention(self, layer: int) -> Tensor:
        """(H, N+1, N+1) attention map."""
        return self.signal(Need("attention", layer))

    def received_attention(self, layer: int) -> Tensor:
        """(H, N+1) attention that each token receives, mean of the map's rows."""
        return self.signal(Need("received_attention", layer))

    def hidden(self, layer: int) -> Tensor:
        """(N+1, C) output of a layer."""
        return self.signal(Need("hidden", layer))

    @property
    def projected_patches(self) -> Tensor:
        """(N, P) patches in the space that CLIP shares with text."""
        return self.signal(PROJECTED_PATCHES)

    @property
    def text_embeds(self) -> Tensor:
        """(M, P) text embeddings."""
        return self.signal(TEXT_EMBEDS)

    @property
    def llm_patches(self) -> Tensor:
        """(N, W) patches behind the projector."""
        return self.signal(LLM_PATCHES)

    @property
    def llm_text_embeds(self) -> Tensor:
        """(T, W) the questions' tokens as the language model embeds them."""
        return self.signal(LLM_TEXT_EMBEDS)

    @property
    def referent(self) -> Tensor:
        """(N,) share of each patch inside the truth."""
        return self.signal(REFERENT)


VisualTokens = View


@dataclass(frozen=True)
class Selection:
    """Tokens that go to the language model, in its order.

    Attributes:
        indices: (T,) int64 on the patches' device; a patch (kept, or the centre of a merge; none twice), or
            CLS (once at most) or POOLED for a token that is no patch.
        features: (T, C) in the patches' dtype if the method merges tokens; None to gather the patches.
    """

    indices: Tensor
    features: Tensor | None = None

    @property
    def tokens(self) -> int:
        """How many tokens the language model sees."""
        return len(self.indices)

    def gather(self, tokens: View) -> Tensor:
        """(T, C) features for the projector."""
        if self.features is not None:
            return self.features
        picked = tokens.patches.index_select(0, self.indices.clamp(min=0))
        return (
            picked if tokens.cls is None else torch.where((self.indices == CLS)[:, None], tokens.cls, picked)
        )


def precise(x: Tensor) -> Tensor:
    """At least float32, so that a half-precision backbone does not decide ties by rounding in the method
    itself."""
    return x if x.dtype == torch.float64 else x.float()


def top(score: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest along the last dimension, descending; the lowest index first among
    equals."""
    return score.argsort(dim=-1, descending=True, stable=True)[..., :count]


def others(indices: Tensor, size: int) -> Tensor:
    """Ascending indices below `size` that are not among `indices`."""
    left = torch.ones(size, dtype=torch.bool, device=indices.device)
    return left.index_fill_(0, indices, False).nonzero()[:, 0]


@dataclass(frozen=True)
class Pruner(ABC):
    """A method: a frozen dataclass whose fields are its hyper-parameters.

    Attributes:
        seed_written: whether the user wrote the seed of a pruner that draws; then the sweep runs that seed
            alone.

    Raises:
        UserError: a hyper-parameter is not of its annotated type; subclasses check ranges after
            `super().__post_init__()`.
    """

    name: ClassVar[str]
    reference: ClassVar[str]
    kind: ClassVar[Literal["method", "control"]] = "method"
    stage: ClassVar[Literal["tower", "layer"]] = "tower"
    stochastic: ClassVar[bool] = False  # has a field `seed`; the sweep runs several
    needs: ClassVar[frozenset[Need]] = frozenset()
    seed_written: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_types(self)
        if self.stochastic and not 0 <= self.parameters()["seed"] <= MAX_SEED:  # type: ignore[operator]
            raise UserError(
                f"{self.name}: seed is a whole number from 0 to {MAX_SEED}, not {self.parameters()['seed']!r}."
            )

    @property
    def budget_kind(self) -> str:
        """What the budget counts: "final" tokens, or their "mean" over the language model's layers."""
        return "final"

    def spec(self) -> str:
        """The method as one writes it on the command line, defaults left out:
        `litelvlm(context_share=0.25)`."""
        return text_of(self, also=("seed",) if self.seed_written else ())

    def with_seed(self, seed: int) -> Self:
        """The same method with another seed; only for stochastic pruners."""
        return dataclasses.replace(self, seed=seed)  # type: ignore[call-arg]

    def unseeded(self) -> Self:
        """The same method with the default seed: what all seeds of it have in common; itself, if it does not
        draw."""
        if not self.stochastic:
            return self
        (default,) = (field.default for field in dataclasses.fields(self) if field.name == "seed")
        return self.with_seed(default)  # type: ignore[arg-type]

    def parameters(self) -> dict[str, object]:
        """All hyper-parameters, defaults included."""
        return dataclasses.asdict(self)

    def check(self, budget: int, patches: int, num_layers: int) -> None:
        """Raise ImpossibleBudget unless the method can end at `budget` of `patches` tokens.

        Args:
            num_layers: layers of the language model, for methods that prune inside it.
        """
        if not 1 <= budget <= patches:
            raise ImpossibleBudget(
                f"{self.spec()} cannot keep {budget} tokens: this backbone has {patches}, so give --budgets 1 to {patches}."
            )

    @abstractmethod
    def select(self, tokens: View, budget: int) -> Selection:
        """Choose (and perhaps merge) `budget` tokens of one image."""


class ScorePruner(Pruner):
    """A method that only ranks patches: the highest `budget` scores stay, in raster order."""

    @abstractmethod
    def score(self, tokens: View) -> Tensor:
        """(N,) importance of every patch; higher stays."""

    def select(self, tokens: View, budget: int) -> Selection:
        """Keep the best `budget` patches in raster order.

        Raises:
            Fault: the scores are not one finite number per patch.
        """
        score = self.score(tokens)
        if not isinstance(score, torch.Tensor) or score.shape != (len(tokens),):
            what = tuple(score.shape) if isinstance(score, torch.Tensor) else type(score).__name__
            raise Fault(
                f"scored {what} where one number per patch, a tensor of shape ({len(tokens)},), is asked"
            )
        if not bool(score.isfinite().all()):
            raise Fault("scored patches with numbers that are not finite, and nothing ranks those")
        return Selection(top(score, budget).sort().values)


class LayerPruner(Pruner):
    """A method that prunes inside the language model, before the layer with index `layer`."""

    stage: ClassVar[Literal["tower", "layer"]] = "layer"
    layer: int

    def check(self, budget: int, patches: int, num_layers: int) -> None:
        """Also refuse a cut that lies outside the language model."""
        super().check(budget, patches, num_layers)
        if not 1 <= self.layer < num_layers:
            raise ImpossibleBudget(
                f"{self.spec()} cuts outside the language model, which has {num_layers} layers; give layer 1 to {num_layers - 1}."
            )

    @abstractmethod
    def tokens_after(self, budget: int, patches: int, num_layers: int) -> int:
        """Visual tokens that stay from layer `layer` on."""

    @abstractmethod
    def keep(self, attention: Tensor, count: int) -> Tensor:
        """Sorted visual indices that stay.

        Args:
            attention: (H, n) probabilities of the last prompt token in layer `layer - 1`, taken over all keys
                and cut to the visual span.
            count: how many stay.
        """

    def select(self, tokens: View, budget: int) -> Selection:
        """Layer-stage methods send every patch into the language model."""
        return Selection(torch.arange(len(tokens), device=tokens.patches.device))


def outliers(score: Tensor) -> int:
    """How many values lie strictly above Q3 + 1.5 (Q3 - Q1); quartiles interpolate linearly, in float32 as
    published."""
    rough = score.float()
    low, high = torch.quantile(rough, torch.tensor([0.25, 0.75], device=score.device))
    return int((rough > high + 1.5 * (high - low)).sum())
