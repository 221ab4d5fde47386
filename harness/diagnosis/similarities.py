"""Why a pruner ranks where it ranks: what CLIP's similarities say about the referent, and what pruners keep
of it.

The visual-text similarity reversal (LiteLVLM, ICML 2026): the referent's tokens look *less* like the text
than others do. Whether it holds is a property of a backbone, so it is measured here before a method that
rests on it is judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import pearsonr, spearmanr
from torch.nn import functional as F

from backbones.base import Backbone, Encoding
from backbones.probes import Probes
from harness import data, metrics
from harness.diagnosis.summary import (
    INSIDE,
    MAIN,
    SIMILARITIES,
    Diagnosis,
    Kept,
    auroc,
    rank_histogram,
    summarise,
)
from harness.plan import Plan
from harness.progress import each
from harness.store import records
from pruners.base import UserError


def measure_similarities(
    backbone: Backbone, pairs: Sequence[tuple[str, str]], limit: int, root: str | None = None
) -> Diagnosis:
    """Measure the similarities of all expressions.

    Args:
        pairs: (data set, split).
        limit: images per split, 0 for all.

    Raises:
        UserError: data are missing or damaged, no referent fills a patch, or the backbone has no probes.
    """
    probes = backbone.probes
    if probes is None:
        raise UserError(
            f"The similarities of {backbone.name} cannot be read; diagnose another backbone, as "
            f"{Plan.backbones[0]}."
        )
    rows: list[dict[str, Any]] = []
    left_out = 0
    for dataset, split in pairs:
        samples = data.load_samples(dataset, split, root)
        for sample in each(samples[: limit or None], f"looking at {dataset}:{split}"):
            found = look(backbone, probes, sample, backbone.encode([sample.image()])[0])
            left_out += len(sample.expressions) - len(found)
            rows += found
    if not rows:
        raise UserError(
            f"No referent of {', '.join(map(':'.join, pairs))} fills a visual token; give larger "
            f"--datasets or --limit."
        )
    frame = pd.DataFrame(rows)
    layers = sum(str(column).startswith("start ") for column in frame)
    names = tuple(":".join(pair) for pair in pairs)
    return Diagnosis(backbone.name, backbone.fingerprint, names, limit, frame, left_out, layers)


def look(backbone: Backbone, probes: Probes, sample: data.Sample, encoding: Encoding) -> list[dict[str, Any]]:
    """One row per expression whose referent fills at least one patch."""
    truth = sample.masks() == metrics.FOREGROUND
    image = F.normalize(probes.projected_class(encoding).double(), dim=0)
    rows = []
    for expression, mask in zip(sample.expressions, truth, strict=True):
        asked = backbone.turn(expression.text)
        (tokens,) = backbone.views(encoding, (asked,), sample.id)
        share = backbone.patch_shares(mask[None]).double().numpy(force=True)
        inside, plain = share >= INSIDE, (share >= INSIDE) | (share == 0)
        if not inside.any():
            continue
        patches, question = tokens.projected_patches.double(), tokens.text_embeds[0].double()
        (plain_view,) = backbone.views(encoding, (probes.plain(expression.text),), sample.id)
        alone = plain_view.text_embeds[0].double()
        units = F.normalize(patches, dim=1)
        similarity = {
            name: scores.numpy(force=True)
            for name, scores in zip(
                SIMILARITIES,
                (
                    units @ F.normalize(question, dim=0),
                    patches @ question,
                    units @ F.normalize(alone, dim=0),
                    units @ image,
                ),
                strict=True,
            )
        }
        row: dict[str, Any] = {"image": f"{sample.image_id} {sample.cluster}", "expression": expression.id}
        for name, scores in similarity.items():
            row[f"auroc {name}"] = auroc(scores[plain], inside[plain])
            row |= {f"rank {name} {k}": value for k, value in enumerate(rank_histogram(scores, inside))}
        row["pearson"] = float(pearsonr(similarity[MAIN], similarity["[CLS]"])[0])
        row["spearman"] = float(spearmanr(similarity[MAIN], similarity["[CLS]"])[0])
        starts, lengths = probes.end_attention([asked.question])
        row |= {f"start {k}": float(value) for k, value in enumerate(starts[0])} | {"tokens": int(lengths[0])}
        rows.append(row)
    return rows


def kept(run: Path, backbone: Backbone) -> Kept:
    """What the pruners of a recorded run kept of the referents.

    Raises:
        UserError: there are no records, or they are another backbone's.
    """
    frame = records.load_records(run)
    if frame.empty or set(frame["fingerprint"]) != {backbone.fingerprint}:
        held = ", ".join(
            sorted(
                {
                    f"{name} {mark}"
                    for name, mark in frame[["backbone", "fingerprint"]].itertuples(index=False)
                }
            )
        )
        raise UserError(
            f"The run {str(run)!r} holds records of {held or 'nothing'}, not of {backbone.name} "
            f"{backbone.fingerprint}; "
            "give --run a run of this backbone alone."
        )
    return summarise(frame, backbone.grid, str(run))
