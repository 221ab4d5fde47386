"""PyramidDrop: stage by stage, keep a shrinking share of the visual tokens, those that the last prompt token
would look at in the layer to come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from pruners.base import Cut, LayerPruner, LayerView, Selection, UserError, precise, top
from pruners.registry import register
from pruners.stages import bracket, check_ascending, named, scaled, settled, spans, total
from pruners.views import LLM_ATTENTION_AHEAD

DEEP, EARLY = (8, 16, 24), (2, 8, 16)  # of 32 layers: as released, and as its author advises for few tokens


@register
@dataclass(frozen=True)
class PyramidDrop(LayerPruner):
    """PyramidDrop at any budget, a mean over the layers.

    The release names ratios and no budget. After its author's advice stage i keeps int(N s^i) tokens here,
    and s is the share with which the layers average the budget but for the truncation.

    Args:
        layers: the first layers that see fewer tokens; by default 8, 16 and 24 of 32 layers, or 2, 8 and 16
            where the budget is no more than the layers before the first cut cost.
        ratios: shares of all visual tokens that the stages keep, truncated; the release's are (0.5, 0.25,
            0.125). They allow one budget, the mean that they make.
    """

    layers: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    name: ClassVar[str] = "pyramiddrop"
    reference: ClassVar[str] = "PyramidDrop, CVPR 2025, https://arxiv.org/abs/2410.17247"
    needs = frozenset({LLM_ATTENTION_AHEAD})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ascending("pyramiddrop", "layers", self.layers)
        stages, given = len(self.layers or DEEP), self.ratios
        if given is None:
            return
        shares = isinstance(given, tuple) and all(isinstance(one, int | float) for one in given)
        if not shares or len(given) != stages or [1, *given, 0] != sorted([1, *given, 0], reverse=True):
            raise UserError(
                f"pyramiddrop: ratios are {stages} shares from 1 to 0 that do not grow, one for every layer, "
                f"not {given!r}."
            )

    @property
    def budget_kind(self) -> Literal["label", "mean"]:
        """Ratios make the mean that they make."""
        return "mean" if self.ratios is None else "label"

    @property
    def positions(self) -> Literal["compact", "kept"]:
        """Numbered anew at every stage."""
        return "compact"

    def cuts(self, budget: int, patches: int, num_layers: int) -> tuple[Cut, ...]:
        """One before each of the layers."""
        layers = self.layers or scaled(DEEP, num_layers)
        over = budget * num_layers - layers[0] * patches  # for the layers behind the first cut
        if self.ratios is None and not self.layers and 2 * over < num_layers - layers[0]:
            layers = scaled(EARLY, num_layers)
        runs = spans(layers, num_layers)
        if self.ratios is not None:
            found = tuple(Cut(k, int(patches * ratio)) for k, ratio in zip(layers, self.ratios, strict=True))
            mean = total([cut.keep for cut in found], runs, patches) / num_layers
            return named(self, found, mean, budget, num_layers)
        stages = range(1, len(layers) + 1)
        share = bracket(
            lambda s: total([patches * s**k for k in stages], runs, patches), budget * num_layers
        )[1]
        counts = [max(1, int(patches * share**k + 1e-6)) for k in stages]  # where rounding leaves 287.99999
        return settled(self, counts, layers, budget, patches, num_layers)

    def check(self, budget: int, patches: int, num_layers: int) -> None:
        """Also refuse a mean below what the layers before the first cut cost."""
        super().check(budget, patches, num_layers)
        self.cuts(budget, patches, num_layers)

    def cut(self, tokens: LayerView, count: int) -> Selection:
        """The `count` visual tokens with the highest head-mean attention, in sequence order."""
        row = tokens.attention("prompt", ahead=True)[:, 0, tokens.visual]
        return Selection(top(precise(row).mean(0), count).sort().values)
