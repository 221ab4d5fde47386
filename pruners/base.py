"""What a pruner is, what it may read, and what it returns. Imports torch alone.

A tower-stage pruner sees one image's visual tokens after the vision tower and returns a `Selection`; a
layer-stage pruner sees one row of attention inside the language model and returns the visual tokens that
stay. Both end at exactly the budget: the number of visual tokens that the language model gets.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import TYPE_CHECKING, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

import torch

if TYPE_CHECKING:
    from torch import Tensor

CLS, POOLED = -1, -2  # marks in Selection.indices of tokens that are no single patch


class UserError(ValueError):
    """A mistake of the user's, told in one sentence; the command line prints it and exits with 2."""


class ImpossibleBudget(UserError):
    """A budget that the method cannot end at."""


class Fault(RuntimeError):
    """A mistake in a pruner, as the end of a sentence that begins with its name; `pruners.checks` completes
    it."""


class UndeclaredNeed(Fault):
    """A pruner read a signal that its `needs` do not declare."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """` Did you mean 'x'?` for the valid word nearest to `word`, or an empty string."""
    close = difflib.get_close_matches(word, list(valid), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


@dataclass(frozen=True)
class Need:
    """One signal of the backbone.

    Kinds with a layer (-1 the last, -2 the one whose output the projector gets; H heads, C channels, N
    patches):
        cls_attention: (H, N+1) softmax of the class token's row over all tokens, class token in column 0.
        cls_query: (C,) query projection of the class token, with bias, unscaled, heads concatenated.
        keys, values: (N+1, C) key and value projections of all tokens, class token in row 0.
    Kinds without:
        projected_patches: (N, P) patches through post_layernorm and visual_projection, not normalised.
        text_embeds: (M, P) CLIP text embeddings of the conversation's M questions, not normalised.
        referent: (N,) share of each patch that the truth masks cover; for controls that may see the truth.
    """

    kind: str
    layer: int | None = None


PROJECTED_PATCHES, TEXT_EMBEDS, REFERENT = Need("projected_patches"), Need("text_embeds"), Need("referent")
LAYER_KINDS = ("cls_attention", "cls_query", "keys", "values")
PLAIN_KINDS = tuple(need.kind for need in (PROJECTED_PATCHES, TEXT_EMBEDS, REFERENT))
MAX_SEED = 2**32 - 1


class VisualTokens:
    """One image as a tower-stage pruner sees it; signals are computed when they are read.

    Args:
        patches: (N, C) features that the projector would get, raster order.
        cls: (C,) the class token beside them.
        grid: rows and columns, N = rows * columns.
        num_heads: attention heads of the vision tower.
        answer: computes a declared signal.
        sample: stable id of the image and expression, the seed of random draws.
        declared: the signals that may be read; None allows all.
    """

    def __init__(
        self,
        patches: Tensor,
        cls: Tensor,
        grid: tuple[int, int],
        num_heads: int,
        answer: Callable[[Need], Tensor],
        sample: str = "",
        declared: frozenset[Need] | None = None,
    ) -> None:
        self.patches, self.cls, self.grid, self.num_heads, self.sample = patches, cls, grid, num_heads, sample
        self._answer, self._declared = answer, declared

    def __len__(self) -> int:
        return len(self.patches)

    def only(self, needs: frozenset[Need]) -> VisualTokens:
        """The same tokens, answering nothing but `needs`."""
        return VisualTokens(
            self.patches, self.cls, self.grid, self.num_heads, self._answer, self.sample, needs
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

    @property
    def projected_patches(self) -> Tensor:
        """(N, P) patches in the space that CLIP shares with text."""
        return self.signal(PROJECTED_PATCHES)

    @property
    def text_embeds(self) -> Tensor:
        """(M, P) text embeddings."""
        return self.signal(TEXT_EMBEDS)

    @property
    def referent(self) -> Tensor:
        """(N,) share of each patch inside the truth."""
        return self.signal(REFERENT)


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

    def gather(self, tokens: VisualTokens) -> Tensor:
        """(T, C) features for the projector."""
        if self.features is not None:
            return self.features
        picked = tokens.patches.index_select(0, self.indices.clamp(min=0))
        return torch.where((self.indices == CLS)[:, None], tokens.cls, picked)


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


def _fits(value: object, hint: object) -> bool:
    """Whether a value is of an annotated type; annotations beyond plain values are taken as fitting."""
    if get_origin(hint) is Literal:
        return any(value == valid and type(value) is type(valid) for valid in get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, option) for option in get_args(hint))
    if hint is float:  # finite, also as float64 for whole numbers of any length
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and abs(value) <= sys.float_info.max
        )
    return type(value) is hint if hint in _WORDS else True


def _wanted(hint: object) -> str:
    """The values that a type allows, in words."""
    if get_origin(hint) is Literal or get_origin(hint) in (Union, UnionType):
        return " or ".join(
            repr(option) if get_origin(hint) is Literal else _wanted(option) for option in get_args(hint)
        )
    return _WORDS.get(hint, str(hint))


_WORDS: dict[object, str] = {
    bool: "True or False",
    float: "a number",
    int: "a whole number",
    str: "a text in quotes",
    NoneType: "None",
}


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
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value, hint = getattr(self, field.name), hints[field.name]
            if not _fits(value, hint):
                options = [str(option) for option in get_args(hint)] if get_origin(hint) is Literal else []
                raise UserError(
                    f"{self.name}: {field.name} is {_wanted(hint)}, not {value!r}.{nearest(str(value), options)}"
                )
            if hint is float:  # 1 and 1.0 are one method, so they have one text
                object.__setattr__(self, field.name, float(value))
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
        values = ((field, getattr(self, field.name)) for field in dataclasses.fields(self))
        written = {"seed"} if self.seed_written else ()
        given = [
            f"{field.name}={value!r}"
            for field, value in values
            if value != field.default or field.name in written
        ]
        return f"{self.name}({', '.join(given)})" if given else self.name

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
    def select(self, tokens: VisualTokens, budget: int) -> Selection:
        """Choose (and perhaps merge) `budget` tokens of one image."""


class ScorePruner(Pruner):
    """A method that only ranks patches: the highest `budget` scores stay, in raster order."""

    @abstractmethod
    def score(self, tokens: VisualTokens) -> Tensor:
        """(N,) importance of every patch; higher stays."""

    def select(self, tokens: VisualTokens, budget: int) -> Selection:
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

    def select(self, tokens: VisualTokens, budget: int) -> Selection:
        """Layer-stage methods send every patch into the language model."""
        return Selection(torch.arange(len(tokens), device=tokens.patches.device))


def outliers(score: Tensor) -> int:
    """How many values lie strictly above Q3 + 1.5 (Q3 - Q1); quartiles interpolate linearly, in float32 as
    published."""
    rough = score.float()
    low, high = torch.quantile(rough, torch.tensor([0.25, 0.75], device=score.device))
    return int((rough > high + 1.5 * (high - low)).sum())
