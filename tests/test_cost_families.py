"""Costs of a model that is no GLaMM: stages and parts of its own, several views, its own defaults."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig

import backbones
from backbones.costs import CostPart, Prompt, Shape, Shapes
from backbones.glamm.stages import GlammStaged
from backbones.parts.staged import LlamaLayers
from backbones.registry import Settings
from harness import cost
from harness.cost import formulas, kinds, measure, projection, sharing
from harness.cost.lines import lines_of
from harness.cost.store import COSTS
from harness.plan import Plan
from pruners import UserError, View, parse
from tests import tiny_glamm
from tests.fake_backbone import FakeBackbone

ROOT = Path(__file__).parent.parent
LLM = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
)
PROMPT = Prompt(20, before=5, turns=2, sentence=3)


class Frames(Shapes):
    """Two frames of 4 x 6 patches without a class token; a memory that runs once per conversation."""

    shape, grid = Shape.of(LLM), (4, 6)

    def prompt(self, text: int | None = None, checkpoint: object = None) -> Prompt:
        return PROMPT

    def parts(self, prompt: Prompt, dtype: torch.dtype) -> tuple[CostPart, ...]:
        with torch.device("meta"):
            tower, projector, head = nn.Linear(8, 8), nn.Linear(8, 32), nn.Linear(32, 3)

        def over(module: nn.Linear, tokens: int) -> torch.Tensor:
            found: torch.Tensor = module(torch.empty(tokens, module.in_features, device="meta"))
            return found

        return (
            CostPart("frames_tower", "image", lambda _: over(tower, 48), "tower of two frames"),
            CostPart("projector", "entering", partial(over, projector)),
            CostPart("seg_head", "marks", partial(over, head)),
            CostPart("memory", "conversation", lambda _: over(tower, 10)),
        )

    def layers(self, count: int, attn: str, dtype: torch.dtype) -> LlamaLayers:
        return LlamaLayers(LLM, count, attn, dtype)

    def views(self, prompt: Prompt) -> list[View]:
        def answer(_: object) -> torch.Tensor:
            raise AssertionError("nothing is read")

        return [View(torch.randn(24, 8), None, self.grid, 1, answer, number=k, of=2) for k in range(2)]


def test_cost_of_a_family_of_its_own_is_projected() -> None:
    """Budgets are those of a view; parts cost what they say, and the account of a sweep goes by what they run
    over."""
    lines = lines_of(parse("none,uniform,fastv"), (6,), 0, Frames.grid, LLM.num_hidden_layers)
    found = projection.project(Frames(), lines, PROMPT, dtype=torch.float32)
    seen = {"none": [48] * 4, "uniform": [12] * 4, "fastv": [48, 48, 12, 12]}
    for row in found.cells.to_dict("records"):
        lengths = [n + PROMPT.text for n in seen[row["pruner"]]]
        assert list(row["lengths"]) == lengths
        assert row["macs.language_model"] == formulas.language_model_macs(lengths, Frames.shape)
        assert row["macs.projector"] == seen[row["pruner"]][0] * 8 * 32
        assert (row["macs.frames_tower"], row["macs.memory"]) == (48 * 64, 10 * 64)
        assert row["macs.seg_head"] == lengths[-1] * 32 * 3
    assert {line["macs"]["memory"] for line in projection.counts_lines(found)} == {640}
    account = sharing.account(found, lines, PROMPT, talks=2)
    once, total = 48 * 64, int(found.cells["macs_measured"].sum())
    assert account.naive == 3 * once + 2 * (total - 3 * once)
    assert account.savings[sharing.ENCODED] == 2 * once
    heads = int(found.cells["macs.seg_head"].sum())
    assert account.savings[sharing.HEADS] == 2 * (heads - 3 * PROMPT.turns * 32 * 3)


def test_cost_of_a_stage_that_is_not_named_is_an_error(
    glamm_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = tiny_glamm.load(glamm_folder)
    monkeypatch.setattr(GlammStaged, "stages", GlammStaged.stages[:-1])
    staged = measure.staged_of(backbone)
    inputs = staged.prepare(tiny_glamm.picture(64, 64), (tiny_glamm.TURN,))
    (line, _) = lines_of(parse("uniform"), (8,), 0, backbone.grid, backbone.num_layers)
    with pytest.raises(
        UserError, match=r"ran mask_decoder, which is none of its stages \(vision, .*name it there"
    ):
        measure.count(staged, inputs, line)


def test_cost_table_has_columns_of_a_models_own_stages(tmp_path: Path) -> None:
    shape = {
        "width": 4,
        "inner": 8,
        "layers": 1,
        "heads": 1,
        "key_heads": 1,
        "head_width": 4,
        "vocabulary": 9,
    }
    head = {"schema": 1, "costs": "measured", "backbone": "b", "device": "cpu", "text": 10, "element": 4}
    counts = {"kind": "counts", "pruner": "none", "budget": 8, "lengths": [18], "peak": {"prefill": 1}}
    spent = {"prefill": 2.0, "memory": 3.0, "total": 5.0, "compute": 5.0}
    lines = [
        head | {"shape": shape},
        counts | {"macs": {"prefill": 5, "memory": 7}},
        {"kind": "round", "number": 0, "ms": [["none@8", spent]]},
    ]
    (tmp_path / COSTS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (row,) = cost.load_costs(tmp_path).to_dict("records")
    assert (row["macs.language_model"], row["macs.memory"], row["macs_measured"]) == (5, 7, 12)
    assert (row["stage.prefill_ms"], row["stage.memory_ms"], row["stage.total_ms"]) == (2.0, 3.0, 5.0)
    assert not {"stage.compute_ms", "stage.span_ms"} & set(row)


# -- what a family does by default


def test_defaults_are_facts_of_a_family(glamm_folder: Path) -> None:
    facts = {
        name: (backbones.get(name).costs_by_default, backbones.get(name).images_by_default)
        for name in ("glamm", "glamm-mini")
    }
    assert facts == {"glamm": ("projected", 0), "glamm-mini": ("measured", 12)}
    mini, loaded = backbones.load("glamm-mini"), tiny_glamm.load(glamm_folder)
    assert [kinds.kind(None, one, 1) for one in (mini, loaded, FakeBackbone())] == [
        "measured",
        "projected",
        "off",
    ]
    assert kinds.kind(None, mini, 2) == "off"
    plan = Plan(backbones=("glamm-mini", "glamm(checkpoint='x')"))
    assert [plan.on(one).limit for one in (*plan.backbones, mini, loaded)] == [12, 0, 12, 0]
    assert plan.on(loaded).backbones == ("glamm(checkpoint='x')",)


@pytest.mark.parametrize(
    ("fact", "says"),
    [
        ({"costs_by_default": "guessed"}, "costs 'guessed' by default; there are off, projected, measured"),
        ({"images_by_default": -1}, "has -1 images by default"),
        ({"images_by_default": True}, "has True images by default"),
    ],
)
def test_defaults_that_make_no_sense_are_refused(fact: dict[str, object], says: str) -> None:
    cls = type("Odd", (Settings,), {"name": "odd", "reference": "a test", "__module__": __name__, **fact})
    with pytest.raises(UserError, match=says):
        backbones.register(dataclass(frozen=True)(cls))


def test_no_backbone_is_named_in_the_harness_but_as_a_default() -> None:
    """Defaults of --backbones and of --backbone; sentences of help and docstrings are longer than a name."""
    names, found = {"glamm", "glamm-mini", "glamm-7b"}, set()
    for path in sorted((ROOT / "harness").rglob("*.py")):
        tree = ast.parse(path.read_text())
        defaults = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AnnAssign)]
        allowed: set[int] = set()
        for node in defaults:
            values = node.args.defaults if isinstance(node, ast.FunctionDef) else [node.value or node]
            allowed |= {id(one) for value in values for one in (value, *getattr(value, "elts", ()))}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and node.value in names and id(node) not in allowed:
                found.add((path.relative_to(ROOT).as_posix(), node.lineno, node.value))
    assert not found
