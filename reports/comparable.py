"""Which rows may be ranked together, and why the others may not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from harness.metrics import Metric

COLUMN = ["dataset", "split"]
LINE = ["pruner", "budget"]
BOUND = "none"
LABEL = "label"  # the kind of a budget that is a published row's name
KEPT = ", positions kept"  # behind the name of a method whose tokens keep theirs because the run asks for it
SETTING = ["backbone", "protocol", "answers", "device", "dtype", "attn", "model", "fingerprint", "evaluation"]
WORDS = {
    "device": ("device", "a processor rounds in its own way, and rounding can turn a choice of tokens"),
    "dtype": ("precision", "fewer digits move masks, whatever the pruner"),
    "attn": ("attention implementation", "it rounds differently and limits what a pruner can read"),
    "answers": ("answers", "a model that writes its answer may forget the [SEG] that a forced one holds"),
    "protocol": ("protocol", "expressions asked alone are not those asked in one conversation"),
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
    return clips.groupby(frame["dataset"]).transform("any").map({True: "video", False: "image"})


def fitting(frame: pd.DataFrame, metric: Metric) -> pd.Series[bool]:
    """Which records a metric is measured on: those of its medium, and of its data sets."""
    return frame["dataset"].map(metric.fits).astype(bool) & (medium_of(frame) == metric.medium)


def groups(frame: pd.DataFrame) -> list[Group]:
    """Part records by everything that must be equal in a ranking.

    Rows of a split with another data fingerprint part; splits that only one run has do not. A row whose
    tokens are the same in the last layer and on average stands in the tables of both kinds of budget; beside
    labels, which count nothing, stands the upper bound alone.
    """
    found = []
    for key, part in frame.groupby(SETTING, sort=False, dropna=False):
        facts = dict(zip(SETTING, map(str, key), strict=True))
        for prints, rows in _same_data(part):
            data = " ".join(sorted(set(prints.values())))
            even = (
                (rows["tokens_final"] == rows["tokens_mean"])
                .groupby([rows[c] for c in LINE])
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
    return [(prints, pd.concat(frames)) for prints, frames in bins]


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
    differ = pd.concat(prints).groupby(level=COLUMN).nunique() > 1
    mine = ["\n".join(one[one.index.isin(differ.index[differ])].sort_index()) for one in prints]
    return [hashlib.sha256(text.encode()).hexdigest()[:8] if "\n" in text else text for text in mine]


def why(parted: Sequence[Group]) -> list[str]:
    """In plain words, why tables of one backbone are not one table; empty if there is one table per
    backbone."""
    found = []
    for backbone in dict.fromkeys(group.facts["backbone"] for group in parted):
        twins = [group for group in parted if group.facts["backbone"] == backbone]
        for name, (word, reason) in WORDS.items():
            values = list(dict.fromkeys(_values(twins, name)))
            if len(values) > 1:
                found.append(
                    f"{backbone}: tables differ in {word} ({' / '.join(values)}) and are not ranked "
                    f"together: {reason}."
                )
    return found
