"""LISA without weights: GLaMM's parts, and a usual conversation of LISA's."""

from __future__ import annotations

from dataclasses import replace

from backbones.costs import Prompt
from backbones.glamm.shapes import GlammShapes
from backbones.lisa.conversation import TEMPLATES, build_prompt, turn
from backbones.parts.tokenizer import IMAGE_TOKEN, LlamaTokenizer

# one expression of four words in LLaMA's tokens; a word more is a token or two more
USUAL = Prompt(text=60, before=35, turns=1, words=18, sentence=1)
LIKE = "man in red shirt"


class LisaShapes(GlammShapes):
    """The numbers of a LISA."""

    usual = USUAL

    def counted(self, tokenizer: LlamaTokenizer) -> Prompt:
        """A conversation of one expression, as long as this tokenizer makes it."""
        ids = tokenizer.encode(build_prompt([turn(LIKE)], TEMPLATES[0]))
        return replace(USUAL, text=len(ids) - 1, before=ids.index(IMAGE_TOKEN))
