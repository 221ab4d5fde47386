"""Costs of a model that is not here: shapes on the meta device and fake tensors, no weights, no GPU.

Whatever depends on shapes alone is counted by running the project's own modules without data. Where a pruner
looks at values, before the language model or inside it, its choice runs on random ones at full size: what it
computes depends on sizes, apart from how often VisPruner's rounds repeat, which its budget fixes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import pandas as pd
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from backbones.costs import FIXED, CostPart, Prompt, Shape, Shapes
from backbones.parts.contexts import Context
from backbones.parts.cuts import Cutting
from harness.cost import meters
from harness.cost.choices import Blind, OfPruner, entering
from harness.cost.formulas import PRESETS
from harness.cost.store import MODULES
from harness.engine.cells import Line
from pruners.base import TEXT_EMBEDS, Cut, Pruner
from pruners.checks import told


@dataclass(frozen=True)
class Projection:
    """Costs by shapes alone.

    Attributes:
        cells: one row per pruner and budget, columns as in `harness.cost.EXPLAIN`, and the presets of the
            literature.
        pruners: what each row's pruner costs by itself.
        whole: whether all visual tokens of a row enter the language model because nothing chooses before.
        parts: of the model beside the language model's layers, by name.
        shared: multiply-adds of those that no pruner changes: towers, encoders, mask decoder.
        shape: of the language model.
    """

    cells: pd.DataFrame
    pruners: tuple[OfPruner, ...]
    whole: tuple[bool, ...]
    parts: dict[str, CostPart]
    shared: dict[str, int]
    shape: Shape


class _Layers:
    """The language model's layers as fake tensors: same operators, no memory; one run per length, whatever
    the depth."""

    def __init__(self, model: Shapes, prompt: Prompt, attn: str, dtype: torch.dtype) -> None:
        # flash-attn cannot be imported without a GPU; SDPA's fused kernel multiplies and stores the same
        self.model, self.shape, self.prompt, self.dtype = model, model.shape, prompt, dtype
        self.attn = "eager" if attn == "eager" else "sdpa"
        self.fake = FakeTensorMode()
        self.one_layer = cache(self._one_layer)
        self._runs: dict[tuple[object, ...], tuple[tuple[int, ...], OfPruner, int]] = {}

    def _one_layer(self, tokens: int) -> int:
        """Multiply-adds of one layer."""
        counting = meters.counter()
        with self.fake, torch.no_grad():
            layer = self.model.layers(1, self.attn, self.dtype)
            hidden = torch.empty(1, tokens, self.shape.width, dtype=self.dtype)
            with counting:
                layer.run(hidden)
        return counting.get_total_flops() // 2

    def run(
        self, visual: int, pruner: Pruner | None = None, cuts: tuple[Cut, ...] = ()
    ) -> tuple[tuple[int, ...], OfPruner, int]:
        """Lengths of all layers, what the pruner costs inside them, and the peak of live bytes.

        Two layers of each length reach the peak: the second one runs with its input held as every later one
            does.
        """
        key = visual, pruner.spec() if pruner is not None and cuts else "", cuts
        if key not in self._runs:
            self._runs[key] = self._run(visual, pruner, cuts)
        return self._runs[key]

    def _run(
        self, visual: int, pruner: Pruner | None, cuts: tuple[Cut, ...]
    ) -> tuple[tuple[int, ...], OfPruner, int]:
        layers = min(self.shape.layers, cuts[-1].layer + 2 if cuts else 2)
        counting, live = meters.counter(), meters.LiveStorages()
        ledger, peaks = meters.mac_ledger(counting), meters.Peaks(live)
        asked, again = Blind(self.fake, counting, True), Blind(self.fake, None, False)

        def cut(choose: Blind) -> Cutting | None:
            return (
                Cutting(pruner, cuts, choose=choose, grid=self.model.grid)
                if pruner is not None and cuts
                else None
            )

        with self.fake, torch.no_grad():
            llm = self.model.layers(layers, self.attn, self.dtype)
            before, after = (
                torch.zeros(1, n, dtype=torch.long) for n in (self.prompt.before, self.prompt.after)
            )
            features = torch.empty(1, visual, self.shape.width, dtype=self.dtype)
            context = Context(torch.arange(visual))
            with counting, ledger("prefill"):
                llm.prefill(before, features, after, cut(asked), context, ledger)
            with live, peaks("prefill"):
                lengths = llm.prefill(before, features, after, cut(again), context)
        rest = self.shape.layers - layers
        inside = int(ledger.spent().get("prefill/pruner", 0))
        return lengths + lengths[-1:] * rest, OfPruner(0, asked.first, inside), peaks.rise["prefill"]


def _count(run: Callable[[], Any]) -> int:
    counting = meters.counter()
    with counting, torch.no_grad():
        run()
    return counting.get_total_flops() // 2


def project(
    model: Shapes,
    lines: Sequence[Line],
    prompt: Prompt,
    *,
    attn: str = "sdpa",
    dtype: torch.dtype = torch.bfloat16,
) -> Projection:
    """Costs of every line.

    Args:
        attn: "eager", or one of the fused kernels, which cost the same.
        dtype: of the language model, for bytes.
    """
    shape, layers, views = model.shape, _Layers(model, prompt, attn, dtype), model.views(prompt)
    parts = {part.name: part for part in model.parts(prompt)}
    shared = {name: _count(partial(part.run, 0)) for name, part in parts.items() if part.over in FIXED}
    rows, pruners, wholes = [], [], []
    for line in lines:
        entered, whole, tower = entering(line, views, shape.layers)
        cuts = line.pruner.cuts(line.budget, len(views[0]), shape.layers)
        cuts = tuple(replace(cut, keep=cut.keep * len(views)) for cut in cuts)  # a budget is that of a view
        lengths, inside, peak = layers.run(entered, line.pruner, cuts)
        pruners.append(own := replace(inside, tower=tower))
        wholes.append(whole)
        seen = [n - prompt.text for n in lengths]
        macs = {name: _of_part(part, shared, line, seen[0], lengths[-1]) for name, part in parts.items()}
        macs |= {
            "pruner": own.tower + own.inside,
            "language_model": sum(layers.one_layer(n) for n in lengths),
        }
        rows.append(
            {
                "pruner": line.name,
                "budget": line.budget,
                "lengths": lengths,
                "tokens_final": seen[-1],
                "tokens_mean": sum(seen) / len(seen),
                "per_layer": told(seen),
                "macs_measured": sum(macs.values()),
                **{name: preset(lengths, shape, prompt.text) for name, preset in PRESETS.items()},
                "activation_peak": peak,
                **{f"macs.{module}": count for module, count in macs.items()},
            }
        )
    return Projection(pd.DataFrame(rows), tuple(pruners), tuple(wholes), parts, shared, shape)


def _of_part(part: CostPart, shared: dict[str, int], line: Line, entered: int, left: int) -> int:
    """Multiply-adds of a part in one line.

    Args:
        entered: visual tokens that enter the language model.
        left: tokens that leave it, text included.
    """
    if part.over == "questions" and TEXT_EMBEDS not in line.pruner.needs:
        return 0
    if part.over in FIXED:
        return shared[part.name]
    return _count(partial(part.run, entered if part.over == "entering" else left))


def counts_lines(projected: Projection) -> list[dict[str, Any]]:
    """Lines for a run's `costs.jsonl`."""
    stage_of = {module: stage for stage, module in MODULES.items()}
    lines = []
    for row in projected.cells.to_dict("records"):
        macs = {str(name)[5:]: int(count) for name, count in row.items() if str(name).startswith("macs.")}
        lines.append(
            {
                "kind": "counts",
                "pruner": row["pruner"],
                "budget": int(row["budget"]),
                "lengths": list(row["lengths"]),
                "macs": {stage_of.get(module, module): count for module, count in macs.items()},
                "peak": {"prefill": int(row["activation_peak"])},
            }
        )
    return lines
