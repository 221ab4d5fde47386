"""What a diagnosis reads of CLIP and no pruner does: the projected class token, and where [EOS] looks in the
text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from backbones.base import Encoding, Turn
from backbones.glamm.conversation import said
from backbones.parts import clip
from backbones.probes import Probes

if TYPE_CHECKING:
    from backbones.clip_alone import ClipTower
    from backbones.glamm.seeing import GlammSeeing


class GlammProbes(Probes):
    """Looks into the CLIP of a loaded GLaMM, or into CLIP alone."""

    def __init__(self, backbone: GlammSeeing | ClipTower) -> None:
        self._backbone = backbone

    def plain(self, expression: str) -> Turn:
        """The expression as it goes into a question, without the question."""
        return Turn(said(expression), "")

    @torch.inference_mode()
    def projected_class(self, encoding: Encoding) -> Tensor:
        """(P,) the class token beside the visual tokens, through the same norm and projection as they go to
        text."""
        return clip.project_patches(self._backbone.model.clip, encoding.hidden_states[-1][0])

    @torch.inference_mode()
    def end_attention(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """What the [EOS] token attends to, from stored hidden states; see `Probes.end_attention`."""
        words = self._backbone.clip_words(tuple(texts))
        end = (words["input_ids"] == self._backbone.clip_tokenizer.eos_token_id).int().argmax(1)
        return clip.end_attention(self._backbone.model.clip, words, end), end + 1
