"""The leaderboard as one frame of numbers: a row per table, method and budget, with units and meanings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.cost import EXPLAIN
from harness.metrics import Metric
from harness.metrics.bootstrap import Estimate
from reports import comparable, costs, latex, leaderboard
from reports.columns import LLM, LOGPROB, SAID, SILENT, meanings
from reports.export import Column, Sheet
from reports.gather import Runs
from reports.machines import LETTER, is_time
from reports.table_text import slug
from reports.tables import BOUND, Table, TableRow

BYTES = ("activation_paper", "activation_peak")
COUNTED = ("macs_measured", "macs_projected", "flops_paper")
ENDS = {"": "", "_low": "lower end of the 95 % interval of ", "_high": "upper end of the 95 % interval of "}


def sheet(runs: Runs, tables: Sequence[Table]) -> Sheet:
    """All tables below each other, their warnings and what a footer says."""
    rows: list[dict[str, Any]] = []
    columns: dict[str, Column] = {}
    for table in tables:
        prices = costs.costs_of(runs.costs, table)
        columns |= _columns(table, prices)
        rows += [_row(line, table, prices.get((line.pruner, line.budget), {})) for line in table.lines]
    held = {name for row in rows for name in row}
    columns = {name: column for name, column in columns.items() if name in held}
    frame = pd.DataFrame([{name: row.get(name) for name in columns} for row in rows])
    for name in columns:
        if frame[name].isna().all():
            frame = frame.drop(columns=name)
        elif frame[name].map(lambda value: value is None or isinstance(value, int | float)).all():
            kinds = {type(value) for value in frame[name] if value is not None and value == value}
            frame[name] = frame[name].astype(
                "boolean" if kinds == {bool} else "Int64" if kinds == {int} else np.float64
            )
    known = [*leaderboard.warning(runs), *comparable.why([table.group for table in tables], runs.facts)]
    known += [
        *runs.notes,
        *(f"{table.title}: {one}" for table in tables for one in leaderboard.warnings(table, runs)),
    ]
    return Sheet(
        " and ".join(dict.fromkeys(table.title for table in tables)),
        frame,
        {name: columns[name] for name in map(str, frame)},
        known,
        lambda: (
            "\n".join(
                f"# {table.title}\n\n{leaderboard.leaderboard_markdown(table, runs.costs)}\n"
                for table in tables
            )
            + "\n"
            + "".join(f"- {note}\n" for note in (*known, *leaderboard.footer(runs, list(tables))))
        ),
        lambda: "\n".join(
            latex.leaderboard_table(table, costs.costs_of(runs.costs, table), number, _told(table, runs))
            for number, table in enumerate(tables, 1)
        ),
    )


def _told(table: Table, runs: Runs) -> list[str]:
    """What stands in a caption beside what columns are."""
    return [*leaderboard.warning(runs), *runs.notes, *leaderboard.warnings(table, runs)]


def _unit(metric: Metric) -> str:
    """A metric's unit as the end of a column's name."""
    return slug(metric.unit_word).replace("-", "_") or "value"


def _score(metric: Metric, one: Estimate | None, name: str) -> dict[str, float | None]:
    """A score with the ends of its interval."""
    values = (None,) * 3 if one is None else (one.value, one.low, one.high)
    scaled = [None if value is None or np.isnan(value) else float(metric.scale * value) for value in values]
    return {f"{name}{end}_{_unit(metric)}": value for end, value in zip(ENDS, scaled, strict=True)}


def _row(line: TableRow, table: Table, price: Mapping[str, Any]) -> dict[str, Any]:
    score, facts = table.metric, table.group.facts
    row: dict[str, Any] = {
        "table": table.title,
        **{name: facts[name] for name in ("backbone", "protocol", "answers", "device", "dtype")},
        "metric": score.name,
        "method": line.pruner,
        "kind": "bound" if line.pruner == BOUND else "control" if line.control else "method",
        "budget": line.budget,
        "budget_counts": facts["budget_kind"],
        "sees_truth": line.sees_truth,
        "seeds": len(line.seeds),
        **_score(score, line.average, "average"),
    }
    if len(line.seeds) > 1:
        row[f"seed_spread_{_unit(score)}"] = float(score.scale * (max(line.seeds) - min(line.seeds)) / 2)
    row["relative_percent"] = table.relative(line)
    for kind, one in line.against.items():
        row[f"apart_from_{kind}"] = one.apart
        row[f"q_against_{kind}"] = one.q
    for column in table.columns:
        row |= _score(score, line.scores.get(column), " ".join(column))
    for other in table.beside:
        values = list(line.others[other.name].values())
        row[f"{other.name}_{_unit(other)}"] = float(other.scale * np.mean(values)) if values else None
    row |= {
        "seg_said_percent": None if line.said is None else 100 * line.said,
        "seg_logprob": line.seg_logprob,
        "without_seg": line.silent,
        "tokens_last_layer": line.tokens_final,
        "tokens_mean": line.tokens_mean,
        "tokens_llm": line.tokens_llm,
        "tokens_per_layer": line.schedule or None,
        "rounding_tokens_percent": None if line.rounding is None else 100 * line.rounding[0],
        "rounding_points": None if line.rounding is None else 100 * line.rounding[1],
    }
    return row | {_priced(name): _plain(price.get(name)) for name in _cost_names(price)}


def _cost_names(price: Mapping[str, Any]) -> list[str]:
    """Cost columns of the full table, with their spread, and the machine's letter."""
    spread = [f"{name}_{end}" for name in costs.SPREAD for end in ("p5", "p95")]
    return [name for name in (*costs.SHOWN, *spread, LETTER) if costs.known(price.get(name))]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _priced(name: str) -> str:
    """A cost column with its unit."""
    return f"{name}_bytes" if name in BYTES else "no_speedup" if name == "note" else name


def _columns(table: Table, prices: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[str, Column]:
    """Unit and meaning of every column that a table may have, in the order of the file."""
    score, word = table.metric, _unit(table.metric)
    said = meanings(score, table.beside)
    facts = {
        "table": "rows of one table are ranked together",
        "backbone": "model",
        "protocol": "which expressions form a conversation",
        "answers": "forced, or generated by the model",
        "device": "where it ran",
        "dtype": "precision",
        "metric": "what the table ranks by",
        "method": said["method"],
        "kind": "bound, method or control",
        "budget": "visual tokens that were asked for",
        "budget_counts": "what a budget counts: tokens of the last layer (final), their mean over layers, or "
        "a paper's label",
        "sees_truth": "whether it reads the truth masks",
        "seeds": "seeds of a method that draws; 1 of others",
    }
    found = {name: Column(text) for name, text in facts.items()}
    found |= {
        f"average{end}_{word}": Column(f"{text}{said['Avg.']}", score.unit) for end, text in ENDS.items()
    }
    found[f"seed_spread_{word}"] = Column(
        "half the distance between the best and the worst seed", score.points
    )
    found["relative_percent"] = Column(said["Rel. %"], "%")
    for kind in ("random", "best", "baseline"):
        found[f"apart_from_{kind}"] = Column(f"whether Avg. differs from `{kind}`: {said['not apart from']}")
        found[f"q_against_{kind}"] = Column("p-value of that difference after control of false discoveries")
    for column in table.columns:
        name = " ".join(column)
        found |= {
            f"{name}{end}_{word}": Column(f"{text}{said['data set and split']}", score.unit)
            for end, text in ENDS.items()
        }
    for one in table.beside:
        found[f"{one.name}_{_unit(one)}"] = Column(said[one.title], one.unit)
    found |= {
        "seg_said_percent": Column(said[SAID], "%"),
        "seg_logprob": Column(said[LOGPROB], "nat"),
        "without_seg": Column(said[SILENT]),
        "tokens_last_layer": Column(said["tokens"], "tokens"),
        "tokens_mean": Column(said["mean over layers"], "tokens"),
        "tokens_llm": Column(said[LLM], "tokens"),
        "tokens_per_layer": Column(said["per layer"], "tokens"),
        "rounding_tokens_percent": Column(said["on rounding"], "%"),
        "rounding_points": Column(said["on rounding"], "points of IoU"),
    }
    for name in dict.fromkeys(name for price in prices.values() for name in _cost_names(price)):
        if name == LETTER:
            found[LETTER] = Column("letter of the machine that timed the row; `notes` name each")
            continue
        unit = "bytes" if name in BYTES else "multiply-adds" if name in COUNTED else ""
        unit = unit or ("ms" if is_time(name) and not name.startswith("speedup_") else "")
        meant = EXPLAIN.get(name.partition(".")[0], EXPLAIN.get(name.rpartition("_")[0], name))
        found[_priced(name)] = Column(meant, unit)
    return found
