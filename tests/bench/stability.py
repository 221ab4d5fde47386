"""What rounding changes: kept tokens and IoU of every built-in pruner on glamm-mini, against float32 with
fused attention.

python -m tests.bench.stability [--images 8] prints the table of docs/stability.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

import backbones
from backbones.base import Backbone, Encoding
from backbones.image_answer import Answer, answer
from harness import data, metrics
from pruners import parse
from pruners.base import Pruner

BUDGETS = (64, 192)
NOISES = (1e-7, 1e-6)  # relative; float32 rounds at 6e-8
PRUNERS = "all,prumerge(plus=True),trim(similarity='cosine')"


@dataclass(frozen=True)
class Change:
    """One answer against the same question's answer in float32.

    Attributes:
        kept: share of the kept patches that the other answer does not keep; NaN if it keeps no patch as it
            is.
        points: absolute difference of the two IoUs with the truth, in points.
    """

    kept: float
    points: float


@dataclass(frozen=True)
class Question:
    """The first expression about an image, and where its referent is."""

    image: NDArray[np.uint8]
    text: str
    truth: NDArray[np.bool_]


def questions(images: int) -> list[Question]:
    """Of the first images of refshapes val."""
    found = []
    for sample in data.load_samples("refshapes", "val", None)[:images]:
        found.append(
            Question(sample.image(), sample.expressions[0].text, sample.masks()[0] == metrics.FOREGROUND)
        )
    return found


def noisy(encoding: Encoding, noise: float) -> Encoding:
    """The same image with relative noise on every hidden state of the vision tower."""
    generator = torch.Generator().manual_seed(0)
    states = [
        state * (1 + noise * torch.randn(state.shape, generator=generator))
        for state in encoding.hidden_states
    ]
    return replace(encoding, hidden_states=tuple(states), signals={})


def difference(one: Answer, other: Answer, truth: NDArray[np.bool_]) -> Change:
    """What changed from one answer to another about the same question."""
    scores = []
    for found in (one, other):
        inner, outer = metrics.counts(found.mask, truth.astype(np.uint8))
        scores.append(float(metrics.iou([inner], [outer])[0]))
    held = int(one.kept.sum())
    return Change(
        1 - (one.kept & other.kept).sum() / held if held else float("nan"), 100 * abs(scores[0] - scores[1])
    )


def table(asked: list[Question], pruners: list[Pruner]) -> list[str]:
    """Rows of Markdown: one per pruner, mean over images and budgets."""
    exact = backbones.load("glamm-mini")
    same: Callable[[Encoding], Encoding] = lambda encoding: encoding  # noqa: E731
    ways: dict[str, tuple[Backbone, Callable[[Encoding], Encoding]]] = {
        **{f"noise {noise:.0e}": (exact, partial(noisy, noise=noise)) for noise in NOISES},
        "eager attention": (backbones.load("glamm-mini", attn="eager"), same),
        "bfloat16": (backbones.load("glamm-mini", dtype="bfloat16"), same),
    }
    lines = [
        "| pruner | "
        + " | ".join(f"{way}: {what}" for way in ways for what in ("tokens changed", "IoU moved"))
        + " |",
        "| :--- |" + " ---: |" * (2 * len(ways)),
    ]
    found: dict[tuple[str, str], list[Change]] = {}
    for question in asked:
        known = exact.encode([question.image])[0]
        others = {
            way: (model, change(model.encode([question.image])[0])) for way, (model, change) in ways.items()
        }
        for pruner in pruners:
            for budget in BUDGETS if pruner.name != "none" else BUDGETS[:1]:
                given = answer(exact, known, question.text, pruner, budget, question.truth)
                for way, (model, encoding) in others.items():
                    got = answer(model, encoding, question.text, pruner, budget, question.truth)
                    found.setdefault((pruner.spec(), way), []).append(difference(given, got, question.truth))
    for pruner in pruners:
        cells = []
        for way in ways:
            changes = found[pruner.spec(), way]
            kept = np.mean([change.kept for change in changes])
            cells += [
                "–" if np.isnan(kept) else f"{100 * kept:.1f} %",
                f"{np.mean([change.points for change in changes]):.2f}",
            ]
        lines.append(f"| {pruner.spec()} | " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=8)
    print(*table(questions(parser.parse_args().images), parse(PRUNERS)), sep="\n")


if __name__ == "__main__":
    main()
