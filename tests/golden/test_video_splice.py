"""Adapters, pools and the order of tokens against VideoGLaMM's own code, at 576, 196 and 81 patches a frame.

`pytest tests/golden/test_video_splice.py --golden-video DIR` checks another set in the same layout.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from backbones.videoglamm.budgets import POOL, VIDEO_POOL
from backbones.videoglamm.placement import place, pooled
from pruners import ImpossibleBudget
from tests.golden.arrays import Arrays

IMAGE = -200


@pytest.fixture(scope="module")
def golden(request: pytest.FixtureRequest) -> dict[str, Tensor]:
    folder = request.config.getoption("--golden-video", default=Path(__file__).parent / "video")
    with np.load(Path(folder) / "splice_tiny.npz") as data:
        return {name: torch.from_numpy(np.asarray(data[name])) for name in data.files}


def adapter(golden: dict[str, Tensor], kind: str) -> nn.Sequential:
    first, second = nn.Linear(5, 6), nn.Linear(6, 6)
    for layer, number in ((first, 1), (second, 2)):
        layer.weight.data, layer.bias.data = golden[f"{kind}w{number}"], golden[f"{kind}b{number}"]
    return nn.Sequential(first, nn.GELU(), second)


@pytest.mark.parametrize("budget", [576, 196, 81])
@torch.no_grad()
def test_sequence(golden: dict[str, Tensor], budget: int, request: pytest.FixtureRequest) -> None:
    arrays = Arrays(request.node.user_properties)
    seen, watched = adapter(golden, "i"), adapter(golden, "v")
    keep = golden[f"keep_{budget}"].long()
    frames = [
        place("grid", seen(patches), kept, None, None)
        for patches, kept in zip(golden["clip_features"], keep, strict=True)
    ]
    assert {len(one) for one in frames} == {POOL * POOL}
    video = pooled(watched(golden["iv2_features"]), VIDEO_POOL)
    ids = golden["input_ids"]
    marks = (ids == IMAGE).nonzero()[:, 0]
    table, first, last = golden["emb"], int(marks[0]), int(marks[-1])
    assert len(marks) == len(frames) == last - first + 1
    sequence = torch.cat([table[ids[:first]], *frames, *video, table[ids[last + 1 :]]])
    arrays.close(sequence, golden[f"embeds_{budget}"].numpy(), 1e-5, "embeds")
    state = torch.zeros(len(sequence), dtype=torch.bool)  # the state before [SEG] is the one that is read
    state[len(sequence) - (len(ids) - 1 - last) - 1 :][: len(ids) - 1 - last] = (
        ids[last + 1 :] == golden["seg_id"]
    )
    arrays.equal(state.numpy(), golden[f"seg_mask_{budget}"].numpy(), "seg_mask")


def test_budgets_that_make_no_square() -> None:
    with pytest.raises(ImpossibleBudget, match="128 make none; give 121 or 144"):
        pooled(torch.zeros(128, 6), POOL)
