"""Which rows may be ranked together, and why the others may not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from harness.metrics import Metric

COLUMN = ["dataset", "split"]
LINE = ["pruner", "budget"]
BOUND = "none"
LABEL = "label"  # the kind of a budget that is a published row's name
KEPT = ", positions kept"  # behind the name of a method whose tokens keep theirs because the run asks for it
SETTING = [
    *("backbone", "protocol", "draws", "answers", "device", "dtype", "attn", "model", "fingerprint"),
    "evaluation",
]
WORDS = {
    "device": ("device", "a processor rounds in its own way, and rounding can turn a choice of tokens"),
    "dtype": ("precision", "fewer digits move masks, whatever the pruner"),
    "attn": ("attention implementation", "it rounds differently and limits what a pruner can read"),
    "answers": ("answers", "a model that writes its answer may forget the [SEG] that a forced one holds"),
    "protocol": ("protocol", "expressions asked alone are not those asked in one conversation"),
    "draws": (
        "the draws of the protocol",
        "another seed asks other expressions together, in other words",
    ),
    "model": ("the model's settings", "the same budget is another sequence in the language model"),
    "fingerprint": ("weights", "another checkpoint is another model"),
    "evaluation": ("code", "other code of backbone, data or metric may count otherwise"),
    "data": ("data", "the same split name stands for other images, expressions or masks"),
    "budget_kind": (
        "what a budget counts",
        "tokens in the last layer, mean tokens over the layers, and a paper's label of a row are different "
        "prices",
    ),
}
# by what option runs differ in a fact: one that has the fact's values, or those of a plan that say so
OPTIONS: dict[str, tuple[str, ...]] = {
    "data": ("limit", "data", "datasets"),
    "model": ("backbones",),
    "fingerprint": ("backbones",),
}
OF_VALUE = {name: name for name in ("device", "dtype", "attn", "answers", "protocol")} | {"draws": "seed"}


@dataclass(frozen=True)
class Group:
    """Rows that may be ranked together.

    Attributes:
        facts: what all its rows share, by the names of SETTING and WORDS.
    """

    facts: dict[str, str]
    frame: pd.DataFrame


def medium_of(frame: pd.DataFrame) -> pd.Series[str]:
    """What each record is about, "image" or "video": the medium of its data set."""
    clips = frame["frames"] > 1
    if "j" in frame:  # a clip may have one frame
        clips |= frame["j"].notna()
    codes = clips.groupby(frame["dataset"], observed=True).transform("any").to_numpy(dtype=np.int8)
    return pd.Series(pd.Categorical.from_codes(codes, pd.Index(["image", "video"])), index=frame.index)


def fitting(frame: pd.DataFrame, metric: Metric) -> pd.Series[bool]:
    """Which records a metric is measured on: those of its medium, and of its data sets."""
    named = [name for name in frame["dataset"].unique() if metric.fits(name)]
    return frame["dataset"].isin(named) & (medium_of(frame) == metric.medium)


def groups(frame: pd.DataFrame) -> list[Group]:
    """Part records by everything that must be equal in a ranking.

    Rows of a split with another data fingerprint part; splits that only one run has do not. A row whose
    tokens are the same in the last layer and on average stands in the tables of both kinds of budget; beside
    labels, which count nothing, stands the upper bound alone.
    """
    found = []
    for key, part in frame.groupby(SETTING, sort=False, dropna=False, observed=True):
        facts = dict(zip(SETTING, map(str, key), strict=True))
        for prints, rows in _same_data(part):
            data = " ".join(sorted(set(prints.values())))
            even = (
                (rows["tokens_final"] == rows["tokens_mean"])
                .groupby([rows[c] for c in LINE], observed=True)
                .transform("all")
            )
            for kind in sorted(rows["budget_kind"].astype(str).unique()):
                joins = rows["pruner"] == BOUND if kind == LABEL else even
                here = rows[(rows["budget_kind"].astype(str) == kind) | joins]
                found.append(Group(facts | {"data": data, "budget_kind": kind}, here))
    return found


def _same_data(part: pd.DataFrame) -> list[tuple[dict[tuple[str, str], str], pd.DataFrame]]:
    """Runs whose splits of one name have one fingerprint, together."""
    bins: list[tuple[dict[tuple[str, str], str], list[pd.DataFrame]]] = []
    for _, rows in part.groupby("run", sort=False):
        unique = rows.drop_duplicates([*COLUMN, "data"])
        prints = {
            (str(name), str(split)): str(data) for name, split, data in unique[[*COLUMN, "data"]].to_numpy()
        }
        for known, frames in bins:
            if all(known.get(column, value) == value for column, value in prints.items()):
                known |= prints
                frames.append(rows)
                break
        else:
            bins.append((prints, [rows]))
    return [(prints, frames[0] if len(frames) == 1 else pd.concat(frames)) for prints, frames in bins]


def title(group: Group, others: Sequence[Group]) -> str:
    """Backbone, protocol, and what tells the group from others of the same backbone and protocol."""
    twins = [
        one
        for one in others
        if all(one.facts[name] == group.facts[name] for name in ("backbone", "protocol"))
    ]
    telling = {name: _values(twins, name) for name in WORDS}
    place = [one is group for one in twins].index(True)
    words = [f"{WORDS[name][0]} {values[place]}" for name, values in telling.items() if len(set(values)) > 1]
    return ", ".join([group.facts["backbone"], f"protocol {group.facts['protocol']}", *words])


def _values(twins: Sequence[Group], name: str) -> list[str]:
    """What each group has of one fact; of the data a digest of the fingerprints of those splits that differ
    somewhere."""
    if name != "data":
        return [group.facts[name] for group in twins]
    prints = [group.frame.drop_duplicates(COLUMN).set_index(COLUMN)["data"].astype(str) for group in twins]
    differ = pd.concat(prints).groupby(level=COLUMN, observed=True).nunique() > 1
    mine = ["\n".join(one[one.index.isin(differ.index[differ])].sort_index()) for one in prints]
    return [hashlib.sha256(text.encode()).hexdigest()[:8] if "\n" in text else text for text in mine]


def why(parted: Sequence[Group], runs: Sequence[Mapping[str, Any]] = (), brief: bool = False) -> list[str]:
    """In plain words, why tables of one backbone are not one table; empty if there is one table per
    backbone.

    Args:
        runs: what `run.json` says of each run; names the options by which they differ.
        brief: without what the difference does.
    """
    found = []
    for backbone in dict.fromkeys(group.facts["backbone"] for group in parted):
        twins = [group for group in parted if group.facts["backbone"] == backbone]
        for name, (word, reason) in WORDS.items():
            values = list(dict.fromkeys(_values(twins, name)))
            if len(values) > 1:
                options = _options(name, values, twins, runs)
                told = " / ".join(values)
                if brief:
                    found.append(
                        f"{backbone}: tables differ in {word} ({options or told}): not ranked together."
                    )
                    continue
                found.append(
                    f"{backbone}: tables differ in {word} ({told}) and are not ranked together: {reason}"
                    f"{f' ({options})' if options else ''}."
                )
    return found


def _options(
    name: str, values: Sequence[str], twins: Sequence[Group], runs: Sequence[Mapping[str, Any]]
) -> str:
    """The options that make groups differ in a fact, with the values that they had: `--limit 4 and 12`."""
    if name in OF_VALUE:
        return f"--{OF_VALUE[name]} {_and(values)}"
    places = [sorted(group.frame["run"].unique()) for group in twins]
    told = [[runs[place] for place in mine if place < len(runs)] for mine in places]
    found = []
    for option in OPTIONS.get(name, ()):
        asked = [_and(_asked(run, option) for run in mine) for mine in told]
        if len(set(asked)) > 1:
            found.append(f"--{option} {_and(asked)}")
    if name == "data" and not found:
        found = _other_samples([run for mine in told for run in mine])
    if name == "evaluation":
        commits = [_and(str(run.get("provenance", {}).get("commit"))[:10] for run in mine) for mine in told]
        found = [f"commit {_and(commits)}"] if len(set(commits)) > 1 else []
    return ", ".join(found)


def _asked(run: Mapping[str, Any], option: str) -> str:
    """What a run's plan says of an option, as on the command line."""
    value = run.get("plan", {}).get(option)
    if option == "limit" and value == 0:
        return "0 (all)"
    if value is None:
        return "not given"
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _other_samples(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """How many samples that two runs share are not the same in both."""
    known: dict[str, str] = {}
    other: set[str] = set()
    for run in runs:
        for samples in run.get("samples", {}).values():
            for name, content in samples:
                if known.setdefault(name, content) != content:
                    other.add(name)
    return [f"{len(other)} of {len(known)} samples were edited, first {min(other)}"] if other else []


def _and(values: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(values))
