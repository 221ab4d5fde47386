"""GLaMM behind the harness's interface: rows of chosen tokens to masks, rows of equal length together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from backbones.base import Encoding, Grounded, Row
from backbones.glamm.language import GlammLanguage
from backbones.glamm.preprocess import masks_to_image
from backbones.glamm.seeing import FULL_ROWS
from backbones.parts import sam
from backbones.parts.batches import filled_up
from backbones.parts.errors import not_finite, too_long
from pruners import checks

__all__ = ["FULL_ROWS", "GlammBackbone"]


class GlammBackbone(GlammLanguage):
    """A loaded GLaMM; arguments are those of `GlammSeeing`."""

    def ground_rows(self, rows: Sequence[Row], share: bool = True) -> Iterator[Grounded]:
        """Segment every row, masks batch by batch as they are asked for; when memory does not suffice, in
        smaller batches."""
        most = self.model.language_model.config.max_position_embeddings
        errors = [too_long(len(self.ids(row.turns)) - 1, self._context(row).span, most) for row in rows]
        short = [row for row, error in zip(rows, errors, strict=True) if not error]
        said = self._within_memory(lambda: self.said(short, share)) if short else []
        prompts = self._within_memory(lambda: self.prompts([one.states for one in said])) if said else []
        masks, found = self._masks(short, prompts), iter(said)
        for row, error in zip(rows, errors, strict=True):
            if error:
                yield Grounded(
                    torch.zeros(0, *row.encoding.original), (0,) * self.num_layers, torch.arange(0), error
                )
                continue
            one = next(found)
            logits = list(islice(masks, len(one.states)))
            if one.said is not None:  # no [SEG], no mask
                empty, drawn = torch.full(row.encoding.original, -1.0, device=self.device), iter(logits)
                logits = [next(drawn) if there else empty for there in one.said]
            together = torch.stack(logits) if logits else torch.zeros(0, *row.encoding.original)
            checks.lengths(row.pruner, row.budget, self._patches(row), one.lengths)
            yield Grounded(
                together,
                one.lengths,
                one.retained,
                "" if together.isfinite().all() else not_finite(self.dtype),
                tokens_llm=one.text + one.lengths[0],
                said=one.said,
                seg_logprob=one.seg_logprob,
                words=one.words,
            )

    def _masks(self, rows: Sequence[Row], prompts: Sequence[Tensor]) -> Iterator[Tensor]:
        """(H, W) float32 logits of every prompt, in order, at its raw image's size."""
        flat = [(row.encoding, prompt) for row, part in zip(rows, prompts, strict=True) for prompt in part]
        done = 0
        while done < len(flat):
            for low in self._within_memory(partial(self._decoded, flat, done)).split(1):
                one = flat[done][0]
                # one by one: large masks fill memory, and resizing rounds differently in company
                yield self._within_memory(
                    partial(masks_to_image, low, self.sam_size, one.resized, one.original)
                )[0]
                done += 1

    def _decoded(self, flat: Sequence[tuple[Encoding, Tensor]], start: int) -> Tensor:
        """The next batch of masks as the decoder gives them, (B, 4g, 4g)."""
        part = flat[start : start + self.batch_size]
        filled = filled_up(part, self._multiple)
        images, prompts = (
            torch.stack(parts)
            for parts in zip(*((one.embedding, prompt) for one, prompt in filled), strict=True)
        )
        return self.decode(images, prompts)[: len(part)]

    def decode(self, embeddings: Tensor, prompts: Tensor) -> Tensor:
        """Mask decoder: (M, P, g, g) image embeddings and (M, P) prompts -> (M, 4g, 4g) logits of the single
        mask."""
        return sam.decode_masks(self.model.grounding_encoder, embeddings, prompts)
