"""GLaMM behind the harness's interface: encode once, answer pruners lazily, ground rows of equal length
together."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from types import ModuleType
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backbones.base import Backbone, Conversation, Encoding, Grounded, Pixels, Probes, Row, Turn
from backbones.glamm import signals
from backbones.glamm.conversation import IMAGE_SENTENCE, build, drawn_conversations, plain_turn
from backbones.glamm.model import GlammModel
from backbones.glamm.preprocess import clip_pixels, masks_to_image, patch_shares, sam_pixels, sam_pixels_mmcv
from backbones.glamm.settings import GlammFamily
from backbones.parts import clip, llama, sam
from backbones.parts.errors import not_finite, too_long
from backbones.parts.faithful import run_layers
from backbones.parts.shared import Ask, Shared, filled_up
from backbones.parts.tokenizer import IMAGE_TOKEN, LlamaTokenizer, behind_image, clip_tokenizer
from pruners import checks
from pruners.base import LayerPruner, Need, Selection, UserError, View

Result = TypeVar("Result")

# CPU kernels round alike for all batches of a multiple of eight, and differently for others. Batches are
# filled up to one, so that a pixel on the edge of a mask does not depend on what else was in the batch.
FULL_ROWS = 8
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


class GlammBackbone(GlammFamily, Backbone):
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
        self.model, self.tokenizer, self.name, self.fingerprint = model, tokenizer, name, fingerprint
        self.device, self.dtype, self.attn = device, dtype, attn
        self._sam_pixels = sam_pixels_mmcv if image_backend == "mmcv" else sam_pixels
        self._multiple = FULL_ROWS if device == "cpu" else 1
        self.batch_size = self._filled(batch_size)
        self.clip_tokenizer = clip_tokenizer(clip_folder, model.clip.config.text_config.vocab_size)
        vision = model.clip.config.vision_config
        side = vision.image_size // vision.patch_size
        self.grid = (side, side)
        self.image_size, self.num_heads = vision.image_size, vision.num_attention_heads
        self.sam_size = model.grounding_encoder.config.vision_config.image_size
        self.num_layers = model.language_model.config.num_hidden_layers
        self._kind = next(model.parameters()).dtype
        self._text_embeds: dict[tuple[str, ...], Tensor] = {}
        self._sentence = behind_image(tokenizer.encode(IMAGE_SENTENCE))
        self._known_ids: dict[tuple[Turn, ...], list[int]] = {}
        self._beginnings: dict[tuple[int, ...], llama.Past] = {}

    @property
    def probes(self) -> Probes:
        """Into CLIP."""
        from backbones.glamm.probes import GlammProbes

        return GlammProbes(self)

    @property
    def staged(self) -> ModuleType:
        """The released forward pass in stages: `backbones.glamm.stages`."""
        from backbones.glamm import stages

        return stages

    def _filled(self, count: int) -> int:
        """`count` rounded up to the multiple that rounds alike."""
        return -(-count // self._multiple) * self._multiple

    # -- once per image

    def preprocess(self, image: NDArray[np.uint8]) -> Pixels:
        """Both branches' resize and normalisation."""
        grounding, resized = self._sam_pixels(image, self.sam_size)
        return Pixels(clip_pixels(image, self.image_size), grounding, resized, image.shape[:2])

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
        vision, grounding = (
            torch.stack(parts).to(self.device, self._kind, non_blocking=True)
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
        self, sample_id: str, expressions: Sequence[str], protocol: str, seed: int
    ) -> list[Conversation]:
        """Conversations of one image: `each`, or the drawn ones of `glamm`; see
        `conversation.drawn_conversations`."""
        if self.check_protocol(protocol) == "glamm":
            return drawn_conversations(sample_id, expressions, seed)
        return super().conversations(sample_id, expressions, protocol, seed)

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
        if need.kind == "text_embeds":
            return self.text_embeds(questions)
        if need.kind == "llm_text_embeds":
            ids = torch.tensor(signals.question_ids(self.tokenizer, questions), device=self.device)
            return llama.embed(self.model.language_model, ids)
        if need.kind == "referent":
            if masks is None:
                raise UserError(
                    "This pruner sees the truth, and no truth masks were given; leave it out here."
                )
            return self.patch_shares(masks)
        if need not in encoding.signals:
            encoding.signals[need] = signals.of_image(self.model, encoding.hidden_states, need)
        return encoding.signals[need]

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
        most = clip.positions(self.model.clip)
        words = self.clip_tokenizer(
            list(questions), padding=True, truncation=True, max_length=most, return_tensors="pt"
        )
        return {name: words[name].to(self.device) for name in ("input_ids", "attention_mask")}

    def cut_off(self, questions: Sequence[str]) -> int:
        """How many of the questions are longer than CLIP's text tower, so that text-guided pruners see their
        beginning alone."""
        most = clip.positions(self.model.clip)
        return sum(
            len(self.clip_tokenizer(question, verbose=False)["input_ids"]) > most for question in questions
        )

    # -- from tokens to masks

    def ground_rows(self, rows: Sequence[Row], share: bool = True) -> Iterator[Grounded]:
        """Segment every row, masks batch by batch as they are asked for; when memory does not suffice, in
        smaller batches."""
        most = self.model.language_model.config.max_position_embeddings
        errors = [too_long(len(self._ids(row.turns)) - 1, self._tokens(row), most) for row in rows]
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
            )

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
                        f"Out of memory with {self.batch_size} rows at once, which --tensor-parallel cannot change on the way; "
                        f"give --batch-size {smaller}."
                    ) from error
                print(
                    f"out of memory with {self.batch_size} rows at once, going on with {smaller}",
                    file=sys.stderr,
                )
                self.batch_size = smaller
                if self.device.startswith("cuda"):
                    torch.cuda.empty_cache()

    def _ids(self, turns: tuple[Turn, ...]) -> list[int]:
        """The conversation's ids, image included; rows of one conversation under many pruners ask for them
        again."""
        if turns not in self._known_ids:
            if len(self._known_ids) > 4096:
                self._known_ids.clear()
            self._known_ids[turns] = self.tokenizer.encode(build(turns))
        return self._known_ids[turns]

    def _words(self, row: Row, whole: bool = True) -> tuple[list[int], list[int], list[int]]:
        """Ids before the image, ids behind it (filled up), and for every [SEG] the place before it, from
        their end.

        Args:
            whole: False leaves out what stands behind the last state that is read.
        """
        ids = self._ids(row.turns)
        image = ids.index(IMAGE_TOKEN)
        behind = ids[image + 1 :]
        marks = [k - 1 for k, token in enumerate(behind) if token == self.tokenizer.seg_id]
        if not whole and marks:
            behind = behind[: marks[-1] + 1]
        behind += [self.tokenizer.pad_id] * (-len(behind) % FULL_LENGTH)
        return ids[:image], behind, [mark - len(behind) for mark in marks]

    def _shared(self, rows: Sequence[Row]) -> list[_Said]:
        """All rows at once; what they have in common is computed once."""
        numbers: dict[tuple[int, object], int] = {}
        contexts: list[Row] = []
        asks = []
        for row in rows:
            where = numbers.setdefault((id(row.encoding), self._content(row)), len(numbers))
            if where == len(contexts):
                contexts.append(row)
            layered = row.pruner if row.selection is None and isinstance(row.pruner, LayerPruner) else None
            before, behind, marks = self._words(row, whole=layered is not None)
            common = sum(
                1 for _ in takewhile(lambda ids: ids[0] == ids[1], zip(behind, self._sentence, strict=False))
            )
            if marks:  # a question may begin with [SEG]
                common = min(common, len(behind) + marks[0])
            sentence, words = tuple(behind[:common]), tuple(behind[common:])
            read = tuple(len(words) + mark for mark in marks)
            keep = layered.tokens_after(row.budget, self._patches(row), self.num_layers) if layered else 0
            asks.append(Ask(where, tuple(before), sentence, words, self._last(words), read, layered, keep))
        shared = Shared(self.model.language_model, self.batch_size, self._multiple, self._beginnings)
        answers = shared.run(
            [self._tokens(row) for row in contexts],
            lambda part: self._project([contexts[k] for k in part]),
            asks,
        )
        prompts = self._prompts([answers[k].hidden for k in range(len(rows))])
        found = []
        for k, row in enumerate(rows):
            kept = answers[k].kept
            retained = kept if kept is not None else (row.selection or _all(self._patches(row))).indices
            found.append(_Said(prompts[k], answers[k].lengths, retained))
        return found

    def _content(self, row: Row) -> object:
        """Equal for selections of one image that send the same tokens."""
        chosen = row.selection or _all(self._patches(row))
        return id(chosen) if chosen.features is not None else chosen.indices.cpu().numpy().tobytes()

    def _tokens(self, row: Row) -> int:
        """Visual tokens that enter the language model."""
        return row.selection.tokens if row.selection is not None else self._patches(row)

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
        if row.selection is None:
            return features[1:]
        stub = View(features[1:], features[0], self.grid, self.num_heads, partial(_nothing))
        return row.selection.gather(stub)

    def embed(self, rows: Sequence[Row], ids: Sequence[list[int]]) -> Tensor:
        """(B, L, width) input embeddings with the visual tokens in the image's place."""
        model = self.model
        visual = self._project(rows)
        words = torch.tensor(ids, device=self.device)
        image = ids[0].index(IMAGE_TOKEN)
        before, behind = (
            llama.embed(model.language_model, part) for part in (words[:, :image], words[:, image + 1 :])
        )
        return torch.cat([before, visual, behind], dim=1)

    def _apart(self, rows: Sequence[Row]) -> list[_Said]:
        """Every row whole, with the language model's head, as the official forward runs; rows of equal length
        together."""
        words = [self._words(row) for row in rows]
        groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for k, row in enumerate(rows):
            count = self._tokens(row)
            cut = (row.pruner, row.budget) if row.selection is None else None
            groups[len(words[k][0]), len(words[k][1]), count, cut].append(k)
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
        model, first = self.model, rows[0]
        ids = [[*before, IMAGE_TOKEN, *behind] for before, behind, _ in words]
        embeds = self.embed(rows, ids)
        image, text = len(words[0][0]), len(ids[0]) - 1
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
        model.lm_head(run.hidden)
        prompts = self._prompts([run.hidden[k, marks] for k, (_, _, marks) in enumerate(words)])
        lengths = tuple(length - text for length in run.lengths)
        for k, row in enumerate(rows):
            retained = run.kept[k] if run.kept is not None else (row.selection or _all(count)).indices
            finite = run.scores is None or bool(run.scores[k].isfinite().all())
            yield _Said(prompts[k] if finite else torch.full_like(prompts[k], torch.nan), lengths, retained)

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


def _all(count: int) -> Selection:
    return Selection(torch.arange(count))
