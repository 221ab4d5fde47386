"""Is videoglamm-mini a fair judge? `python -m backbones.videoglamm.mini_training.judge --work DIR` measures
it on held-out clips, with the training's own forward pass.

A judge of pruners has to need its visual tokens: without them, or with another clip's, its masks must be
wrong; with the frames in reverse order expressions about motion must suffer and those about looks must not.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from backbones.glamm.preprocess import masks_to_image
from backbones.mini.training.branches import run_branches
from backbones.mini.training.config import IMAGE
from backbones.mini.training.see import normalised_clip
from backbones.parts import clip as clips_of
from backbones.parts import sam as sams
from backbones.parts.tokenizer import IMAGE_TOKEN, Phi3Tokenizer
from backbones.videoglamm.mini_training.data import scaled, seen_frames
from backbones.videoglamm.mini_training.model import spliced
from backbones.videoglamm.mini_training.prompt import conversation
from backbones.videoglamm.mini_training.talk import CROP, LOOKING, NAMING, Talking, batched
from backbones.videoglamm.mini_training.teach import RESIZED, WayCode, grounding_pixels
from backbones.videoglamm.mini_training.train import Work
from backbones.videoglamm.mini_training.watch import video_pixels
from backbones.videoglamm.model import VideoGlammModel
from harness.data.refclips.language import FAMILIES, describe_surely
from harness.data.refclips.scenes import HEIGHT, WIDTH, PaintedClip
from harness.data.refclips.splits import painted

MOST_NEW = 8
CONDITIONS = (
    "all tokens",
    "frames reversed",
    "another clip's tokens",
    "no visual tokens",
    "teacher's prompt",
)


@dataclass(frozen=True)
class Asked:
    """One expression of a clip: its object, its family ("twin" if motion alone tells it), and its text."""

    target: int
    family: str
    text: str


def asked_of(clip: PaintedClip, rng: np.random.Generator) -> list[Asked]:
    """One expression of every family that has one, for every object."""
    found = []
    for target, actor in enumerate(clip.actors):
        for family in FAMILIES:
            text = describe_surely(clip.actors, target, (family,), rng, int(rng.integers(2)))
            if text is not None:
                told = "twin" if family == "motion" and actor.twin >= 0 else family
                found.append(Asked(target, told, text))
    return found


@torch.no_grad()
def visual_tokens(model: VideoGlammModel, frames: NDArray[np.uint8]) -> Tensor:
    """(1, 832, width) of the four sampled frames (4, H, W, 3)."""
    pixels = normalised_clip(frames[:, :, CROP], torch.device("cpu"))
    images = clips_of.hidden_states(model.clip, pixels)[-1][:, 1:].flatten(0, 1)
    return spliced(model, images[None], model.video_tower.encode(video_pixels(frames)[None]))


@torch.no_grad()
def written(
    model: VideoGlammModel, words: Phi3Tokenizer, visual: Tensor, texts: Sequence[str]
) -> list[tuple[Tensor | None, list[int]]]:
    """Greedy answers up to the first [SEG]: its prompt for the mask decoder or None, and the ids."""
    first = words.encode(conversation("x"))
    start = first.index(IMAGE_TOKEN)
    asked = [words.encode(conversation(text))[start + 1 :] for text in texts]
    answers: list[list[int]] = [[] for _ in texts]
    prompts: dict[int, Tensor] = {}
    for _ in range(MOST_NEW):
        open_ = [k for k, ids in enumerate(answers) if not ids or ids[-1] != words.seg_id]
        if not open_:
            break
        # one more token of fill, which is never read
        rows = [([*asked[k], *answers[k], 0], 1, -1) for k in open_]
        branches = batched(first[:start], rows, (1, len(rows)))
        states = run_branches(model.language_model, visual, branches, LOOKING, NAMING)[0][0, :, 0]
        chosen = model.lm_head(states).argmax(-1)
        for row, k in enumerate(open_):
            answers[k].append(int(chosen[row]))
            if answers[k][-1] == words.seg_id:
                prompts[k] = model.text_hidden_fcs(states[row])
    return [(prompts.get(k), ids) for k, ids in enumerate(answers)]


@torch.no_grad()
def masks(model: VideoGlammModel, embeddings: Tensor, prompt: Tensor) -> NDArray[np.bool_]:
    """(T, H, W) masks of one prompt on the image embeddings (T, P, g, g) of all frames."""
    logits = sams.decode_masks(model.grounding_encoder, embeddings, prompt.expand(len(embeddings), -1))
    return (masks_to_image(logits, IMAGE, RESIZED, (HEIGHT, WIDTH)) > 0).numpy()


def overlap(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """J: mean over frames of intersection over union, 1 where both are empty."""
    inner, outer = (mask & truth).sum((1, 2)), (mask | truth).sum((1, 2))
    return float(np.where(outer == 0, 1.0, inner / np.maximum(outer, 1)).mean())


@torch.no_grad()
def judge(
    model: VideoGlammModel, code: WayCode, words: Phi3Tokenizer, split: str, count: int
) -> pd.DataFrame:
    """J in percent and how often the answer said [SEG], by condition and family, on the first clips of a
    split."""
    rows = []
    other: Tensor | None = None
    for index in tqdm(range(count + 1), desc=split, mininterval=10):
        clip = painted(split, index)
        seen = clip.frames[seen_frames(len(clip.frames))]
        visual = visual_tokens(model, seen)
        if other is None:
            other = visual
            continue
        given = {
            "all tokens": visual,
            "frames reversed": visual_tokens(model, seen[::-1]),
            "another clip's tokens": other,
            "no visual tokens": visual[:, :0],
        }
        other = visual
        asked = asked_of(clip, np.random.default_rng(index))
        embeddings = sams.encode(model.grounding_encoder, grounding_pixels(clip.frames))
        for name in CONDITIONS:
            if name in given:
                answers = written(model, words, given[name], [one.text for one in asked])
            else:
                ways = np.array([(*a.start, *a.end) for a in clip.actors], dtype=np.float32)
                codes = code(torch.from_numpy(scaled(ways)))
                answers = [(codes[one.target], [words.seg_id]) for one in asked]
            for one, (prompt, ids) in zip(asked, answers, strict=True):
                truth = clip.masks[one.target]
                mask = np.zeros_like(truth) if prompt is None else masks(model, embeddings, prompt)
                said = ids[-1] == words.seg_id
                row = {"condition": name, "family": one.family, "J": 100 * overlap(mask, truth), "said": said}
                rows.append(row | {"answer": words.decode(ids)})
    return pd.DataFrame(rows)


def table(found: pd.DataFrame) -> pd.DataFrame:
    """Conditions by families."""
    shown = found.pivot_table(index="condition", columns="family", values="J", aggfunc="mean")
    shown = shown.reindex(list(CONDITIONS))
    whole = found.groupby("condition")
    shown["all"], shown["[SEG] said"] = whole["J"].mean(), 100 * whole["said"].mean()
    return shown.round(1)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder of the training")
    parser.add_argument("--clips", type=int, default=30)
    parser.add_argument("--train", type=int, default=3000, help="size of the train split there")
    parser.add_argument("--split", default="held")
    given = parser.parse_args()
    torch.set_num_threads(1)
    work = Work(given.work, given.train, 0)
    talking = Talking(work.model, work.ways.code, work.clips, work.words)
    for stage, module in (("ways", work.ways), ("watch", work.watching), ("talk", talking)):
        work.restore(stage, module)
    found = judge(work.model, work.ways.code, work.words, given.split, given.clips)
    print(table(found).to_markdown())
    print(found[found.condition == "all tokens"].answer.value_counts().to_string())


if __name__ == "__main__":
    main()
