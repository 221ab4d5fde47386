"""The failure atlas: on which expressions a pruned row loses against the unpruned one, from the records of a
run alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.diagnosis.association import Share, drawn_again, explained, one_of
from harness.diagnosis.difficulty import Split, split_by_difficulty
from harness.diagnosis.factors import BEFORE, OF_EXPRESSION, measure_factors, quantile_bins
from harness.metrics.bootstrap import Estimate, adjusted
from harness.store import records
from harness.store.run_folder import finished
from pruners.base import UserError

BOUND = "none"
KEPT = ", positions kept"  # behind the name of a method whose tokens keep theirs because the run asks for it
BINS = 4
HARD = 0.8  # an expression is hard if `downsample` keeps less than this share of its full IoU
LINE = ["pruner", "budget"]
ITEM = ["sample", "expression"]
# what has to be one in a comparison, and how it is called
SETTING = {
    "backbone": "backbone",
    "fingerprint": "weights",
    "protocol": "protocol",
    "answers": "answers",
    "device": "device",
    "dtype": "precision",
    "attn": "attention",
    "model": "settings of the model",
    "evaluation": "code",
    "geometry": "geometry",
}


@dataclass(frozen=True)
class Atlas:
    """What a run's records say of its losses. Scores and losses are IoU in 0..1 (of clips J, where it was
    measured); a loss is that of the unpruned row minus the method's, of the same expression.

    Attributes:
        run: its folder.
        expressions: one row per expression: what was asked, `full` and `full boundary` of the unpruned row
            with its `mask`, and the factors.
        answers: one row per line and expression: `line`, `place` of the expression, `iou`, `boundary`,
            `loss`, `boundary loss` and `coverage`, means over seeds, and the first seed's `mask`.
        lines: one row per method and budget, best first below its budget: `kind`, `budget_kind`, and
            means with limits of `iou`, `loss`, `boundary`, `boundary loss` and their difference, with `q`.
        bins: per line, factor and bin: its ends, counts, and the mean loss with limits.
        contrasts: per line and factor: mean loss in the last bin minus that in the first, with `q`.
        explained: per line: R^2 of coverage alone and beside the other factors, with limits and `q`.
        split: hard and easy expressions; None where `downsample` was not run.
        left_out: expressions without a truth or without an answer of some row, and how many.
        unknown: factors that say nothing here.
    """

    run: Path
    backbone: str
    protocol: str
    score: str
    images: int
    expressions: pd.DataFrame
    answers: pd.DataFrame
    lines: pd.DataFrame
    bins: pd.DataFrame
    contrasts: pd.DataFrame
    explained: pd.DataFrame
    split: Split | None
    left_out: int
    unknown: tuple[str, ...]

    @property
    def things(self) -> str:
        """What is drawn again, in words."""
        return "clips" if self.score == "J" else "images"


def atlas(run: str | Path, hard: float = HARD) -> Atlas:
    """Read a finished run and measure.

    Args:
        hard: as HARD.

    Raises:
        UserError: the run is not finished, has no unpruned row, no method, no kept tokens or several
            settings, or its records cannot be trusted.
    """
    folder = Path(run)
    frame = records.load_records(folder)
    if frame.empty:
        raise UserError(
            f"The run in {str(folder)!r} has no evaluated sample; give the folder of a finished run, e.g. "
            "results/runs/<id>."
        )
    if not finished(folder):
        raise UserError(
            f"The run in {str(folder)!r} is not finished, so some of its rows lack expressions; give its "
            "command again to finish it."
        )
    return measure_atlas(frame, records.samples(folder), folder, hard)


def measure_atlas(frame: pd.DataFrame, samples: pd.DataFrame, run: Path, hard: float = HARD) -> Atlas:
    """Measure records and samples as `harness.store.records` reads them.

    Raises:
        UserError: as `atlas`.
    """
    frame = frame.assign(geometry=frame["geometry"].fillna(BEFORE))
    _check(frame, run)
    frame = frame.assign(image=records.media(frame), score=_score(frame))
    kept = (frame["positions"] == "kept") & ~frame["own_positions"].astype(bool)
    kept &= frame["pruner"] != BOUND  # whose tokens have one set of positions
    frame["pruner"] = frame["pruner"].where(~kept, frame["pruner"] + KEPT)
    asked, answers, left_out = _paired(frame, samples, run)
    geometry = str(frame["geometry"].iloc[0])
    factors, boundary = measure_factors(asked, answers, geometry)
    answers = answers.assign(boundary=boundary)
    full = answers[answers["pruner"] == BOUND].groupby("place")
    expressions = pd.concat([asked, factors], axis=1)
    expressions["full"], expressions["full boundary"] = full["score"].mean(), full["boundary"].mean()
    expressions["mask"] = full["mask"].first()
    answers, lines = _lines(answers[answers["pruner"] != BOUND], expressions)
    images = expressions["image"].to_numpy()
    known = expressions[expressions["asked"]]
    varied = {name: known[name].nunique() > 1 for name in OF_EXPRESSION}
    varied["coverage"] = answers["coverage"].nunique() > 1
    bins, contrasts = _bins(answers, expressions, lines, [name for name, there in varied.items() if there])
    return Atlas(
        run,
        str(frame["backbone"].iloc[0]),
        str(frame["protocol"].iloc[0]),
        "J" if "j" in frame and (frame["frames"] > 1).any() else "IoU",
        known["image"].nunique(),
        expressions,
        answers,
        _summed(answers, lines, images),
        bins,
        contrasts,
        _explained(answers, expressions, lines, [name for name in OF_EXPRESSION if varied[name]]),
        split_by_difficulty(answers, expressions, lines, hard),
        left_out,
        tuple(name for name, there in varied.items() if not there),
    )


def _check(frame: pd.DataFrame, run: Path) -> None:
    for name, word in SETTING.items():
        values = sorted(frame[name].astype(str).unique())
        if len(values) > 1:
            raise UserError(
                f"The run {str(run)!r} has rows of several kinds of {word} ({', '.join(values)}), whose "
                "losses are not one method's; give a run of one."
            )
    pruners = sorted(frame["pruner"].unique())
    if BOUND not in pruners:
        raise UserError(
            f"The run {str(run)!r} has no row of `{BOUND}`, which a loss is measured against (it has "
            f"{', '.join(pruners)}); run its command again with --pruners {BOUND},... added."
        )
    if pruners == [BOUND]:
        raise UserError(
            f"The run {str(run)!r} has the unpruned row alone, which loses nothing; run its command again "
            "with methods, e.g. --pruners all."
        )
    if frame["coverage"][frame["pruner"] != BOUND].isna().all():
        raise UserError(
            f"The run {str(run)!r} records no kept tokens of "
            f"{', '.join(one for one in pruners if one != BOUND)}, so nothing tells what covers the "
            "referent; add a method that keeps patches, e.g. --pruners all."
        )


def _score(frame: pd.DataFrame) -> pd.Series[float]:
    """J of clips that were measured, IoU of everything else."""
    if "j" not in frame:
        return frame["iou"]
    return frame["j"].where(frame["frames"] > 1, frame["iou"]).fillna(frame["iou"])


def _paired(frame: pd.DataFrame, samples: pd.DataFrame, run: Path) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """The expressions that have a truth and an answer of every line, their answers, and how many have not."""
    media = frame.drop_duplicates("sample").set_index("sample")[["cluster", "image", "frames"]]
    asked = samples.rename(columns={"image": "picture"}).join(media, on="sample", how="inner")
    asked = asked.reset_index(drop=True)
    keys = pd.MultiIndex.from_frame(asked[ITEM])
    lines = frame.groupby(LINE, sort=False).ngroup()
    answered = lines.groupby([frame[name] for name in ITEM], sort=False).nunique().reindex(keys).to_numpy()
    tried = ~np.isnan(answered)
    whole = tried & (answered == lines.max() + 1) & asked["truth"].astype(bool).to_numpy()
    if not whole.any():
        raise UserError(
            f"No expression of the run {str(run)!r} has a truth and an answer of every row; give a run whose "
            "rows share a split with public masks."
        )
    # those that were never asked stay: they tell what else is in an image
    asked = asked.assign(asked=whole)
    place = keys.get_indexer(pd.MultiIndex.from_frame(frame[ITEM]))
    answers = frame.assign(place=place)
    answers = answers[(place >= 0) & whole[place]].sort_values("place", kind="stable", ignore_index=True)
    return asked, answers, int((tried & ~whole).sum())


def _lines(answers: pd.DataFrame, expressions: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row per line and expression, and the lines: by falling budget, the smallest loss first."""
    merged = answers.groupby([*LINE, "place"], sort=True)
    means = merged[["score", "boundary", "coverage"]].mean().reset_index()
    means["mask"] = merged["mask"].first().to_numpy()
    means["loss"] = expressions["full"].to_numpy()[means["place"]] - means["score"]
    means["boundary loss"] = expressions["full boundary"].to_numpy()[means["place"]] - means["boundary"]
    facts = answers.drop_duplicates(LINE).set_index(LINE)[["kind", "budget_kind"]]
    lines = means.groupby(LINE)["loss"].mean().to_frame().join(facts).reset_index()
    lines = lines.sort_values(["budget", "loss", "pruner"], ascending=[False, True, True], ignore_index=True)
    number = pd.Series(lines.index, index=pd.MultiIndex.from_frame(lines[LINE]))
    means["line"] = number.reindex(pd.MultiIndex.from_frame(means[LINE])).to_numpy()
    means = means.rename(columns={"score": "iou"}).sort_values(["line", "place"], ignore_index=True)
    return means.drop(columns=LINE), lines.drop(columns="loss")


def _limits(name: str, found: Estimate) -> dict[str, float]:
    return {name: found.value, f"{name} low": found.low, f"{name} high": found.high}


def _summed(answers: pd.DataFrame, lines: pd.DataFrame, images: NDArray[Any]) -> pd.DataFrame:
    """Every line's means, and whether boundaries lose more than regions do."""
    count, labels = len(lines), images[answers["place"]]
    numbers = answers["line"].to_numpy()
    parts = {
        name: drawn_again(answers[name].to_numpy(), numbers, labels, count)
        for name in ("iou", "loss", "boundary", "boundary loss")
    }
    more = (answers["boundary loss"] - answers["loss"]).to_numpy()
    parts["boundary more"] = drawn_again(more, numbers, labels, count)
    rows: list[dict[str, Any]] = []
    tests: dict[str, list[float]] = {"loss": [], "boundary more": []}
    for place in range(count):
        estimates = {name: one_of(part, {place: 1.0}) for name, part in parts.items()}
        rows.append(
            {key: value for name, one in estimates.items() for key, value in _limits(name, one).items()}
        )
        for name, ps in tests.items():
            ps.append(estimates[name].p)
    found = pd.concat([lines, pd.DataFrame(rows)], axis=1)
    for name, ps in tests.items():
        found[f"{name} q"] = adjusted(ps)
    return found


def _bins(
    answers: pd.DataFrame, expressions: pd.DataFrame, lines: pd.DataFrame, factors: list[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean loss of every line in every bin of every factor, and the last bin against the first."""
    places, numbers = answers["place"].to_numpy(), answers["line"].to_numpy()
    labels = expressions["image"].to_numpy()[places]
    bins: list[dict[str, Any]] = []
    contrasts: list[dict[str, Any]] = []
    for factor in factors:
        own = factor == "coverage"
        values = answers[factor].to_numpy() if own else expressions[factor].to_numpy()[places]
        of_all = values if own else expressions[factor][expressions["asked"]].to_numpy()
        ends = list(quantile_bins(of_all, BINS))
        known = ~np.isnan(values)
        # the first bin whose upper end is not below the value
        which = np.searchsorted([high for _, high in ends], values[known])
        columns = numbers[known] * len(ends) + which
        losses, images = answers["loss"].to_numpy()[known], labels[known]
        part = drawn_again(losses, columns, images, len(lines) * len(ends))
        counts = np.bincount(columns, minlength=len(part.values))
        for place, names in enumerate(lines[LINE].itertuples(index=False, name=None)):
            line = dict(zip(LINE, names, strict=True))
            there = [k for k in range(len(ends)) if counts[place * len(ends) + k]]
            for k in there:
                column = place * len(ends) + k
                bins.append(
                    {
                        **line,
                        "line": place,
                        "factor": factor,
                        "bin": k,
                        "from": ends[k][0],
                        "to": ends[k][1],
                        "expressions": int(counts[column]),
                        "images": int(part.images[column]),
                        **_limits("loss", one_of(part, {column: 1.0})),
                    }
                )
            if len(there) < 2:
                continue
            first, last = place * len(ends) + there[0], place * len(ends) + there[-1]
            found = one_of(part, {first: -1.0, last: 1.0})
            contrasts.append(
                {
                    **line,
                    "line": place,
                    "factor": factor,
                    "first": part.values[first],
                    "last": part.values[last],
                    **_limits("difference", found),
                    "p": found.p,
                    "images": found.images,
                }
            )
    shown = [*LINE, "line", "factor", "first", "last", "difference", "difference low", "difference high", "p"]
    table = pd.DataFrame(contrasts, columns=[*shown, "images"])
    table["q"] = np.nan
    for _, rows in table.groupby("factor"):  # each is a table of the report
        table.loc[rows.index, "q"] = adjusted(rows["p"])
    return pd.DataFrame(bins), table


def _explained(
    answers: pd.DataFrame, expressions: pd.DataFrame, lines: pd.DataFrame, others: list[str]
) -> pd.DataFrame:
    """How much of every line's loss its coverage explains, alone and beside the other factors."""
    fixed = expressions[others].assign(**({"area": np.log(expressions["area"])} if "area" in others else {}))
    rows: list[dict[str, Any]] = []
    tests: dict[str, list[float]] = {"alone": [], "partial": []}
    named = list(lines[LINE].itertuples(index=False, name=None))
    for names, (_, part) in zip(named, answers.groupby("line", sort=True), strict=True):
        at = part["place"].to_numpy()
        images, beside = expressions["image"].to_numpy()[at], fixed.to_numpy()[at]
        numbers = part["coverage"].to_numpy(), part["loss"].to_numpy(), images
        found = {"alone": explained(*numbers), "partial": explained(*numbers, beside if others else None)}
        row: dict[str, Any] = dict(zip(LINE, names, strict=True))
        row["coverage"] = part["coverage"].mean()
        for name, one in found.items():
            row |= _share(name, one)
            tests[name].append(one.p)
        rows.append(row)
    table = pd.DataFrame(rows)
    qs = adjusted([*tests["alone"], *tests["partial"]])
    return table.assign(**{"alone q": qs[: len(table)], "partial q": qs[len(table) :]})


def _share(name: str, one: Share) -> dict[str, float]:
    return {
        f"{name} R2": one.value,
        f"{name} R2 low": one.low,
        f"{name} R2 high": one.high,
        f"{name} r": one.r,
        f"{name} images": one.images,
    }


def worst(found: Atlas, count: int) -> pd.DataFrame:
    """The largest losses behind every mean of `bins`: `line`, `factor`, `bin`, `rank`, `pictured`, `answer`
    and `place` (rows of `answers` and `expressions`).

    Args:
        count: of each bin, and where fewer of them have a picture in the run as many again that have.
    """
    answers, expressions = found.answers, found.expressions
    pictured = expressions["picture"].astype(bool).to_numpy()[answers["place"]]
    order = np.lexsort((answers["place"], -answers["loss"].round(9)))
    parts = []
    for factor, of_factor in found.bins.groupby("factor", sort=False):
        ends = sorted(set(of_factor["to"]))
        own = factor == "coverage"
        source = answers["coverage"] if own else expressions[factor].iloc[answers["place"]]
        values = source.to_numpy()
        ranked = order[~np.isnan(values[order])]
        part = pd.DataFrame(
            {
                "line": answers["line"].to_numpy()[ranked],
                "factor": factor,
                "bin": np.searchsorted(ends, values[ranked]),
                "pictured": pictured[ranked],
                "answer": ranked,
                "place": answers["place"].to_numpy()[ranked],
            }
        )
        part["rank"] = part.groupby(["line", "bin"]).cumcount()
        shown = part[part["pictured"]].groupby(["line", "bin"]).cumcount() < count
        part = part[(part["rank"] < count) | shown.reindex(part.index, fill_value=False)]
        parts.append(part.sort_values(["line", "bin", "rank"]))
    names = ["line", "factor", "bin", "rank", "pictured", "answer", "place"]
    return pd.concat(parts, ignore_index=True)[names] if parts else pd.DataFrame(columns=names)
