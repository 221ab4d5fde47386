"""Is glamm-mini a fair judge? `python -m backbones.mini.training.judge` measures what the model card claims.

A judge of pruners has to need its visual tokens: without them, or with another scene's, its masks must be
wrong; with the referent's tokens alone they must stay right; with few random ones they must suffer.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from backbones import load
from backbones.base import Encoding, Row, Turn
from backbones.glamm.backbone import GlammBackbone
from harness import data, metrics
from pruners import Pruner, Selection, UserError, checks, parse

Chooser = Callable[[GlammBackbone, Encoding, Encoding, tuple[Turn, ...], str, NDArray[np.bool_]], Row]


def _pruned(text: str, budget: int) -> Chooser:
    pruner: Pruner = parse(text)[0]

    def choose(
        backbone: GlammBackbone, own: Encoding, other: Encoding, turns: Any, sample: str, truth: Any
    ) -> Row:
        views = backbone.views(own, turns, sample, truth)
        chosen = checks.select_views(pruner, views, budget, backbone.num_layers)
        return Row(own, turns, pruner, budget, chosen)

    return choose


def _nothing(
    backbone: GlammBackbone, own: Encoding, other: Encoding, turns: Any, sample: str, truth: Any
) -> Row:
    return Row(own, turns, parse("none")[0], 0, (Selection(torch.zeros(0, dtype=torch.int64)),))


def _elsewhere(
    backbone: GlammBackbone, own: Encoding, other: Encoding, turns: Any, sample: str, truth: Any
) -> Row:
    swapped = replace(own, hidden_states=other.hidden_states, signals={})
    everything = torch.arange(len(own.hidden_states[-1]) - 1)
    return Row(swapped, turns, parse("none")[0], len(everything), (Selection(everything),))


SEEDS = (0, 1, 2)  # as the leaderboard's


def _random(budget: int) -> tuple[Chooser, ...]:
    return tuple(_pruned(f"random(seed={seed})", budget) for seed in SEEDS)


# a condition of several choosers counts them all
CONDITIONS: dict[str, tuple[Chooser, ...]] = {
    "all 576 tokens": (_pruned("none", 576),),
    "oracle at 64": (_pruned("oracle", 64),),
    "random at 192": _random(192),
    "random at 64": _random(64),
    "another scene's tokens": (_elsewhere,),
    "no visual tokens": (_nothing,),
}


def judge(backbone: GlammBackbone, limit: int, columns: list[tuple[str, str]]) -> pd.DataFrame:
    """cIoU in percent, conditions by columns; protocol `each`, first `limit` images of every split (0:
    all)."""
    table: dict[str, dict[str, float]] = {name: {} for name in CONDITIONS}
    for dataset, split in columns:
        samples = data.load_samples(dataset, split)
        samples = samples[:limit] if limit else samples
        sums = {name: np.zeros(2, dtype=np.int64) for name in CONDITIONS}
        before: Encoding | None = None
        for start in tqdm(range(0, len(samples), 8), desc=f"{dataset} {split}"):
            part = samples[start : start + 8]
            encodings = backbone.encode([sample.image() for sample in part])
            rows, homes = [], []
            for k, sample in enumerate(part):
                masks = sample.masks()
                for talk in backbone.conversations(
                    sample.id, [one.text for one in sample.expressions], "each", 0
                ):
                    truth = masks[list(talk.expressions)]
                    other = encodings[k - 1] if len(part) > 1 else before
                    if other is None:
                        raise UserError("Another scene's tokens need two images: give --limit 2 or more.")
                    for name, choose in (
                        (name, one) for name, choosers in CONDITIONS.items() for one in choosers
                    ):
                        rows.append(choose(backbone, encodings[k], other, talk.turns, sample.id, truth == 1))
                        homes.append((name, truth[0]))
            before = encodings[-1]
            for (name, truth), result in zip(homes, backbone.ground_rows(rows), strict=True):
                sums[name] += metrics.counts((result.logits[0] > 0).numpy(), truth)
        for name, (inner, outer) in sums.items():
            table[name][f"{dataset} {split}"] = round(100 * float(inner / outer), 1)
    frame = pd.DataFrame(table).T
    frame["Avg."] = frame.mean(axis=1).round(1)
    return frame


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", type=int, default=0, help="images per split, 0 = all")
    parser.add_argument(
        "--checkpoint",
        default=None,
        help="other weights than the shipped ones: folder with checkpoint/ and clip/",
    )
    given = parser.parse_args()
    if given.checkpoint:
        backbone = load("glamm", checkpoint=f"{given.checkpoint}/checkpoint", clip=f"{given.checkpoint}/clip")
    else:
        backbone = load("glamm-mini")
    print(judge(backbone, given.limit, list(data.REFSHAPES_COLUMNS)).to_markdown())  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
