"""Stage `talk`: adapters, language model and [SEG] head learn to say which way the referent takes.

CLIP, the video encoder and the mask decoder are frozen. Every sequence has all 832 visual tokens at
consecutive positions: no step shows the language model a subset of them, so that what a pruner does is new to
it.

Helpers, dropped afterwards: the prompt imitates the teacher's code of the referent's way; the way is read out
linearly; heads look at the referent, in the last layer head f at frame f; half-way up the read position knows
the referent's looks and motion, and every visual token those of the object that it lies on (CLIP's tokens
know shapes, the video encoder's motion). The answer's tokens are learned, too, so that the model writes them
itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel

from backbones.mini.training.branches import Branches, run_branches
from backbones.mini.training.loop import cache
from backbones.mini.training.see import normalised_clip
from backbones.parts import clip as clips_of
from backbones.parts.tokenizer import IMAGE_TOKEN, Phi3Tokenizer
from backbones.videoglamm.budgets import POOL, VIDEO_POOL
from backbones.videoglamm.mini_training.data import (
    ATTRIBUTES,
    MOST_OBJECTS,
    SAMPLED,
    UNIT,
    VALUES,
    Clips,
    scaled,
)
from backbones.videoglamm.mini_training.model import CLIP_SIDE, spliced
from backbones.videoglamm.mini_training.prompt import ANSWERS, SHARES, conversation
from backbones.videoglamm.mini_training.teach import WayCode
from backbones.videoglamm.mini_training.watch import owners
from backbones.videoglamm.model import VideoGlammModel
from harness.data.refclips.scenes import HEIGHT, WIDTH

LOOKING = (3, 4)  # layers whose heads are asked to look at the referent
NAMING = 2  # behind this layer the read position is asked for the referent's traits
PER_FAMILY = 6
WEIGHTS = {"looks": 1.0, "place": 0.4, "motion": 2.0}  # of an expression among those of its clip
OUTSIDE = 2.0  # times that, of an object that enters or leaves
CROP = slice((WIDTH - HEIGHT) // 2, (WIDTH + HEIGHT) // 2)  # columns that CLIP sees
COVERED = 0.2  # of a token's cell, from which on it counts as the object's


@torch.no_grad()
def cache_features(clip: CLIPModel, clips: Clips, path: Path, batch: int = 4) -> NDArray[np.float16]:
    """CLIP's penultimate patch features of all frames, (clips, 4 * 576, C) float16."""
    width = clip.config.vision_config.hidden_size

    def compute(part: slice) -> Tensor:
        frames = clips.frames[part][:, :, :, CROP]
        pixels = normalised_clip(frames.reshape(-1, HEIGHT, HEIGHT, 3), torch.device("cpu"))
        states = clips_of.hidden_states(clip, pixels)[-1][:, 1:]
        return states.unflatten(0, (-1, SAMPLED)).flatten(1, 2)

    return cache(path, len(clips), (SAMPLED * CLIP_SIDE**2, width), batch, compute)


def token_owners(owner: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(T, H, W) object numbers -> (T * 144 + T * 64, 4): which visual tokens lie on which object."""
    found = []
    for part, side in ((owner[..., CROP], POOL), (owner, VIDEO_POOL)):
        pixels = part[0].size / side**2
        found.append(owners(part, (side, side)).reshape(-1, MOST_OBJECTS) > COVERED * pixels)
    return np.concatenate(found)


def token_frames() -> Tensor:
    """(832,) the frame of every visual token."""
    frames = torch.arange(SAMPLED)
    return torch.cat([frames.repeat_interleave(side**2) for side in (POOL, VIDEO_POOL)])


class Conversations:
    """Draws questions and answers and tokenises them as evaluation does."""

    def __init__(self, words: Phi3Tokenizer) -> None:
        self.words = words

    def tokenize(self, text: str, answer: str) -> tuple[list[int], list[int], int]:
        """Ids before the frames, ids behind them up to [SEG], and how many of those are the answer."""
        ids = self.words.encode(conversation(text, answer))
        asked = len(self.words.encode(conversation(text)))
        first = ids.index(IMAGE_TOKEN)
        end = ids.index(self.words.seg_id) + 1
        return ids[:first], ids[first + 1 : end], end - asked

    def draw(self, clips: Clips, picks: NDArray[np.int64], count: int, rng: np.random.Generator) -> Branches:
        """`count` branches per clip."""
        rows: list[tuple[list[int], int, int]] = []
        prefix: list[int] = []
        for index in picks:
            found = clips.expressions(int(index), rng, PER_FAMILY)
            chances = np.array([self._weight(clips, int(index), *one[:2]) for one in found])
            order = rng.choice(len(found), count, replace=len(found) < count, p=chances / chances.sum())
            for place in order:
                target, _, text = found[int(place)]
                answer = ANSWERS[int(rng.choice(len(ANSWERS), p=SHARES))]
                prefix, ids, own = self.tokenize(text, answer)
                rows.append((ids, own, target))
        return batched(prefix, rows, (len(picks), count))

    @staticmethod
    def _weight(clips: Clips, index: int, target: int, family: str) -> float:
        """How often an expression is drawn: more often what is hard, motions and what is not always there."""
        stays = VALUES[5][clips.traits[index, target, 5]] == "stays"
        return WEIGHTS[family] * (1.0 if stays else OUTSIDE)


def batched(
    prefix: Sequence[int], rows: Sequence[tuple[list[int], int, int]], shape: tuple[int, int]
) -> Branches:
    """Branches of rows (ids behind the visual tokens, tokens of the answer, object)."""
    first = rows[0][0]
    common = min(
        next((k for k, (a, b) in enumerate(zip(first, ids, strict=False)) if a != b), len(ids) - own - 1)
        for ids, own, _ in rows
    )
    common = min(common, *(len(ids) - own - 1 for ids, own, _ in rows))
    length = max(len(ids) for ids, _, _ in rows) - common
    most = max(own for _, own, _ in rows)
    words = np.zeros((len(rows), length), dtype=np.int64)
    read = np.full((len(rows), most), -1, dtype=np.int64)
    labels, target = np.full_like(read, -1), np.full_like(read, -1)
    for r, (ids, own, thing) in enumerate(rows):
        mine = ids[common:]
        words[r, : len(mine)] = mine
        read[r, :own] = np.arange(len(mine) - own - 1, len(mine) - 1)
        labels[r, :own] = mine[-own:]
        target[r, own - 1] = thing
    parts = [torch.from_numpy(a).view(*shape, -1) for a in (words, read, labels, target)]
    return Branches(torch.tensor(prefix), torch.tensor(first[:common], dtype=torch.int64), *parts)


class Talking(nn.Module):
    """Loss of the stage for `run_stage`."""

    def __init__(
        self,
        model: VideoGlammModel,
        code: WayCode,
        clips: Clips,
        words: Phi3Tokenizer,
        *,
        batch: int = 4,
        count: int = 12,
        steps: int = 1,
    ) -> None:
        super().__init__()
        self.language_model, self.lm_head = model.language_model, model.lm_head
        self.projector, self.video_projector = model.projector, model.video_projector
        self.text_hidden_fcs = model.text_hidden_fcs
        width = model.lm_head.in_features
        self.way = nn.Linear(width, 4)
        self.naming = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, sum(len(values) for values in VALUES))
        )
        self._model, self._code = [model], [code]  # kept out of the module tree: frozen
        self.clips, self.talk = clips, Conversations(words)
        self.batch, self.count, self.steps = batch, count, steps
        self.images: NDArray[np.float16] | None = None
        self.videos: NDArray[np.float16] | None = None
        self.frames = token_frames()
        with torch.no_grad():
            real = clips.traits[:, :, 0] >= 0
            codes = code(torch.from_numpy(scaled(clips.ways[real])))
            self.spread = float(codes.var(0).mean())

    def loss(self, step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        """One batch of clips."""
        assert self.images is not None and self.videos is not None
        model, clips = self._model[0], self.clips
        picks = np.sort(rng.choice(len(clips), self.batch, replace=False))
        branches = self.talk.draw(clips, picks, self.count, rng)
        images, videos = (
            torch.from_numpy(np.stack([rows[i] for i in picks])).float()
            for rows in (self.images, self.videos)
        )
        hidden, shares, halfway, tokens = run_branches(
            self.language_model, spliced(model, images, videos), branches, LOOKING, NAMING
        )
        asked = branches.target >= 0  # (B, E, R)
        at, early = hidden[asked], halfway[asked]
        clip_of = torch.arange(len(picks))[:, None, None].expand_as(asked)[asked]
        thing = branches.target[asked]
        way = torch.from_numpy(scaled(clips.ways[picks]))[clip_of, thing]
        with torch.no_grad():
            code = self._code[0](way)
        imitate = F.mse_loss(self.text_hidden_fcs(at), code) / self.spread
        guess = self.way(at)
        off = (guess - way).abs().mean()
        owned = torch.from_numpy(np.stack([token_owners(clips.owner[i]) for i in picks]))  # (B, N, 4)
        look = self._look(shares, asked, owned[clip_of, :, thing])
        said = branches.labels >= 0
        spoken = F.cross_entropy(self.lm_head(hidden[said]), branches.labels[said])
        named = self._trait_loss(early, torch.from_numpy(clips.traits[picks]).long()[clip_of, thing])
        dense = self._named(tokens, owned, torch.from_numpy(clips.traits[picks]).long())
        # the code's fine waves cannot be met before the referent is found, and would drown what finds it
        exact = 0.3 + min(1.0, 2 * step / self.steps)
        loss = exact * imitate + 2 * off + look + named + dense + 0.1 * spoken
        with torch.no_grad():
            # right if the guessed way is nearer to the referent's than to any other object's
            every = torch.from_numpy(scaled(clips.ways[picks]))[clip_of]
            real = torch.from_numpy(clips.traits[picks][..., 0] >= 0)[clip_of]
            nearest = (every - guess[:, None]).abs().sum(-1).masked_fill(~real, torch.inf).argmin(-1)
            hit = (nearest == thing).float().mean()
        figures = {
            "imitate": imitate,
            "px": off * UNIT,
            "look": look,
            "named": named,
            "dense": dense,
            "spoken": spoken,
            "hit": hit,
        }
        return loss, {name: float(value.detach()) for name, value in figures.items()}

    def _trait_loss(self, states: Tensor, traits: Tensor) -> Tensor:
        """Mean cross-entropy of the traits (M, 6) read out of states (M, width)."""
        told = self.naming(states).split([len(values) for values in VALUES], dim=-1)
        return torch.stack([F.cross_entropy(told[a], traits[:, a]) for a in range(len(ATTRIBUTES))]).mean()

    def _named(self, tokens: Tensor, owned: Tensor, traits: Tensor) -> Tensor:
        """The same of the visual tokens (B, N, width) that lie on one object alone.

        Args:
            owned: (B, N, 4) which tokens lie on which object.
            traits: (B, 4, 6) of the objects.
        """
        clip, token = (owned.sum(-1) == 1).nonzero(as_tuple=True)
        return self._trait_loss(tokens[clip, token], traits[clip, owned[clip, token].int().argmax(-1)])

    def _look(self, shares: list[Tensor], asked: Tensor, referent: Tensor) -> Tensor:
        """Mean surprise of the heads at where the referent is.

        Args:
            shares: attention (B, H, E, R, N) of the two layers.
            referent: (M, N) the tokens on the asked object.
        """
        early, late = (share.permute(0, 2, 3, 1, 4)[asked] for share in shares)  # (M, H, N)
        mask = referent.float()
        seen = mask.sum(-1) > 0
        anywhere = -((early[:, :2].mean(1) * mask).sum(-1)[seen].clamp(min=1e-6).log()).mean()
        each = []
        for frame in range(min(SAMPLED, late.shape[1])):
            here = mask * (self.frames == frame)
            seen = here.sum(-1) > 0
            each.append(-((late[:, frame] * here).sum(-1)[seen].clamp(min=1e-6).log()).mean())
        return (anywhere + torch.stack(each).mean()) / 2
