"""VideoGLaMM's video encoder and its tracker against the official code's outputs."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from torch import Tensor

from backbones.parts.internvideo2 import VideoEncoder, VideoNumbers, own_name
from backbones.parts.sam2 import ABSENT, Tracker, framewise
from backbones.parts.sam2_frames import masks_to_frame
from backbones.parts.sam2_keys import official_name
from backbones.parts.sam2_keys import own_name as sam2_name
from pruners.errors import UserError
from tests.golden.arrays import Arrays
from tests.golden.tiny_video import FOLDER, VIDEO, encoder, frames, golden, sam2, text


@pytest.fixture
def arrays(record_property: object, request: pytest.FixtureRequest) -> Arrays:
    """Comparisons, counted for the summary."""
    return Arrays(request.node.user_properties)


# -- InternVideo2


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_official_features(arrays: Arrays, attn: str) -> None:
    given = golden("internvideo2_tiny")
    with torch.no_grad():
        got = encoder(attn=attn).encode(torch.from_numpy(given["frames"]))
    arrays.close(got, given["features"], 1e-4, "features")


def test_chunks_do_not_see_each_other(arrays: Arrays) -> None:
    """Eight frames are two chunks, one behind the other: the golden clips as one clip."""
    given = golden("internvideo2_tiny")
    with torch.no_grad():
        got = encoder().encode(torch.from_numpy(given["frames"]).flatten(0, 1)[None])
    arrays.close(got[0], given["features"].reshape(-1, VIDEO.width), 1e-4, "features of a longer clip")


def test_frames_lie_behind_each_other() -> None:
    """What a patch's colour is decides its own token most: token t * P + p is patch p of frame t."""
    made = VideoEncoder(VIDEO)
    made.blocks = torch.nn.ModuleList()
    torch.nn.init.zeros_(made.pos_embed)
    frames = torch.zeros(1, 4, 3, 56, 56)
    frames[0, 2, :, 14:28, 42:56] = 1
    tokens = made.encode(frames)[0]
    (place,) = (tokens - tokens[0]).abs().sum(-1).nonzero().flatten().tolist()
    assert place == 2 * VIDEO.tokens + 1 * 4 + 3


def test_unneeded_tensors_are_known_by_name() -> None:
    stored = [str(key) for key in golden("internvideo2_tiny")["keys"]]
    unneeded = {key for key in stored if own_name(key, VIDEO.depth) is None}
    assert {key.split(".")[0] for key in unneeded} == {
        "blocks",
        "clip_decoder",
        "clip_img_pos_embed",
        "clip_pos_embed",
        "clip_projector",
        "final_clip_decoder",
        "img_pos_embed",
    }
    assert all(key.startswith("blocks.3.") for key in unneeded if key.startswith("blocks."))
    assert set(stored) - unneeded == set(VideoEncoder(VIDEO).state_dict())


def test_full_size_encoder() -> None:
    with torch.device("meta"):
        made = VideoEncoder(VideoNumbers())
    shapes = {name: tuple(tensor.shape) for name, tensor in made.state_dict().items()}
    assert shapes["patch_embed.proj.weight"] == (1408, 3, 1, 14, 14)
    assert shapes["pos_embed"] == (1, 1025, 1408)
    assert shapes["blocks.38.mlp.fc1.weight"] == (6144, 1408) and "blocks.39.norm1.weight" not in shapes
    assert "blocks.0.attn.qkv.bias" not in shapes and shapes["blocks.0.attn.q_norm.weight"] == (1408,)


def test_it_learns() -> None:
    """New weights answer for different videos differently, every weight gets a gradient, and a few steps
    lower a loss."""
    torch.manual_seed(0)
    made = VideoEncoder(VideoNumbers(width=64, depth=4, heads=4, hidden=128, patch=6, image=24, frames=4))
    frames, target = torch.randn(4, 8, 3, 24, 24), torch.randn(4, 1, 64)
    steps = torch.optim.AdamW(made.parameters(), lr=2e-3)
    losses: list[float] = []
    for _ in range(12):
        loss: Tensor = (made.encode(frames).mean(1, keepdim=True) - target).square().mean()
        steps.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(weight.grad is not None and bool(weight.grad.any()) for weight in made.parameters())
        steps.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0], losses


def test_half_precision_stays_near(arrays: Arrays) -> None:
    """Norms and scales are computed in float32 and give the states' own precision back."""
    given = golden("internvideo2_tiny")
    with torch.no_grad():
        got = encoder().bfloat16().encode(torch.from_numpy(given["frames"]).bfloat16())
    assert got.dtype == torch.bfloat16
    largest = float(np.abs(given["features"]).max())
    arrays.close(got.float(), given["features"], 0.05 * largest, "features in bfloat16")


@pytest.mark.parametrize(
    ("frames", "said"),
    [
        ((1, 6, 3, 56, 56), "chunks of 4 frames and got 6"),
        ((1, 4, 3, 56, 48), "56 x 56 pixels and got 56 x 48"),
    ],
)
def test_other_frames_are_refused(frames: tuple[int, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        VideoEncoder(VIDEO).encode(torch.zeros(frames))


@pytest.mark.parametrize("wrong", [{"heads": 5}, {"image": 60}, {"depth": 1}, {"width": 0}])
def test_numbers_that_do_not_fit_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="give the checkpoint's numbers"):
        VideoNumbers(**{**vars(VIDEO), **wrong})


# -- SAM2 with a text prompt


def same_logits(arrays: Arrays, got: Tensor, expected: np.ndarray, name: str) -> None:
    """Within the set's tolerance, and every mask to the last pixel."""
    arrays.close(got, expected, 1e-2, name)
    arrays.equal((got > 0).numpy(), expected > 0, f"{name} masks")


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("case", ["present", "mixed"])
def test_official_tracking(arrays: Arrays, case: str, attn: str) -> None:
    """Nine frames, more than the seven that are remembered; of `mixed`, most do not show the object."""
    model = sam2(f"bias_{case}", attn)
    tracker = Tracker(model, text())
    with torch.no_grad():
        masks = torch.stack([masks_to_frame(tracker.step(frame), (60, 90))[0] for frame in frames(model)])
    expected = golden("sam2_text_tiny")[f"video_{case}"]
    same_logits(arrays, masks, expected, case)
    absent = (masks == ABSENT).flatten(1).all(1)
    assert absent.tolist() == (expected == ABSENT).all((1, 2)).tolist()
    assert bool(absent.any()) == (case == "mixed") and not bool(absent.all())


def test_official_framewise(arrays: Arrays) -> None:
    model = sam2()
    with torch.no_grad():
        masks = torch.cat([framewise(model, frame, text()) for frame in frames(model)])
    same_logits(arrays, masks_to_frame(masks, (60, 90)), golden("sam2_text_tiny")["framewise"], "framewise")


def test_official_names_both_ways(arrays: Arrays) -> None:
    """The rule names all 900 tensors as transformers does, but for the rows that stand by themselves here."""
    known = json.loads((FOLDER / "sam2_keymap.json").read_text())
    ours = [re.sub(r"\.weight\[(\d)\]$", r".\1.weight", name) for name in known.values()]
    arrays.equal([sam2_name(name) for name in known], np.array(ours), "our names")
    arrays.equal([official_name(name) for name in ours], np.array(list(known)), "official names")
    for layer in "01":
        scale = f"memory_encoder.memory_fuser.layers.{layer}.scale"
        assert sam2_name(f"memory_encoder.fuser.layers.{layer}.gamma") == scale in ours
