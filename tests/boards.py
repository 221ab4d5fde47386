"""The boards that documents print, from small summaries in results/boards.

    python -m tests.boards glamm-mini RUN --seconds 223 --machine "two idle CPU cores"   # of a finished run
    python -m tests.boards              # renders all documents anew from the summaries
    python -m tests.boards --check      # names the documents that differ from the summaries, exits with 1

A summary holds the board as it was printed and where it comes from. A document says which board, and which
view of it, between two comments:

    <!-- board: glamm-mini short -->
    <!-- end of board -->
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
SUMMARIES = ROOT / "results" / "boards"
EMBEDDED = ROOT / "reports" / "published" / "embedded.csv"  # glamm-mini's own, as `reproduce` reads it
BLOCK = re.compile(r"(<!-- board: (\S+) (\w+) -->\n).*?(<!-- end of board -->)", re.DOTALL)
BOUND, HEADING = "none", "block"
KINDS = {
    "final": "",
    "mean": "Rows whose budget is a mean over the layers; what chooses before the model stands above:",
    "label": "Labels of published rows, which are compared with the upper bound alone:",
}
LEFT = ("method", "not apart from")
AVERAGES = ("Avg.", "J&F")
SPEED = ("speed-up prefill", "speed-up total")
SHORT = (*AVERAGES, "95 %", "Rel. %", "not apart from", "tokens", "mean over layers", *SPEED)
COSTS = ("tokens", "mean over layers", "per layer", "MACs G", "MACs projected G", "prefill ms", "compute ms")
COSTS += ("pruner ms", *SPEED, "note")
CONTROLS = ("uniform", "downsample", "oracle", "random")
BEST = 3  # methods of a budget in the short table


@dataclass(frozen=True)
class Board:
    """A board.

    Attributes:
        options: of the main command.
        plan: the same, as a run must have been asked.
    """

    options: str
    plan: dict[str, Any]

    @property
    def command(self) -> str:
        return f"python -m harness {self.options}"


MINI, CLIPS = {"pruners": "all", "budgets": "64,128,192"}, {"backbones": "videoglamm-mini", "pruners": "all"}
BOARDS = {
    "glamm-mini": Board("--pruners all --budgets 64,128,192", MINI),
    "glamm-mini-each": Board(
        "--pruners all --budgets 64,192 --protocol each --costs off",
        MINI | {"budgets": "64,192", "protocol": "each"},
    ),
    "videoglamm-mini": Board(
        "--backbones videoglamm-mini --pruners all --budgets 81,196", CLIPS | {"budgets": "81,196"}
    ),
}
ASKED = ("pruners", "budgets", "datasets", "protocol", "limit", "seed", "seeds", "positions", "answers")


# -- a run to a summary


def check_run(name: str, folder: Path) -> None:
    """Raise SystemExit if the folder holds no finished run of the board's command."""
    import backbones
    from harness import Plan
    from harness.plan import read_plans
    from harness.store.run_folder import finished

    board = BOARDS[name]
    plans = read_plans(folder)
    wanted = Plan(**board.plan)
    looked_at = wanted.pairs_of(backbones.one(wanted.backbones[0]))  # type: ignore[arg-type]
    wanted = replace(wanted.on(wanted.backbones[0]), datasets=",".join(map(":".join, looked_at))).resolved()
    for fact in ("backbones", *ASKED):
        mine, theirs = getattr(wanted, fact), getattr(plans[0], fact)
        if mine != theirs or len(plans) > 1:
            raise SystemExit(
                f"The run in {str(folder)!r} was asked something else ({fact}: {theirs!r}, not {mine!r}); "
                f"make one with: {board.command} --out DIR"
            )
    if not finished(folder):
        raise SystemExit(f"The run in {str(folder)!r} is unfinished; give its command again to go on.")


def summary_of(folder: Path) -> dict[str, Any]:
    """Tables and provenance of a run, as its leaderboard prints them."""
    from reports.costs import cost_row, costs_of
    from reports.gather import gather
    from reports.leaderboard import leaderboard_row
    from reports.tables import tables

    runs = gather([folder])
    facts = runs.runs[0].info["provenance"]
    made = {name: facts.get(name) for name in ("time", "commit", "dirty", "python", "threads", "packages")}
    made |= {"run": runs.runs[0].name, "weights": str(runs.frame["fingerprint"].iloc[0])}
    found = []
    for table in tables(runs):
        prices = costs_of(runs.costs, table)
        rows = [
            {HEADING: heading} | leaderboard_row(line, table) | cost_row(line, prices)
            for heading, block in table.blocks()
            for line in block
        ]
        columns = list(dict.fromkeys(column for row in rows for column in row))
        cells = [[row.get(column, "") for column in columns] for row in rows]
        found.append({"kind": table.group.facts["budget_kind"], "columns": columns, "rows": cells})
    return {"made": made, "tables": sorted(found, key=lambda table: [*KINDS].index(table["kind"]))}


def write(name: str, summary: dict[str, Any]) -> Path:
    """Write a summary, one row of a table per line, so that a difference of two versions can be read."""
    head = {"board": name, "command": BOARDS[name].command, "made": summary["made"]}
    tables = []
    for table in summary["tables"]:
        rows = ",\n".join(f"      {json.dumps(row, ensure_ascii=False)}" for row in table["rows"])
        columns = json.dumps(table["columns"], ensure_ascii=False)
        tables.append(
            f'    {{"kind": "{table["kind"]}",\n     "columns": {columns},\n     "rows": [\n{rows}]}}'
        )
    text = json.dumps(head, indent=2, ensure_ascii=False).removesuffix("\n}")
    path = SUMMARIES / f"{name}.json"
    path.write_text(f'{text},\n  "tables": [\n' + ",\n".join(tables) + "\n  ]\n}\n", encoding="utf-8")
    return path


def read(name: str) -> dict[str, Any]:
    """A summary; every table's rows as {column: text}."""
    path = SUMMARIES / f"{name}.json"
    if not path.exists():
        raise SystemExit(
            f"There is no {path.relative_to(ROOT)}; make it with: python -m tests.boards {name} RUN"
        )
    found = json.loads(path.read_text(encoding="utf-8"))
    for table in found["tables"]:
        table["rows"] = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    return found


# -- a summary to markdown


def made_of(summary: dict[str, Any]) -> str:
    """The line above a board: command, code, time, machine."""
    made = summary["made"]
    words = [f"`{summary['command']}`"]
    if made.get("commit"):
        words.append(f"code {made['commit'][:7]}{' with local changes' if made.get('dirty') else ''}")
    if made.get("time"):
        words.append(made["time"][:10])
    if made.get("seconds"):
        words.append(
            f"{made['seconds']} s on {made['machine']}" if made.get("machine") else f"{made['seconds']} s"
        )
    return ", ".join(words) + "."


def markdown(rows: list[dict[str, str]], columns: list[str]) -> str:
    """A table with a bold line per block; of a figure with its spread the median alone, and no column that is
    empty."""
    columns = ["method", *(name for name in columns if any(row.get(name) for row in rows))]
    marks = [":---" if name in LEFT else "---:" for name in columns]
    lines = [columns, marks]
    for number, row in enumerate(rows):
        if number == 0 or row[HEADING] != rows[number - 1][HEADING]:
            lines.append([f"**{row[HEADING]}**", *[""] * (len(columns) - 1)])
        cells = [row.get(name, "") for name in columns]
        ms = [name.endswith(" ms") for name in columns]
        lines.append([cell.split(" (")[0] if short else cell for cell, short in zip(cells, ms, strict=True)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def parts(summary: dict[str, Any], columns: Callable[[list[str]], list[str]]) -> str:
    """All tables below each other; rows of a mean that stand in the first one are left out."""
    first = summary["tables"][0]
    above = {(row[HEADING], row["method"]) for row in first["rows"]}
    found = []
    for table in summary["tables"]:
        rows = (
            table["rows"]
            if table is first
            else [r for r in table["rows"] if (r[HEADING], r["method"]) not in above]
        )
        if rows:
            found.append(f"{KINDS[table['kind']]}\n\n".lstrip() + markdown(rows, columns(table["columns"])))
    return "\n".join(found)


def scores(summary: dict[str, Any]) -> str:
    """Everything but costs, every data set."""
    costs = {*COSTS} - {"tokens", "mean over layers"}
    told = (HEADING, "method", "note")

    def chosen(columns: list[str]) -> list[str]:
        end = next((place for place, name in enumerate(columns) if name.startswith("MACs")), len(columns))
        return [name for name in columns[:end] if name not in costs and name not in told]

    return parts(summary, chosen)


def costs(summary: dict[str, Any]) -> str:
    """What the rows cost."""
    return parts(summary, lambda columns: [name for name in COSTS if name in columns])


def short(summary: dict[str, Any]) -> str:
    """Of every budget the best methods, and `random`."""
    rows = []
    for heading in dict.fromkeys(row[HEADING] for row in summary["tables"][0]["rows"]):
        block = [row for row in summary["tables"][0]["rows"] if row[HEADING] == heading]
        methods = [row for row in block if row["method"].split(" (")[0] not in CONTROLS]
        beside = [row for row in block if row["method"].startswith("random")]
        rows += [*methods[:BEST], *beside] if len(block) > 1 else block
    return markdown(rows, [name for name in SHORT if name in summary["tables"][0]["columns"]])


def protocols(summary: dict[str, Any], other: dict[str, Any]) -> str:
    """Avg. of two boards beside each other, what changes most first."""
    avg = [
        {
            (row[HEADING], row["method"].split(" (")[0]): row["Avg."].split(" ")[0]
            for row in one["tables"][0]["rows"]
        }
        for one in (summary, other)
    ]
    bound = next(heading for heading, name in avg[0] if name == BOUND)
    blocks = [heading for heading in dict.fromkeys(heading for heading, _ in avg[1]) if heading != bound]
    names = [name for heading, name in avg[1] if heading == blocks[0] and (heading, name) in avg[0]]
    names.sort(key=lambda name: float(avg[1][blocks[0], name]) - float(avg[0][blocks[0], name]))
    head = [f"{one}, {re.sub('[^0-9]', '', heading)}" for heading in blocks for one in ("glamm", "each")]
    lines = [["method", *head], [":--", *["--:"] * len(head)]]
    lines.append([BOUND, *[one[bound, BOUND] for _ in blocks for one in avg]])
    lines += [[name, *[one[heading, name] for heading in blocks for one in avg]] for name in names]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


VIEWS: dict[str, Callable[..., str]] = {
    "short": short,
    "scores": scores,
    "costs": costs,
    "protocols": protocols,
}


def block(names: str, view: str) -> str:
    """What stands between two comments: where the view comes from, and below it the view."""
    if view not in VIEWS:
        raise SystemExit(f"A board has no view {view!r}; it has {', '.join(VIEWS)}.")
    summaries = [read(name) for name in names.split("+")]
    return "\n" + "\n\n".join(map(made_of, summaries)) + f"\n\n{VIEWS[view](*summaries)}\n"


def published(summary: dict[str, Any]) -> str:
    """The board as CSV, one row per method and budget, for `reproduce` to compare a run with."""
    first = summary["tables"][0]["columns"]
    splits = first[first.index("method") + 1 : first.index("Avg.") + 1]
    source = f"model card of glamm-mini: {summary['command']}"
    rows: dict[tuple[str, str], list[str]] = {}
    for row in (row for table in summary["tables"] for row in table["rows"]):
        key = row["method"].split(" (")[0], re.sub("[^0-9]", "", row[HEADING])
        rows.setdefault(key, [row["method"], *key, *(row[name].split(" ")[0] for name in splits), source])
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(
        [["method", "pruner", "budget", *splits, "source"], *rows.values()]
    )
    return file.getvalue()


def documents() -> Iterator[Path]:
    """All that may print a board."""
    yield from (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    yield from sorted((ROOT / "backbones").rglob("README.md"))


def rendered(text: str) -> str:
    """A document with its boards as the summaries have them."""
    return BLOCK.sub(lambda found: f"{found[1]}{block(found[2], found[3])}{found[4]}", text)


def renewed() -> Iterator[tuple[Path, str]]:
    """Every file that holds a board, with what it should hold."""
    for path in documents():
        yield path, rendered(path.read_text(encoding="utf-8"))
    if EMBEDDED.exists():
        yield EMBEDDED, published(read("glamm-mini"))


def main(arguments: list[str]) -> int:
    """Take a run in, or render, or check; returns the exit code."""
    parser = argparse.ArgumentParser("python -m tests.boards", description=__doc__.split("\n")[0])
    parser.add_argument("board", nargs="?", choices=BOARDS, help="the board that a run is of")
    parser.add_argument("run", nargs="?", type=Path, help="folder of its finished run")
    parser.add_argument("--seconds", type=int, help="wall time of the board's command")
    parser.add_argument("--machine", help="what it ran on, e.g. 'two idle CPU cores'")
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args(arguments)
    if given.board:
        if given.run is None:
            parser.error(f"give the folder of a finished run: {BOARDS[given.board].command} --out DIR")
        check_run(given.board, given.run)
        summary = summary_of(given.run)
        summary["made"] |= {
            name: value for name in ("seconds", "machine") if (value := getattr(given, name)) is not None
        }
        print(write(given.board, summary).relative_to(ROOT))
    changed = [(path, text) for path, text in renewed() if path.read_text(encoding="utf-8") != text]
    for path, text in changed:
        print(f"{'not as its boards: ' if given.check else ''}{path.relative_to(ROOT)}")
        if not given.check:
            path.write_text(text, encoding="utf-8")
    return 1 if given.check and changed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
