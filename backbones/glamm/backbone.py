"""GLaMM behind the harness's interface: rows of chosen tokens to masks, rows of equal length together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.base import Encoding, Grounded, Row
from backbones.glamm.conversation import IMAGE_SENTENCE
from backbones.glamm.model import GlammModel
from backbones.glamm.preprocess import masks_to_image
from backbones.glamm.seeing import FULL_ROWS, GlammSeeing
from backbones.parts import llama, sam
from backbones.parts.contexts import Context, context_of, whole_positions
from backbones.parts.cuts import Cutting, cutting
from backbones.parts.errors import not_finite, too_long
from backbones.parts.faithful import run_layers
from backbones.parts.shared import Ask, Shared, filled_up
from backbones.parts.tokenizer import IMAGE_TOKEN, LlamaTokenizer, behind_image
from pruners import checks
from pruners.base import Need, View

__all__ = ["FULL_ROWS", "GlammBackbone"]

# Sequences are filled up on the right to a multiple of this, so that questions of about one length share a
# batch. Nothing looks to the right, so the fill changes no state that is read; it depends on the row alone.
FULL_LENGTH = 4


@dataclass(frozen=True)
class _Said:
    """What the language model said of a row.

    Attributes:
        prompts: (M, P) mask prompts, one per [SEG]; NaN where a pruner inside the model had no numbers to
            choose by.
        lengths, retained: as in `Grounded`.
    """

    prompts: Tensor
    lengths: tuple[int, ...]
    retained: Tensor


class GlammBackbone(GlammSeeing):
    """A loaded GLaMM; arguments are those of `GlammSeeing`."""

    def __init__(self, model: GlammModel, tokenizer: LlamaTokenizer, clip_folder: Path, **how: Any) -> None:
        super().__init__(model, tokenizer, clip_folder, **how)
        self._sentence = behind_image(tokenizer.encode(IMAGE_SENTENCE))
        self._beginnings: dict[tuple[int, ...], llama.Past] = {}

    # -- from tokens to masks

    def ground_rows(self, rows: Sequence[Row], share: bool = True) -> Iterator[Grounded]:
        """Segment every row, masks batch by batch as they are asked for; when memory does not suffice, in
        smaller batches."""
        most = self.model.language_model.config.max_position_embeddings
        errors = [too_long(len(self.ids(row.turns)) - 1, self._context(row).span, most) for row in rows]
        short = [row for row, error in zip(rows, errors, strict=True) if not error]
        said = (
            self._within_memory(lambda: self._shared(short) if share else self._apart(short)) if short else []
        )
        masks, found = self._masks(short, [one.prompts for one in said]), iter(said)
        for row, error in zip(rows, errors, strict=True):
            if error:
                yield Grounded(
                    torch.zeros(0, *row.encoding.original), (0,) * self.num_layers, torch.arange(0), error
                )
                continue
            one = next(found)
            logits = list(islice(masks, len(one.prompts)))
            together = torch.stack(logits) if logits else torch.zeros(0, *row.encoding.original)
            checks.lengths(row.pruner, row.budget, self._patches(row), one.lengths)
            yield Grounded(
                together,
                one.lengths,
                one.retained,
                "" if together.isfinite().all() else not_finite(self.dtype),
                tokens_llm=len(self.ids(row.turns)) - 1 + one.lengths[0],  # less the image's placeholder
            )

    def _words(self, row: Row, whole: bool = True) -> tuple[list[int], list[int], list[int]]:
        """Ids before the image, ids behind it (filled up), and for every [SEG] the place before it, from
        their end.

        Args:
            whole: False leaves out what stands behind the last state that is read.
        """
        ids = self.ids(row.turns)
        image = ids.index(IMAGE_TOKEN)
        behind = ids[image + 1 :]
        marks = [k - 1 for k, token in enumerate(behind) if token == self.tokenizer.seg_id]
        if not whole and marks:
            behind = behind[: marks[-1] + 1]
        behind += [self.tokenizer.pad_id] * (-len(behind) % FULL_LENGTH)
        return ids[:image], behind, [mark - len(behind) for mark in marks]

    def _shared(self, rows: Sequence[Row]) -> list[_Said]:
        """All rows at once; what they have in common is computed once."""
        numbers: dict[tuple[object, ...], int] = {}
        contexts: list[Row] = []
        asks = []
        for row in rows:
            where = numbers.setdefault((id(row.encoding), *self._content(row)), len(numbers))
            if where == len(contexts):
                contexts.append(row)
            cut = self._cutting(row)
            before, behind, marks = self._words(row, whole=cut is not None)
            common = sum(
                1 for _ in takewhile(lambda ids: ids[0] == ids[1], zip(behind, self._sentence, strict=False))
            )
            if marks:  # a question may begin with [SEG]
                common = min(common, len(behind) + marks[0])
            sentence, words = tuple(behind[:common]), tuple(behind[common:])
            read = tuple(len(words) + mark for mark in marks)
            asks.append(Ask(where, tuple(before), sentence, words, self._last(words), read, cut))
        shared = Shared(self.model.language_model, self.batch_size, self._multiple, self._beginnings)
        answers = shared.run(
            [self._context(row) for row in contexts],
            lambda part: self._project([contexts[k] for k in part]),
            asks,
        )
        prompts = self._prompts([answers[k].hidden for k in range(len(rows))])
        return [_Said(prompts[k], answers[k].lengths, answers[k].patches) for k in range(len(rows))]

    def _content(self, row: Row) -> tuple[object, ...]:
        """Equal for rows of one image that send the same tokens to the same places."""
        context = self._context(row)
        merged = row.selections[0] if row.selections and row.selections[0].features is not None else None
        what = id(merged) if merged is not None else context.patches.cpu().numpy().tobytes()
        return what, context.places is not None

    def _context(self, row: Row) -> Context:
        """The visual tokens that a row sends, and where they stand."""
        return context_of(row.pruner, row.selections, self._patches(row))

    def _cutting(self, row: Row) -> Cutting | None:
        """What leaves a row while the language model runs."""
        answer = self.answer_length(row.turns)
        return cutting(
            row.pruner,
            row.budget,
            self._patches(row),
            self.num_layers,
            row.sample,
            answer=answer,
            grid=self.grid,
        )

    def _patches(self, row: Row) -> int:
        return len(row.encoding.hidden_states[-1]) - 1

    def _project(self, rows: Sequence[Row]) -> Tensor:
        """(B, T, width) projected visual tokens of rows that send equally many."""
        return self.model.projector(torch.stack([self.visual(row) for row in rows]).to(self._kind))  # type: ignore[no-any-return]

    def _prompts(self, states: Sequence[Tensor]) -> list[Tensor]:
        """[SEG] states (M, width) of every row -> mask prompts (M, P)."""
        counts = [len(part) for part in states]
        together = torch.cat(list(states))
        filled = torch.cat([together, together[-1:].expand(self._filled(len(together)) - len(together), -1)])
        return (
            list(self.model.text_hidden_fcs(filled)[: len(together)].split(counts))
            if len(together)
            else list(states)
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

    def visual(self, row: Row) -> Tensor:
        """(T, C) features that a row sends to the projector."""
        features = row.encoding.hidden_states[-1]
        if not row.selections:
            return features[1:]
        stub = View(features[1:], features[0], self.grid, self.num_heads, partial(_nothing))
        return row.selection.gather(stub)  # type: ignore[union-attr]

    def embed(self, rows: Sequence[Row], ids: Sequence[list[int]]) -> Tensor:
        """(B, L, width) input embeddings with the visual tokens in the image's place."""
        model = self.model
        visual = self._project(rows)
        words = torch.tensor(ids, device=self.device)
        image = ids[0].index(IMAGE_TOKEN)
        before, behind = (
            llama.embed_ids(model.language_model, part) for part in (words[:, :image], words[:, image + 1 :])
        )
        return torch.cat([before, visual, behind], dim=1)

    def _apart(self, rows: Sequence[Row]) -> list[_Said]:
        """Every row whole, with the language model's head, as the official forward runs; rows of equal length
        together."""
        words = [self._words(row) for row in rows]
        groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for k, row in enumerate(rows):
            cut = self._cutting(row)
            parted = (cut.pruner, cut.cuts) if cut is not None else None
            groups[len(words[k][0]), len(words[k][1]), len(self._context(row)), parted].append(k)
        found: dict[int, _Said] = {}
        for members in groups.values():
            for start in range(0, len(members), self.batch_size):
                part = members[start : start + self.batch_size]
                filled = filled_up(part, self._multiple)
                results = self._together([rows[k] for k in filled], [words[k] for k in filled])
                found.update(zip(part, results, strict=False))
        return [found[k] for k in range(len(rows))]

    def _together(
        self, rows: list[Row], words: list[tuple[list[int], list[int], list[int]]]
    ) -> Iterator[_Said]:
        model = self.model
        ids = [[*before, IMAGE_TOKEN, *behind] for before, behind, _ in words]
        embeds = self.embed(rows, ids)
        image, text = len(words[0][0]), len(ids[0]) - 1
        count = embeds.shape[1] - text
        contexts = [self._context(row) for row in rows]
        run = run_layers(
            model.language_model,
            embeds,
            visual_start=image,
            visual_count=count,
            cuttings=[cut for row in rows if (cut := self._cutting(row)) is not None],
            patches=torch.stack([context.patches.to(self.device) for context in contexts]),
            positions=whole_positions(contexts, image, text - image, self.device),  # type: ignore[arg-type]
            last=torch.tensor([self._last(row) + count - 1 for row in ids], device=self.device),
        )
        model.lm_head(run.hidden)
        prompts = self._prompts([run.hidden[k, marks] for k, (_, _, marks) in enumerate(words)])
        lengths = tuple(length - text for length in run.lengths)
        for k, sound in enumerate(run.sound):
            yield _Said(
                prompts[k] if sound else torch.full_like(prompts[k], torch.nan), lengths, run.patches[k]
            )

    def _last(self, words: Sequence[int]) -> int:
        """Position of the last token that is not fill."""
        pad = self.tokenizer.pad_id
        return max(k for k, word in enumerate(words) if word != pad)

    def decode(self, embeddings: Tensor, prompts: Tensor) -> Tensor:
        """Mask decoder: (M, P, g, g) image embeddings and (M, P) prompts -> (M, 4g, 4g) logits of the single
        mask."""
        return sam.decode_masks(self.model.grounding_encoder, embeddings, prompts)


def _nothing(need: Need) -> Tensor:
    raise ValueError(f"no signals here: {need}")
