"""The fake backbone for clips: two frames of every window are its views, and a mask of a frame is what the
kept patches of the nearest view say of that frame."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from backbones.base import ClipEncoding, ClipPixels, Encoding, Grounded, Row, Turn
from backbones.parts.clips import Clip, run_lengths
from harness.data.video.writer import Said, Video, write_davis, write_mevis, write_youtube
from pruners.base import UserError, View
from tests.fake_backbone import LAYERS, SIDE, FakeBackbone, vector

HEIGHT, WIDTH = 24, 32


class FakeVideo(FakeBackbone):
    """Sees clips.

    Args:
        pause: seconds that every clip takes, so that there is something to interrupt.
    """

    medium = "video"  # type: ignore[assignment]
    answers = ("generated", "forced")
    name = "fake-video"

    def __init__(self, pause: float = 0.0) -> None:
        super().__init__()
        self.pause = pause
        self._known: dict[bytes, Tensor] = {}

    @property
    def facts(self) -> dict[str, str]:
        return {"placement": "direct", "frames": "2"}

    def lacks(self, pruner: Any) -> str:
        if pruner.stage != "tower":
            return f"{pruner.spec()} prunes inside, where {self.name} has no layers to cut between."
        return super().lacks(pruner)

    def preprocess_clip(self, clip: Clip) -> ClipPixels:
        shown = tuple(frame for window in clip.windows() for frame in (window[0], window[-1]))
        pixels = torch.stack([self.preprocess(clip.frame(k)).vision for k in shown])
        return ClipPixels(pixels, pixels, shown, clip, (clip.height, clip.width))

    def encode_pixels(self, pixels: Sequence[Any]) -> list[Encoding]:
        self.encoded.append(len(pixels))
        found: list[Encoding] = []
        for one in pixels:
            states = [self._states(view) for view in one.vision]
            found.append(
                ClipEncoding(
                    (torch.stack(states),),
                    torch.zeros(0),
                    one.original,
                    one.original,
                    {},
                    one.shown,
                    one.clip,
                )
            )
        return found

    def _states(self, vision: Tensor) -> Tensor:
        blank = torch.zeros(3, 1, 1)
        whole = super().encode_pixels([cast(Any, _Pixels(vision, blank))])[0]
        self.encoded.pop()
        return whole.hidden_states[-1]

    def views(
        self, encoding: Encoding, turns: Sequence[Turn], sample: str, masks: NDArray[np.bool_] | None = None
    ) -> list[View]:
        states, found = encoding.hidden_states[-1], []
        for number, state in enumerate(states):
            one = replace(encoding, hidden_states=(state,), signals={})
            truth = None if masks is None else masks[number]
            (view,) = super().views(one, turns, f"{sample}:{number}", truth)
            view.number, view.of = number, len(states)
            found.append(view)
        return found

    def ground_rows(self, rows: Sequence[Row], share: bool = True) -> Iterator[Grounded]:  # type: ignore[override]
        self.grounded.append(len(rows))
        time.sleep(self.pause)
        for row in rows:
            try:
                yield self._answer(row)
            except UserError as error:
                yield Grounded(torch.zeros(0), (0,) * LAYERS, torch.arange(0), str(error))

    def _answer(self, row: Row) -> Grounded:
        encoding = cast(ClipEncoding, row.encoding)
        assert encoding.clip is not None
        kept = [one.indices for one in row.selections]
        prompt = vector(row.turns[0].question)
        said = bool(prompt[0] < 1.5)  # a few answers have no [SEG]
        runs = []
        for frame in range(len(encoding.clip)):
            image = encoding.clip.frame(frame)
            if (key := hashlib.sha256(image.tobytes()).digest()) not in self._known:  # for all rows
                self._known[key] = self._states(self.preprocess(image).vision)[1:]
            features = self._known[key]
            near = min(range(len(encoding.shown)), key=lambda view: abs(encoding.shown[view] - frame))
            here = torch.full((len(features),), -1.0)
            patches = kept[near][kept[near] >= 0]
            here[patches] = features[patches] @ prompt
            large = F.interpolate(here.view(1, 1, SIDE, SIDE), encoding.original, mode="nearest")[0, 0]
            runs.append(run_lengths(((large > 0) & said).numpy()))
        count = sum(len(one) for one in kept)
        numbered = [torch.where(one >= 0, one + k * SIDE * SIDE, one) for k, one in enumerate(kept)]
        return Grounded(
            torch.zeros(1, 0),
            (count,) * LAYERS,
            torch.cat(numbered),
            tokens_llm=count + 7,
            said=(said,) if row.answers == "generated" else None,
            seg_logprob=torch.tensor([-0.5 if said else float("nan")]),
            words=("[SEG]" if said else "no",) if row.answers == "generated" else None,
            runs=(tuple(runs),),
        )


class _Pixels:
    """What `FakeBackbone._encode` reads of pixels."""

    def __init__(self, vision: Tensor, grounding: Tensor) -> None:
        self.vision, self.grounding, self.resized, self.original = vision, grounding, (1, 1), (1, 1)


def a_clip(name: str, frames: int, seed: int, void: bool = False) -> Video:
    """Two boxes that move over noise; the second one is gone in the last frame."""
    draw = np.random.default_rng(seed)
    images = draw.integers(0, 256, (frames, HEIGHT, WIDTH, 3), dtype=np.uint8)
    ids = np.zeros((frames, HEIGHT, WIDTH), dtype=np.uint8)
    for k in range(frames):
        ids[k, 3:11, 2 + k % 8 : 12 + k % 8] = 1
        if k < frames - 1:
            ids[k, 13:22, 18 - k % 8 : 28 - k % 8] = 2
        if void:
            ids[k, :2] = 255
    said = [
        Said(f"{what} {number} of {name}", (number,), file)
        for number in (1, 2)
        for file, what in (
            ("Davis17_annot1", "the box"),
            ("Davis17_annot1_full_video", "the moving box"),
            ("Davis17_annot2", "a box"),
            ("Davis17_annot2_full_video", "a box that moves"),
        )
    ]
    return Video(name, images, ids, tuple(said))


def write_clips(root: Path, count: int = 4, frames: int = 5) -> Path:
    """Small trees of all three data sets below `root`."""
    clips = [a_clip(f"clip{k}", frames + k % 3, k, void=k == 0) for k in range(count)]
    write_davis(root, clips)
    write_mevis(
        root,
        [replace(one, ids=np.where(one.ids == 255, 0, one.ids).astype(np.uint8)) for one in clips],
        "valid_u",
    )
    write_youtube(
        root, [a_clip(f"other{k}", 3, 50 + k) for k in range(2)], "valid", test=[a_clip("held", 3, 9)]
    )
    return root
