"""A small, honest backbone for tests of the engine: features of the pixels, masks that depend on the chosen
tokens alone."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from backbones.base import Backbone, Conversation, Encoding, Grounded, Pixels, Row, Turn
from backbones.glamm.conversation import drawn_conversations, plain_turn
from backbones.registry import BACKBONES, KINDS, Family, Runtime, Settings
from pruners import checks
from pruners.base import POOLED, Need, View
from pruners.views import LLM_ATTENTION, LLM_ATTENTION_AHEAD, LLM_KEYS, LLM_VALUES, LayerView, Query
from tests.refer_tree import HEIGHT, SHIFTED, SQUARE, ref, write_tree
from tests.refer_tree import WIDTH as WIDTH_OF_IMAGES

SIDE, WIDTH, HEADS, LAYERS = 8, 16, 2, 4
ROWS = 3  # in one batch of a default instance


@lru_cache(maxsize=4096)
def vector(text: str, width: int = WIDTH) -> Tensor:
    """A direction that follows from the text alone."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


class Fake(Family):
    """Answers what GLaMM answers, and sees all of an image."""

    signals, cuts_inside = KINDS, True
    protocols: ClassVar[dict[str, str]] = {
        "each": "every expression alone",
        "glamm": "up to three in one conversation",
    }
    drawn = ("glamm",)


class FakeBackbone(Fake, Backbone):
    """Sees 8 x 8 patches; a mask is what the kept patches say about the question, everything else is
    background.

    Args:
        batch_size: most rows at once, as every backbone has it.
        broken: image mean (rounded) at which `encode` fails, as a damaged image would.
    """

    name, grid, num_layers, fingerprint = "fake", (SIDE, SIDE), LAYERS, "fa4e" * 4
    device, dtype, attn = "cpu", "float32", "sdpa"

    def __init__(self, batch_size: int = ROWS, broken: int | None = None) -> None:
        self.batch_size, self.broken = batch_size, broken
        self.encoded: list[int] = []  # images per call
        self.grounded: list[int] = []  # rows per call
        self.asked: list[tuple[str, str]] = []  # (sample, pruner signals) read

    def preprocess(self, image: NDArray[np.uint8]) -> Pixels:
        pixels = torch.from_numpy(image).permute(2, 0, 1).float() / 255
        return Pixels(F.adaptive_avg_pool2d(pixels, (SIDE, SIDE)), pixels, image.shape[:2], image.shape[:2])

    def encode_pixels(self, pixels: Sequence[Pixels]) -> list[Encoding]:
        if self.broken is not None and any(
            round(255 * float(one.grounding.mean())) == self.broken for one in pixels
        ):
            raise RuntimeError("the image has no usable pixels")
        self.encoded.append(len(pixels))
        return [self._encode(one) for one in pixels]

    def _encode(self, pixels: Pixels) -> Encoding:
        patches = pixels.vision.flatten(1).T  # (N, 3)
        place = torch.arange(SIDE * SIDE, dtype=torch.float32)
        described = torch.cat(
            [patches, (place % SIDE)[:, None] / SIDE, (place // SIDE)[:, None] / SIDE], dim=1
        )
        weights = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0))
        features = torch.tanh(3 * described @ weights)
        states = torch.cat([features.mean(0, keepdim=True), features])
        return Encoding((states,), features[:1, :1, None], pixels.resized, pixels.original)

    def turn(self, expression: str) -> Turn:
        return plain_turn(expression)

    def conversations(
        self,
        sample_id: str,
        expressions: Sequence[str],
        protocol: str,
        seed: int,
        forms: Sequence[str] = (),
    ) -> list[Conversation]:
        if self.check_protocol(protocol) == "glamm":
            return drawn_conversations(sample_id, expressions, seed)
        return super().conversations(sample_id, expressions, protocol, seed, forms)

    def views(
        self, encoding: Encoding, turns: Sequence[Turn], sample: str, masks: NDArray[np.bool_] | None = None
    ) -> list[View]:
        states = encoding.hidden_states[-1]

        def answer(need: Need) -> Tensor:
            self.asked.append((sample, need.kind))
            match need.kind:
                case "text_embeds":
                    return torch.stack([vector(turn.question) for turn in turns])
                case "projected_patches":
                    return states[1:]
                case "referent":
                    assert masks is not None
                    return self.patch_shares(masks)
                case "cls_attention":
                    query, keys = states[0].view(HEADS, -1), states.view(len(states), HEADS, -1)
                    return torch.einsum("hd,nhd->hn", query, keys).softmax(-1)
                case "cls_query":
                    return states[0]
                case "llm_patches":
                    return states[1:]
                case "llm_text_embeds":
                    return torch.stack([vector(word) for turn in turns for word in turn.question.split()])
                case "hidden":
                    return states
                case "attention" | "received_attention":
                    heads = states.view(len(states), HEADS, -1).transpose(0, 1)
                    maps = (heads @ heads.transpose(1, 2)).softmax(-1)
                    return maps if need.kind == "attention" else maps.mean(1)
            return states

        return [View(states[1:], states[0], self.grid, HEADS, answer, sample)]

    def ground_rows(self, rows: Sequence[Row], share: bool = True) -> list[Grounded]:
        found: list[Grounded] = []
        for start in range(0, len(rows), self.batch_size):
            part = rows[start : start + self.batch_size]
            self.grounded.append(len(part))
            found += [self._ground(row) for row in part]
        return found

    def _ground(self, row: Row) -> Grounded:
        features = row.encoding.hidden_states[-1][1:]
        kept = row.selections[0].indices if row.selections else torch.arange(len(features))
        lengths = [len(kept)] * LAYERS
        for number, cut in enumerate(row.pruner.cuts(row.budget, len(features), LAYERS)):
            view = self._at_cut(features, kept, row, cut.layer, number)
            left = checks.cut(row.pruner, view, cut.keep).indices
            kept = kept[left.clamp(min=0)].masked_fill(left == POOLED, POOLED)
            lengths[cut.layer :] = [len(kept)] * (LAYERS - cut.layer)
        patches = kept[kept >= 0]
        logits = []
        for turn in row.turns:
            here = torch.full((len(features),), -1.0)
            here[patches] = features[patches] @ vector(turn.question)
            large = F.interpolate(here.view(1, 1, SIDE, SIDE), row.encoding.original, mode="nearest")
            logits.append(large[0, 0])
        checks.lengths(row.pruner, row.budget, len(features), lengths)
        return Grounded(torch.stack(logits), tuple(lengths), kept)

    def _at_cut(self, features: Tensor, kept: Tensor, row: Row, layer: int, number: int) -> LayerView:
        """Visual tokens and one of text behind them; every signal is made of the two's features."""
        text = vector(row.turns[-1].question)[None]
        visual = features[kept.clamp(min=0)]

        def answer(query: Query) -> Tensor:
            if query.need in (LLM_ATTENTION, LLM_ATTENTION_AHEAD):
                logits = (torch.cat([visual, text]) @ text[0]).expand(HEADS, 1, -1)
                return logits.softmax(-1) if query.softmax else logits
            states = text if query.of == "text" else visual
            return states[None] if query.need in (LLM_KEYS, LLM_VALUES) else states

        places = torch.arange(len(kept) + 1)
        return LayerView(
            layer, number, kept, places, 0, WIDTH, visual.dtype, answer, row.sample, grid=self.grid
        )


class SlowBackbone(FakeBackbone):
    """Takes its time, so that there is something to interrupt."""

    def __init__(self, pause: float) -> None:
        super().__init__()
        self.pause = pause

    def ground_rows(self, rows: Sequence[Row], share: bool = True) -> list[Grounded]:
        time.sleep(self.pause)
        return super().ground_rows(rows, share)


def known(monkeypatch: Any, **settings: Any) -> list[FakeBackbone]:
    """Register `fake` as a backbone for one test; returns the instances that get loaded."""
    loaded: list[FakeBackbone] = []

    @dataclass(frozen=True)
    class FakeSettings(Fake, Settings):
        """For tests."""

        name = "fake"
        reference = "tests"

        def load(self, how: Runtime) -> FakeBackbone:
            loaded.append(FakeBackbone(batch_size=how.batch_size, **settings))
            return loaded[-1]

    monkeypatch.setattr(BACKBONES, "known", dict(BACKBONES.known))
    BACKBONES.register(FakeSettings)
    return loaded


def write_data(root: Path, images: int = 6) -> Path:
    """RefCOCO's layout with textured images: `val` holds the first half and `testA` the second."""
    numbers = tuple(range(1, images + 1))
    refs = []
    for number in numbers:
        split = "val" if number <= images // 2 else "testA"
        texts = [f"thing {number}", f"the other thing {number}"][: 1 + number % 2]
        refs += [
            ref(2 * number, number, 11, split, *texts),
            ref(2 * number + 1, number, 12, split, f"square {number}"),
        ]
    write_tree(root, refs, {11: [SQUARE], 12: [SHIFTED]}, images=numbers)
    noise = np.random.default_rng(0)
    for path in sorted((root / "Refer_Segm" / "coco_2014" / "train2014").iterdir()):
        Image.fromarray(noise.integers(0, 256, (HEIGHT, WIDTH_OF_IMAGES, 3), dtype=np.uint8)).save(path)
    return root
