"""GLaMM behind the harness's interface: encode once, answer pruners lazily, ground rows of equal length together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbones.base import Encoding, Grounded, Pixels, Row, Turn
from backbones.glamm.conversation import build
from backbones.glamm.decoder import run_layers
from backbones.glamm.model import GlammModel
from backbones.glamm.preprocess import clip_pixels, masks_to_image, patch_shares, sam_pixels, sam_pixels_mmcv
from backbones.glamm.signals import hidden_states, vision_signal
from backbones.glamm.tokenizer import IMAGE_TOKEN, LlamaTokenizer
from pruners.base import LayerPruner, Need, Selection, UserError, VisualTokens

# CPU kernels round alike for all batches of a multiple of eight, and differently for others. Batches are filled up to one,
# so that a pixel on the edge of a mask does not depend on what else was in the batch.
FULL_ROWS = 8
# Sequences are filled up on the right to a multiple of this, so that questions of about one length share a batch. Nothing
# looks to the right, so the fill changes no state that is read; it depends on the row alone.
FULL_LENGTH = 32


class GlammBackbone:
    """A loaded GLaMM.

    Args:
        batch_size: most rows that share a forward pass; on CPU rounded up to a multiple of FULL_ROWS.
    """

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
    ) -> None:
        from transformers import CLIPTokenizer

        self.model, self.tokenizer, self.name, self.fingerprint = model, tokenizer, name, fingerprint
        self.device, self.dtype, self.attn = device, dtype, attn
        self._sam_pixels = sam_pixels_mmcv if image_backend == "mmcv" else sam_pixels
        self._multiple = FULL_ROWS if device == "cpu" else 1
        self.batch_size = self._filled(batch_size)
        self.clip_tokenizer = CLIPTokenizer.from_pretrained(str(clip_folder))
        vision = model.clip.config.vision_config
        side = vision.image_size // vision.patch_size
        self.grid = (side, side)
        self.image_size, self.num_heads = vision.image_size, vision.num_attention_heads
        self.sam_size = model.grounding_encoder.config.vision_config.image_size
        self.num_layers = model.language_model.config.num_hidden_layers
        self._kind = next(model.parameters()).dtype
        self._text_embeds: dict[tuple[str, ...], Tensor] = {}

    def _filled(self, count: int) -> int:
        """`count` rounded up to the multiple that rounds alike."""
        return -(-count // self._multiple) * self._multiple

    # -- once per image

    def preprocess(self, image: NDArray[np.uint8]) -> Pixels:
        """Both branches' resize and normalisation."""
        grounding, resized = self._sam_pixels(image, self.sam_size)
        return Pixels(clip_pixels(image, self.image_size), grounding, resized, image.shape[:2])

    def encode(self, images: Sequence[NDArray[np.uint8]]) -> list[Encoding]:
        """Encode raw (H, W, 3) images."""
        return self.encode_pixels([self.preprocess(image) for image in images])

    @torch.inference_mode()
    def encode_pixels(self, pixels: Sequence[Pixels]) -> list[Encoding]:
        """Both image branches; the vision tower's last layer is not run, since nothing reads its output."""
        pad = len(pixels) % 2 if self._multiple > 1 else 0  # images round alike in any even number
        filled = [*pixels, *[pixels[-1]] * pad]
        vision, grounding = (
            torch.stack(parts).to(self.device, self._kind, non_blocking=True)
            for parts in zip(*((one.vision, one.grounding) for one in filled), strict=True)
        )
        states = hidden_states(self.model.clip.vision_model, vision)
        embeddings = self.model.grounding_encoder.vision_encoder(grounding)[0]
        return [
            Encoding(tuple(state[k] for state in states), embeddings[k], one.resized, one.original)
            for k, one in enumerate(pixels)
        ]

    # -- what pruners read

    def tokens(
        self, encoding: Encoding, turns: Sequence[Turn], sample: str, masks: NDArray[np.bool_] | None = None
    ) -> VisualTokens:
        """The image as a pruner sees it, signals computed when first read."""
        questions = tuple(turn.question for turn in turns)
        features = encoding.hidden_states[-1]
        answer = partial(self._answer, encoding, questions, masks)
        return VisualTokens(features[1:], features[0], self.grid, self.num_heads, answer, sample)

    @torch.inference_mode()
    def _answer(self, encoding: Encoding, questions: tuple[str, ...], masks: NDArray[np.bool_] | None, need: Need) -> Tensor:
        if need.kind == "text_embeds":
            return self.text_embeds(questions)
        if need.kind == "referent":
            if masks is None:
                raise UserError("This pruner sees the truth, and no truth masks were given; leave it out here.")
            return patch_shares(masks, self.image_size, self.grid).to(self.device)
        if need not in encoding.signals:
            clip = self.model.clip
            encoding.signals[need] = vision_signal(clip.vision_model, clip.visual_projection, encoding.hidden_states, need)
        return encoding.signals[need]

    def text_embeds(self, questions: tuple[str, ...]) -> Tensor:
        """(M, P) CLIP text projection of the questions, tokenised together, cut at 77 tokens, not normalised."""
        if questions not in self._text_embeds:
            if len(self._text_embeds) > 4096:
                self._text_embeds.clear()
            words = self.clip_tokenizer(list(questions), padding=True, truncation=True, max_length=77, return_tensors="pt").to(
                self.device
            )
            pooled = self.model.clip.text_model(
                input_ids=words["input_ids"], attention_mask=words["attention_mask"]
            ).pooler_output
            self._text_embeds[questions] = self.model.clip.text_projection(pooled)
        return self._text_embeds[questions]

    # -- from tokens to masks

    @torch.inference_mode()
    def ground_rows(self, rows: Sequence[Row], share: bool = True) -> list[Grounded]:
        """Segment every row; rows of equal length (and, inside the model, equal cuts) run together."""
        ids: list[list[int]] = []
        groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for k, row in enumerate(rows):
            count = row.selection.tokens if row.selection is not None else len(row.encoding.hidden_states[-1]) - 1
            cut = (row.pruner, row.budget) if row.selection is None else None
            words = self.tokenizer.encode(build(row.turns))
            ids.append(words + [self.tokenizer.pad_id] * (-(len(words) - 1 + count) % FULL_LENGTH))
            groups[(len(ids[k]), ids[k].index(IMAGE_TOKEN), count, cut)].append(k)
        found: dict[int, Grounded] = {}
        for members in groups.values():
            for start in range(0, len(members), self.batch_size):
                part = members[start : start + self.batch_size]
                filled = part + part[-1:] * (self._filled(len(part)) - len(part))
                results = self._ground([rows[k] for k in filled], [ids[k] for k in filled])
                found.update(zip(part, results, strict=False))
        return [found[k] for k in range(len(rows))]

    def visual(self, row: Row) -> Tensor:
        """(T, C) features that a row sends to the projector."""
        features = row.encoding.hidden_states[-1]
        if row.selection is None:
            return features[1:]
        stub = VisualTokens(features[1:], features[0], self.grid, self.num_heads, partial(_nothing))
        return row.selection.gather(stub)

    def embed(self, rows: Sequence[Row], ids: Sequence[list[int]]) -> Tensor:
        """(B, L, width) input embeddings with the visual tokens in the image's place."""
        model = self.model
        visual = model.projector(torch.stack([self.visual(row) for row in rows]).to(self._kind))
        words = torch.tensor(ids, device=self.device)
        image = ids[0].index(IMAGE_TOKEN)
        embed = model.language_model.embed_tokens
        return torch.cat([embed(words[:, :image]), visual, embed(words[:, image + 1 :])], dim=1)

    def _ground(self, rows: list[Row], ids: list[list[int]]) -> Iterator[Grounded]:
        model, first = self.model, rows[0]
        embeds = self.embed(rows, ids)
        image, text = ids[0].index(IMAGE_TOKEN), len(ids[0]) - 1
        count = embeds.shape[1] - text
        layered = first.pruner if first.selection is None and isinstance(first.pruner, LayerPruner) else None
        run = run_layers(
            model.language_model,
            embeds,
            visual_start=image,
            visual_count=count,
            pruner=layered,
            keep=layered.tokens_after(first.budget, count, self.num_layers) if layered else 0,
            last=torch.tensor([self._last(row) + count - 1 for row in ids], device=self.device),
        )
        # the state that predicts [SEG]: counted from the end, where nothing was pruned
        before_seg = [[k - 1 - len(row) for k, token in enumerate(row) if token == self.tokenizer.seg_id] for row in ids]
        states = torch.cat([run.hidden[k, marks] for k, marks in enumerate(before_seg)])
        prompts = model.text_hidden_fcs(states)
        owner = [k for k, marks in enumerate(before_seg) for _ in marks]
        low = self.decode(torch.stack([rows[k].encoding.embedding for k in owner]), prompts) if owner else prompts
        start = 0
        for k, row in enumerate(rows):
            stop = start + len(before_seg[k])
            encoding = row.encoding
            if stop > start:
                logits = masks_to_image(low[start:stop], self.sam_size, encoding.resized, encoding.original)
            else:
                logits = torch.zeros(0, *encoding.original)
            start = stop
            retained = run.kept[k] if run.kept is not None else (row.selection or _all(count)).indices
            seen = [length - text for length in run.lengths]
            yield Grounded(logits, seen[-1], sum(seen) / len(seen), retained)

    def _last(self, words: list[int]) -> int:
        """Position of the last token that is not fill."""
        pad = self.tokenizer.pad_id
        return max(k for k, word in enumerate(words) if word != pad)

    def decode(self, embeddings: Tensor, prompts: Tensor) -> Tensor:
        """Mask decoder: (M, P, g, g) image embeddings and (M, P) prompts -> (M, 4g, 4g) logits of the single mask."""
        sam = self.model.grounding_encoder
        grid = embeddings.shape[-1]
        dense = sam.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1).expand(len(embeddings), -1, grid, grid)
        position = sam.get_image_wide_positional_embeddings().expand(len(embeddings), -1, -1, -1)
        logits, _ = sam.mask_decoder(embeddings, position, prompts[:, None, None], dense, multimask_output=False)
        return logits[:, 0, 0]


def _nothing(need: Need) -> Tensor:
    raise ValueError(f"no signals here: {need}")


def _all(count: int) -> Selection:
    return Selection(torch.arange(count))
