"""Every array of the golden sets of DivPrune, CDPruner, HiPrune, HoloV, FasterVLM and SCOPE, in float64.

`pytest tests/golden/test_pruners2.py --golden-pruners2 DIR --golden-pruners DIR` runs the same checks on
another set in the same layout; its towers are in the second folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from backbones.parts.clip import whole_map
from pruners.base import LLM_PATCHES, Need, View
from pruners.cdpruner import CDPruner
from pruners.divprune import DivPrune
from pruners.fastervlm import FasterVLM
from pruners.hiprune import DEPTH, HiPrune
from pruners.holov import HoloV
from pruners.scope import Scope
from tests.golden.test_pruners import Arrays, arrays, clip_tokens, double, grid_of, numbers, tower_tokens

Values = dict[str, NDArray[np.generic]]
FEATURES = 1e-4  # of an array's largest value, or of 1: the set's own tolerance


def compare(name: str, got: Tensor, expected: NDArray[np.generic]) -> None:
    """Whole numbers exactly, in their order; others within the tolerance."""
    assert tuple(got.shape) == expected.shape, name
    if expected.dtype == np.int64:
        assert got.tolist() == expected.tolist(), name
    else:
        near = FEATURES * max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(got.double().numpy(), expected, rtol=0, atol=near, err_msg=name)


def settings(expected: Arrays) -> Iterator[tuple[str, Values]]:
    """(setting, its arrays) of keys `<setting>__<array>`; "" is the setting of an array of the whole file."""
    groups: dict[str, Values] = {}
    for key, value in expected.items():
        setting, _, array = key.rpartition("__")
        groups.setdefault(setting, {})[array] = value
    yield from groups.items()


def with_signals(view: View, more: dict[Need, Tensor]) -> View:
    """The same view with other answers to some questions."""

    def answer(need: Need) -> Tensor:
        return more[need] if need in more else view.signal(need)

    return View(view.patches, view.cls, view.grid, view.num_heads, answer)


def projected(view: View, folder: Path) -> View:
    """The same view with patches behind the set's projector."""
    given = {key: double(value) for key, value in arrays(folder / "tower_projector.npz").items()}
    inner = F.gelu(view.patches @ given["mm_w1"].T + given["mm_b1"])
    return with_signals(view, {LLM_PATCHES: inner @ given["mm_w2"].T + given["mm_b2"]})


def divprune_case(view: View, setting: str) -> dict[str, Tensor]:
    if not setting:
        return {"projected_head": view.llm_patches[:4]}
    budget = int(numbers(setting, "T")[0])
    return {"picked": DivPrune().picked(view, budget), "kept": DivPrune().select(view, budget).indices}


def cdpruner_case(view: View, setting: str) -> dict[str, Tensor]:
    if "T" not in setting:
        return {"relevance": CDPruner().weights(view)}
    budget = int(numbers(setting, "T")[0])
    return {"picked": CDPruner().picked(view, budget), "kept": CDPruner().select(view, budget).indices}


def fastervlm_case(view: View, setting: str) -> dict[str, Tensor]:
    return {"kept": FasterVLM().select(view, int(numbers(setting, "T")[0])).indices}


def scope_case(view: View, setting: str) -> dict[str, Tensor]:
    budget, alpha = numbers(setting, "T", "a")
    method = Scope(alpha=alpha, combine=setting.rsplit("_", 1)[1])  # type: ignore[arg-type]
    return {"picked": method.picked(view, int(budget)), "kept": method.select(view, int(budget)).indices}


def holov_case(view: View, setting: str) -> dict[str, Tensor]:
    """With zero rows (-1) where the official code puts them, at the end; ours has other patches there."""
    budget, crops = (int(v) for v in numbers(setting, "T", "P"))
    method = HoloV(crops=crops)
    if setting.endswith("_cube"):
        cubed = method.attention(view) ** 3
        row = torch.cat([cubed.new_zeros(1), cubed]).expand(view.num_heads, -1)
        view = with_signals(view, {Need("cls_attention", -2): row})
    kept, per_crop = method.shared(view, budget)
    order = torch.cat([kept, kept.new_full((budget - len(kept),), -1)])
    ours = method.select(view, budget).indices
    assert ours[: len(kept)].equal(kept) and len(ours.unique()) == budget
    return {"order": order, "per_crop": per_crop}


CASES: dict[str, Callable[[View, str], dict[str, Tensor]]] = {
    "cdpruner": cdpruner_case,
    "divprune": divprune_case,
    "fastervlm": fastervlm_case,
    "holov": holov_case,
    "scope": scope_case,
}


@pytest.mark.parametrize("method", sorted(CASES))
def test_tower(  # type: ignore[no-untyped-def]
    golden_pruners_dir: Path, golden_pruners2_dir: Path, method: str, record_property
) -> None:
    checked = 0
    for path in sorted(golden_pruners2_dir.glob(f"tower_*_{method}.npz")):
        given = arrays(golden_pruners_dir / path.name.replace(f"_{method}", "_inputs"))
        for setting, expected in settings(arrays(path)):
            texts = int(numbers(setting, "M")[0]) if method == "cdpruner" else 1
            view = projected(tower_tokens(given, texts, grid_of(path)), golden_pruners2_dir)
            got = CASES[method](view, setting)
            for array, value in expected.items():
                compare(f"{path.name} {setting} {array}", got[array], value)
                checked += 1
    assert checked > 0
    record_property("arrays", checked)


def hiprune_case(view: View, setting: str) -> dict[str, Tensor]:
    budget, alpha, layer = numbers(setting, "T", "a", "l")
    method = HiPrune(alpha=alpha, object_layer=int(layer))
    anchors, found = method.objects(view, int(budget))
    return {
        "anchors_desc": anchors,
        "object": found,
        "registers_desc": method.registers(view, found, int(budget) - len(found)),
        "kept": method.select(view, int(budget)).indices,
    }


def received(view: View, array: str) -> Tensor:
    """received_l9 is what patches receive in the ninth of 24 layers, received_m2 in the last but one."""
    side, number = re.fullmatch(r"received_([lm])(\d+)", array).groups()  # type: ignore[union-attr]
    layer = Fraction(int(number), DEPTH) if side == "l" else -int(number)
    return HiPrune().attention(view, layer)


def small_tower(path: Path) -> View:
    """Received attention from the file's own queries and keys, 2 heads of 16; nothing else is there."""
    given = arrays(path)
    heads = given["q8"].shape[1] // 16
    layers = {int(m[1]) for key in given if (m := re.fullmatch(r"q(\d+)", key))}

    def answer(need: Need) -> Tensor:
        index = need.index(DEPTH)
        assert need.kind == "received_attention" and index in layers
        return whole_map(double(given[f"q{index}"]), double(given[f"k{index}"]), heads).mean(1)

    rows, columns = grid_of(path)
    return View(torch.zeros(rows * columns, 1), torch.zeros(1), (rows, columns), heads, answer)


def test_hiprune(golden_pruners_dir: Path, golden_pruners2_dir: Path, record_property) -> None:  # type: ignore[no-untyped-def]
    checked = 0
    for path in sorted(golden_pruners2_dir.glob("*_hiprune.npz")):
        if path.name.startswith("e2e"):
            tower = path.with_name(path.name.replace("_hiprune", "")).name
            view = clip_tokens(arrays(golden_pruners_dir / tower), 1)
        else:
            view = small_tower(path)
        for setting, expected in settings(arrays(path)):
            got = hiprune_case(view, setting) if setting else {}
            for array, value in expected.items():
                if setting or array.startswith("received"):
                    found = got[array] if setting else received(view, array)
                    compare(f"{path.name} {setting} {array}", found, value)
                    checked += 1
    assert checked > 0
    record_property("arrays", checked)
