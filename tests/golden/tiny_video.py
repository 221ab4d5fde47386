"""The golden sets' tiny video models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbones.parts.internvideo2 import VideoEncoder, VideoNumbers
from backbones.parts.internvideo2 import own_name as video_name
from backbones.parts.sam2 import Frame, build_sam2, encode_frame, materialise_sam2
from backbones.parts.sam2_keys import COPY, own_name
from backbones.parts.sam2_sizes import Sam2Numbers
from tests.golden.official_weights import weights

FOLDER = Path(__file__).parent / "video"
# its perceptron is int(48 * 48 / 11) wide
VIDEO = VideoNumbers(width=48, depth=4, heads=4, hidden=209, patch=14, image=56, frames=4)
SAM2 = Sam2Numbers(
    image=256,
    width=128,
    embed=16,
    heads=1,
    blocks=(1, 2, 3, 1),
    global_blocks=(4, 5),
    windows=(8, 4, 8, 4),
    memory_layers=2,
    memory_hidden=128,
)
SCORE = "sam_mask_decoder.pred_obj_score_head.layers.2."

Values = Mapping[str, NDArray[np.generic]]


def golden(name: str) -> Values:
    """Arrays of a golden file."""
    return np.load(FOLDER / f"{name}.npz")  # type: ignore[no-any-return]


def encoder(attn: str = "sdpa") -> VideoEncoder:
    """The golden video encoder, every official tensor either loaded or known to be unneeded."""
    made = VideoEncoder(VIDEO, attn)
    stored = weights(golden("internvideo2_tiny"))
    made.load_state_dict({ours: v for k, v in stored.items() if (ours := video_name(k, VIDEO.depth))})
    return made.eval()


def official_sam2(bias: str = "bias_present") -> dict[str, Tensor]:
    """The golden SAM2's tensors by their official names."""
    given = golden("sam2_text_tiny")
    stored = weights(given)
    stored[SCORE + "weight"] *= 20
    stored[SCORE + "bias"].fill_(float(given[bias]))
    return stored


def load_official(model: Any, stored: Mapping[str, Tensor]) -> Any:
    """Fill a model of any device with official tensors, none left over and none missing."""
    found = model.load_state_dict({own_name(k): v for k, v in stored.items()}, strict=False, assign=True)
    assert not found.unexpected_keys and set(found.missing_keys) <= {COPY}, found
    materialise_sam2(model, "cpu")
    return model.eval().requires_grad_(False)


def sam2(bias: str = "bias_present", attn: str = "sdpa") -> Any:
    """The golden SAM2."""
    return load_official(build_sam2(SAM2, attn), official_sam2(bias))


def text() -> Tensor:
    """(1, P) the golden text vector."""
    return torch.from_numpy(golden("sam2_text_tiny")["text"])[0]  # type: ignore[no-any-return]


def frames(model: Any) -> list[Frame]:
    """The golden clip's frames, encoded one by one."""
    clip = torch.from_numpy(golden("sam2_text_tiny")["video32"])
    large = clip.repeat_interleave(8, dim=-1).repeat_interleave(8, dim=-2)
    return [encode_frame(model, frame[None]) for frame in large]
