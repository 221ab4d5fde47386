"""From answers to rows: what is counted of masks, and what a row says of the tokens that stayed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.engine.runner import Plan, prepare, run
from harness.store import records
from pruners import parse
from tests.fake_backbone import SIDE, FakeBackbone
from tests.refer_tree import HEIGHT, WIDTH, ref, write_tree

pytestmark = pytest.mark.usefixtures("no_figures")


def test_the_first_patch_is_kept_and_covers(tmp_path: Path) -> None:
    """An object that fills the upper left patch, and one that fills the last and half of that beside it."""
    high, wide = HEIGHT // SIDE, WIDTH // SIDE
    corner = [0, 0, wide, 0, wide, high, 0, high]
    left, right, top, bottom = WIDTH - 1.5 * wide, WIDTH, HEIGHT - high, HEIGHT
    last = [left, top, right, top, right, bottom, left, bottom]
    refs = [ref(1, 1, 11, "val", "the corner"), ref(2, 1, 12, "val", "the end")]
    root = write_tree(tmp_path / "data", refs, {11: [corner], 12: [last]}, images=(1,))
    plan = Plan(tuple(parse("none,oracle,downsample")), (1,), (("refcoco", "val"),), data=str(root))
    backbone = FakeBackbone()
    run(plan, backbone, prepare(plan, backbone), tmp_path / "run")
    frame = records.load_records(tmp_path / "run").set_index(["pruner", "expression"]).sort_index()
    kept = {
        name: np.flatnonzero(records.kept_tokens(text, SIDE * SIDE)).tolist()
        for name, text in frame["kept"].items()
    }
    everything = list(range(SIDE * SIDE))
    assert kept["none", 10] == kept["none", 20] == everything
    assert (kept["oracle", 10], kept["oracle", 20]) == ([0], [63])
    assert kept["downsample", 10] == []  # a mean over all is no patch
    assert frame["coverage"]["oracle"].tolist() == pytest.approx([1, 2 / 3])
    assert frame["coverage"]["none"].tolist() == pytest.approx([1, 1])
    assert frame["coverage"]["downsample"].isna().all()
