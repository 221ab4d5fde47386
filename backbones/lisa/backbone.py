"""LISA behind the harness's interface: GLaMM's pass in LISA's words."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backbones.base import Turn
from backbones.glamm.backbone import GlammBackbone
from backbones.glamm.model import GlammModel
from backbones.lisa import conversation
from backbones.lisa.release import LISA
from backbones.lisa.settings import Lisa, LisaFamily
from backbones.parts.tokenizer import LlamaTokenizer


class LisaBackbone(LisaFamily, GlammBackbone):
    """A loaded LISA; arguments are those of `GlammSeeing`, and the template of its conversations."""

    release = LISA
    image_sentence = conversation.IMAGE_SENTENCE
    whole_answers = True

    def __init__(
        self,
        model: GlammModel,
        tokenizer: LlamaTokenizer,
        clip_folder: Path,
        *,
        template: str = Lisa.template,
        **how: Any,
    ) -> None:
        self.template = template
        super().__init__(model, tokenizer, clip_folder, **how)
        if template != Lisa.template:  # answers depend on it as on the weights
            self.fingerprint = hashlib.sha256(f"{self.fingerprint}:{template}".encode()).hexdigest()[:16]

    def turn(self, expression: str) -> Turn:
        """A referring expression in the one wording of question and answer."""
        return conversation.turn(expression)

    def turn_of(self, expression: str, form: str) -> Turn:
        """A phrase or a sentence of a reasoning data set in its wording."""
        return conversation.turn(expression, form)

    def prompt(self, turns: Sequence[Turn], answered: bool = True) -> str:
        """As `GlammSeeing.prompt`, in LISA's template."""
        return conversation.build_prompt(turns, self.template, answered)
