"""The account of a sweep: the published-size target, and the closed forms against what the shared evaluation
executes."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

import backbones
from backbones.costs import Prompt
from backbones.parts.contexts import Ask, Context
from backbones.parts.cuts import cutting
from backbones.parts.shared import Shared
from harness import cli
from harness.cost import formulas, meters, projection, sharing
from harness.cost.lines import lines_of
from harness.engine.cells import Line
from pruners import Cut, LayerView, Pruner, Selection, View, parse
from pruners.fastv import FastV

METHODS = "none,litelvlm,fastv,visionzip,prumerge,vispruner,trim"


def test_cost_of_a_sweep_at_full_size() -> None:
    """Against figures that were computed outside this project, TMAC per image at 129 text tokens."""
    lines, shapes = (
        lines_of(parse(METHODS), (64, 128, 192), 0, (24, 24), 32),
        backbones.one("glamm-7b").shapes(),
    )
    prompt = shapes.prompt(129)
    found = sharing.account(projection.project(shapes, lines, prompt), lines, prompt)
    left, steps = found.naive, []
    for saved in found.savings.values():
        left -= saved
        steps.append(left / 1e12)
    assert found.cells == 19 and found.naive / 1e12 == pytest.approx(96.8, abs=0.05)
    encoded, headless, behind, contexts, cuts, last = steps
    assert (encoded, headless, behind) == pytest.approx((39.7, 38.9, 34.4), abs=0.1)
    assert contexts < behind and cuts <= 33.6 and last == found.shared / 1e12 < cuts
    assert found.ratio > 2.8


@dataclass(frozen=True)
class Twice(FastV):
    """FastV, and once more two layers on."""

    name = "twice"

    def cuts(self, budget: int, patches: int, num_layers: int) -> tuple[Cut, ...]:
        return Cut(self.layer, budget + 8), Cut(self.layer + 2, budget)


@dataclass(frozen=True)
class Prompted(FastV):
    """FastV by the last prompt token: every budget of it, and `Rated`, asks for one row."""

    name = "prompted"

    def cut(self, tokens: LayerView, count: int) -> Selection:
        row = tokens.attention("prompt")[:, 0, tokens.visual]
        return Selection(row.mean(0).argsort(descending=True, stable=True)[:count])


@dataclass(frozen=True)
class Rated(Prompted):
    """Another method with the same cut, and one more."""

    name = "rated"

    def cuts(self, budget: int, patches: int, num_layers: int) -> tuple[Cut, ...]:
        return Cut(self.layer, budget + 3), Cut(self.layer + 1, budget)


@dataclass(frozen=True)
class Halved(Pruner):
    """Twice the budget enters, and FastV halves it."""

    name = "halved"
    reference = "a test"
    needs = FastV.needs

    def entering(self, budget: int, patches: int, num_layers: int) -> int:
        return 2 * budget

    def cuts(self, budget: int, patches: int, num_layers: int) -> tuple[Cut, ...]:
        return (Cut(3, budget),)

    def select(self, view: View, budget: int) -> Selection:
        return Selection(torch.arange(budget))

    def cut(self, tokens: LayerView, count: int) -> Selection:
        return FastV().cut(tokens, count)


def plan(prompt: Prompt, patches: int, layers: int) -> list[tuple[Line, sharing.SharedCell, int]]:
    """Lines of a small sweep with the lengths that they have, and the visual tokens that enter."""
    found = []
    methods = [*parse("none,litelvlm,visionzip,fastv,fastv(layer=3)"), Twice(), Prompted(), Rated(), Halved()]
    for line in lines_of(methods, (8, 24), 0, (8, 8), layers):
        seen = line.pruner.schedule(line.budget, patches, layers)
        cell = sharing.cell_of(line, [n + prompt.text for n in seen], line.pruner.stage == "layer")
        found.append((line, cell, seen[0]))
    return found


@pytest.mark.parametrize("positions", ["compact", "kept"])
@pytest.mark.parametrize("talks", [1, 3])
@torch.no_grad()
def test_cost_of_sharing_is_what_the_shared_run_executes(talks: int, positions: str) -> None:
    """Whatever positions tokens have: methods share the rows that they ask alike, in any batches."""
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5}
    llm = LlamaModel(
        LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, attn_implementation="sdpa")
    ).eval()
    shape = formulas.Shape.of(llm.config)
    prompt, patches = Prompt(24, before=9, turns=3, sentence=4), 64
    cells = plan(prompt, patches, shape.layers)
    contexts: list[torch.Tensor] = []
    asks = []
    everything = torch.randn(patches, 32)
    for line, cell, entering in cells:
        for talk in range(talks):
            if cell.whole:
                tokens = everything
            elif talk == 0 or cell.per_text:
                tokens = torch.randn(entering, 32)
            if not any(tokens is known for known in contexts):
                contexts.append(tokens)
            where = next(k for k, known in enumerate(contexts) if known is tokens)
            words = tuple(range(10 + talk, 10 + talk + prompt.after - prompt.common))
            cut = cutting(line.pruner, line.budget, patches, shape.layers)
            read, last = (3, 5, len(words) - 1), len(words) - 1
            asks.append(Ask(where, tuple(range(prompt.before)), (50, 51, 52, 53), words, last, read, cut))

    def given(count: int) -> Context:
        gaps = torch.arange(count) * (patches // count)
        return Context(torch.arange(count), *((gaps, patches) if positions == "kept" else ()))

    counting = meters.counter()
    with counting:
        Shared(llm, 4, 1, {}).run(
            [given(len(tokens)) for tokens in contexts],
            lambda part: torch.stack([contexts[k] for k in part]),
            asks,
        )
    # the rows that pruners read: once for all that the same tokens entered and that ask for the same row, and
    # for each behind its first cut
    first = {(cell.before_cut, isinstance(line.pruner, Prompted)) for line, cell, _ in cells if cell.whole}
    rows = [patches + prompt.text for layer, _ in first if layer < shape.layers]
    for line, cell, _ in cells:
        cuts = line.pruner.cuts(line.budget, patches, shape.layers)
        rows += [cell.lengths[cut.layer - 1] for cut in cuts[int(cell.whole) :]]
    expected = sharing.language_model([cell for _, cell, _ in cells], prompt, shape, talks)
    expected += sharing.beginning(prompt, shape) - sharing.unread(
        [cell for _, cell, _ in cells], prompt, shape, talks
    )
    expected += talks * sum(formulas.row_macs(length, shape) for length in rows)
    assert counting.get_total_flops() == 2 * expected


def test_cost_command_of_a_sweep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "cost",
        "--backbone",
        "glamm-mini",
        "--pruners",
        "uniform,fastv",
        "--budgets",
        "64",
        "--sweep",
        "--text-tokens",
        "67",
    ]
    monkeypatch.setattr(sys, "argv", ["python -m harness", *words])
    assert cli.main() == 0
    told = capsys.readouterr().out
    assert "2 cells, each alone" in told and "uniform" not in told
    assert "1 conversation of 3 (67 text tokens)" in told and "3 conversations of 1 (53 text tokens)" in told
    assert all(
        saving in told
        for saving in (
            sharing.ENCODED,
            sharing.HEADS,
            sharing.BEGINNING,
            sharing.CONTEXTS,
            sharing.CUTS,
            sharing.LAST,
        )
    )
