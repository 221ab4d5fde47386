"""The language stages: projector, language model and [SEG] head learn to point, and CLIP and SAM are frozen.

Several expressions of a scene share one pass over its visual tokens: their turns branch off behind the image,
each attending to the image and to itself. Positions and attention are those of the same turn in a sequence of
its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backbones.base import Turn
from backbones.glamm.conversation import ANSWER_TEMPLATES, QUESTION_TEMPLATES, build_prompt
from backbones.glamm.model import GlammModel
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


def init_heads(model: GlammModel) -> None:
    """Start the language side at unit scale; transformers' 0.02 is made for widths of thousands."""
    llm = model.language_model
    width, depth = llm.config.hidden_size, llm.config.num_hidden_layers
    nn.init.normal_(llm.get_input_embeddings().weight, std=0.5)
    for name, linear in llama.matrices(llm):
        shrink = (2 * depth) ** -0.5 if name in llama.BY_INPUT else 1.0
        nn.init.normal_(linear.weight, std=shrink * linear.in_features**-0.5)
    nn.init.normal_(model.lm_head.weight, std=width**-0.5)


@dataclass(frozen=True)
class Branches:
    """Tokenised turns of a batch: E branches per scene, padded on the right.

    Attributes:
        prefix: (P,) ids up to and including <im_start>.
        lead: (C,) ids behind the image that all branches begin with.
        ids: (B, E, S) ids after those.
        labels: (B, E, S) next-token targets of the answers, -100 elsewhere.
        read: (B, E, 3) position just before each [SEG], -1 if there is none.
        target: (B, E, 3) object number, -1 if there is none.
    """

    prefix: Tensor
    lead: Tensor
    ids: Tensor
    labels: Tensor
    read: Tensor
    target: Tensor


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
        only: Sequence[int | None],
        count: int,
        rng: np.random.Generator,
    ) -> Branches:
        """`count` branches per scene; `only[b]` restricts scene b to expressions of one object."""
        several = rng.random() < 0.2
        prefix: list[int] = []
        rows: list[tuple[list[int], list[int], list[int]]] = []
        for index, wanted in zip(picks, only, strict=True):
            found = [
                (k, text) for k, _, text in scenes.expressions(int(index), rng, 4) if wanted in (None, k)
            ]
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
        labels = np.full((len(rows), length), -100, dtype=np.int64)
        marked = np.full((len(rows), MOST_TURNS), -1, dtype=np.int64)
        target = np.full((len(rows), MOST_TURNS), -1, dtype=np.int64)
        for r, (row, marks, things) in enumerate(rows):
            words[r, : len(row)] = row
            for t, (mark, k) in enumerate(zip(marks, things, strict=True)):
                marked[r, t], target[r, t] = mark, k
                labels[r, mark] = row[mark + 1]
        parts = [torch.from_numpy(a).view(*shape, -1) for a in (words, labels, marked, target)]
        return Branches(torch.tensor(prefix), torch.tensor(lead, dtype=torch.int64), *parts)


def run_branches(
    model: GlammModel, visual: Tensor, branches: Branches
) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    """The language model over a shared image and its branches.

    Args:
        visual: (B, N, width) projected visual tokens.

    Returns:
        final hidden states of the context (B, P+N+C, width) and of the branches (B, E, S, width), and for
        every layer of POINT_LAYERS the attention (B, E, 3, N) of the read positions on the visual tokens,
        mean of the first two heads; hidden states of the branches behind NAMING_LAYER.
    """
    llm = model.language_model
    batch, count, length = branches.ids.shape
    start, n = len(branches.prefix), visual.shape[1]
    context = start + n + len(branches.lead)
    prefix, lead = (
        llama.embed_ids(llm, ids).expand(batch, -1, -1) for ids in (branches.prefix, branches.lead)
    )
    shared = torch.cat([prefix, visual, lead], dim=1)
    own = llama.embed_ids(llm, branches.ids).flatten(0, 1)  # (B*E, S, width)
    positions = torch.arange(context + length, device=visual.device)[None]
    by_c, by_o = (
        llama.rotary(llm, part, shared.dtype) for part in (positions[:, :context], positions[:, context:])
    )
    causal = torch.ones(length, length, dtype=torch.bool, device=visual.device).tril()
    mask = torch.cat([causal.new_ones(length, context), causal], dim=1)
    read = branches.read.clamp(min=0).view(batch * count, 1, -1, 1)
    looks, halfway = [], own

    for number, layer in enumerate(llama.layers(llm)):
        q_c, k_c, v_c = layer.project(shared, by_c)
        q_o, k_o, v_o = layer.project(own, by_o)
        out_c = F.scaled_dot_product_attention(q_c, k_c, v_c, is_causal=True)
        keys = torch.cat([k_c.repeat_interleave(count, 0), k_o], dim=2)
        values = torch.cat([v_c.repeat_interleave(count, 0), v_o], dim=2)
        out_o = F.scaled_dot_product_attention(q_o, keys, values, attn_mask=mask)
        if number in POINT_LAYERS:
            rows = q_o[:, :2].gather(2, read.expand(-1, 2, -1, q_o.shape[-1]))  # (B*E, 2, 3, head width)
            scores = rows @ keys[:, :2].transpose(-1, -2) / rows.shape[-1] ** 0.5
            allowed = torch.arange(context + length, device=visual.device) <= context + read
            share = scores.masked_fill(~allowed, -torch.inf).softmax(-1)[..., start : start + n].mean(1)
            looks.append(share.view(batch, count, -1, n))
        shared = layer.finish(shared, out_c.transpose(1, 2).flatten(2))
        own = layer.finish(own, out_o.transpose(1, 2).flatten(2))
        if number == NAMING_LAYER:
            halfway = own
    return (
        llama.norm(llm, shared),
        llama.norm(llm, own).view(batch, count, length, -1),
        looks,
        halfway.view(batch, count, length, -1),
    )


def patch_owner(owner: np.ndarray) -> np.ndarray:
    """(192, 192) object numbers -> (576, 9) pixels of every object in every patch."""
    blocks = owner.reshape(GRID, CLIP_PATCH, GRID, CLIP_PATCH).transpose(0, 2, 1, 3).reshape(PATCHES, -1)
    return (blocks[:, :, None] == np.arange(1, 10)).sum(1)


def choose_tokens(
    area: np.ndarray, rng: np.random.Generator, mode: str, budget: int, focus: int
) -> np.ndarray:
    """Sorted visual tokens that a training row sees: all, random, all objects' first, or one object's
    neighbourhood."""
    if mode == "all":
        return np.arange(PATCHES)
    score = rng.random(PATCHES)
    if mode == "objects":
        score += (area.sum(1) > 0) * 2.0
    elif mode == "focus":
        ys, xs = np.divmod(np.arange(PATCHES), GRID)
        cy, cx = (float((a * area[:, focus]).sum() / area[:, focus].sum()) for a in (ys, xs))
        score += (area[:, focus] > 0) * 1e4 - np.hypot(ys - cy, xs - cx)
    return np.sort(np.argsort(-score, kind="stable")[:budget])


class Pointing(nn.Module):
    """Loss of the language stages for `run_stage`; with `whole` every row sees all tokens.

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
        count: int = 12,
        whole: bool = False,
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
        self.batch, self.count, self.whole, self.steps = batch, count, whole, steps

    def _mode(self, step: int, rng: np.random.Generator) -> tuple[str, int]:
        """What the rows of this step see: cheap object-first subsets early on, all tokens more and more
        often."""
        modes = (
            ("all", 576),
            ("objects", 192),
            ("random", 192),
            ("random", 64),
            ("focus", 64),
            ("random", 128),
        )
        if self.whole:
            return modes[0]
        late = 0.5 * min(1.0, step / self.steps)
        chances = (0.15 + late, 0.55 - late, 0.1, 0.06, 0.08, 0.06)
        return modes[int(rng.choice(len(modes), p=chances))]

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """One batch of scenes under one choice of visual tokens."""
        model, scenes = self._model[0], self.scenes
        device = self.center.weight.device
        mode, budget = self._mode(step, rng)
        while True:
            picks = np.sort(rng.choice(len(scenes), self.batch, replace=False))
            areas = np.stack([patch_owner(scenes.owner[i]) for i in picks])
            focus = [int(rng.integers(scenes.count(i))) for i in picks]
            kept = np.stack(
                [choose_tokens(a, rng, mode, budget, f) for a, f in zip(areas, focus, strict=True)]
            )
            only: list[int | None] = [f if mode == "focus" else None for f in focus]
            branches = self.talk.draw(scenes, picks, only, self.count, rng)
            if (branches.target >= 0).any():  # else no expression tells any of the focused objects apart
                break
        branches = Branches(*(part.to(device) for part in vars(branches).values()))
        assert self.features is not None
        rows = np.stack([self.features[i] for i in picks])
        tokens = torch.from_numpy(np.take_along_axis(rows, kept[:, :, None], 1)).to(device).float()
        _, hidden, looks, halfway = run_branches(model, self.projector(tokens), branches)

        asked = branches.target >= 0  # (B, E, 3)
        width = hidden.shape[-1]
        where = branches.read.clamp(min=0)[..., None].expand(-1, -1, -1, width)
        at, early = hidden.gather(2, where)[asked], halfway.gather(2, where)[asked]
        scene_of = torch.arange(len(picks), device=device)[:, None, None].expand_as(asked)[asked]
        thing = branches.target[asked]
        centers = torch.from_numpy(scenes.centers[picks]).to(device)[scene_of, thing]
        prompt = self.text_hidden_fcs(at)
        sam = model.grounding_encoder
        with torch.no_grad():
            code = embed_points(sam, centers)
        imitate = F.mse_loss(prompt, code)
        off = (self.center(at) - (centers - IMAGE / 2) / OFFSET_UNIT).abs().mean()
        owned = torch.from_numpy(np.take_along_axis(areas, kept[:, :, None], 1) > 16).to(device)  # (B, N, 9)
        referent = owned[scene_of, :, thing].float()
        visible = referent.sum(-1) > 0
        look = torch.stack(
            [-(share[asked] * referent).sum(-1)[visible].clamp(min=1e-6).log().mean() for share in looks]
        ).mean()
        spoken = F.cross_entropy(
            self.lm_head(hidden[branches.labels >= 0]), branches.labels[branches.labels >= 0]
        )
        look_of = torch.from_numpy(scenes.looks[picks]).to(device).long()[scene_of, thing]  # (masks, 4)
        told = self.naming(early).split([len(values) for values in VALUES], dim=-1)
        named = torch.stack([F.cross_entropy(told[a], look_of[:, a]) for a in range(len(VALUES))]).mean()
        # the code's fine waves cannot be met before the referent is found, and would drown what finds it
        exact = 0.2 + 6 * max(0.0, (1.0 if self.whole else step / self.steps) - 0.5)
        loss = exact * imitate + off + look + named + 0.1 * spoken
        with torch.no_grad():
            # a point is right if it falls closer to its own centre than to any other object's
            guess = self.center(at) * OFFSET_UNIT + IMAGE / 2
            every = torch.from_numpy(scenes.centers[picks]).to(device)[scene_of]
            real = torch.from_numpy(scenes.looks[picks][..., 0] >= 0).to(device)[scene_of]
            nearest = (every - guess[:, None]).norm(dim=-1).masked_fill(~real, torch.inf).argmin(-1)
            hit = float((nearest == thing).float().mean())
        figures = {
            "imitate": float(imitate),
            "px": float(off) * OFFSET_UNIT,
            "look": float(look),
            "named": float(named),
            "hit": hit,
        }
        figures |= {"hit_all": hit, "n_all": 1.0} if mode == "all" else {"hit_all": 0.0, "n_all": 0.0}
        return loss, figures
