"""CLIP's two towers behind the harness's interface, from CLIP's own folder: encodings, signals and probes as
GLaMM's, and no answers.

An image goes through the same resize and crop as in GLaMM, and an expression into the same question, so that
what is measured here is what pruners see there. Signals behind the projector are a language model's, and are
not answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbones.base import Backbone, Encoding, Grounded, Pixels, Row, Turn
from backbones.glamm.checkpoint import clip_part
from backbones.glamm.conversation import plain_turn
from backbones.glamm.preprocess import clip_pixels, patch_shares
from backbones.glamm.probes import GlammProbes
from backbones.glamm.release import GLAMM
from backbones.glamm.sizes import clip_config
from backbones.mini import MINI, GlammMini
from backbones.parts import clip, reading
from backbones.parts.errors import not_finite
from backbones.parts.tokenizer import clip_tokenizer
from backbones.probes import Probes
from backbones.registry import KINDS
from pruners.base import LLM_PATCHES, LLM_TEXT_EMBEDS, Need, UserError, View

ATTN = "sdpa"


@dataclass(frozen=True)
class Towers:
    """What is loaded, where `GlammProbes` looks for it.

    Attributes:
        clip: transformers' `CLIPModel`.
    """

    clip: Any


class ClipTower(Backbone):
    """A loaded CLIP.

    Args:
        model: transformers' `CLIPModel`.
        folder: of its tokenizer.
    """

    signals = KINDS - {LLM_PATCHES.kind, LLM_TEXT_EMBEDS.kind}
    geometry: ClassVar[str] = "centre-crop"
    num_layers = 1  # of a language model, which is not there: what is chosen is what would enter it

    def __init__(
        self, model: Any, folder: Path, *, name: str, fingerprint: str, device: str, dtype: str
    ) -> None:
        self.model, self.name, self.fingerprint = Towers(model), name, fingerprint
        self.device, self.dtype, self.attn = device, dtype, ATTN
        self.clip_tokenizer = clip_tokenizer(folder, model.config.text_config.vocab_size)
        vision = model.config.vision_config
        side = vision.image_size // vision.patch_size
        self.grid, self.image_size, self.num_heads = (
            (side, side),
            vision.image_size,
            vision.num_attention_heads,
        )
        self._kind = next(model.parameters()).dtype
        self._text_embeds: dict[tuple[str, ...], Tensor] = {}

    @property
    def probes(self) -> Probes:
        """Into both towers."""
        return GlammProbes(self)

    def preprocess(self, image: NDArray[np.uint8]) -> Pixels:
        """CLIP's resize and normalisation; there is no grounding encoder."""
        none = torch.zeros(0)
        return Pixels(clip_pixels(image, self.image_size), none, (0, 0), image.shape[:2])

    @torch.inference_mode()
    def encode_pixels(self, pixels: Sequence[Pixels]) -> list[Encoding]:
        """The vision tower up to its penultimate layer.

        Raises:
            UserError: its values are not finite in this precision.
        """
        found = []
        for one in pixels:
            vision = one.vision[None].to(self.device, self._kind)
            states = clip.hidden_states(self.model.clip, vision)
            if not bool(states[-1].isfinite().all()):
                raise UserError(not_finite(self.dtype))
            found.append(
                Encoding(tuple(state[0] for state in states), one.grounding, one.resized, one.original)
            )
        return found

    def turn(self, expression: str) -> Turn:
        """The expression in GLaMM's first wording."""
        return plain_turn(expression)

    def views(
        self, encoding: Encoding, turns: Sequence[Turn], sample: str, masks: NDArray[np.bool_] | None = None
    ) -> list[View]:
        """The image's one view, signals computed when first read."""
        questions = tuple(turn.question for turn in turns)
        features = encoding.hidden_states[-1]
        answer = partial(self._answer, encoding, questions, masks)
        (region,) = self.regions(*encoding.original)
        return [View(features[1:], features[0], self.grid, self.num_heads, answer, sample, region=region)]

    @torch.inference_mode()
    def _answer(
        self, encoding: Encoding, questions: tuple[str, ...], masks: NDArray[np.bool_] | None, need: Need
    ) -> Tensor:
        if need.kind == "text_embeds":
            return self._texts(questions)
        if need.kind == "referent":
            if masks is None:
                raise UserError(
                    "This pruner sees the truth, and no truth masks were given; leave it out here."
                )
            return self.patch_shares(masks)
        if need not in encoding.signals:
            encoding.signals[need] = clip.clip_signal(self.model.clip, encoding.hidden_states, need)
        return encoding.signals[need]

    def _texts(self, questions: tuple[str, ...]) -> Tensor:
        """(M, P) CLIP's text projection, not normalised."""
        if questions not in self._text_embeds:
            if len(self._text_embeds) > 4096:
                self._text_embeds.clear()
            self._text_embeds[questions] = clip.embed_text(self.model.clip, self.clip_words(questions))
        return self._text_embeds[questions]

    def clip_words(self, questions: tuple[str, ...]) -> dict[str, Tensor]:
        """CLIP's `input_ids` and `attention_mask` of the questions, each (M, W)."""
        most = clip.text_positions(self.model.clip)
        words = self.clip_tokenizer(
            list(questions), padding=True, truncation=True, max_length=most, return_tensors="pt"
        )
        return {name: words[name].to(self.device) for name in ("input_ids", "attention_mask")}

    def patch_shares(
        self, masks: NDArray[np.bool_], number: int = 0, size: tuple[int, int] | None = None
    ) -> Tensor:
        """(N,) share of every patch that the union of (M, H, W) masks covers, in grey levels of CLIP's own
        resize."""
        return patch_shares(masks, self.image_size, self.grid).to(self.device)

    def ground_rows(self, rows: Sequence[Row], share: bool = True) -> Iterable[Grounded]:
        """Refuse: nothing segments here."""
        raise UserError(
            f"{self.name} is CLIP alone, which segments nothing; give a backbone with --backbone."
        )


def load_tower(folder: str, device: str, dtype: str) -> ClipTower:
    """Load CLIP from its folder, or from the hub.

    Args:
        folder: with config.json, weights, vocab.json and merges.txt; a hub name; or `glamm-mini`, whose
            embedded CLIP it is.

    Raises:
        UserError: files are missing or damaged, or it does not fit into the device.
    """
    embedded = folder == GlammMini.name and not Path(folder).is_dir()
    place = reading.clip_folder(str(MINI / "clip") if embedded else folder, GLAMM)
    config = clip_config(place, GLAMM)
    with torch.device("meta"):
        model = clip.build_clip(config, ATTN)
    try:
        clip_part(model, place).fill(getattr(torch, dtype), device)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"CLIP does not fit into {device} in {dtype}; give --dtype bfloat16 or --device cpu."
        ) from error
    clip.materialise_clip(model, device)
    return ClipTower(
        model.eval().requires_grad_(False),
        place,
        name=f"clip-of-{GlammMini.name}" if embedded else Path(folder).resolve().name,
        fingerprint=reading.weights_fingerprint(place, place, {}),
        device=device,
        dtype=dtype,
    )
