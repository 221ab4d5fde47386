"""GLaMM's language model behind the harness's interface: rows of chosen tokens to the states that masks are
made of, with answers that are given or of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backbones.base import READ, Row
from backbones.glamm.model import GlammModel
from backbones.glamm.seeing import GlammSeeing
from backbones.parts import llama
from backbones.parts.batches import filled_up
from backbones.parts.contexts import Ask, Context, ContextAnswer, context_of, whole_positions
from backbones.parts.cuts import Cutting, cutting
from backbones.parts.faithful import LayerRun, run_layers
from backbones.parts.generation import MOST_NEW, Writer, Written, log_probability
from backbones.parts.llama import Past
from backbones.parts.shared import Shared
from backbones.parts.tokenizer import IMAGE_TOKEN, LlamaTokenizer, behind_image
from pruners.base import Need, View

# Sequences are filled up on the right to a multiple of this, so that questions of about one length share a
# batch. Nothing looks to the right, so the fill changes no state that is read; it depends on the row alone.
FULL_LENGTH = 4


@dataclass(frozen=True)
class Words:
    """The text of a row as the language model gets it.

    Attributes:
        before, behind: ids on both sides of the image, fill included.
        last: place in `behind` of the last one that is no fill.
        read: places in `behind` whose final states are wanted: those before each [SEG].
        answer: tokens of a forced last answer, with which they end.
    """

    before: list[int]
    behind: list[int]
    last: int
    read: tuple[int, ...]
    answer: int = 0


@dataclass(frozen=True)
class Said:
    """What the language model said of a row.

    Attributes:
        states: (M, width) final states that masks are made of, one per [SEG]; NaN where a pruner inside the
            model had no numbers to choose by.
        lengths, retained, said, words: as in `backbones.base.Grounded`.
        text: tokens that are not visual of the sequence that ran; of generated answers, of the last prompt.
        seg_logprob: (M,) of every [SEG] at its place.
    """

    states: Tensor
    lengths: tuple[int, ...]
    retained: Tensor
    text: int
    seg_logprob: Tensor
    said: tuple[bool, ...] | None = None
    words: tuple[str, ...] | None = None


@dataclass
class _Talk:
    """A conversation while its answers are written.

    Attributes:
        row: whose it is.
        behind: ids behind the image so far, the model's own answers among them.
        answers: what it wrote, turn by turn.
        answer: of the language model to the last turn.
        text: tokens of the last prompt that are not visual.
    """

    row: Row
    behind: list[int] = field(default_factory=list)
    answers: list[Written] = field(default_factory=list)
    answer: ContextAnswer | None = None
    text: int = 0


class GlammLanguage(GlammSeeing):
    """The half of a loaded GLaMM that ends where the mask decoder begins; arguments are those of
    `GlammSeeing`.

    Attributes:
        most_new: tokens of a generated answer that comes to no end.
        whole_answers: whether a generated answer goes on behind its first [SEG], of which its mask is.
    """

    most_new = MOST_NEW
    whole_answers = False

    def __init__(self, model: GlammModel, tokenizer: LlamaTokenizer, clip_folder: Path, **how: Any) -> None:
        super().__init__(model, tokenizer, clip_folder, **how)
        self._sentence = behind_image(tokenizer.encode(self.image_sentence))
        self._beginnings: dict[tuple[int, ...], Past] = {}

    def said(self, rows: Sequence[Row], share: bool) -> list[Said]:
        """What the language model says of all rows, in their order.

        Args:
            share: compute once what rows have in common; without, every row runs whole.
        """
        found: dict[int, Said] = {}
        for answers, way in (("forced", self._forced), ("generated", self._generated)):
            mine = [k for k, row in enumerate(rows) if row.answers == answers]
            if mine:
                found |= zip(mine, way([rows[k] for k in mine], share), strict=True)
        return [found[k] for k in range(len(rows))]

    # -- visual tokens

    def visual(self, row: Row) -> Tensor:
        """(T, C) features that a row sends to the projector."""
        features = row.encoding.hidden_states[-1]
        if not row.selections:
            return features[1:]
        stub = View(features[1:], features[0], self.grid, self.num_heads, partial(_nothing))
        return row.selection.gather(stub)  # type: ignore[union-attr]

    def _project(self, rows: Sequence[Row]) -> Tensor:
        """(B, T, width) projected visual tokens of rows that send equally many."""
        return self.model.projector(torch.stack([self.visual(row) for row in rows]).to(self._kind))  # type: ignore[no-any-return]

    def _content(self, row: Row) -> tuple[object, ...]:
        """Equal for rows of one image that send the same tokens to the same places."""
        context = self._context(row)
        merged = row.selections[0] if row.selections and row.selections[0].features is not None else None
        what = id(merged) if merged is not None else context.patches.cpu().numpy().tobytes()
        return what, None if context.places is None else context.places.cpu().numpy().tobytes()

    def _context(self, row: Row) -> Context:
        """The visual tokens that a row sends, and where they stand."""
        return context_of(row.pruner, row.selections, self._patches(row), row.positions)

    def _patches(self, row: Row) -> int:
        return len(row.encoding.hidden_states[-1]) - 1

    def _cutting(self, row: Row, answer: int) -> Cutting | None:
        """What leaves a row while the language model runs; `answer` as in `Words`."""
        patches, layers = self._patches(row), self.num_layers
        return cutting(row.pruner, row.budget, patches, layers, row.sample, answer=answer, grid=self.grid)

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

    # -- answers that are given

    def _forced(self, rows: Sequence[Row], share: bool) -> Iterator[Said]:
        """Rows whose answers are given, each with the [SEG] states."""
        if share:
            # what stands behind the last state that is read is left out where no pruner reads it
            words = [self._words(row, whole=self._cutting(row, 0) is not None) for row in rows]
            found = self._shared(rows, words)
            states = [one.hidden for one in found]
            logprobs = self._seg_logprob(states)
        else:
            found, logprobs = self._apart(rows, [self._words(row) for row in rows])
            states = [one.hidden for one in found]
        for row, one, state, logprob in zip(rows, found, states, logprobs, strict=True):
            text = len(self.ids(row.turns)) - 1  # less the image's placeholder
            yield Said(state, one.lengths, one.patches, text, logprob)

    def _words(self, row: Row, whole: bool = True) -> Words:
        """A conversation with its answers.

        Args:
            whole: False leaves out what stands behind the last state that is read.
        """
        ids = self.ids(row.turns)
        image = ids.index(IMAGE_TOKEN)
        behind = ids[image + 1 :]
        marks = [k - 1 for k, token in enumerate(behind) if token == self.tokenizer.seg_id]
        if not whole and marks:
            behind = behind[: marks[-1] + 1]
        last, fill = len(behind) - 1, [self.tokenizer.pad_id] * (-len(behind) % FULL_LENGTH)
        return Words(ids[:image], behind + fill, last, tuple(marks), self.answer_length(row.turns))

    def _seg_logprob(self, states: Sequence[Tensor]) -> list[Tensor]:
        """(M,) log-probability of [SEG] by every row's states (M, width)."""
        head = self.model.lm_head
        return self._by_row(states, lambda one: log_probability(head(one), self.tokenizer.seg_id))

    def prompts(self, states: Sequence[Tensor]) -> list[Tensor]:
        """[SEG] states (M, width) of every row -> mask prompts (M, P)."""
        return self._by_row(states, self.model.text_hidden_fcs)

    def _by_row(self, states: Sequence[Tensor], function: Any) -> list[Tensor]:
        """What a function of states makes of every row's; all together, filled up to what rounds alike."""
        counts = [len(part) for part in states]
        together = torch.cat(list(states))
        if not len(together):
            return [function(part) for part in states]
        filled = torch.cat([together, together[-1:].expand(self._filled(len(together)) - len(together), -1)])
        return list(function(filled)[: len(together)].split(counts))

    # -- answers of its own

    def _generated(self, rows: Sequence[Row], share: bool) -> Iterator[Said]:
        """Rows whose answers the model writes, turn by turn behind its own; each turn runs its whole prompt,
        so that a pruner inside the model chooses by it."""
        writer = Writer(
            self.model.language_model,
            self.model.lm_head,
            self.tokenizer.seg_id,
            self.tokenizer.end_ids,
            self.most_new,
            self.whole_answers,
        )
        talks = [_Talk(row) for row in rows]
        for turn in range(max(len(row.turns) for row in rows)):
            asked = [talk for talk in talks if len(talk.row.turns) > turn]
            words = []
            for talk in asked:
                ids = self.ids(talk.row.turns[: turn + 1], answered=False)
                image = ids.index(IMAGE_TOKEN)
                talk.behind += ids[image + 1 :] if turn == 0 else _behind_end(ids, self.tokenizer.end_id)
                talk.text, last = image + len(talk.behind), len(talk.behind) - 1
                words.append(Words(ids[:image], list(talk.behind), last, (last,)))
            mine = [talk.row for talk in asked]
            cut = [self._cutting(row, 0) is not None for row in mine]
            for shared in (True, False):
                part = [k for k in range(len(mine)) if (share and not cut[k]) == shared]
                if not part:
                    continue
                some, texts = [mine[k] for k in part], [words[k] for k in part]
                run = self._shared(some, texts, writer) if shared else self._apart(some, texts, writer)[0]
                for k, answer in zip(part, run, strict=True):
                    assert answer.written is not None
                    asked[k].answer = answer
                    asked[k].answers.append(answer.written)
                    asked[k].behind += answer.written.ids
                    if not self.tokenizer.end_ids.intersection(answer.written.ids[-1:]):
                        asked[k].behind.append(self.tokenizer.end_id)
        for talk in talks:
            yield self._of_talk(talk)

    def _of_talk(self, talk: _Talk) -> Said:
        """What came of a conversation that is over."""
        answer, width = talk.answer, self.model.lm_head.in_features
        assert answer is not None
        states = [one.state for one in talk.answers if one.state is not None]
        return Said(
            torch.stack(states) if states else torch.zeros(0, width, device=self.device, dtype=self._kind),
            answer.lengths,
            answer.patches,
            talk.text,
            torch.tensor([one.logprob for one in talk.answers]),
            tuple(one.state is not None for one in talk.answers),
            tuple(self.tokenizer.decode(one.ids) for one in talk.answers),
        )

    # -- on both paths

    def _tell_read(self, rows: int) -> None:
        """The language model has read so many more rows."""
        self.tell(READ, rows)

    def _shared(
        self, rows: Sequence[Row], words: Sequence[Words], writer: Writer | None = None
    ) -> list[ContextAnswer]:
        """All rows at once; what they have in common is computed once."""
        numbers: dict[tuple[object, ...], int] = {}
        contexts: list[Row] = []
        asks = []
        for row, text in zip(rows, words, strict=True):
            where = numbers.setdefault((id(row.encoding), *self._content(row)), len(numbers))
            if where == len(contexts):
                contexts.append(row)
            common = sum(
                1
                for _ in takewhile(
                    lambda ids: ids[0] == ids[1], zip(text.behind, self._sentence, strict=False)
                )
            )
            if text.read:  # a question may begin with [SEG]
                common = min(common, text.read[0])
            asks.append(
                Ask(
                    where,
                    tuple(text.before),
                    tuple(text.behind[:common]),
                    tuple(text.behind[common:]),
                    text.last - common,
                    tuple(place - common for place in text.read),
                    self._cutting(row, text.answer),
                )
            )
        shared = Shared(
            self.model.language_model,
            self.batch_size,
            self._multiple,
            self._beginnings,
            writer,
            self._tell_read,
        )
        answers = shared.run(
            [self._context(row) for row in contexts],
            lambda part: self._project([contexts[k] for k in part]),
            asks,
        )
        return [answers[k] for k in range(len(rows))]

    def _apart(
        self, rows: Sequence[Row], words: Sequence[Words], writer: Writer | None = None
    ) -> tuple[list[ContextAnswer], list[Tensor]]:
        """Every row whole, with the language model's head, as the official forward runs; rows of equal length
        together. Also gives the log-probability of every [SEG]."""
        groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for k, row in enumerate(rows):
            cut = self._cutting(row, 0)
            parted = (cut.pruner, cut.cuts) if cut is not None else None
            context = self._context(row)
            text = len(words[k].before), len(words[k].behind)
            groups[*text, len(context), context.span, context.views, context.tail, parted].append(k)
        found: dict[int, tuple[ContextAnswer, Tensor]] = {}
        for members in groups.values():
            for start in range(0, len(members), self.batch_size):
                part = members[start : start + self.batch_size]
                filled = filled_up(part, self._multiple)
                results = self._together(
                    [rows[k] for k in filled], [words[k] for k in filled], len(part), writer
                )
                found.update(zip(part, results, strict=False))
                self._tell_read(len(part))
        return [found[k][0] for k in range(len(rows))], [found[k][1] for k in range(len(rows))]

    def _together(
        self, rows: list[Row], words: list[Words], count: int, writer: Writer | None
    ) -> Iterator[tuple[ContextAnswer, Tensor]]:
        """One batch of `_apart`; the first `count` rows are no fill."""
        model = self.model
        ids = [[*text.before, IMAGE_TOKEN, *text.behind] for text in words]
        embeds = self.embed(rows, ids)
        image, text = len(words[0].before), len(ids[0]) - 1
        contexts = [self._context(row) for row in rows]
        views, tail = contexts[0].views, contexts[0].tail
        visual = embeds.shape[1] - text - tail
        first = image + visual + tail  # of what stands behind the image
        cuts = [self._cutting(row, one.answer) for row, one in zip(rows, words, strict=True)]
        past = Past() if writer is not None else None
        run = run_layers(
            model.language_model,
            embeds,
            visual_start=image,
            visual_count=visual,
            views=views,
            tail=tail,
            cuttings=[cut for cut in cuts if cut is not None],
            patches=torch.stack([context.patches.to(self.device) for context in contexts]),
            positions=whole_positions(contexts, image, text - image, self.device),  # type: ignore[arg-type]
            past=past,
            last=torch.tensor([first + one.last for one in words], device=self.device),
        )
        logits = model.lm_head(run.hidden)
        lengths = tuple(length - text - tail for length in run.lengths)
        shift = run.hidden.shape[1] - (text - image)  # where the text behind the image begins now
        marks = [[shift + place for place in one.read] for one in words]
        states = [
            run.hidden[k, marks[k]] if sound else torch.full_like(run.hidden[k, marks[k]], torch.nan)
            for k, sound in enumerate(run.sound)
        ]
        written: Sequence[Written | None] = [None] * count
        if writer is not None and past is not None:
            last = torch.stack([one[-1] for one in states])
            written = writer(last, past, self._follows(cuts, run), count)
        for k in range(count):
            logprob = log_probability(logits[k, marks[k]], self.tokenizer.seg_id)
            yield ContextAnswer(states[k], lengths, run.patches[k], written[k]), logprob

    @staticmethod
    def _follows(cuts: Sequence[Cutting | None], run: LayerRun) -> Tensor | None:
        """(B,) position ids of what follows a prompt; None if each layer goes on behind the tokens that it
        has, as behind a cut that leaves no gaps."""
        if cuts[0] is not None and cuts[0].pruner.positions == "compact":
            return None
        return run.positions[:, -1] + 1


def _behind_end(ids: Sequence[int], end: int) -> list[int]:
    """What stands behind the last token that ends an answer."""
    return list(ids[len(ids) - list(reversed(ids)).index(end) :])


def _nothing(need: Need) -> Tensor:
    raise ValueError(f"no signals here: {need}")
