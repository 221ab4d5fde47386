"""Noise that stands for rounding: its size, what it follows from, and what it moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backbones.base import Encoding, Pixels
from harness.engine.rounding import moved_tokens, of_type, perturbed, same_choice, shaken
from harness.engine.runner import Plan, prepare, run
from harness.metrics.bootstrap import estimate, resample
from harness.store import records
from harness.store.records import pack_tokens
from pruners import Selection, VisualTokens, parse
from reports import render
from tests.fake_backbone import FakeBackbone, write_data

pytestmark = pytest.mark.usefixtures("text_only")


def encoding() -> Encoding:
    draw = torch.Generator().manual_seed(0)
    states = tuple(torch.randn(65, 512, generator=draw) for _ in range(2))
    return Encoding(states, torch.ones(1, 2, 2), (8, 8), (8, 8), {"asked": torch.ones(1)})


def pixels(value: float) -> Pixels:
    return Pixels(torch.full((3, 8, 8), value), torch.full((3, 8, 8), value), (8, 8), (8, 8))


@pytest.mark.parametrize("relative", [1e-6, 1e-3])
def test_noise_has_the_asked_size_and_nothing_old_is_answered(relative: float) -> None:
    before = encoding()
    after = perturbed(before, 1, "refcoco:val:7", relative)
    for old, new in zip(before.hidden_states, after.hidden_states, strict=True):
        assert new.dtype == old.dtype
        assert ((new - old).double().norm() / old.double().norm()).item() == pytest.approx(relative, rel=0.05)
    assert after.signals == {}
    assert before.signals.keys() == {"asked"}
    assert torch.equal(after.embedding, before.embedding)


def test_noise_follows_from_seed_and_sample_alone() -> None:
    one, again, seed, sample = (
        perturbed(encoding(), number, name).hidden_states[-1]
        for number, name in ((1, "a"), (1, "a"), (2, "a"), (1, "b"))
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, seed)
    assert not torch.equal(one, sample)


def test_a_shaken_backbone_does_not_depend_on_the_order_of_images() -> None:
    backbone = FakeBackbone()
    other = shaken(backbone, 1, 1e-3)
    first, second = other.encode_pixels([pixels(0.2), pixels(0.7)])
    (alone,) = other.encode_pixels([pixels(0.7)])
    assert torch.equal(second.hidden_states[0], alone.hidden_states[0])
    (sound,) = backbone.encode_pixels([pixels(0.2)])  # the backbone itself is as it was
    assert not torch.equal(first.hidden_states[0], sound.hidden_states[0])
    assert torch.allclose(first.hidden_states[0], sound.hidden_states[0], rtol=1e-2)


def test_moved_tokens_are_those_that_are_kept_no_more() -> None:
    before = [pack_tokens(np.array(kept), 64) for kept in ([1, 2, 3], [1, 2, 3], [60, 63, -2])]
    after = [pack_tokens(np.array(kept), 64) for kept in ([3, 2, 1], [1, 9, 8], [60, 63, -2])]
    assert moved_tokens(before, after, 64).tolist() == [0, 2, 0]


def test_noise_is_that_of_the_precision() -> None:
    assert of_type(torch.float32) == pytest.approx(9.5e-7, rel=0.01)
    assert of_type(torch.bfloat16) == pytest.approx(7.8e-3, rel=0.01)
    assert of_type(torch.float64) < 1e-14


def test_a_choice_is_the_same_up_to_noise_in_what_it_merges() -> None:
    kept, features = torch.arange(3), torch.ones(3, 4)
    assert same_choice(Selection(kept), Selection(kept), 1e-6)
    assert not same_choice(Selection(kept), Selection(kept + 1), 1e-6)
    assert not same_choice(Selection(kept, features), Selection(kept), 1e-6)
    assert same_choice(Selection(kept, features), Selection(kept, features + 1e-6), 1e-6)
    # another member
    assert not same_choice(Selection(kept, features), Selection(kept, features + 1e-2), 1e-6)


def test_a_run_records_what_rounding_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first image of every part: none for a method that reads no features, some for one that lives of
    the last bits."""
    root = write_data(tmp_path / "data", images=4)
    chosen = type(parse("uniform")[0])
    original = chosen.select

    def other(encoding: Encoding, *_: object) -> Encoding:
        return replace(encoding, hidden_states=tuple(-state for state in encoding.hidden_states), signals={})

    def select(self: Any, tokens: VisualTokens, budget: int) -> Selection:
        """Even or odd patches, by the sign of one number."""
        return Selection(original(self, tokens, budget).indices // 2 * 2 + int(tokens.patches[0, 0] > 0))

    monkeypatch.setattr("harness.engine.evaluate.perturbed", other)
    monkeypatch.setattr(chosen, "select", select)
    plan = Plan(tuple(parse("none,uniform,random,fastv")), (8,), (("refcoco", "val"),), data=str(root))
    backbone = FakeBackbone()
    run(plan, backbone, prepare(plan, backbone), tmp_path / "run")
    frame = records.load_records(tmp_path / "run")
    first = frame["sample"] == "refcoco:val:1"
    assert frame["rounding_iou"].notna().equals(first)
    moved = (
        frame[first].groupby("pruner")[["rounding_tokens", "rounding_iou"]].agg(lambda part: part.abs().max())
    )
    assert (moved.loc[["none", "random"]] == 0).all().all()
    assert moved.loc["uniform", "rounding_tokens"] == 8
    (line,) = (
        line for line in render(tmp_path / "run")[0].read_text().splitlines() if line.startswith("| uniform")
    )
    assert "100.0 / " in line


def test_noise_widens_an_interval_and_a_test() -> None:
    """Of a difference whose standard error is doubled by what hangs on rounding."""
    draw = np.random.default_rng(0)
    inner, outer = draw.integers(20, 80, (60, 1)).astype(float), np.full((60, 1), 100.0)
    plain = resample(inner, outer)
    without = estimate([plain], [[1.0]])
    variance = plain.influence.var(ddof=1) / 60
    noisy = estimate([replace(plain, noise=np.array([3 * variance]))], [[1.0]])
    assert noisy.high - noisy.low == pytest.approx(2 * (without.high - without.low))
    assert noisy.p > without.p
    zero = estimate([replace(plain, noise=np.array([0.0]))], [[1.0]])
    assert (zero.low, zero.high, zero.p) == (without.low, without.high, without.p)
    same = resample(np.full((60, 1), 50.0), outer)
    certain = estimate([replace(same, noise=np.array([0.01**2]))], [[1.0]])
    assert certain.high - certain.low == pytest.approx(2 * 1.96 * 0.01, rel=0.01)
