"""Costs of a model that is not here: shapes on the meta device and fake tensors, no weights, no GPU.

Whatever depends on shapes alone is counted by running the project's own modules without data. Where a pruner
looks at values, before the language model or inside it, its choice runs on random ones at full size: what it
computes depends on sizes, apart from how often VisPruner's rounds repeat, which its budget fixes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pandas as pd
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaConfig, LlamaModel

from backbones.base import Turn
from backbones.glamm.conversation import ANSWER_TEMPLATES, IMAGE_SENTENCE, QUESTION_TEMPLATES, build
from backbones.glamm.model import GlammModel
from backbones.glamm.stages import prefill
from backbones.parts import clip, llama, sam
from backbones.parts.contexts import Context
from backbones.parts.cuts import Cutting
from backbones.parts.faithful import run_layers
from backbones.parts.tokenizer import IMAGE_TOKEN, LlamaTokenizer, behind_image
from harness.cost import meters
from harness.cost.choices import Blind, Chooser, OfPruner
from harness.cost.formulas import PRESETS, Shape
from harness.engine.cells import Line
from pruners.base import TEXT_EMBEDS, Cut, Pruner, UserError

TEXT_TOKENS = (
    129  # LLaMA tokens of a usual conversation of three expressions; the official draws give 125 to 140
)
LIKE = (
    "man in the red shirt",
    "left dog",
    "the second cup from the right",
)  # expressions to count a prompt with


@dataclass(frozen=True)
class Prompt:
    """The conversation whose costs are projected.

    Attributes:
        text: tokens of the language model's sequence that are not visual.
        before: of these, how many stand before the image.
        turns: expressions, each with a question, an answer and a mask.
        words: CLIP tokens of a question, for pruners that read text.
        sentence: language-model tokens that end the sentence about the image behind it, before the first
            question.
    """

    text: int = TEXT_TOKENS
    before: int = 37
    turns: int = 3
    words: int = 24
    sentence: int = 9

    def __post_init__(self) -> None:
        if self.text <= self.before:
            raise UserError(
                f"--text-tokens {self.text} is too few: {self.before} stand before the image, so give {self.before + 1} or more."
            )

    @property
    def after(self) -> int:
        """Text tokens behind the image."""
        return self.text - self.before

    @property
    def common(self) -> int:
        """Text tokens behind the image that all conversations have there; a word is left to every turn."""
        return max(0, min(self.sentence, self.after - self.turns))

    def alone(self) -> Prompt:
        """One of its expressions asked alone: the sentence about the image and an even share of the words
        behind it."""
        own = max(1, round((self.after - self.common) / self.turns))
        return replace(self, text=self.before + self.common + own, turns=1)

    @classmethod
    def counted(cls, tokenizer: LlamaTokenizer) -> Prompt:
        """A conversation of three expressions, as long as this tokenizer makes it."""
        turns = zip(QUESTION_TEMPLATES, LIKE, ANSWER_TEMPLATES, strict=False)
        ids = tokenizer.encode(
            build([Turn(question.format(said), answer) for question, said, answer in turns])
        )
        sentence = len(behind_image(tokenizer.encode(IMAGE_SENTENCE)))
        return cls(len(ids) - 1, ids.index(IMAGE_TOKEN), len(LIKE), sentence=sentence)


@dataclass(frozen=True)
class Projection:
    """Costs by shapes alone.

    Attributes:
        cells: one row per pruner and budget, columns as in `harness.cost.EXPLAIN`, and the presets of the
            literature.
        pruners: what each row's pruner costs by itself.
        whole: whether all visual tokens of a row enter the language model because nothing chooses before.
        shared: multiply-adds of what no pruner changes: vision tower, text tower, grounding encoder, mask
            decoder.
        shape: of the language model.
    """

    cells: pd.DataFrame
    pruners: tuple[OfPruner, ...]
    whole: tuple[bool, ...]
    shared: dict[str, int]
    shape: Shape


class _Layers:
    """The language model's layers as fake tensors: same operators, no memory; one run per length, whatever
    the depth."""

    def __init__(self, config: LlamaConfig, prompt: Prompt, attn: str, dtype: torch.dtype) -> None:
        # flash-attn cannot be imported without a GPU; SDPA's fused kernel multiplies and stores the same
        self.config, self.prompt, self.dtype = config, prompt, dtype
        self.attn = "eager" if attn == "eager" else "sdpa"
        self.fake = FakeTensorMode()
        self.one_layer = cache(self._one_layer)
        self._runs: dict[tuple[object, ...], tuple[tuple[int, ...], OfPruner, int]] = {}

    def build(self, layers: int) -> LlamaModel:
        config = LlamaConfig.from_dict(self.config.to_dict() | {"num_hidden_layers": layers})
        before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)
        try:
            return llama.build(config, self.attn).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)

    def _one_layer(self, tokens: int) -> int:
        """Multiply-adds of one layer."""
        counting = meters.counter()
        with self.fake, torch.no_grad():
            llm, hidden = self.build(1), torch.empty(1, tokens, self.config.hidden_size, dtype=self.dtype)
            with counting:
                run_layers(llm, hidden)
        return counting.get_total_flops() // 2

    def run(
        self, visual: int, pruner: Pruner | None = None, cuts: tuple[Cut, ...] = ()
    ) -> tuple[tuple[int, ...], OfPruner, int]:
        """Lengths of all layers, what the pruner costs inside them, and the peak of live bytes.

        Two layers of each length reach the peak: the second one runs with its input held as every later one
            does.
        """
        key = visual, pruner.spec() if pruner is not None and cuts else "", cuts
        if key not in self._runs:
            self._runs[key] = self._run(visual, pruner, cuts)
        return self._runs[key]

    def _run(
        self, visual: int, pruner: Pruner | None, cuts: tuple[Cut, ...]
    ) -> tuple[tuple[int, ...], OfPruner, int]:
        layers = min(self.config.num_hidden_layers, cuts[-1].layer + 2 if cuts else 2)
        counting, live = meters.counter(), meters.LiveStorages()
        ledger, peaks = meters.mac_ledger(counting), meters.Peaks(live)
        asked, again = Blind(self.fake, counting, True), Blind(self.fake, None, False)

        def cut(choose: Blind) -> Cutting | None:
            return Cutting(pruner, cuts, choose=choose) if pruner is not None and cuts else None

        with self.fake, torch.no_grad():
            llm = self.build(layers)
            before, after = (
                torch.zeros(1, n, dtype=torch.long) for n in (self.prompt.before, self.prompt.after)
            )
            features = torch.empty(1, visual, self.config.hidden_size, dtype=self.dtype)
            context = Context(torch.arange(visual))
            with counting, ledger("prefill"):
                prefill(llm, before, features, after, cut(asked), context, ledger)
            with live, peaks("prefill"):
                lengths = prefill(llm, before, features, after, cut(again), context).lengths
        rest = self.config.num_hidden_layers - layers
        inside = int(ledger.spent().get("prefill/pruner", 0))
        return lengths + lengths[-1:] * rest, OfPruner(0, asked.first, inside), peaks.rise["prefill"]


def _count(run: Callable[[], Any]) -> int:
    counting = meters.counter()
    with counting, torch.no_grad():
        run()
    return counting.get_total_flops() // 2


def shared_macs(model: GlammModel, prompt: Prompt) -> dict[str, int]:
    """Multiply-adds of what no pruner changes, on the meta device: whole towers, one mask per turn."""
    vision, encoder = model.clip.config.vision_config, model.grounding_encoder.config
    side, large, prompt_width = (
        vision.image_size,
        encoder.vision_config.image_size,
        encoder.prompt_encoder_config.hidden_size,
    )
    grid = large // encoder.vision_config.patch_size
    with torch.device("meta"):
        small, big = torch.empty(1, 3, side, side), torch.empty(1, 3, large, large)
        words = {
            "input_ids": torch.zeros(prompt.turns, prompt.words, dtype=torch.long),
            # four dimensions are taken as they are; a mask per word would be asked for its values, which meta
            # has not
            "attention_mask": torch.zeros(prompt.turns, 1, prompt.words, prompt.words),
        }
        image, prompts = (
            torch.empty(prompt.turns, prompt_width, grid, grid),
            torch.empty(prompt.turns, prompt_width),
        )

        def see() -> None:
            clip.layer(model.clip, -1, clip.hidden_states(model.clip, small)[-1])

        return {
            "vision_tower": _count(see),
            "text_tower": _count(lambda: clip.embed_text(model.clip, words)),
            "grounding_encoder": _count(lambda: sam.encode(model.grounding_encoder, big)),
            "mask_decoder": _count(lambda: sam.decode_masks(model.grounding_encoder, image, prompts)),
        }


def project(
    model: GlammModel,
    lines: Sequence[Line],
    prompt: Prompt,
    *,
    attn: str = "sdpa",
    dtype: torch.dtype = torch.bfloat16,
) -> Projection:
    """Costs of every line.

    Args:
        model: on the meta device.
        attn: "eager", or one of the fused kernels, which cost the same.
        dtype: of the language model, for bytes.
    """
    config = model.language_model.config
    shape, layers, chooser = (
        Shape.of(config),
        _Layers(config, prompt, attn, dtype),
        Chooser(model, prompt.turns),
    )
    shared = shared_macs(model, prompt)
    vision = model.clip.config.vision_config
    patches = (vision.image_size // vision.patch_size) ** 2
    rows, pruners, wholes = [], [], []
    for line in lines:
        entering, whole, tower = chooser.macs(line, shape.layers)
        cuts = line.pruner.cuts(line.budget, patches, shape.layers)
        lengths, inside, peak = layers.run(entering, line.pruner, cuts)
        pruners.append(own := replace(inside, tower=tower))
        wholes.append(whole)
        seen = [n - prompt.text for n in lengths]
        macs = {
            "vision_tower": shared["vision_tower"],
            "text_tower": shared["text_tower"] if TEXT_EMBEDS in line.pruner.needs else 0,
            "pruner": own.tower + own.inside,
            "projector": _linear(model.projector, seen[0]),
            "language_model": sum(layers.one_layer(n) for n in lengths),
            "lm_head": _linear(model.lm_head, lengths[-1]),
            "seg_head": _linear(model.text_hidden_fcs, lengths[-1]),
            "grounding_encoder": shared["grounding_encoder"],
            "mask_decoder": shared["mask_decoder"],
        }
        rows.append(
            {
                "pruner": line.name,
                "budget": line.budget,
                "lengths": lengths,
                "tokens_final": seen[-1],
                "tokens_mean": sum(seen) / len(seen),
                "macs_measured": sum(macs.values()),
                **{name: preset(lengths, shape, prompt.text) for name, preset in PRESETS.items()},
                "activation_peak": peak,
                **{f"macs.{module}": count for module, count in macs.items()},
            }
        )
    return Projection(pd.DataFrame(rows), tuple(pruners), tuple(wholes), shared, shape)


def _linear(module: torch.nn.Module, tokens: int) -> int:
    width = next(m for m in module.modules() if isinstance(m, torch.nn.Linear)).in_features
    return _count(
        lambda: module(torch.empty(1, tokens, width, device="meta", dtype=next(module.parameters()).dtype))
    )


def counts_lines(projected: Projection) -> list[dict[str, Any]]:
    """Lines for a run's `costs.jsonl`."""
    stage_of = {"vision_tower": "vision", "text_tower": "text", "language_model": "prefill"}
    lines = []
    for row in projected.cells.to_dict("records"):
        macs = {str(name)[5:]: int(count) for name, count in row.items() if str(name).startswith("macs.")}
        lines.append(
            {
                "kind": "counts",
                "pruner": row["pruner"],
                "budget": int(row["budget"]),
                "lengths": list(row["lengths"]),
                "macs": {stage_of.get(module, module): count for module, count in macs.items()},
                "peak": {"prefill": int(row["activation_peak"])},
            }
        )
    return lines


def shapes_of(model: GlammModel) -> GlammModel:
    """The same model on the meta device."""
    parts = (model.clip, model.language_model, model.grounding_encoder)
    configs = [
        deepcopy(part.config) for part in parts
    ]  # building a model writes its attention into its configuration
    with torch.device("meta"):
        twin = GlammModel(*configs)
    return twin.eval().requires_grad_(False)
