"""The language stage: projector, language model and [SEG] head learn to point, and CLIP and SAM are frozen.

Several expressions of a scene share one pass over its visual tokens (`branches`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.base import Turn
from backbones.glamm.conversation import ANSWER_TEMPLATES, QUESTION_TEMPLATES, build_prompt
from backbones.glamm.model import GlammModel
from backbones.mini.training.branches import Branches, run_branches
from backbones.mini.training.config import CLIP_PATCH, IMAGE
from backbones.mini.training.data import VALUES, Scenes
from backbones.mini.training.see import GRID, OFFSET_UNIT
from backbones.mini.training.segment import embed_points
from backbones.parts import llama
from backbones.parts.tokenizer import IMAGE_TOKEN, LlamaTokenizer

PATCHES = GRID * GRID
POINT_LAYERS = (3, 4)  # layers whose first two heads are asked to look at the referent
NAMING_LAYER = 2  # behind it the read positions are asked for the referent's looks
MOST_TURNS = 3
PER_FAMILY = 6
STEADY = 4 / 9  # share of the steps in plain reading order


def init_heads(model: GlammModel) -> None:
    """Start the language side at unit scale; transformers' 0.02 is made for widths of thousands."""
    llm = model.language_model
    width, depth = llm.config.hidden_size, llm.config.num_hidden_layers
    nn.init.normal_(llm.get_input_embeddings().weight, std=0.5)
    for name, linear in llama.matrices(llm):
        shrink = (2 * depth) ** -0.5 if name in llama.BY_INPUT else 1.0
        nn.init.normal_(linear.weight, std=shrink * linear.in_features**-0.5)
    nn.init.normal_(model.lm_head.weight, std=width**-0.5)


class Conversations:
    """Draws templated turns and tokenises them exactly as evaluation does."""

    def __init__(self, tokenizer: LlamaTokenizer) -> None:
        self.tokenizer = tokenizer
        self.seg = tokenizer.seg_id

    def _turn(self, text: str, rng: np.random.Generator) -> Turn:
        if rng.random() < 0.4:
            return Turn(QUESTION_TEMPLATES[0].format(text), ANSWER_TEMPLATES[0])
        question = QUESTION_TEMPLATES[int(rng.integers(len(QUESTION_TEMPLATES)))]
        return Turn(question.format(text), ANSWER_TEMPLATES[int(rng.integers(len(ANSWER_TEMPLATES)))])

    def tokenize(
        self, texts: Sequence[str], rng: np.random.Generator
    ) -> tuple[list[int], list[int], list[int]]:
        """Ids before the image, ids after it cut at the last [SEG], and positions in the latter before each
        [SEG]."""
        ids = self.tokenizer.encode(build_prompt([self._turn(text, rng) for text in texts]))
        image = ids.index(IMAGE_TOKEN)
        rest = ids[image + 1 :]
        marks = [k for k, token in enumerate(rest) if token == self.seg]
        return ids[:image], rest[: marks[-1] + 1], [mark - 1 for mark in marks]

    def draw(
        self,
        scenes: Scenes,
        picks: np.ndarray,
        count: int,
        rng: np.random.Generator,
    ) -> Branches:
        """`count` branches per scene."""
        several = rng.random() < 0.2
        prefix: list[int] = []
        rows: list[tuple[list[int], list[int], list[int]]] = []
        for index in picks:
            found = [(k, text) for k, _, text in scenes.expressions(int(index), rng, PER_FAMILY)]
            for _ in range(count):
                turns = int(rng.integers(2, MOST_TURNS + 1)) if several else 1
                chosen = (
                    [found[int(rng.integers(len(found)))] for _ in range(turns)] if found else [(-1, "shape")]
                )
                prefix, ids, read = self.tokenize([text for _, text in chosen], rng)
                rows.append((ids, read, [k for k, _ in chosen]))
        first = rows[0][0]
        common = min(
            next((k for k, (a, b) in enumerate(zip(first, ids, strict=False)) if a != b), min(read))
            for ids, read, _ in rows
        )
        lead = first[:common]
        rows = [(ids[common:], [mark - common for mark in read], things) for ids, read, things in rows]
        length = max(len(ids) for ids, _, _ in rows)
        shape = (len(picks), count)
        words = np.zeros((len(rows), length), dtype=np.int64)
        marked = np.full((len(rows), MOST_TURNS), -1, dtype=np.int64)
        labels, target = np.full_like(marked, -1), np.full_like(marked, -1)
        for r, (row, marks, things) in enumerate(rows):
            words[r, : len(row)] = row
            for t, (mark, k) in enumerate(zip(marks, things, strict=True)):
                marked[r, t], target[r, t] = mark, k
                labels[r, t] = row[mark + 1]
        parts = [torch.from_numpy(a).view(*shape, -1) for a in (words, marked, labels, target)]
        return Branches(torch.tensor(prefix), torch.tensor(lead, dtype=torch.int64), *parts)


def patch_owner(owner: np.ndarray) -> np.ndarray:
    """(192, 192) object numbers -> (576, 9) pixels of every object in every patch."""
    blocks = owner.reshape(GRID, CLIP_PATCH, GRID, CLIP_PATCH).transpose(0, 2, 1, 3).reshape(PATCHES, -1)
    return (blocks[:, :, None] == np.arange(1, 10)).sum(1)


def reading_order(rng: np.random.Generator) -> np.ndarray:
    """(576,) all patches, row by row or column by column, from any of the four corners."""
    plane = np.arange(PATCHES).reshape(GRID, GRID)
    if rng.random() < 0.5:
        plane = plane.T
    return plane[:: int(rng.choice((1, -1))), :: int(rng.choice((1, -1)))].ravel()


class Pointing(nn.Module):
    """Loss of the language stage for `run_stage`.

    The rule of this stage: every sequence has the full grid of visual tokens at consecutive positions. No
    step shows the language model a subset of them, means of them, or none, so that what a pruner does is new
    to it. After the first STEADY of the steps, which are in plain reading order, every scene has one of eight
    orders: otherwise the place in the sequence alone tells the place in the image, the model reads centres
    off position ids, and without all 576 of them it is lost.

    Helpers, dropped afterwards: the prompt imitates the frozen prompt encoder's code of the referent's
    centre; the centre is read out linearly; two heads of two layers look at the referent; half-way up the
    read positions know what the referent looks like; the answers' next tokens.
    """

    def __init__(
        self,
        model: GlammModel,
        scenes: Scenes,
        features: np.ndarray | None,
        tokenizer: LlamaTokenizer,
        *,
        batch: int = 4,
        count: int = 16,
        steps: int = 1,
    ) -> None:
        super().__init__()
        self.language_model, self.projector = model.language_model, model.projector
        self.text_hidden_fcs, self.lm_head = model.text_hidden_fcs, model.lm_head
        self.center = nn.Linear(model.lm_head.in_features, 2)
        self.naming = nn.Sequential(
            nn.LayerNorm(model.lm_head.in_features),
            nn.Linear(model.lm_head.in_features, sum(len(values) for values in VALUES)),
        )
        self._model = [model]  # kept out of the module tree: CLIP and SAM are frozen
        self.scenes, self.features = scenes, features
        self.talk = Conversations(tokenizer)
        self.batch, self.count, self.steps = batch, count, steps

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """One batch of scenes."""
        model, scenes = self._model[0], self.scenes
        device = self.center.weight.device
        while True:
            picks = np.sort(rng.choice(len(scenes), self.batch, replace=False))
            branches = self.talk.draw(scenes, picks, self.count, rng)
            if (branches.target >= 0).any():  # else nothing tells any of the objects apart
                break
        branches = Branches(*(part.to(device) for part in vars(branches).values()))
        assert self.features is not None
        plain = step < STEADY * self.steps
        orders = [np.arange(PATCHES) if plain else reading_order(rng) for _ in picks]
        rows = np.stack([self.features[i][order] for i, order in zip(picks, orders, strict=True)])
        tokens = torch.from_numpy(rows).to(device).float()
        areas = np.stack(
            [patch_owner(scenes.owner[i])[order] for i, order in zip(picks, orders, strict=True)]
        )
        with torch.autocast(device.type, torch.bfloat16):
            hidden, shares, halfway, _ = run_branches(
                model.language_model, self.projector(tokens), branches, POINT_LAYERS, NAMING_LAYER
            )
        looks = [share[:, :2].float().mean(1) for share in shares]

        asked = branches.target >= 0  # (B, E, 3)
        at, early = hidden[asked].float(), halfway[asked].float()
        scene_of = torch.arange(len(picks), device=device)[:, None, None].expand_as(asked)[asked]
        thing = branches.target[asked]
        centers = torch.from_numpy(scenes.centers[picks]).to(device)[scene_of, thing]
        prompt = self.text_hidden_fcs(at)
        sam = model.grounding_encoder
        with torch.no_grad():
            code = embed_points(sam, centers)
        imitate = F.mse_loss(prompt, code)
        off = (self.center(at) - (centers - IMAGE / 2) / OFFSET_UNIT).abs().mean()
        owned = torch.from_numpy(areas > 16).to(device)  # (B, N, 9)
        referent = owned[scene_of, :, thing].float()
        visible = referent.sum(-1) > 0
        look = torch.stack(
            [-(share[asked] * referent).sum(-1)[visible].clamp(min=1e-6).log().mean() for share in looks]
        ).mean()
        spoken = F.cross_entropy(self.lm_head(at), branches.labels[asked])
        look_of = torch.from_numpy(scenes.looks[picks]).to(device).long()[scene_of, thing]  # (masks, 4)
        told = self.naming(early).split([len(values) for values in VALUES], dim=-1)
        named = torch.stack([F.cross_entropy(told[a], look_of[:, a]) for a in range(len(VALUES))]).mean()
        # the code's fine waves cannot be met before the referent is found, and would drown what finds it
        exact = 0.2 + 3 * min(1.0, max(0.0, 2 * step / self.steps - 0.5))
        loss = exact * imitate + off + look + named + 0.1 * spoken
        with torch.no_grad():
            # a point is right if it falls closer to its own centre than to any other object's
            guess = self.center(at) * OFFSET_UNIT + IMAGE / 2
            every = torch.from_numpy(scenes.centers[picks]).to(device)[scene_of]
            real = torch.from_numpy(scenes.looks[picks][..., 0] >= 0).to(device)[scene_of]
            nearest = (every - guess[:, None]).norm(dim=-1).masked_fill(~real, torch.inf).argmin(-1)
            hit = (nearest == thing).float().mean()
        figures = {"imitate": imitate, "px": off * OFFSET_UNIT, "look": look, "named": named, "hit": hit}
        return loss, {name: float(value.detach()) for name, value in figures.items()}
