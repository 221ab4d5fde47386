"""VideoGLaMM behind the harness's interface: rows of chosen tokens to masks of all frames of a clip."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from backbones.base import DRAWN, READ, ClipEncoding, Grounded, Row
from backbones.glamm.language import Said
from backbones.parts.batches import filled_up
from backbones.parts.clips import run_lengths
from backbones.parts.contexts import Context
from backbones.parts.cuts import Cutting, cutting
from backbones.parts.errors import not_finite, too_long
from backbones.videoglamm.budgets import CELLS, POOL, VIDEO_POOL, square_side
from backbones.videoglamm.placement import context_of, members, place
from backbones.videoglamm.seeing import VideoGlammSeeing, Window
from backbones.videoglamm.segmenters import Prepared, ahead, segmenter, sound
from pruners import checks
from pruners.base import CLS, Selection
from pruners.errors import UserError

__all__ = ["VideoGlammBackbone"]


@dataclass
class _Answer:
    """What came of a row, window by window.

    Attributes:
        windows: what the language model said in each.
        runs: of all frames so far, their masks' run lengths.
        error: why there is no answer.
    """

    windows: list[Said] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    error: str = ""


class VideoGlammBackbone(VideoGlammSeeing):
    """A loaded VideoGLaMM; arguments are those of `VideoGlammSeeing`."""

    # -- rows of windows in the language model

    @property
    def _inside(self) -> int:
        """Tokens that the language model gets of a view of which nothing is pruned."""
        return self.sent(self.grid[0] * self.grid[1])

    def _patches(self, row: Row) -> int:
        """Of a view, as what prunes inside the language model counts them."""
        return self._inside

    def _context(self, row: Row) -> Context:
        """A window's."""
        kept = row.pruner.positions_for(row.positions) == "kept"
        views = len(row.encoding.hidden_states[-1])
        return context_of(self.placement, row.selections, views, self._inside, kept)

    def _content(self, row: Row) -> tuple[object, ...]:
        """As of an image; in the placement grid other patches make other tokens in the same places."""
        chosen = tuple(_identity(one) for one in row.selections)
        return chosen, row.pruner.positions_for(row.positions) if chosen else None

    def _project(self, rows: Sequence[Row]) -> Tensor:
        """(B, T + tail, width) tokens of windows that send equally many: view after view, then the video
        encoder's."""
        return torch.stack([self._tokens(row) for row in rows])

    def _tokens(self, row: Row) -> Tensor:
        window = cast(Window, row.encoding)
        parts = [self._tokens_of(window, row, view) for view in range(len(window.hidden_states[-1]))]
        return torch.cat([*parts, self.watched(window)])

    def _tokens_of(self, window: Window, row: Row, view: int) -> Tensor:
        """(T, width) of one view, whatever else is in the batch."""
        states = window.hidden_states[-1][view]
        projected = self.projected(window, view, window.first + view)
        if not row.selections:
            indices = torch.arange(len(projected), device=projected.device)
            return place(self.placement, projected, indices, None, None)
        chosen, project = row.selections[view], self.model.projector
        merged = own = None
        if chosen.features is not None:
            merged = project(chosen.features.to(self._kind))
        elif bool((chosen.indices == CLS).any()):
            own = project(states[:1])[0]
        return place(self.placement, projected, chosen.indices, merged, own)

    def _cutting(self, row: Row, answer: int) -> Cutting | None:
        """As of an image, of every view by itself."""
        each = self._inside
        side = POOL if each == CELLS else self.side
        grid = (side, side)
        return cutting(row.pruner, row.budget, each, self.num_layers, row.sample, answer=answer, grid=grid)

    # -- rows of clips

    def ground_rows(self, rows: Sequence[Row], share: bool = True) -> Iterator[Grounded]:
        """Segment every row. All rows of a clip go through its frames together, each of which is decoded and
        encoded once; no more than two are in memory.

        Of a row: `lengths`, `tokens_llm` and `retained` are of all windows together; `said` is whether the
        model wrote a [SEG] in every window, `seg_logprob` the mean over them. In the placement grid a token
        stands for the patches of its cell, or what was chosen in front of the pool is retained.
        """
        clips: dict[int, list[int]] = defaultdict(list)
        for number, row in enumerate(rows):
            self._check(row)
            clips[id(row.encoding)].append(number)
        found: dict[int, Grounded] = {}
        for number in range(len(rows)):
            if number not in found:
                mine = clips[id(rows[number].encoding)]
                found |= zip(mine, self._of_clip([rows[k] for k in mine], share), strict=True)
            yield found.pop(number)

    def _check(self, row: Row) -> None:
        """Raise UserError where this family cannot run a row."""
        if len(row.turns) != 1:
            raise UserError(
                f"{self.name} is asked one expression at a time, and a conversation has {len(row.turns)}."
            )
        if lacking := self.lacks(row.pruner):
            raise UserError(lacking)
        self.check_budget(row.pruner, row.budget, self.num_layers, self.grid[0] * self.grid[1])
        if self.placement == "grid":
            for chosen in row.selections:
                square_side(chosen.tokens)
        if row.pruner.stage == "both" and len({chosen.tokens for chosen in row.selections}) > 1:
            raise UserError(
                f"{row.pruner.spec()} sends more tokens of one frame than of another and prunes inside the "
                f"language model, where every frame needs equally many."
            )

    def _tell_read(self, rows: int) -> None:
        """Of a clip it is told window by window."""

    def _of_clip(self, rows: Sequence[Row], share: bool) -> list[Grounded]:
        """Rows of one clip."""
        encoding = rows[0].encoding
        assert isinstance(encoding, ClipEncoding) and encoding.clip is not None and self.frames is not None
        answers = [_Answer() for _ in rows]
        windows = encoding.clip.windows()
        for number, frames in enumerate(windows):
            part = slice(number * self.frames, (number + 1) * self.frames)
            window = self.window(encoding, number)
            mine = [replace(row, encoding=window, selections=row.selections[part]) for row in rows]
            self._say(mine, answers, share)
            self.tell(READ, len(rows) / len(windows))
            going = [answer for answer in answers if not answer.error]
            prompts = self._prompts([answer.windows[-1] for answer in going])
            try:
                runs = self._within_memory(partial(self._segmented, encoding, frames, prompts))
            except UserError as error:  # a frame that cannot be read
                for answer in answers:
                    answer.error = answer.error or str(error)
                break
            for answer, (own, fine) in zip(going, runs, strict=True):
                answer.runs += own
                answer.error = "" if fine else not_finite(self.dtype)
        return [self._grounded(row, answer) for row, answer in zip(rows, answers, strict=True)]

    def _say(self, rows: Sequence[Row], answers: Sequence[_Answer], share: bool) -> None:
        """Let the language model answer about a window, where it has positions for it."""
        most = self.model.language_model.config.max_position_embeddings
        for row, answer in zip(rows, answers, strict=True):
            text = len(self.ids(row.turns, row.answers == "forced")) - 1
            answer.error = answer.error or too_long(text, self._context(row).span, most)
        going = [k for k, answer in enumerate(answers) if not answer.error]
        if going:
            said = self._within_memory(lambda: self.said([rows[k] for k in going], share))
            for k, one in zip(going, said, strict=True):
                answers[k].windows.append(one)

    def _prompts(self, said: Sequence[Said]) -> list[Tensor | None]:
        """(P,) what every row's first [SEG] asks the segmenter for; None where the model wrote none."""
        states = [one.states[:1] for one in said]
        if not states:
            return []
        found = self._within_memory(lambda: self.prompts(states))
        return [one[0] if len(one) else None for one in found]

    # -- masks, frame by frame

    def _segmented(
        self, encoding: ClipEncoding, frames: range, prompts: Sequence[Tensor | None]
    ) -> list[tuple[list[str], bool]]:
        """The run lengths of every prompt's masks in a window's frames, and whether all logits were numbers.

        Raises:
            UserError: a frame cannot be read.
        """
        clip = encoding.clip
        assert clip is not None
        makes = segmenter(self.model.grounding_encoder, self.sam_size, self.model.tracks, self.branch)
        asked = [k for k, prompt in enumerate(prompts) if prompt is not None]
        nothing = run_lengths(np.zeros((clip.height, clip.width), dtype=np.bool_))
        runs: list[list[str]] = [[] if prompt is not None else [nothing] * len(frames) for prompt in prompts]
        fine = [True] * len(prompts)
        if asked:
            portions = []
            for start in range(0, len(asked), self.batch_size):
                part = asked[start : start + self.batch_size]
                filled = [cast(Tensor, prompts[k]) for k in filled_up(part, self._multiple)]
                portions.append((part, makes.start(torch.stack(filled))))
            for frame in ahead(lambda number: makes.prepare(clip.frame(number)), frames):
                encoded = makes.encode(frame.pixels[None].to(self.device, self._kind))
                for part, step in portions:
                    self._decoded(step(encoded)[: len(part)], part, frame, makes, runs, fine)
                self.tell(DRAWN, len(asked) / len(clip))
        return list(zip(runs, fine, strict=True))

    @staticmethod
    def _decoded(
        logits: Tensor,
        part: Sequence[int],
        frame: Prepared,
        makes: Any,
        runs: list[list[str]],
        fine: list[bool],
    ) -> None:
        """Add a frame's masks to the runs of their prompts, one by one: large masks fill memory, and resizing
        rounds differently in company."""
        for k, low, sane in zip(part, logits, sound(logits).tolist(), strict=True):
            mask = makes.back(low, frame) > 0
            runs[k].append(run_lengths(mask.numpy(force=True)))
            fine[k] = fine[k] and sane

    # -- what came of it

    def _grounded(self, row: Row, answer: _Answer) -> Grounded:
        empty = torch.zeros(1, 0)
        if answer.error:
            return Grounded(empty, (0,) * self.num_layers, torch.arange(0), answer.error)
        windows = answer.windows
        lengths = tuple(map(sum, zip(*(one.lengths for one in windows), strict=True)))
        views = len(row.encoding.hidden_states[-1])
        self._stated(row, lengths, views)
        entering = sum(one.lengths[0] + one.text for one in windows) + views * VIDEO_POOL**2
        wrote = None
        if windows[0].said is not None:
            wrote = (all(all(one.said or ()) for one in windows),)
        logprobs = torch.stack([one.seg_logprob.float().mean() for one in windows]).mean()
        words = tuple(" | ".join(part) for part in zip(*(one.words or () for one in windows), strict=True))
        return Grounded(
            empty,
            lengths,
            self._retained(row, windows),
            tokens_llm=entering,
            said=wrote,
            seg_logprob=logprobs[None],
            words=words or None,
            runs=(tuple(answer.runs),),
        )

    def _stated(self, row: Row, ran: Sequence[int], views: int) -> None:
        """Compare what the layers saw with what the pruner had stated, behind the pool of the placement
        grid."""
        if self.placement == "grid" and row.pruner.stage == "tower":
            if set(ran) != {views * CELLS}:
                raise UserError(
                    f"The layers saw {sorted(set(ran))} visual tokens where {views} frames have {CELLS} each."
                )
            return
        checks.lengths(row.pruner, row.budget, self._inside, ran, views)

    def _retained(self, row: Row, windows: Sequence[Said]) -> Tensor:
        """The patches that the last layer still sees, numbered through."""
        patches, parts = self.grid[0] * self.grid[1], []
        if self.placement == "grid" and row.selections:
            for view, chosen in enumerate(row.selections):
                own = chosen.indices
                parts.append(torch.where(own < 0, own, own + view * patches))
            return torch.cat(parts)
        each, views = self._inside, len(row.encoding.hidden_states[-1]) // len(windows)
        for number, one in enumerate(windows):
            tokens = one.retained
            tokens = torch.where(tokens < 0, tokens, tokens + number * views * each)
            parts.append(tokens if each == patches else self._cells(tokens))
        return torch.cat(parts)

    def _cells(self, tokens: Tensor) -> Tensor:
        """The patches of cells, both numbered through from view to view."""
        found = members(torch.where(tokens < 0, tokens, tokens % CELLS), self.side)
        first = tokens.clamp(min=0) // CELLS * self.side**2
        counts = torch.where(tokens < 0, 1, (self.side // POOL) ** 2)
        return torch.where(found < 0, found, found + first.repeat_interleave(counts))


def _identity(chosen: Selection) -> object:
    """Equal for choices that send the same."""
    return id(chosen) if chosen.features is not None else chosen.indices.cpu().numpy().tobytes()
