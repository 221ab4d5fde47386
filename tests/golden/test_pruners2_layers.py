"""Every array of the golden set of methods that act inside the language model, in float64.

`pytest tests/golden/test_pruners2_layers.py --golden-pruners2 DIR --golden-pruners DIR` runs the same checks
on another set in the same layout.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbones.parts.contexts import Context, whole_positions
from backbones.parts.cuts import Cutting
from backbones.parts.faithful import run_layers
from backbones.parts.llama import Past
from pruners import checks
from pruners.base import Cut, LayerView, Need, Pruner, Selection, View, top
from pruners.dart import Dart
from pruners.feather import Feather
from pruners.nuwa import Nuwa
from pruners.pyramiddrop import PyramidDrop
from pruners.sparsevlm import SparseVLM
from tests.golden.test_pruners import (
    Arrays,
    arrays,
    clip_tokens,
    double,
    grid_of,
    llama,
    settings,
    tower_tokens,
)

PLUS = 1e-3  # its scores are quotients that pass near 0
LABELLED = 32  # layers of the models that labels belong to


def compare(name: str, got: Tensor, expected: NDArray[np.generic], relative: float = 1e-4) -> None:
    assert tuple(got.shape) == expected.shape, name
    if expected.dtype == np.int64:
        assert got.tolist() == expected.tolist(), name
    else:
        atol = relative * max(1.0, float(np.abs(expected).max(initial=0)))
        np.testing.assert_allclose(got.double().numpy(), expected, rtol=0, atol=atol, err_msg=name)


def compared(name: str, got: dict[str, Tensor], expected: Arrays, scores: float = 1e-4) -> int:
    """Compare every array of a setting; returns how many."""
    for array, value in expected.items():
        compare(f"{name} {array}", got[array], value, scores if array.startswith("score") else 1e-4)
    return len(expected)


def after(setting: str, letter: str) -> tuple[float, ...]:
    """Numbers behind a letter: after("K8_16_r0.7", "K") is (8, 16)."""
    found = re.search(rf"(?:^|_){letter}([\d.]+(?:_[\d.]+)*)", setting)
    return tuple(map(float, found[1].split("_"))) if found else ()


def whole(setting: str, letter: str) -> tuple[int, ...]:
    return tuple(map(int, after(setting, letter)))


# -- a tiny Llama


@dataclass
class Told:
    """What a pruner was told and chose at its cuts; `told` computes what else the set stores."""

    told: Callable[[LayerView, int, Selection], dict[str, Tensor]]
    found: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, pruner: Pruner, tokens: LayerView, count: int) -> Selection:
        chosen = checks.cut(pruner, tokens, count)
        self.found |= {
            name if name in ("raters",) else f"{name}{tokens.number + 1}": value
            for name, value in self.told(tokens, count, chosen).items()
        }
        return chosen


def run(
    file: Path, given: Arrays, cuttings: Sequence[Cutting], kept: bool, entering: Context | None = None
) -> dict[str, Tensor]:
    """Prefill and three decoded tokens; `kept` decodes behind the unpruned length in every layer."""
    model = llama(given, "sdpa")
    start, count, length = (int(v) for v in given["config"][5:8])
    embeds, context = double(given["inputs_embeds"])[None], entering or Context(torch.arange(count))
    embeds = torch.cat(
        [embeds[:, :start], embeds[:, start + context.patches], embeds[:, start + count :]], dim=1
    )
    places = whole_positions([context], start, length - start - count, torch.device("cpu"))
    past = Past()
    done = run_layers(
        model,
        embeds,
        visual_start=start,
        visual_count=len(context),
        cuttings=cuttings,
        patches=context.patches[None],
        positions=places,
        past=past,
    )
    lengths = torch.tensor([past.layers[k][0].shape[2] for k in range(len(model.layers))])
    decoded, positions = [], []
    for k, step in enumerate(double(given["decode_embeds"])):
        past = Past(past)
        first = length + k if kept else None
        one = run_layers(model, step[None, None], past=past, first_position=first)
        decoded.append(one.hidden[0, 0])
        positions.append(int(one.positions))
    return {
        "final_hidden": done.hidden[0],
        "decode_hidden": torch.stack(decoded),
        "positions_in": places[0],
        "positions": done.positions[0],
        "decode_positions": torch.tensor(positions),
        "cache_len": lengths,
        "tokens_in": torch.tensor(done.lengths) - (length - count),
        "patches": done.patches[0],
    }


def files(folder: Path, method: str) -> list[tuple[Path, Arrays, Arrays]]:
    """Every file of a method, its inputs and its arrays."""
    paths = sorted(folder.glob(f"llm_*_{method}.npz"))
    assert paths
    return [
        (path, arrays(path.with_name(path.name.replace(method, "inputs"))), arrays(path)) for path in paths
    ]


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
@torch.no_grad()
def test_unpruned(golden_pruners2_dir: Path, attn: str, record_property: Any) -> None:
    paths = sorted(golden_pruners2_dir.glob("llm_*_inputs.npz"))
    for path in paths:
        given = arrays(path)
        plain = run_layers(llama(given, attn), double(given["inputs_embeds"])[None])
        compare(path.name, plain.hidden[0, -8:], given["unpruned_final_hidden_last8"])
    assert paths
    if attn == "sdpa":
        record_property("arrays", len(paths))


# -- SparseVLM


class Stored(SparseVLM):
    """Adds the draws that the set stores, and tells its clusters."""

    draws: tuple[NDArray[np.generic] | None, ...] = ()
    told: tuple[Tensor, ...] = ()
    at = 0

    def jitter(self, states: Tensor) -> Tensor:
        stored = self.draws[self.at]
        return 1e-6 * double(stored) if stored is not None else super().jitter(states)

    def clustered(self, states: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        found = super().clustered(states, count)
        object.__setattr__(self, "told", found)
        return found


def sparse_told(pruner: Stored, tokens: LayerView, chosen: Selection, merged: int) -> dict[str, Tensor]:
    score = pruner.ratings(tokens).mean((0, 1))
    kept = chosen.indices[: len(chosen.indices) - merged]
    found = {"raters": pruner.raters(tokens), "score": score, "kept": kept}
    if pruner.version == "plus":
        rows = SparseVLM(version="plus", heads=10**6).ratings(tokens)
        return found | {"heads": pruner.looking(rows)}
    centres, groups, features = pruner.told
    assert chosen.features is not None and chosen.features[len(kept) :].equal(features)
    pool = pruner.pool(score, kept)
    return found | {"pool": pool, "centers": centres, "assign": groups, "merged": features}


@pytest.mark.parametrize("method", ["sparsevlm", "sparsevlmplus"])
@torch.no_grad()
def test_sparsevlm(golden_pruners2_dir: Path, method: str, record_property: Any) -> None:
    checked = 0
    for path, given, stored in files(golden_pruners2_dir, method):
        if "heads_override" in stored:
            heads = int(stored["heads_override"])
            given["config"] = np.array([given["config"][0], heads, heads, *given["config"][3:]])
        patches, num_layers = int(given["config"][6]), int(given["config"][0])
        for setting, expected in settings(stored):
            counts = whole(setting, "c")
            pruner = Stored(version="plus" if method.endswith("plus") else "1.0", counts=counts)
            seen = pruner.seen(list(counts), patches)
            cuts = tuple(Cut(int(layer) + 1, n) for layer, n in zip(stored["pruning_loc"], seen, strict=True))
            draws = tuple(expected.get(f"noise{k + 1}") for k in range(len(cuts)))

            def told(
                tokens: LayerView,
                count: int,
                chosen: Selection,
                pruner: Stored = pruner,
                counts: tuple[int, ...] = counts,
            ) -> dict[str, Tensor]:
                return sparse_told(pruner, tokens, chosen, count - counts[tokens.number])

            watch = Told(told)

            def choose(
                by: Pruner,
                tokens: LayerView,
                count: int,
                watch: Told = watch,
                draws: tuple[NDArray[np.generic] | None, ...] = draws,
            ) -> Selection:
                object.__setattr__(by, "draws", draws)
                object.__setattr__(by, "at", tokens.number)
                return watch(by, tokens, count)

            got = run(path, given, [Cutting(pruner, cuts, choose=choose)], pruner.positions == "kept")
            behind = [*got["tokens_in"][1:].tolist(), int(got["tokens_in"][-1])]
            got |= watch.found | {"equal_tokens": torch.tensor(sum(behind) / num_layers, dtype=torch.float64)}
            got |= {f"noise{k + 1}": double(draw) for k, draw in enumerate(draws) if draw is not None}
            checked += compared(f"{path.name} {setting}", got, expected, PLUS if "plus" in method else 1e-4)
    record_property("arrays", checked)


# -- PyramidDrop, DART, FEATHER


@torch.no_grad()
def test_pyramiddrop(golden_pruners2_dir: Path, record_property: Any) -> None:
    checked = 0
    for path, given, stored in files(golden_pruners2_dir, "pyramiddrop"):
        patches, num_layers = int(given["config"][6]), int(given["config"][0])
        for setting, expected in settings(stored):
            layers, ratios = (tuple(expected[name].tolist()) for name in ("layers", "ratios"))
            pruner = PyramidDrop(layers=layers, ratios=ratios)
            cuts = pruner.cuts(int(expected["tokens_in"].mean()), patches, num_layers)
            watch = Told(
                lambda tokens, _, chosen: {
                    "score": tokens.attention("prompt", ahead=True)[:, 0, tokens.visual].mean(0),
                    "kept": tokens.indices[chosen.indices],
                }
            )
            got = run(path, given, [Cutting(pruner, cuts, choose=watch)], kept=False) | watch.found
            got |= {"layers": torch.tensor(layers), "ratios": torch.tensor(ratios, dtype=torch.float64)}
            each = torch.stack([got["cache_len"] + k for k in range(3)])
            assert each[:, -1].equal(got["decode_positions"])
            checked += compared(f"{path.name} {setting}", got | {"decode_positions": each}, expected)
    record_property("arrays", checked)


@torch.no_grad()
def test_dart(golden_pruners2_dir: Path, record_property: Any) -> None:
    checked = 0
    for path, given, stored in files(golden_pruners2_dir, "dart"):
        heads, key_heads = (int(v) for v in given["config"][1:3])
        patches, num_layers = int(given["config"][6]), int(given["config"][0])
        for setting, expected in settings(stored):
            layer, visual, text = (whole(setting, letter)[0] for letter in "Kvt")
            cap = whole(setting, "cap") or (int(patches * (1 - after(setting, "r")[0])),)
            pruner = Dart(layer=layer, visual_pivots=visual, text_pivots=text)
            left = Dart(layer=layer, visual_pivots=visual, text_pivots=text, budget="label").left(
                cap[0], patches, num_layers
            )

            def told(
                tokens: LayerView,
                count: int,
                _: Selection,
                pruner: Dart = pruner,
                share: int = heads // key_heads,
            ) -> dict[str, Tensor]:
                norms, pivots = pruner.norms(tokens), pruner.pivots(tokens, count)
                order = torch.tensor(pruner.visited(tokens, *pivots)) - tokens.start
                return {
                    "l1_visual": norms[0] * share,  # the release repeats keys for the queries that share them
                    "l1_text": norms[1] * share,
                    "pivots_visual": pivots[0],
                    "pivots_text": pivots[1],
                    "visit_order": order,
                }

            watch = Told(told)
            got = run(path, given, [Cutting(pruner, (Cut(layer, left),), choose=watch)], kept=True)
            got |= {name[:-1]: value for name, value in watch.found.items()}
            got |= {"kept": got["patches"], "per_pivot": torch.tensor((left - visual) // (visual + text))}
            checked += compared(f"{path.name} {setting}", got, expected)
    record_property("arrays", checked)


@torch.no_grad()
def test_feather(golden_pruners2_dir: Path, record_property: Any) -> None:
    checked = 0
    for path, given, stored in files(golden_pruners2_dir, "feather"):
        for setting, expected in settings(stored):
            layers, (ratio,) = whole(setting, "K"), after(setting, "r")
            stride = whole(setting, "s")[0] if whole(setting, "s") else 0
            pruner = Feather(stride=stride, rope=setting.endswith("_rope") and "no_rope" not in setting)
            left = [len(expected[f"kept{k + 1}"]) for k in range(len(layers))]
            if stride:
                assert left[1] == int(left[0] * (1 - ratio) ** 2)

            def told(
                tokens: LayerView,
                _: int,
                chosen: Selection,
                pruner: Feather = pruner,
                share: float = 1 - ratio,
            ) -> dict[str, Tensor]:
                score = pruner.score(tokens)
                best = top(score, int(len(tokens) * share ** (tokens.number + 1)))
                return {"score": score, "top": best, "kept": tokens.indices[chosen.indices]}

            watch, cuts = Told(told), tuple(map(Cut, layers, left))
            grid = grid_of(path)
            got = run(path, given, [Cutting(pruner, cuts, choose=watch, grid=grid)], kept=True)
            got |= {
                name.replace("top", "top") + ("_desc" if name.startswith("top") else ""): value
                for name, value in watch.found.items()
            }
            checked += compared(f"{path.name} {setting}", got, expected)
    record_property("arrays", checked)


# -- Nuwa


class Reaching(Nuwa):
    """With the radius of a setting."""

    square = 0.0

    def reach(self, grid: tuple[int, int]) -> float:
        return self.square


def nuwa_cases(tokens: View, stored: Arrays, name: str) -> int:
    """Every array of a file of the tower stage."""
    checked = 0
    for setting, expected in settings(stored):
        (label,), (square,) = whole(setting, "T"), after(setting, "d")
        pruner = Reaching()
        object.__setattr__(pruner, "square", square)
        count = pruner.entering(label, len(tokens), LABELLED)
        kept, own = pruner.chosen(tokens, count)
        chosen = pruner.select(tokens, count)
        assert chosen.indices.equal(kept) and chosen.features is not None
        if square == Nuwa().reach(tokens.grid):
            same = Nuwa().select(tokens, count)
            assert same.features is not None and same.features.equal(chosen.features)
        got = {"kept": kept, "high": own.nonzero()[:, 0], "out": chosen.features}
        checked += compared(f"{name} {setting}", got, expected)
    return checked


@torch.no_grad()
def test_nuwa_tower(golden_pruners_dir: Path, golden_pruners2_dir: Path, record_property: Any) -> None:
    checked = 0
    paths = sorted(golden_pruners2_dir.glob("tower_*_nuwa.npz"))
    for path in paths:
        plain = tower_tokens(
            arrays(golden_pruners_dir / path.name.replace("nuwa", "inputs")), 1, grid_of(path)
        )
        stored = arrays(path)
        upper = double(stored["sim_hidden"])

        def answer(need: Need, plain: View = plain, upper: Tensor = upper) -> Tensor:
            return upper if need.kind == "hidden" else plain.signal(need)

        tokens = View(plain.patches, plain.cls, plain.grid, plain.num_heads, answer)
        checked += nuwa_cases(tokens, stored, path.name)
    assert paths
    record_property("arrays", checked)


def test_nuwa_end_to_end(golden_pruners_dir: Path, golden_pruners2_dir: Path, record_property: Any) -> None:
    checked = 0
    for path in sorted(golden_pruners2_dir.glob("e2e_*_nuwa.npz")):
        tokens = clip_tokens(arrays(golden_pruners_dir / path.name.replace("_nuwa", "")), 1)
        checked += nuwa_cases(tokens, arrays(path), path.name)
    assert checked > 0
    record_property("arrays", checked)


@torch.no_grad()
def test_nuwa_layers(golden_pruners_dir: Path, golden_pruners2_dir: Path, record_property: Any) -> None:
    checked = 0
    for path, given, stored in files(golden_pruners2_dir, "nuwa"):
        patches, shape = int(given["config"][6]), path.name.split("_")[1]
        tower = min(golden_pruners_dir.glob(f"tower_{shape}_*_inputs.npz"))
        tokens = tower_tokens(arrays(tower), 1, grid_of(path))
        for setting, expected in settings(stored):
            label, compact = whole(setting, "T")[0], setting.endswith("_compact")
            pruner = Nuwa(positions="compact" if compact else "kept")
            kept = pruner.chosen(tokens, pruner.entering(label, patches, LABELLED))[0]
            context = Context(kept) if compact else Context(kept, kept, patches)
            watch, cuttings = Told(lambda *_: {}), []
            if "_K" in setting:
                watch = Told(lambda seen, *_: {"score": seen.attention("prompt")[:, 0, seen.visual].mean(0)})
                cut = Cut(whole(setting, "K")[0], whole(setting, "keep")[0])
                cuttings = [Cutting(pruner, (cut,), choose=watch)]
            got = run(path, given, cuttings, not compact, context)
            got |= {"kept1": kept, "kept2": got["patches"], "score": watch.found.get("score1", kept)}
            checked += compared(f"{path.name} {setting}", got, expected)
    record_property("arrays", checked)
