"""What commands print beside leaderboards, as sheets for a file: projected costs, the account of sharing, a
diagnosis, studies, the gate, and the list of names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from backbones.costs import Prompt
from harness.cost import EXPLAIN
from harness.cost.placements import Placements
from harness.cost.projection import Projection
from harness.cost.roofline import Gpu
from harness.cost.sharing import Account
from reports import efficiency, latex, placements
from reports.export import Column, Sheet

if TYPE_CHECKING:
    from harness.diagnosis.summary import Diagnosis
    from harness.gate.comparison import Comparison
    from reports.study import Study

MACS = "multiply-adds"
# columns of a paper's table of costs, and what they share
PAPER = {
    **dict.fromkeys(("method", "budget", "tokens mean"), ""),
    **dict.fromkeys(("FLOPs (T)", "paper", "error"), "FLOPs"),
    **dict.fromkeys(("activation (GiB)", "paper ", "error "), "activation"),
    **dict.fromkeys(("peak (GiB)", "all modules (TMAC)", "roofline prefill (ms)"), ""),
}
ROW = {"pruner": Column("method"), "budget": Column("visual tokens that were asked for")}


def projection_sheet(
    projection: Projection, title: str, backbone: str, prompt: Prompt, attn: str, on: Gpu
) -> Sheet:
    """Projected costs, beside what was printed."""
    printed = efficiency.published(backbone)
    frame = efficiency.figures(projection, printed, on)
    columns = ROW | {
        "tokens_final": Column(EXPLAIN["tokens_final"], "tokens"),
        "tokens_mean": Column(EXPLAIN["tokens_mean"], "tokens"),
        "tokens_per_layer": Column("visual tokens of every layer", "tokens"),
        "flops_paper": Column(EXPLAIN["flops_paper"], MACS),
        "flops_printed": Column("what a paper printed of it", MACS),
        "activation_paper_bytes": Column(EXPLAIN["activation_paper"], "bytes"),
        "activation_printed_bytes": Column("what a paper printed of it", "bytes"),
        "activation_peak_bytes": Column(EXPLAIN["activation_peak"], "bytes"),
        "macs_projected": Column(EXPLAIN["macs_projected"], MACS),
        "roofline_prefill_ms": Column(f"prefill by the roofline of {on.name}", "ms"),
        "waits_for_weights": Column("whether reading the weights takes longer than computing"),
        "flops_fastv": Column("FastV's formula", "FLOPs"),
        "flops_visual": Column("of visual tokens alone", "FLOPs"),
        "activation_llm_viewer_bytes": Column("LLM-Viewer's count", "bytes"),
    }
    macs = {
        name: Column(f"{EXPLAIN['macs_projected']}: {name[5:]}", MACS)
        for name in map(str, frame)
        if name[:5] == "macs."
    }
    notes = efficiency.projection_notes(projection, printed, prompt, attn, on)
    text = efficiency.render_projection(projection, backbone, prompt, attn, on)
    shown = efficiency.cells(projection, printed, on)

    def tex() -> str:
        heads = [latex.Head(name.strip(), above) for name, above in PAPER.items()]
        rows = shown[list(PAPER)].astype(str).to_numpy().tolist()
        numeric = [False, *[True] * (len(heads) - 1)]
        return latex.table(f"{title}, projected costs", " ".join(notes), heads, [("", rows)], numeric)

    return replace(_sheet(f"{title}, projected", frame, columns | macs, notes, text), tex=tex)


def sharing_sheet(title: str, accounts: Mapping[str, Account]) -> Sheet:
    """What a sweep saves by sharing, a row per protocol."""
    rows = [
        {"conversations": name, "cells": found.cells, "alone": found.naive}
        | {f"saved: {what}": saved for what, saved in found.savings.items()}
        | {"shared": found.shared, "ratio": found.ratio, "once_per_run": found.once}
        for name, found in accounts.items()
    ]
    frame = pd.DataFrame(rows)
    columns = {
        "conversations": Column("what is asked of an image"),
        "cells": Column("pruners at a budget"),
        "alone": Column("per image, each cell by itself", MACS),
        "shared": Column("per image, what is left", MACS),
        "ratio": Column("alone over shared"),
        "once_per_run": Column("the constant beginning of the prompt", MACS),
    }
    saved = {
        name: Column(f"per image: {name[7:]}", MACS) for name in map(str, frame) if name.startswith("saved: ")
    }
    text = f"# {title}, a sweep, projected\n\n{efficiency.sharing_table(dict(accounts))}"
    return _sheet(f"{title}, a sweep, projected", frame, columns | saved, (), text)


def diagnosis_sheet(found: Diagnosis) -> Sheet:
    """Every figure of a diagnosis with its interval, one row each."""
    from harness.diagnosis.summary import BINS, SIMILARITIES
    from reports.diagnosis import verdict

    asked = [
        *(("auroc", name, "", f"auroc {name}") for name in SIMILARITIES),
        *(("lowest tenth", name, "", f"rank {name} 0") for name in SIMILARITIES),
        *(("highest tenth", name, "", f"rank {name} {BINS - 1}") for name in SIMILARITIES),
        *(("correlation with [CLS]", kind, "", kind) for kind in ("pearson", "spearman")),
        *(("attention on the start token", f"layer {k}", "", f"start {k}") for k in range(found.layers)),
    ]
    rows: list[dict[str, Any]] = []
    for quantity, of, _, column in asked:
        one = found.mean(column)
        rows.append(
            {"quantity": quantity, "of": of, "budget": None}
            | {"value": one.value, "low": one.low, "high": one.high}
        )
    for row in found.kept.table.to_dict("records") if found.kept is not None else ():
        here = {"of": row["pruner"], "budget": row["budget"]}
        for quantity in ("coverage", "correlation"):
            ends = {"value": row[quantity], "low": row[f"{quantity} low"], "high": row[f"{quantity} high"]}
            rows.append({"quantity": f"referent {quantity}"} | here | ends)
        rows.append({"quantity": "gIoU"} | here | {"value": row["gIoU"], "low": np.nan, "high": np.nan})
    columns = {
        "quantity": Column(
            "auroc: chance that a token of the referent is more similar than one outside; "
            "tenths: share of the referent's tokens there; referent coverage: share of its "
            "area whose tokens are kept; referent correlation: of coverage with IoU"
        ),
        "of": Column("similarity, layer of the text tower, or pruner"),
        "budget": Column("visual tokens, of a pruner"),
        "value": Column("mean over images, 0..1 or a correlation"),
        "low": Column("lower end of the 95 % interval"),
        "high": Column("upper end of the 95 % interval"),
    }
    frame = pd.DataFrame(rows)
    frame["budget"] = frame["budget"].astype("Int64")
    return Sheet(f"Diagnosis of {found.backbone}", frame, columns, [verdict(found)])


def study_sheet(found: Study) -> Sheet:
    """Pairs of a study, in the unit of its metric."""
    from reports.study import AXES, frame_of, markdown

    first, second = AXES[found.axis][0]
    frame, unit = frame_of(found), found.metric.unit
    for name in (first, second, "difference", "low", "high"):
        frame[name] *= found.metric.scale
    frame["said"] *= 100
    frame.insert(0, "backbone", found.backbone)
    columns = ROW | {
        "backbone": Column("model"),
        first: Column(f"{found.metric.title}, {first}", unit),
        second: Column(f"{found.metric.title}, {second}", unit),
        "difference": Column(f"{second} minus {first}", found.metric.points),
        "low": Column("lower end of its 95 % interval", found.metric.points),
        "high": Column("upper end of its 95 % interval", found.metric.points),
        "p": Column("p-value"),
        "q": Column("p-value after control of false discoveries over the study"),
        "said": Column("answers that hold a [SEG]", "%"),
    }
    return _sheet(found.axis.capitalize(), frame, columns, [found.sentence], markdown(found), _named)


def placements_sheet(found: Placements) -> Sheet:
    """Placements of a budget, by shapes alone."""
    frame = placements.frame_of(found)
    for name in ("each", "tokens", "llm", "whole"):
        frame[name] = frame[name].astype("Int64")  # nothing where a budget cannot be
    columns = {
        "placement": Column("where the budget acts"),
        "budget": Column("tokens of a frame that are kept of CLIP's", "tokens"),
        "each": Column("tokens of a frame in the language model", "tokens"),
        "tokens": Column("visual tokens in the language model", "tokens"),
        "llm": Column("of the language model", MACS),
        "whole": Column("of all modules", MACS),
        "prefill": Column(f"prefill by the roofline of {found.gpu.name}", "s"),
        "fits": Column("whether the language model has positions for it"),
        "why": Column("why it cannot be"),
        "saved_llm": Column("share of the official multiply-adds of the language model"),
        "saved_whole": Column("share of the official multiply-adds of all modules"),
    }
    notes = [placements.sentence(found), *placements.notes(found)]
    return _sheet(
        f"Placements on {found.backbone}", frame, columns, notes, placements.markdown(found), _named
    )


def gate_sheet(found: Comparison) -> Sheet:
    """Every cell that the gate compared, with what failed and what else changed."""
    changed = set(map(id, found.changes))
    rows = [
        {
            **{name: getattr(one, name) for name in ("pruner", "budget", "seed")},
            "result": "failed" if one.reasons else "changed" if id(one) in changed else "same",
            "ciou_before": one.before,
            "ciou_now": one.after,
            "mean_iou_before": one.mean_before,
            "mean_iou_now": one.mean_after,
            **{name: getattr(one, name) for name in ("fell", "rose")},
            "expressions": one.of,
            "why": "; ".join((*one.reasons, *one.notes)),
        }
        for one in found.all_cells
    ]
    columns = ROW | {
        "seed": Column("of a pruner that draws"),
        "result": Column("failed: beyond what rounding explains; changed: within the tolerances; same"),
        "ciou_before": Column("cIoU over all splits in the baseline", "%"),
        "ciou_now": Column("cIoU over all splits", "%"),
        "mean_iou_before": Column("mean IoU in the baseline", "%"),
        "mean_iou_now": Column("mean IoU", "%"),
        "fell": Column("expressions whose IoU fell"),
        "rose": Column("expressions whose IoU rose"),
        "expressions": Column("in all"),
        "why": Column("what no rounding explains, and what else changed"),
    }
    notes = [f"not in the baseline: {', '.join(found.unguarded)}"] if found.unguarded else []
    return _sheet("Gate", pd.DataFrame(rows, columns=list(columns)), columns, notes)


def list_sheet(rows: Iterable[Mapping[str, Any]]) -> Sheet:
    """All that can be named on the command line, a row per name."""
    frame = pd.DataFrame(list(map(dict, rows)))
    columns = {
        "list": Column("pruner, backbone, data set or metric"),
        "name": Column("as on the command line"),
        "parameters": Column("with their defaults"),
        "kind": Column("of a pruner: method or control"),
        "stage": Column("of a pruner: tower, or layer of the language model"),
        "reads": Column("what a pruner reads"),
        "reference": Column("where it is from"),
        "deployable": Column("whether a pruner needs features behind the projector alone"),
        "told": Column("what it is"),
        "unit": Column("of a metric"),
    }
    runs = {
        name: Column(f"whether the pruner runs on {name[8:]}")
        for name in map(str, frame)
        if name[:8] == "runs_on_"
    }
    for name in ("deployable", *runs):
        frame[name] = frame[name].astype("boolean")
    return _sheet("Names", frame, columns | runs)


# columns that have another name in a file, where it says the unit
_named = {"llm": "llm_macs", "whole": "whole_macs", "prefill": "prefill_seconds", "said": "said_percent"}


def _sheet(
    title: str,
    frame: pd.DataFrame,
    columns: Mapping[str, Column],
    notes: Sequence[str] = (),
    text: str | None = None,
    renamed: Mapping[str, str] | None = None,
) -> Sheet:
    """A sheet of those columns that a frame has, in its order."""
    names = dict(renamed or {})
    shown = frame.rename(columns=names)
    known = {names.get(name, name): columns[name] for name in map(str, frame)}
    return Sheet(title, shown, known, notes, None if text is None else lambda: f"{text}\n")
