"""Noise that stands for rounding: its size, what it follows from, and what it moves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from backbones.base import Encoding, Pixels
from harness.records import pack_tokens
from harness.stability import moved_tokens, perturbed, shaken
from tests.fake_backbone import FakeBackbone


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
        perturbed(encoding(), number, name).hidden_states[-1] for number, name in ((1, "a"), (1, "a"), (2, "a"), (1, "b"))
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
