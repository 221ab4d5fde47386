"""What a pruner is and what it returns. Imports torch alone.

A pruner acts on the vision tower's output (it sees a `View` and returns a `Selection` of its tokens), inside
the language model (at each of its cuts it sees a `LayerView` and returns a `Selection` of what is there), or
at both places. Beforehand it states how many visual tokens every layer of the language model will see.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, final

import torch

from pruners.errors import Fault, ImpossibleBudget, UndeclaredNeed, UserError, nearest
from pruners.views import (
    LAYER_KINDS,
    LLM_PATCHES,
    LLM_TEXT_EMBEDS,
    PLAIN_KINDS,
    PROJECTED_PATCHES,
    REFERENT,
    TEXT_EMBEDS,
    LayerView,
    Need,
    View,
    VisualTokens,
)
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
    "Cut",
    "Fault",
    "ImpossibleBudget",
    "LayerPruner",
    "LayerView",
    "Need",
    "Pruner",
    "ScorePruner",
    "Selection",
    "UndeclaredNeed",
    "UserError",
    "View",
    "VisualTokens",
    "cosines",
    "nearest",
    "others",
    "outliers",
    "precise",
    "top",
]

CLS, POOLED = -1, -2  # marks in Selection.indices of tokens that are no single patch
MAX_SEED = 2**32 - 1
BLOCK = 96  # rows of a matrix product that is computed in parts


@dataclass(frozen=True)
class Cut:
    """Where visual tokens leave the language model.

    Attributes:
        layer: index of the first layer that sees fewer visual tokens, 1 or more.
        keep: visual tokens that stay from it on.
    """

    layer: int
    keep: int


@dataclass(frozen=True)
class Selection:
    """Tokens that stay, in the order in which the language model sees them.

    Attributes:
        indices: (T,) int64 on the tokens' device. Of a view: a patch (kept, or the centre of a merge; none
            twice), or CLS (once at most) or POOLED for a token that is no patch. At a cut: a token's place
            among the visual tokens that are there, or POOLED.
        features: (T, C) in the tokens' dtype if the method merges; None to gather what the indices name.
        places: (T,) int64, for tokens that keep their places in the sequence the patch at whose place each
            stands; None for the patches that the indices name. Read where a token is no patch: see
            `standing`.
    """

    indices: Tensor
    features: Tensor | None = None
    places: Tensor | None = None

    @property
    def tokens(self) -> int:
        """How many tokens stay."""
        return len(self.indices)

    def gather(self, view: View) -> Tensor:
        """(T, C) features of a view's choice, for the projector."""
        if self.features is not None:
            return self.features
        picked = view.patches.index_select(0, self.indices.clamp(min=0))
        if view.cls is None:
            return picked
        return torch.where((self.indices == CLS)[:, None], view.cls, picked)

    def standing(self, patches: int) -> Tensor:
        """(T,) the place among `patches` at which every token stands if it keeps its place.

        A patch stands at its own, and a token that is none where `places` says. Without that the class token,
        which a tower has in front, gets the first place that no kept patch has, and pooled tokens, which come
        last, the last ones.

        >>> Selection(torch.tensor([CLS, 0, 5, 2, POOLED])).standing(8).tolist()
        [1, 0, 5, 2, 7]
        """
        if self.places is not None:
            return self.places
        marked = self.indices < 0
        if not bool(marked.any()):
            return self.indices
        free = others(self.indices[~marked], patches)
        found = self.indices.clone()
        found[self.indices == CLS] = free[:1]
        pooled = self.indices == POOLED
        found[pooled] = free[len(free) - int(pooled.sum()) :]
        return found


def precise(x: Tensor) -> Tensor:
    """At least float32, so that a half-precision backbone does not decide ties by rounding in the method
    itself."""
    return x if x.dtype == torch.float64 else x.float()


def cosines(x: Tensor) -> Tensor:
    """(n, n) cosines between the rows of (n, width), in float32 at least; 0 where a row is zeros. One
    triangle is computed, in blocks of rows, and mirrored: about half the work."""
    unit = torch.nn.functional.normalize(precise(x), dim=1)
    found = unit.new_empty(len(unit), len(unit))
    for start in range(0, len(unit), BLOCK):
        block = slice(start, start + BLOCK)
        part = unit[block] @ unit[start:].T
        found[block, start:], found[start:, block] = part, part.T
    return found


def top(score: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest along the last dimension, descending; the lowest index first among
    equals.

    >>> top(torch.tensor([0.2, 0.9, 0.9]), 2).tolist()
    [1, 2]
    """
    return score.argsort(dim=-1, descending=True, stable=True)[..., :count]


def others(indices: Tensor, size: int) -> Tensor:
    """Ascending indices below `size` that are not among `indices`.

    >>> others(torch.tensor([3, 0]), 5).tolist()
    [1, 2, 4]
    """
    left = torch.ones(size, dtype=torch.bool, device=indices.device)
    return left.index_fill_(0, indices, False).nonzero()[:, 0]


def outliers(score: Tensor) -> int:
    """How many values lie strictly above Q3 + 1.5 (Q3 - Q1); quartiles interpolate linearly, in float32 as
    published."""
    rough = score.float()
    low, high = torch.quantile(rough, torch.tensor([0.25, 0.75], device=score.device))
    return int((rough > high + 1.5 * (high - low)).sum())


@dataclass(frozen=True)
class Pruner(ABC):
    """A method: a frozen dataclass whose fields are its hyper-parameters.

    One that acts on the vision tower's output defines `select` (or `select_views`, to choose across views);
    one that acts inside the language model defines `cuts` and `cut`; one that does both defines all of them,
    and `entering`.

    Attributes:
        stage: where it acts, by what it defines: the "tower"'s output, "layer"s of the language model, or
            "both".
        seed_written: whether the user wrote the seed of a pruner that draws; then the sweep runs that seed
            alone.

    Raises:
        TypeError: the class defines neither a choice nor a cut.
        UserError: a hyper-parameter is not of its annotated type; subclasses check ranges after
            `super().__post_init__()`.
    """

    name: ClassVar[str]
    reference: ClassVar[str]
    kind: ClassVar[Literal["method", "control"]] = "method"
    stage: ClassVar[Literal["tower", "layer", "both"]] = "tower"
    stochastic: ClassVar[bool] = False  # has a field `seed`; the sweep runs several
    needs: ClassVar[frozenset[Need]] = frozenset()
    seed_written: ClassVar[bool] = False

    def __init_subclass__(cls, **facts: Any) -> None:
        super().__init_subclass__(**facts)
        if "stage" not in vars(cls):
            cls.stage = stage_of(cls)

    def __post_init__(self) -> None:
        if not any(_defines(type(self), name) for name in ("select", "select_views", "cut")):
            raise TypeError("it chooses nothing: define select, score or cut")
        check_types(self)
        if self.stochastic and not 0 <= self.parameters()["seed"] <= MAX_SEED:  # type: ignore[operator]
            raise UserError(
                f"{self.name}: seed is a whole number from 0 to {MAX_SEED}, not "
                f"{self.parameters()['seed']!r}."
            )

    # -- what it states

    @property
    def budget_kind(self) -> str:
        """What the budget counts: "final" tokens, their "mean" over the language model's layers, or nothing
        that is compared: a "label", by which a paper names a row."""
        return "final"

    @property
    def positions(self) -> Literal["compact", "kept"]:
        """Position ids of what stays: "compact", numbered anew without gaps, or "kept", those that the
        tokens have in the whole sequence. A method that defines it has a rule of its own; the others run
        with either, as --positions says."""
        return "compact"

    @property
    def own_positions(self) -> bool:
        """Whether it has a rule of its own for `positions`."""
        return type(self).positions is not Pruner.positions

    @final
    def positions_for(self, asked: str) -> str:
        """The positions that it runs with where the run asks for "compact" or "kept"."""
        return self.positions if self.own_positions else asked

    def entering(self, budget: int, patches: int, num_layers: int) -> int:
        """Visual tokens that enter the language model: those that `select` returns."""
        return budget

    def cuts(self, budget: int, patches: int, num_layers: int) -> tuple[Cut, ...]:
        """Where visual tokens leave the language model, first to last; none for most methods."""
        return ()

    @final
    def schedule(self, budget: int, patches: int, num_layers: int) -> tuple[int, ...]:
        """Visual tokens of every layer of the language model, as `entering` and `cuts` say.

        >>> from pruners import parse
        >>> parse("fastv")[0].schedule(64, patches=576, num_layers=5)
        (576, 576, 64, 64, 64)
        """
        counts = [self.entering(budget, patches, num_layers)] * num_layers
        for cut in self.cuts(budget, patches, num_layers):
            counts[cut.layer :] = [cut.keep] * (num_layers - cut.layer)
        return tuple(counts)

    def check(self, budget: int, patches: int, num_layers: int) -> None:
        """Raise ImpossibleBudget unless the method can end at `budget` of `patches` tokens.

        Args:
            num_layers: layers of the language model, for methods that prune inside it.
        """
        if not 1 <= budget <= patches:
            raise ImpossibleBudget(
                f"{self.spec()} cannot keep {budget} tokens: this backbone has {patches}, so give "
                f"--budgets 1 to {patches}."
            )

    # -- what it chooses

    def select(self, view: View, budget: int) -> Selection:
        """Choose (and perhaps merge) `budget` tokens of a view: those that enter the language model.

        Raises:
            Fault: the method acts inside the language model alone.
        """
        if not _defines(type(self), "select_views"):
            raise Fault("chooses inside the language model alone, and nothing of a view")
        (chosen,) = self.select_views([view], budget)
        return chosen

    def select_views(self, views: Sequence[View], budget: int) -> list[Selection]:
        """Choose `budget` tokens a view from all views of a sample, which have equally many patches; across
        them, a method may give one more and another fewer."""
        return [self.select(view, budget) for view in views]

    def cut(self, tokens: LayerView, count: int) -> Selection:
        """Choose `count` of the visual tokens that are there at a cut; with features (count, width) if the
        method merges."""
        raise Fault("has a cut and no function that makes it; define cut(tokens, count)")

    # -- its text

    def spec(self) -> str:
        """The method as one writes it on the command line, defaults left out:
        `litelvlm(context_share=0.25)`."""
        return text_of(self, {"seed"} if self.seed_written else ())

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


def _defines(cls: type[Pruner], name: str) -> bool:
    """Whether a class brings a function of its own in place of `Pruner`'s."""
    return getattr(cls, name) is not getattr(Pruner, name)


def stage_of(cls: type[Pruner]) -> Literal["tower", "layer", "both"]:
    """Where a class acts, by the functions that it defines."""
    if not _defines(cls, "cut"):
        return "tower"
    return "both" if _defines(cls, "select") or _defines(cls, "select_views") else "layer"


class ScorePruner(Pruner):
    """A method that only ranks patches: the highest `budget` scores stay, in raster order."""

    @abstractmethod
    def score(self, view: View) -> Tensor:
        """(N,) importance of every patch; higher stays."""

    def select(self, view: View, budget: int) -> Selection:
        """Keep the best `budget` patches in raster order.

        Raises:
            Fault: the scores are not one finite number per patch.
        """
        score = self.score(view)
        if not isinstance(score, torch.Tensor) or score.shape != (len(view),):
            what = tuple(score.shape) if isinstance(score, torch.Tensor) else type(score).__name__
            raise Fault(
                f"scored {what} where one number per patch, a tensor of shape ({len(view)},), is asked"
            )
        if not bool(score.isfinite().all()):
            raise Fault("scored patches with numbers that are not finite, and nothing ranks those")
        return Selection(top(score, budget).sort().values)


class LayerPruner(Pruner):
    """A method that acts inside the language model alone: all patches enter it.

    As it stands it makes one cut, before the layer of its field `layer`; a method with several defines
    `cuts`. Tokens keep their position ids unless it says otherwise.
    """

    layer: int

    @property
    def positions(self) -> Literal["compact", "kept"]:
        """As FastV and most others do it."""
        return "kept"

    def entering(self, budget: int, patches: int, num_layers: int) -> int:
        """All of them."""
        return patches

    def cuts(self, budget: int, patches: int, num_layers: int) -> tuple[Cut, ...]:
        """One before `layer`."""
        return (Cut(self.layer, self.left(budget, patches, num_layers)),)

    def left(self, budget: int, patches: int, num_layers: int) -> int:
        """Tokens behind the one cut: the budget, or m of (K n + (L - K) m) / L = budget if that is a mean."""
        if self.budget_kind != "mean":
            return budget
        return round((budget * num_layers - self.layer * patches) / (num_layers - self.layer))

    def check(self, budget: int, patches: int, num_layers: int) -> None:
        """Of one cut, also refuse a layer outside the language model, and a mean below what the layers
        before it cost."""
        super().check(budget, patches, num_layers)
        if type(self).cuts is not LayerPruner.cuts:
            return
        if not 1 <= self.layer < num_layers:
            raise ImpossibleBudget(
                f"{self.spec()} cuts outside the language model, which has {num_layers} layers; give layer "
                f"1 to {num_layers - 1}."
            )
        if self.left(budget, patches, num_layers) < 1:
            means = range(budget, patches + 1)
            least = next(mean for mean in means if self.left(mean, patches, num_layers) >= 1)
            raise ImpossibleBudget(
                f"{self.spec()} cannot average {budget} tokens: {self.layer} of {num_layers} layers see "
                f"all {patches}, "
                f"so the least mean is {least}."
            )

    @abstractmethod
    def cut(self, tokens: LayerView, count: int) -> Selection: ...
