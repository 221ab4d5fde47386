"""Costs of a model that is not here: shapes on the meta device and fake tensors, no weights, no GPU.

Whatever depends on shapes alone is counted by running the project's own modules without data. Where a pruner
looks at values, before the language model or inside it, its choice runs on random ones at full size: what it
computes depends on sizes, apart from how often VisPruner's rounds repeat, which its budget fixes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
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
        peaks: the most bytes alive at once in each part, without weights and what it is given; of one that
            pruners change, in the first line.
        shape: of the language model.
        places: tokens that it has positions for; None where that bounds nothing.
        tail: of its tokens, those that no pruner sees.
        notes: what else the figures rest on.
    """

    cells: pd.DataFrame
    pruners: tuple[OfPruner, ...]
    whole: tuple[bool, ...]
    parts: dict[str, CostPart]
    shared: dict[str, int]
    peaks: dict[str, int]
    shape: Shape
    places: int | None = None
    tail: int = 0
    notes: tuple[str, ...] = ()


class _Layers:
    """The language model's layers as fake tensors: same operators, no memory; one run per length, whatever
    the depth."""

    def __init__(self, model: Shapes, prompt: Prompt, views: int, attn: str, dtype: torch.dtype) -> None:
        # flash-attn cannot be imported without a GPU; SDPA's fused kernel multiplies and stores the same
        self.model, self.shape, self.prompt, self.dtype = model, model.shape, prompt, dtype
        self.views = views
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
                Cutting(pruner, cuts, choose=choose, grid=self.model.cells)
                if pruner is not None and cuts
                else None
            )

        with self.fake, torch.no_grad():
            llm = self.model.layers(layers, self.attn, self.dtype)
            before, after = (
                torch.zeros(1, n, dtype=torch.long) for n in (self.prompt.before, self.prompt.after)
            )
            features = torch.empty(1, visual + self.model.tail, self.shape.width, dtype=self.dtype)
            context = self._context(visual)
            with counting, ledger("prefill"):
                llm.prefill(before, features, after, cut(asked), context, ledger)
            with live, peaks("prefill"):
                lengths = llm.prefill(before, features, after, cut(again), context)
        rest = self.shape.layers - layers  # they see what the last one that ran sees
        inside = int(ledger.spent().get("prefill/pruner", 0))
        return lengths + lengths[-1:] * rest, OfPruner(0, asked.first, inside), peaks.rise["prefill"]

    def _context(self, visual: int) -> Context:
        """So many tokens of all views together, equally many of each where they can be cut, and the tail."""
        rows, columns = self.model.cells
        each = visual // self.views
        patches = torch.arange(self.views)[:, None] * rows * columns + torch.arange(each)
        if each * self.views != visual:  # of one view more than of another: nothing is cut
            return Context(torch.arange(visual), tail=self.model.tail)
        return Context(patches.flatten(), views=self.views, tail=self.model.tail)


def _of_part(part: CostPart, tokens: int) -> tuple[int, int]:
    """Multiply-adds of a part over so many tokens, and the most bytes alive in it."""
    total = peak = 0
    for times, run in part.runs:
        counting, live = meters.counter(), meters.LiveStorages()
        with meters.Fused(), live, counting, torch.no_grad():
            run(tokens)
        total += times * (counting.get_total_flops() // 2)
        peak = max(peak, live.peak)
    return total, peak


def project(
    model: Shapes,
    lines: Sequence[Line],
    prompt: Prompt,
    *,
    attn: str = "sdpa",
    dtype: torch.dtype = torch.bfloat16,
    like: Projection | None = None,
) -> Projection:
    """Costs of every line.

    Args:
        attn: "eager", or one of the fused kernels, which cost the same.
        dtype: of the model, for bytes.
        like: of the same model under other settings, whose parts that no pruner changes cost the same.
    """
    shape, views = model.shape, model.views(prompt)
    layers = _Layers(model, prompt, len(views), attn, dtype)
    parts = _Parts(model.parts(prompt, dtype), like)
    rows, pruners, wholes = [], [], []
    for line in lines:
        into = entering(line, model, views)
        cuts = line.pruner.cuts(line.budget, model.sent(len(views[0])), shape.layers)
        lengths, inside, peak = layers.run(into.tokens, line.pruner, cuts)
        pruners.append(own := replace(inside, tower=into.macs))
        wholes.append(into.whole)
        seen = [n - prompt.text for n in lengths]
        macs = parts.of(line, into.projected, lengths[-1]) | {
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
    return Projection(
        pd.DataFrame(rows),
        tuple(pruners),
        tuple(wholes),
        parts.known,
        parts.shared,
        parts.peaks,
        shape,
        model.places,
        model.tail,
        model.notes(prompt),
    )


class _Parts:
    """A model's parts, those that no pruner changes counted once."""

    def __init__(self, parts: Sequence[CostPart], like: Projection | None) -> None:
        self.known = {part.name: part for part in parts}
        self.shared: dict[str, int] = {}
        self.peaks: dict[str, int] = {}
        for name, part in self.known.items():
            if part.over in FIXED:
                counted = like is not None and name in like.shared
                found = (like.shared[name], like.peaks[name]) if counted else _of_part(part, 0)  # type: ignore[union-attr]
                self.shared[name], self.peaks[name] = found

    def of(self, line: Line, projected: int, left: int) -> dict[str, int]:
        """Multiply-adds of all parts in one line.

        Args:
            projected: visual tokens on their way into the language model.
            left: tokens that leave it, text included.
        """
        return {name: self._one(part, line, projected, left) for name, part in self.known.items()}

    def _one(self, part: CostPart, line: Line, projected: int, left: int) -> int:
        if part.over == "questions" and TEXT_EMBEDS not in line.pruner.needs:
            return 0
        if part.over in FIXED:
            return self.shared[part.name]
        macs, peak = _of_part(part, projected if part.over == "entering" else left)
        self.peaks.setdefault(part.name, peak)
        return macs


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
