"""What the records of a run know of every expression beside its scores: the referent's size and place, how
many words ask for it, how many objects are called the same; and the boundary IoU of every answer.

Masks are decoded one expression at a time and forgotten, so memory does not grow with the number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from backbones.parts.clips import BETWEEN
from backbones.parts.geometry import WHOLE, Region, regions
from harness.diagnosis.boundary import (
    Bits,
    boundary_distance,
    boundary_iou,
    decode_bits,
    inner_boundary,
    pixels,
)
from harness.diagnosis.words import named_alike, said
from harness.progress import each
from pruners.base import UserError

BEFORE = "centre-crop"  # the geometry of runs that do not name one


@dataclass(frozen=True)
class Factor:
    """Something that a loss may depend on.

    Attributes:
        title: with its unit, for tables and figures.
        low, high: what the first and the last bin hold, in words.
        meaning: what it is and where it comes from, for a reader.
        scale: from the stored number to the printed one.
    """

    name: str
    title: str
    low: str
    high: str
    meaning: str
    scale: float = 1.0


FACTORS = (
    Factor(
        "area",
        "referent's area, % of the image",
        "the smallest referents",
        "the largest",
        "pixels of the truth over pixels of the image; of a clip the mean over frames in which the referent "
        "is seen",
        100.0,
    ),
    Factor(
        "edge",
        "distance to the image's edge, % of its shorter side",
        "the referents nearest to the image's edge",
        "the farthest",
        "from the referent's bounding box to the nearest edge; 0 touches it",
        100.0,
    ),
    Factor(
        "crop",
        "distance to the edge of what the vision tower sees, % of the image's shorter side",
        "the referents nearest to the crop's edge, or beyond it",
        "the farthest inside",
        "from the referent's bounding box to the nearest side of the crop, by the geometry that the run "
        "records of its backbone; negative where a part of the box lies outside",
        100.0,
    ),
    Factor(
        "words",
        "words in the expression",
        "the shortest expressions",
        "the longest",
        "sequences of letters and digits; hyphens and apostrophes join",
    ),
    Factor(
        "alike",
        "objects that are called the same",
        "the referents with the fewest objects of the same name beside them",
        "those with the most",
        "other referents of the same image whose expressions in the run have a head noun in common with it, "
        "the noun before the first relation (`star` in `the small red star left of the ring`). Only what the "
        "run's expressions name is known, so it is a lower bound; left out where the referent is called "
        "`one` alone",
    ),
    Factor(
        "coverage",
        "coverage of the referent by the kept tokens, %",
        "the referents that the kept tokens cover least",
        "those that they cover best",
        "share of the referent's area whose visual tokens were kept, as recorded; left out where all tokens "
        "are pooled. Bins are quantiles over all rows",
        100.0,
    ),
)
OF_EXPRESSION = tuple(one.name for one in FACTORS if one.name != "coverage")


@dataclass(frozen=True)
class _Seen:
    """The truth of one expression, frame by frame."""

    truth: list[Bits]
    edges: list[Bits]
    distance: int
    height: int
    width: int


def measure_factors(
    asked: pd.DataFrame, answers: pd.DataFrame, geometry: str
) -> tuple[pd.DataFrame, NDArray[np.float64]]:
    """Factors of all expressions, and the boundary IoU of all answers.

    Args:
        asked: one row per expression: `sample`, `expression`, `text`, `height`, `width`, `truth`, `cluster`.
        answers: rows of records with `place`, the expression's in `asked`, in rising order.
        geometry: what the vision tower sees of an image.

    Returns:
        The columns OF_EXPRESSION, NaN where something is not known, in the order of `asked`; and (n,)
        boundary IoU in 0..1, of a clip the mean over frames.

    Raises:
        UserError: a mask is not the one that its record counted.
    """
    found = np.full((len(asked), 3), np.nan)
    scores = np.full(len(answers), np.nan)
    starts = np.searchsorted(answers["place"].to_numpy(), np.arange(len(asked) + 1))
    columns = ["mask", "intersection", "pruner", "frames"]
    masks, counted, pruners, frames = (answers[name].to_numpy() for name in columns)
    rows = asked[["truth", "height", "width", "sample"]].itertuples(index=False, name=None)
    for place, (truth, height, width, sample) in enumerate(
        each(rows, "reading masks", len(asked), "expressions")
    ):
        here = slice(starts[place], starts[place + 1])
        if not truth or here.start == here.stop:
            continue
        try:
            seen = _truth(truth, height, width)
        except ValueError as error:
            raise UserError(f"The truth of {sample} has {error}; restore the run from a copy.") from error
        found[place] = _place(seen, geometry)
        known: dict[str, tuple[float, int]] = {}
        for row in range(here.start, here.stop):
            text = str(masks[row])
            if text not in known:
                known[text] = _answer(text, seen, str(sample), str(pruners[row]))
            scores[row], inner = known[text]
            if frames[row] == 1 and inner != counted[row]:
                raise UserError(
                    f"The mask of {pruners[row]} on {sample} is not the one that its record counted ({inner} "
                    f"pixels shared with the truth, not {counted[row]}); restore the run from a copy."
                )
    factors = pd.DataFrame(found, columns=["area", "edge", "crop"], index=asked.index)
    if not (factors["crop"] - factors["edge"]).abs().max() > 0:  # all of every image is seen
        factors["crop"] = np.nan
    told = [said(text) for text in asked["text"].fillna("")]
    factors["words"] = [float(one.words) if one.words else np.nan for one in told]
    factors["alike"] = _alike(asked, [one.noun for one in told])
    return factors, scores


def _truth(text: str, height: int, width: int) -> _Seen:
    truth = [decode_bits(one, height, width) for one in text.split(BETWEEN)]
    distance = boundary_distance(height, width)
    return _Seen(truth, [inner_boundary(one, distance) for one in truth], distance, height, width)


def _answer(text: str, seen: _Seen, sample: str, pruner: str) -> tuple[float, int]:
    """Boundary IoU of an answer, and the pixels that it shares with the truth."""
    frames = text.split(BETWEEN)
    if len(frames) != len(seen.truth):
        raise UserError(
            f"The mask of {pruner} on {sample} has {len(frames)} frames where its truth has "
            f"{len(seen.truth)}; restore the run from a copy."
        )
    inner, scores = 0, []
    for one, truth, edge in zip(frames, seen.truth, seen.edges, strict=True):
        try:
            mask = decode_bits(one, seen.height, seen.width)
        except ValueError as error:
            raise UserError(
                f"The mask of {pruner} on {sample} has {error}; restore it from a copy."
            ) from error
        inner += pixels(mask & truth)
        scores.append(boundary_iou(inner_boundary(mask, seen.distance), edge))
    return float(np.mean(scores)), inner


def _place(seen: _Seen, geometry: str) -> tuple[float, float, float]:
    """Area, distance to the edge and to the crop, means over the frames in which there is a referent."""
    height, width = seen.height, seen.width
    views = regions(geometry, height, width)
    each = []
    for bits in seen.truth:
        if (box := _box(bits, height)) is None:
            continue
        crop = _distance(box, views[0], height, width) if len(views) == 1 else np.nan
        each.append((pixels(bits) / (height * width), _distance(box, WHOLE, height, width), crop))
    if not each:
        return np.nan, np.nan, np.nan
    area, edge, crop = np.mean(each, axis=0)
    return float(area), float(edge), float(crop)


def _box(bits: Bits, height: int) -> tuple[int, int, int, int] | None:
    """Top, left, bottom and right of a mask's columns, the last two exclusive; None if it is empty."""
    columns = np.flatnonzero(bits.any(axis=1))
    if not len(columns):
        return None
    rows = np.flatnonzero(
        np.unpackbits(np.bitwise_or.reduce(bits, axis=0).view(np.uint8), count=height, bitorder="little")
    )
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _distance(box: tuple[int, int, int, int], region: Region, height: int, width: int) -> float:
    """From a box to the nearest side of a region, as a share of the image's shorter side; negative beyond."""
    top, left, bottom, right = box
    gaps = (
        top - region[0] * height,
        left - region[1] * width,
        region[2] * height - bottom,
        region[3] * width - right,
    )
    return min(gaps) / min(height, width)


def _alike(asked: pd.DataFrame, nouns: Sequence[str]) -> NDArray[np.float64]:
    """(E,) how many other referents of the image are called by the same noun; NaN where none is known."""
    found = np.full(len(asked), np.nan)
    frame = pd.DataFrame(
        {"cluster": asked["cluster"].to_numpy(), "truth": asked["truth"].to_numpy(), "noun": list(nouns)}
    )
    frame = frame[frame["truth"].astype(bool)]
    for _, part in frame.groupby("cluster", sort=False):
        referents = part.groupby("truth", sort=False)
        named = [frozenset(filter(None, names)) for _, names in referents["noun"]]
        counts = named_alike(named)
        for count, (_, places) in zip(counts, referents, strict=True):
            found[places.index.to_numpy()] = count if count >= 0 else np.nan
    return found


def quantile_bins(values: NDArray[np.float64], count: int) -> Iterator[tuple[float, float]]:
    """(low, high) of up to `count` bins of about equally many values, the low end exclusive but of the first;
    where one value is frequent, bins are fewer.

    >>> import numpy as np
    >>> list(quantile_bins(np.array([0.0, 1, 2, 3, 4, 5, 6, 7]), 2))
    [(0.0, 3.0), (3.0, 7.0)]
    >>> list(quantile_bins(np.array([0.0, 0, 0, 0, 1]), 4))
    [(0.0, 0.0), (0.0, 1.0)]
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return
    levels = np.arange(1, count + 1) / count
    ends = np.unique(np.quantile(known, levels, method="inverted_cdf"))
    low = float(known.min())
    for high in ends:
        yield low, float(high)
        low = float(high)
