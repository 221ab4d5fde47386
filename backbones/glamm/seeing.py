"""GLaMM's eyes behind the harness's interface: how it is asked, images encoded once, signals answered when a
pruner reads them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbones.base import Backbone, Conversation, Encoding, Pixels, Turn
from backbones.costs import Staged
from backbones.glamm import signals
from backbones.glamm.conversation import IMAGE_SENTENCE, build_prompt, drawn_conversations, plain_turn
from backbones.glamm.model import GlammModel
from backbones.glamm.preprocess import clip_pixels, patch_shares, sam_pixels, sam_pixels_mmcv
from backbones.glamm.release import GLAMM
from backbones.glamm.settings import GlammFamily
from backbones.parts import clip, llama, sam
from backbones.parts.errors import not_finite
from backbones.parts.release import Release
from backbones.parts.tokenizer import LlamaTokenizer, clip_tokenizer
from backbones.probes import Probes
from pruners.base import Need, UserError, View

Result = TypeVar("Result")

# CPU kernels round alike for all batches of a multiple of eight, and differently for others. Batches are
# filled up to one, so that a pixel on the edge of a mask does not depend on what else was in the batch.
FULL_ROWS = 8
SMALL = 200_000_000  # weights: a model whose products are too small to be shared by threads


class GlammSeeing(GlammFamily, Backbone):
    """The half of a loaded GLaMM that ends where the language model begins.

    Args:
        batch_size: most rows that share a forward pass; on CPU rounded up to a multiple of FULL_ROWS.

    Attributes:
        release: whose files it reads.
        image_sentence: what stands before the first question, with the image's place.
    """

    release: ClassVar[Release] = GLAMM
    image_sentence: ClassVar[str] = IMAGE_SENTENCE

    def __init__(
        self,
        model: GlammModel,
        tokenizer: LlamaTokenizer,
        clip_folder: Path,
        *,
        name: str,
        fingerprint: str,
        device: str,
        dtype: str,
        attn: str,
        batch_size: int = 16,
        image_backend: str = "pil",
        costs_by_default: str = GlammFamily.costs_by_default,
        images_by_default: int = GlammFamily.images_by_default,
    ) -> None:
        self.model, self.tokenizer, self.name, self.fingerprint = model, tokenizer, name, fingerprint
        self.device, self.dtype, self.attn = device, dtype, attn
        self.costs_by_default, self.images_by_default = costs_by_default, images_by_default
        self._sam_pixels = sam_pixels_mmcv if image_backend == "mmcv" else sam_pixels
        self._multiple = FULL_ROWS if device == "cpu" else 1
        self.batch_size = self._filled(batch_size)
        self.clip_tokenizer = clip_tokenizer(clip_folder, model.clip.config.text_config.vocab_size)
        vision = model.clip.config.vision_config
        side = vision.image_size // vision.patch_size
        self.grid = (side, side)
        self.image_size, self.num_heads = vision.image_size, vision.num_attention_heads
        self.sam_size = self._grounding_size()
        self.num_layers = model.language_model.config.num_hidden_layers
        self._kind = next(model.parameters()).dtype
        self._text_embeds: dict[tuple[str, ...], Tensor] = {}
        self._known_ids: dict[tuple[tuple[Turn, ...], bool], list[int]] = {}

    def _grounding_size(self) -> int:
        """Side of what the grounding encoder gets, in pixels."""
        return int(self.model.grounding_encoder.config.vision_config.image_size)

    @property
    def probes(self) -> Probes | None:
        """Into CLIP."""
        from backbones.glamm.probes import GlammProbes

        return GlammProbes(self)

    @property
    def staged(self) -> Staged | None:
        """The released forward pass in stages."""
        from backbones.glamm.stages import GlammStaged

        return GlammStaged(self)

    def _filled(self, count: int) -> int:
        """`count` rounded up to the multiple that rounds alike."""
        return -(-count // self._multiple) * self._multiple

    # -- once per image

    def preprocess(self, image: NDArray[np.uint8]) -> Pixels:
        """Both branches' resize and normalisation."""
        grounding, resized = self._sam_pixels(image, self.sam_size)
        return Pixels(clip_pixels(image, self.image_size), grounding, resized, image.shape[:2])

    @property
    def forks(self) -> bool:
        """See `Backbone.forks`."""
        small = sum(weight.numel() for weight in self.model.parameters()) <= SMALL
        return small and self.device == "cpu" and not llama.is_shared(self.model.language_model)

    def encode_pixels(self, pixels: Sequence[Pixels]) -> list[Encoding]:
        """Both image branches; the vision tower's last layer is not run, since nothing reads its output.

        Raises:
            UserError: what a branch says of an image is not finite in this precision.
        """
        return self._within_memory(
            lambda: [
                encoding
                for start in range(0, len(pixels), self.batch_size)
                for encoding in self._encode(pixels[start : start + self.batch_size])
            ]
        )

    def _encode(self, pixels: Sequence[Pixels]) -> list[Encoding]:
        pad = len(pixels) % 2 if self._multiple > 1 else 0  # images round alike in any even number
        filled = [*pixels, *[pixels[-1]] * pad]
        # each is copied by itself: pinned memory goes over while the device works, and a batch that is made
        # of it here is pinned no longer
        vision, grounding = (
            torch.stack([part.to(self.device, self._kind, non_blocking=True) for part in parts])
            for parts in zip(*((one.vision, one.grounding) for one in filled), strict=True)
        )
        states = clip.hidden_states(self.model.clip, vision)
        embeddings = sam.encode(self.model.grounding_encoder, grounding)
        if not (states[-1].isfinite().all() and embeddings.isfinite().all()):
            raise UserError(not_finite(self.dtype))
        return [
            Encoding(tuple(state[k] for state in states), embeddings[k], one.resized, one.original)
            for k, one in enumerate(pixels)
        ]

    # -- how it is asked

    def turn(self, expression: str) -> Turn:
        """The expression in the first wording of question and answer."""
        return plain_turn(expression)

    def conversations(
        self,
        sample_id: str,
        expressions: Sequence[str],
        protocol: str,
        seed: int,
        forms: Sequence[str] = (),
    ) -> list[Conversation]:
        """Conversations of one image: `each`, or the drawn ones of `glamm`; see
        `conversation.drawn_conversations`."""
        if self.check_protocol(protocol) == "glamm":
            return drawn_conversations(sample_id, expressions, seed)
        return super().conversations(sample_id, expressions, protocol, seed, forms)

    def prompt(self, turns: Sequence[Turn], answered: bool = True) -> str:
        """The teacher-forced conversation of all turns; the image stands before the first question.

        Args:
            answered: False leaves the last answer to the model.
        """
        return build_prompt(turns, answered)

    def ids(self, turns: Sequence[Turn], answered: bool = True) -> list[int]:
        """The conversation's ids, the image's placeholder included; arguments are those of `prompt`.

        Rows of one conversation under many pruners ask for them again.
        """
        key = tuple(turns), answered
        if key not in self._known_ids:
            if len(self._known_ids) > 4096:
                self._known_ids.clear()
            self._known_ids[key] = self.tokenizer.encode(self.prompt(turns, answered))
        return self._known_ids[key]

    def answer_length(self, turns: Sequence[Turn]) -> int:
        """Tokens of the last turn's forced answer, its end token included: those behind the last prompt
        token."""
        whole, asked = self.ids(turns), self.ids(turns, answered=False)
        same = takewhile(lambda pair: pair[0] == pair[1], zip(whole, asked, strict=False))
        return len(whole) - sum(1 for _ in same)

    # -- what pruners read

    def views(
        self, encoding: Encoding, turns: Sequence[Turn], sample: str, masks: NDArray[np.bool_] | None = None
    ) -> list[View]:
        """The image's one view, signals computed when first read."""
        questions = tuple(turn.question for turn in turns)
        features = encoding.hidden_states[-1]
        answer = partial(self._answer, encoding, questions, masks)
        (region,) = self.regions(*encoding.original)
        return [View(features[1:], features[0], self.grid, self.num_heads, answer, sample, region=region)]

    def patch_shares(
        self, masks: NDArray[np.bool_], number: int = 0, size: tuple[int, int] | None = None
    ) -> Tensor:
        """(N,) share of every patch that the union of (M, H, W) masks covers, in grey levels of CLIP's own
        resize."""
        return patch_shares(masks, self.image_size, self.grid).to(self.device)

    @torch.inference_mode()
    def _answer(
        self, encoding: Encoding, questions: tuple[str, ...], masks: NDArray[np.bool_] | None, need: Need
    ) -> Tensor:
        if (told := self._beside(questions, masks, need)) is not None:
            return told
        if need not in encoding.signals:
            encoding.signals[need] = signals.of_image(self.model, encoding.hidden_states, need)
        return encoding.signals[need]

    def _beside(
        self, questions: tuple[str, ...], masks: NDArray[np.bool_] | None, need: Need
    ) -> Tensor | None:
        """A signal of the text, or of the truth masks (M, H, W); None of those that the encoding tells."""
        if need.kind == "text_embeds":
            return self.text_embeds(questions)
        if need.kind == "llm_text_embeds":
            ids = torch.tensor(signals.question_ids(self.tokenizer, questions), device=self.device)
            return llama.embed_ids(self.model.language_model, ids)
        if need.kind == "referent":
            if masks is None:
                raise UserError(
                    "This pruner sees the truth, and no truth masks were given; leave it out here."
                )
            return self.patch_shares(masks)
        return None

    def text_embeds(self, questions: tuple[str, ...]) -> Tensor:
        """(M, P) CLIP text projection of the questions, tokenised together, cut at 77 tokens, not
        normalised."""
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

    def cut_off(self, questions: Sequence[str]) -> int:
        """How many of the questions are longer than CLIP's text tower, so that text-guided pruners see their
        beginning alone."""
        most = clip.text_positions(self.model.clip)
        return sum(
            len(self.clip_tokenizer(question, verbose=False)["input_ids"]) > most for question in questions
        )

    # -- in as much memory as there is

    def _within_memory(self, work: Callable[[], Result]) -> Result:
        """Halve the batch until `work` fits.

        Raises:
            torch.OutOfMemoryError: it does not fit even in the smallest batch.
            UserError: it does not fit, and other processes compute the same batch, which cannot shrink in one
                of them.
        """
        while True:
            try:
                with torch.inference_mode():
                    return work()
            except (
                RuntimeError
            ) as error:  # torch.OutOfMemoryError is one; the CPU allocator raises a plain one
                if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(
                    error
                ):
                    raise
                if self.batch_size <= self._multiple:
                    raise torch.OutOfMemoryError(str(error)) from error
                smaller = self._filled(self.batch_size // 2)
                if llama.is_shared(self.model.language_model):
                    raise UserError(
                        f"Out of memory with {self.batch_size} rows at once, which --tensor-parallel "
                        f"cannot change on the way; "
                        f"give --batch-size {smaller}."
                    ) from error
                print(
                    f"out of memory with {self.batch_size} rows at once, going on with {smaller}",
                    file=sys.stderr,
                )
                self.batch_size = smaller
                if self.device.startswith("cuda"):
                    torch.cuda.empty_cache()
